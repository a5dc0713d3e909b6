"""What a regular expression needs, in words both engines read alike.

The parse tree of Python's own parser is written out again as bytes: groups and names gone, classes spelled out byte by
byte and without the newline. So one expression means the same to Hyperscan and to RE2, and a match never leaves its
line. The same tree gives the literals of which every match holds one: the cheapest thing to look for.

What the parser does not know (``\\pL``, ``[[:alpha:]]``) or reads otherwise than RE2 (``x{,3}``) is left alone:
:func:`analyse` then returns nothing and every line is tried.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SHORTEST_LITERAL = 3
"""Shorter ones occur in most lines, and a callback each costs more than the whole expression."""

MOST_ALTERNATIVES = 32

_DIGITS = frozenset(b"0123456789")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_SPACE = frozenset(b"\t\n\f\r ")  # RE2's \s; Python's and Hyperscan's hold \v too
_ALL = frozenset(range(256))
_CATEGORIES: dict[Any, frozenset[int]] = {
    sre.CATEGORY_DIGIT: _DIGITS,
    sre.CATEGORY_NOT_DIGIT: _ALL - _DIGITS,
    sre.CATEGORY_WORD: _WORD,
    sre.CATEGORY_NOT_WORD: _ALL - _WORD,
    sre.CATEGORY_SPACE: _SPACE,
    sre.CATEGORY_NOT_SPACE: _ALL - _SPACE,
}
_ANCHORS: dict[Any, bytes] = {
    sre.AT_BEGINNING: b"^",
    sre.AT_BEGINNING_STRING: b"^",
    # Not AT_END: Hyperscan 5.4 misses "[a-c]$" on the last line of some buffers, so "$" is RE2's to decide.
    sre.AT_BOUNDARY: rb"\b",
    sre.AT_NON_BOUNDARY: rb"\B",
}


class _UnknownError(Exception):
    """Something that cannot be written so that both engines agree."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What to look for, to be read with multi-line anchors and case as written.

    Attributes
    ----------
    whole
        The expression itself, bytes for bytes; None where it cannot be written so.
    literal
        Alternatives of which every match holds one; None where the best is shorter than three bytes.
    prefix
        The first three bytes of those: often faster to find, and as often in every line.
    """

    whole: bytes | None = None
    literal: bytes | None = None
    prefix: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Literal:
    """Alternatives, each as its bytes (or, where case is ignored, classes of two)."""

    alternatives: tuple[tuple[bytes, ...], ...]

    @property
    def shortest(self) -> int:
        return min(map(len, self.alternatives))

    def written(self, length: int | None = None) -> bytes:
        return b"|".join(dict.fromkeys(b"".join(each[:length]) for each in self.alternatives))

    @property
    def worth(self) -> tuple[int, int]:
        return min(self.shortest, 24), -len(self.alternatives)


def analyse(regex: str) -> Needs:
    """What every line that ``regex`` matches must contain.

    Parameters
    ----------
    regex
        An expression that RE2 has accepted. Without non-ASCII characters it is matched byte by byte.
    """
    if "{," in regex or "[:" in regex:
        return Needs()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = parser.parse(regex)
    except (re.error, RecursionError, OverflowError, Warning):
        return Needs()
    if tree.getwidth()[0] == 0:
        # A match of no characters (``^\b``) is one that Hyperscan does not report.
        return Needs()
    writer = _Writer(wide=not regex.isascii())
    ignore_case = bool(tree.state.flags & sre.SRE_FLAG_IGNORECASE)
    literal = writer.literal(tree, ignore_case)
    whole = writer.whole(tree, ignore_case)
    if literal is None:
        return Needs(whole)
    return Needs(whole, literal.written(), literal.written(SHORTEST_LITERAL))


class _Writer:
    """Writes a parse tree out again. ``wide``: one character may be several bytes, and folding may leave ASCII."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide

    def whole(self, tree: Iterable[Any], ignore_case: bool) -> bytes | None:
        if self._wide:
            return None
        try:
            return self._sequence(tree, ignore_case)
        except (_UnknownError, RecursionError):
            return None

    def literal(self, tree: Iterable[Any], ignore_case: bool) -> _Literal | None:
        try:
            best = self._required(tree, ignore_case)
        except (_UnknownError, RecursionError):
            return None
        if best is None or best.shortest < SHORTEST_LITERAL:
            return None
        return best

    def _sequence(self, tree: Iterable[Any], ignore_case: bool) -> bytes:
        return b"".join(self._node(op, value, ignore_case) for op, value in tree)

    def _node(self, op: Any, value: Any, ignore_case: bool) -> bytes:
        if op is sre.LITERAL:
            return self._character(value, ignore_case)
        if op is sre.ANY:
            return b"."
        if op in (sre.IN, sre.NOT_LITERAL):
            items = value if op is sre.IN else [(sre.NEGATE, None), (sre.LITERAL, value)]
            return _class_of(_members(items, ignore_case))
        if op is sre.BRANCH:
            return b"(?:" + b"|".join(self._sequence(each, ignore_case) for each in value[1]) + b")"
        if op is sre.SUBPATTERN:
            _, added, removed, inner = value
            return b"(?:" + self._sequence(inner, _folds(ignore_case, added, removed)) + b")"
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, inner = value
            bounds = b"%d,%s" % (least, b"" if most is sre.MAXREPEAT else b"%d" % most)
            return b"(?:" + self._sequence(inner, ignore_case) + b"){" + bounds + b"}"
        if op is sre.AT and value in _ANCHORS:
            return _ANCHORS[value]
        raise _UnknownError

    def _character(self, code: int, ignore_case: bool) -> bytes:
        if self._wide:
            if ignore_case:  # k folds to the Kelvin sign, s to the long s
                raise _UnknownError
            return b"".join(b"\\x%02x" % byte for byte in chr(code).encode())
        return _class_of(_members([(sre.LITERAL, code)], ignore_case))

    def _required(self, tree: Iterable[Any], ignore_case: bool) -> _Literal | None:
        """The best literal of a sequence: the longest run, or what a branch or a repetition inside requires."""
        found: list[_Literal] = []
        run: list[bytes] = []
        for op, value, folds in [*_flat(tree, ignore_case), (sre.AT, None, False)]:
            if op is sre.LITERAL:
                run.append(self._character(value, folds))
                continue
            if run:
                found.append(_Literal((tuple(run),)))
                run = []
            inner = self._inside(op, value, folds)
            if inner is not None:
                found.append(inner)
        return max(found, key=lambda each: each.worth, default=None)

    def _inside(self, op: Any, value: Any, ignore_case: bool) -> _Literal | None:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT) and value[0] > 0:
            return self._required(value[2], ignore_case)
        if op is not sre.BRANCH:
            return None
        each = [self._required(branch, ignore_case) for branch in value[1]]
        whole = [literal for literal in each if literal is not None]
        alternatives = tuple(one for literal in whole for one in literal.alternatives)
        if len(whole) < len(each) or len(alternatives) > MOST_ALTERNATIVES:
            return None
        return _Literal(alternatives)


def _flat(tree: Iterable[Any], ignore_case: bool) -> Iterator[tuple[Any, Any, bool]]:
    """The nodes of a sequence with its groups opened, each with whether case is ignored there."""
    for op, value in tree:
        if op is sre.SUBPATTERN:
            _, added, removed, inner = value
            yield from _flat(inner, _folds(ignore_case, added, removed))
        else:
            yield op, value, ignore_case


def _folds(ignore_case: bool, added: int, removed: int) -> bool:
    return bool((ignore_case or added & sre.SRE_FLAG_IGNORECASE) and not removed & sre.SRE_FLAG_IGNORECASE)


def _members(items: Iterable[Any], ignore_case: bool) -> frozenset[int]:
    """The bytes of a class, newline left out: a match that crossed a line would not be one."""
    members: set[int] = set()
    negated = False
    for op, value in items:
        if op is sre.NEGATE:
            negated = True
        elif op is sre.LITERAL:
            members.add(value)
        elif op is sre.RANGE:
            members.update(range(value[0], value[1] + 1))
        elif op is sre.CATEGORY and value in _CATEGORIES:
            members |= _CATEGORIES[value]
        else:
            raise _UnknownError
    if max(members, default=0) > 0xFF:
        raise _UnknownError
    if ignore_case:
        members.update(byte ^ 0x20 for byte in tuple(members) if chr(byte).isascii() and chr(byte).isalpha())
    return frozenset((_ALL - members if negated else members) - {0x0A})


def _class_of(members: frozenset[int]) -> bytes:
    """A class that holds exactly these bytes, as ranges; a single byte stands alone."""
    if not members:
        raise _UnknownError
    if len(members) == 1:
        return b"\\x%02x" % next(iter(members))
    ranges: list[tuple[int, int]] = []
    for byte in sorted(members):
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1] = (ranges[-1][0], byte)
        else:
            ranges.append((byte, byte))
    return b"[" + b"".join(b"\\x%02x-\\x%02x" % pair for pair in ranges) + b"]"
