"""Log patterns and the matcher that finds them, in time linear in the text whatever the pattern and whatever the line.

Hyperscan finds candidates (by required literals, or by whole expressions where those turn out to be cheaper), RE2
confirms each on its line and reads the named groups. Where Hyperscan has no wheel RE2 finds them too, slower and with
the same results. Python's ``re`` is never used on log text: it is quadratic on ``ERROR.*evaluation failed``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import re2

from agent.errors import PatternError
from agent.logwatch.expression import Needs, analyse
from agent.logwatch.records import Multiline, record_end
from agent.model import Labels, Severity

try:
    import hyperscan
except ImportError:  # no wheel for this machine: RE2 alone
    hyperscan = None  # type: ignore[assignment]

LONGEST_REGEX = 4096
LARGEST_PROGRAM = 4000
"""RE2 instructions. Its worst case is text × program: beyond this a 64 KiB line could hold the loop up."""

GROUPS_WITHIN_BYTES = 4096
"""Groups are read from this much of a match: extraction is RE2's slow engine (about 40 MB/s)."""

LONGEST_LABEL = 128
RESERVED_GROUPS = frozenset(
    {"pattern", "file", "line", "severity", "truncated", "logged_at", "lines", "repeated", "matches", "__name__"}
)

_FIRST_WEIGHING_BYTES = 32 << 20
"""An ordinary log in a day; whoever floods us pays for the better choice."""
_WEIGHED_BYTES = 64 * 1024
_CONFIRM_S = 1e-6
"""What RE2 takes for one candidate line."""

# A command that does not end within its bound is none: it must not hide what stands behind it.
_ANSI = re.compile(
    rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b\n]{0,256}(?:\x07|\x1b\\)|[()][0-9A-Za-z]|[@-Z\\^_=>])"
)
_UNSEEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


@dataclass(frozen=True, slots=True)
class Rate:
    """Only the last of ``count`` matches within ``per_s`` seconds is an event."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """One named regular expression over log lines; ``match`` and ``no_match`` are lines that prove it.

    Attributes
    ----------
    exclude
        Lines that match this too do not count; empty: none.
    fields
        Of a JSON line: dotted keys, each with the regex that its whole value must match.
    multiline
        What belongs to the record that a match opens.
    """

    name: str
    regex: str
    severity: Severity = Severity.ERROR
    match: tuple[str, ...] = ()
    no_match: tuple[str, ...] = ()
    exclude: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    multiline: Multiline | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern on a line: ``start`` and ``end`` are the line's in the buffer, its newline not included.

    ``places`` says for each of ``groups`` where in the line it stands; (-1, -1): in a JSON value.
    """

    pattern: Pattern
    start: int
    end: int
    groups: Labels = ()
    places: tuple[tuple[int, int], ...] = ()


def without_ansi(buffer: bytes | bytearray, start: int, stop: int) -> tuple[bytes | bytearray, int, int]:
    """The same lines without colours and other terminal commands, as (buffer, start, stop)."""
    if buffer.find(b"\x1b", start, stop) < 0:
        return buffer, start, stop
    cleaned = _ANSI.sub(b"", bytes(buffer[start:stop]))
    return cleaned, 0, len(cleaned)


def legible(raw: bytes) -> str:
    """Text without terminal commands, control or bidi characters, and with U+FFFD for broken UTF-8."""
    return _UNSEEN.sub("", _ANSI.sub(b"", raw).decode("utf-8", "replace")).strip()


def readable(raw: bytes, limit: int) -> str:
    """A line as it may be stored and shown: :func:`legible`, at most ``limit`` characters, a cut one ends in ``…``."""
    return shortened(legible(raw[: 4 * limit + 4]), limit)


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def compile_patterns(patterns: Sequence[Pattern], *, use_hyperscan: bool = True) -> Matcher:
    """Make a matcher.

    Parameters
    ----------
    patterns
        Their names must differ.
    use_hyperscan
        False: RE2 alone, as on a machine without a Hyperscan wheel.

    Raises
    ------
    PatternError
        A pattern that RE2 refuses (look-around, back-references), that is too large, that matches the empty line, or
        whose groups carry a name that is taken.
    """
    names = [pattern.name for pattern in patterns]
    for name in names:
        if names.count(name) > 1:
            raise PatternError(f'cannot use pattern "{name}": another pattern has this name')
    confirmers = [_Confirmer(pattern) for pattern in patterns]
    needs = [analyse(pattern.regex) for pattern in patterns]
    if hyperscan is not None and use_hyperscan:
        return Matcher(confirmers, _HyperscanFinder(needs))
    return Matcher(confirmers, _Re2Finder(needs))


def check_regex(name: str, regex: str, *, may_be_empty: bool = False) -> None:
    """Refuse what a pattern of this name cannot use.

    Raises
    ------
    PatternError
        As :func:`compile_patterns`; ``may_be_empty``: it may match the empty line.
    """
    _Searcher(Pattern(name, regex), regex, may_be_empty=may_be_empty)


def quoted(text: str) -> str:
    """A regex that matches this text alone."""
    escaped: str = re2.escape(text)
    return escaped


def check_samples(pattern: Pattern) -> list[str]:
    """Faults of the pattern and of its samples; empty when each behaves as it says."""
    try:
        matcher = compile_patterns([pattern])
    except PatternError as error:
        return [str(error)]
    faults = []
    for line in pattern.match:
        if not any(matcher.scan(line.encode() + b"\n")):
            faults.append(f'pattern "{pattern.name}" does not match its sample "{line}"')
    for line in pattern.no_match:
        if any(matcher.scan(line.encode() + b"\n")):
            faults.append(f'pattern "{pattern.name}" matches "{line}", which its samples say it must not')
    return faults


class Matcher:
    """Finds the lines of a buffer that patterns match. Not for use by two threads at once."""

    def __init__(self, confirmers: Sequence[_Confirmer], finder: _Finder) -> None:
        self._confirmers = tuple(confirmers)
        self._finder = finder
        self._by_name = {confirmer.pattern.name: confirmer for confirmer in self._confirmers}
        self.multiline = any(confirmer.pattern.multiline for confirmer in self._confirmers)
        """Whether any pattern has records of several lines."""

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(confirmer.pattern for confirmer in self._confirmers)

    def record_end(self, match: Match, buffer: bytes | bytearray, stop: int) -> tuple[int, bool]:
        """Where the record of a match ends, and whether it surely ends there; its line's end if it is one line."""
        if match.pattern.multiline is None:
            return match.end, True
        is_hit = self._by_name[match.pattern.name].goes_on
        return record_end(match.pattern.multiline, is_hit, buffer, match.start, match.end, stop)

    def scan(self, buffer: bytes | bytearray, start: int = 0, stop: int | None = None) -> Iterator[Match]:
        """Matches in the order of their lines: one for each pattern and line.

        Parameters
        ----------
        buffer
            Holds whole lines, each ended by ``\\n``, from ``start`` to ``stop`` (its end). It must not change before
            the iteration ends.
        """
        stop = len(buffer) if stop is None else stop
        line_start, line_end = 0, -1
        line = b""
        tried: set[int] = set()
        for offset, number in sorted(self._finder.candidates(buffer, start, stop)):
            if offset > line_end:
                line_start = buffer.rfind(b"\n", start, offset) + 1 or start
                line_end = buffer.find(b"\n", offset, stop)
                line_end = stop if line_end < 0 else line_end
                line = bytes(buffer[line_start:line_end])
                tried.clear()
            if number in tried:
                continue
            tried.add(number)
            confirmer = self._confirmers[number]
            match = confirmer.confirm(line, line_start, line_end)
            if match is not None:
                yield match


class _Confirmer:
    """RE2 for one pattern: without groups for the verdict, with them only for what the match names."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._search = _Searcher(pattern, pattern.regex)
        self._exclude = _Searcher(pattern, pattern.exclude) if pattern.exclude else None
        self._fields = _Fields(pattern) if pattern.fields else None
        rule = pattern.multiline
        self._goes_on = _Searcher(pattern, rule.regex, may_be_empty=True) if rule else None

    def confirm(self, line: bytes, start: int, end: int) -> Match | None:
        """The match of ``line``, which is ``start`` to ``end`` of its buffer; a group that took no part is absent."""
        span = self._search.find(line)
        if span is None or (self._exclude is not None and self._exclude.find(line) is not None):
            return None
        found = self._search.groups(line, span)
        if self._fields is not None:
            more = self._fields.read(line)
            if more is None:
                return None
            found.update(more)
        named = sorted((name, text, place) for name, (text, place) in found.items() if text)
        return Match(
            self.pattern, start, end, tuple((name, text) for name, text, _ in named), tuple(at for _, _, at in named)
        )

    def goes_on(self, line: bytes) -> bool:
        """Whether a line matches the regex of ``multiline``."""
        return self._goes_on is not None and self._goes_on.find(line) is not None


_Groups = dict[str, tuple[str, tuple[int, int]]]


class _Searcher:
    """One expression of a pattern."""

    def __init__(self, pattern: Pattern, regex: str, *, may_be_empty: bool = False) -> None:
        if len(regex) > LONGEST_REGEX:
            raise _refused(pattern, f"it is {len(regex)} characters long, at most {LONGEST_REGEX} are allowed")
        # Broken UTF-8 must not hide an error: ASCII patterns see bytes. Others see characters of the repaired line.
        self._wide = not regex.isascii()
        raw = regex.encode()
        full = _compile(pattern, raw, wide=self._wide)
        if full.programsize > LARGEST_PROGRAM:
            raise _refused(pattern, "it is too large")
        if not may_be_empty and full.search(b"") is not None:
            raise _refused(pattern, "it matches the empty line, so every line")
        self._names = {index: name.decode() for name, index in full.groupindex.items()}
        for name in self._names.values():
            if name in RESERVED_GROUPS or name.startswith("__"):
                raise _refused(pattern, f'the group name "{name}" is taken')
        # RE2 reads named groups even when told never to capture; the rewritten expression has none.
        plain = analyse(regex).whole
        self._test = (_compile(pattern, plain) if plain else _compile(pattern, raw, wide=self._wide))._regexp.Match
        self._read = full._regexp.Match if self._names else None

    def find(self, line: bytes) -> tuple[int, int] | None:
        """The span of the first match in ``line``."""
        text = self._repaired(line)
        span: tuple[int, int] = self._test(_ANYWHERE, text, 0, len(text))[0]
        return None if span[0] < 0 else span

    def groups(self, line: bytes, span: tuple[int, int]) -> _Groups:
        """The named groups of a match, each with its place."""
        if self._read is None:
            return {}
        text = self._repaired(line)[: span[0] + GROUPS_WITHIN_BYTES]
        spans = self._read(_ANYWHERE, text, span[0], len(text))
        named = {name: spans[index] for index, name in self._names.items() if index < len(spans)}
        return {
            name: (readable(text[start:end], LONGEST_LABEL), (start, end))
            for name, (start, end) in named.items()
            if start >= 0
        }

    def _repaired(self, line: bytes) -> bytes:
        return line.decode("utf-8", "replace").encode() if self._wide else line


class _Fields:
    """Conditions on the values of a JSON object; a group in one of them is a label, as in the pattern's own regex."""

    def __init__(self, pattern: Pattern) -> None:
        self._conditions = [
            (key.split("."), _Searcher(pattern, rf"^(?:{regex})$", may_be_empty=True)) for key, regex in pattern.fields
        ]

    def read(self, line: bytes) -> _Groups | None:
        """The groups of all conditions, or None when one does not hold or the line is no JSON object."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
        found: _Groups = {}
        for path, searcher in self._conditions:
            text = _text_at(value, path)
            span = None if text is None else searcher.find(text)
            if text is None or span is None:
                return None
            found.update({name: (label, (-1, -1)) for name, (label, _) in searcher.groups(text, span).items()})
        return found


def _text_at(value: object, path: Sequence[str]) -> bytes | None:
    """A value as its text: strings as they are, the rest as JSON writes it; objects, lists and null have none."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return json.dumps(value).encode() if isinstance(value, bool | int | float) else None


class _Finder(Protocol):
    def candidates(self, buffer: bytes | bytearray, start: int, stop: int) -> Iterable[tuple[int, int]]:
        """(an offset inside the line, the pattern's number): at least every line that a pattern matches."""


class _HyperscanFinder:
    """Finds required literals, their beginnings or whole expressions, whichever is measured to be cheapest here.

    It depends on the text (a literal in every line makes a callback for each) and on what Hyperscan makes of the set:
    a few literals more or less can halve or double its speed.
    """

    def __init__(self, needs: Sequence[Needs]) -> None:
        self._needs = needs
        expressions = {number: need.literal or _supported(need.whole) for number, need in enumerate(needs)}
        self._expressions = {number: each for number, each in expressions.items() if each is not None}
        self._untold = [number for number, each in expressions.items() if each is None]
        self._bulk = _database(self._expressions, 0)
        self._once: Any = None
        self._scanned_bytes, self._weigh_at_bytes = 0, _FIRST_WEIGHING_BYTES

    def candidates(self, buffer: bytes | bytearray, start: int, stop: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        if self._bulk is not None:
            self._scanned_bytes += stop - start
            if self._scanned_bytes >= self._weigh_at_bytes and stop - start >= _WEIGHED_BYTES:
                self._weigh(buffer, start, stop)
            if not self._scan(self._bulk, buffer, start, stop, found):
                found = self._line_by_line(buffer, start, stop)
        if self._untold:
            found.extend((at, number) for at, _ in _lines(buffer, start, stop) for number in self._untold)
        return found

    def _weigh(self, buffer: bytes | bytearray, start: int, stop: int) -> None:
        """Compare what could be looked for on this slice, and again when eight times as much has been read."""
        self._weigh_at_bytes *= 8
        choices = [
            self._choose(lambda need: need.literal),
            self._choose(lambda need: need.prefix),
            self._choose(lambda need: need.whole),
        ]
        try:
            databases = [_database(expressions, 0) for expressions in choices]
        except hyperscan.error:  # a whole expression is too much for Hyperscan: literals it is
            return
        costs = [min(self._cost(database, buffer, start, stop) for _ in range(3)) for database in databases]
        cheaper = costs.index(min(costs))
        if choices[cheaper] != self._expressions:
            self._expressions, self._bulk, self._once = choices[cheaper], databases[cheaper], None

    def _choose(self, preferred: Callable[[Needs], bytes | None]) -> dict[int, bytes]:
        return {number: preferred(self._needs[number]) or each for number, each in self._expressions.items()}

    def _cost(self, database: Any, buffer: bytes | bytearray, start: int, stop: int) -> float:
        found: list[tuple[int, int]] = []
        began = time.thread_time()
        if not self._scan(database, buffer, start, stop, found):
            return float("inf")
        return time.thread_time() - began + _CONFIRM_S * len(found)

    @staticmethod
    def _scan(database: Any, buffer: bytes | bytearray, start: int, stop: int, found: list[tuple[int, int]]) -> bool:
        """Scan at once. False: hits so dense that their callbacks would cost more than going line by line."""
        most = 256 + (stop - start) // 64
        before = start - 1  # a hit's end is one past its last byte

        def hit(number: int, _start: int, end: int, _flags: int, _context: object) -> bool | None:
            found.append((before + end, number))
            return True if len(found) > most else None

        try:
            database.scan(memoryview(buffer)[start:stop], hit)
        except hyperscan.ScanTerminated:
            return False
        return True

    def _line_by_line(self, buffer: bytes | bytearray, start: int, stop: int) -> list[tuple[int, int]]:
        """At most one hit for each pattern and line, so a line made of literals costs no more than any other."""
        found: list[tuple[int, int]] = []
        if self._once is None:
            self._once = _database(self._expressions, hyperscan.HS_FLAG_SINGLEMATCH)
        view = memoryview(buffer)
        at = start

        def hit(number: int, _start: int, _end: int, _flags: int, _context: object) -> None:
            found.append((at, number))

        for at, end in _lines(buffer, start, stop):
            self._once.scan(view[at:end], hit)
        return found


class _Re2Finder:
    """All expressions as one alternation; a line it matches is a candidate for every pattern."""

    def __init__(self, needs: Sequence[Needs]) -> None:
        wholes = {number: need.whole for number, need in enumerate(needs) if need.whole is not None}
        try:
            options = _options()
            options.max_mem = 64 << 20
            joined = b"|".join(b"(?:%s)" % whole for whole in wholes.values())
            self._any = re2.compile(b"(?m:" + joined + b")", options)._regexp.Match if wholes else None
        except re2.error:  # together too large
            self._any, wholes = None, {}
        self._joined = tuple(wholes)
        self._untold = [number for number in range(len(needs)) if number not in wholes]

    def candidates(self, buffer: bytes | bytearray, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if self._untold:
            yield from ((at, number) for at, _ in _lines(buffer, start, stop) for number in self._untold)
        while self._any is not None and start < stop:
            hit, _ = self._any(_ANYWHERE, buffer, start, stop)[0]
            if hit < 0:
                return
            yield from ((hit, number) for number in self._joined)
            start = buffer.find(b"\n", hit, stop) + 1 or stop


_ANYWHERE: Any = re2._Anchor.UNANCHORED
"""The binding's own call is used below the wrapper: a match object for each line would double the cost."""


def _options() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


def _compile(pattern: Pattern, raw: bytes, *, wide: bool = False) -> Any:
    options = _options()
    if wide:
        options.encoding = re2.Options.Encoding.UTF8
    try:
        return re2.compile(raw, options)
    except re2.error as error:
        raise _refused(pattern, _reason(error)) from None


def _refused(pattern: Pattern, reason: str) -> PatternError:
    return PatternError(f'cannot use pattern "{pattern.name}": {reason}')


def _reason(error: Exception) -> str:
    """RE2's complaint in the operator's words."""
    raw = error.args[0] if error.args else ""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    if text.startswith(("invalid perl operator: (?=", "invalid perl operator: (?!", "invalid perl operator: (?<")):
        return "look-around is not supported: its time cannot be bounded"
    if re.search(r"invalid escape sequence: \\[1-9]", text):
        return "back-references are not supported: their time cannot be bounded"
    if "too large" in text or "repetition size" in text:
        return f"it is too large ({text})"
    return text


def _supported(whole: bytes | None) -> bytes | None:
    """``whole`` if Hyperscan takes it."""
    if whole is None:
        return None
    try:
        _database({0: whole}, 0)
    except hyperscan.error:
        return None
    return whole


def _database(expressions: dict[int, bytes], flags: int) -> Any:
    if not expressions:
        return None
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=list(expressions.values()),
        ids=list(expressions),
        flags=[flags | hyperscan.HS_FLAG_MULTILINE] * len(expressions),
    )
    return database


def _lines(buffer: bytes | bytearray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each line, newline not included."""
    while start < stop:
        end = buffer.find(b"\n", start, stop)
        end = stop if end < 0 else end
        yield start, end
        start = end + 1
