"""What the agent and its hands say to each other: one JSON object a line, each a frozen dataclass, strictly read.

A request is ``{"id": 7, "verb": "survey", …fields}``; its answers carry the same id: any number of partial replies and
one final reply (welcome, measured, surveyed, pruned, signalled or refused). The first request is ``hello`` with the
version. ``prune`` and ``compress`` announce how many items follow, ``items`` requests with the same id bring them
(``rotate``: ``moves``), and each is answered before the next is sent: a peer that goes away, or that is told to pause,
stops the work between two items.

Unknown fields, missing fields, wrong types, repeated keys, NaN and lines over :data:`MAX_LINE_BYTES` are refused.

A file name is bytes, a line is text: :func:`quote` turns one into the other without loss and without control,
bidirectional or undecodable characters, so that a name can be stored, printed and mailed as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from agent.errors import OpsError

VERSION = 1
MAX_LINE_BYTES = 256 * 1024
MAX_BATCH_ITEMS = 256
MAX_BATCH_CHARS = 32 * 1024
"""Quoted characters of all paths of one batch: at most 4 bytes each, so a batch always fits in a line."""
MAX_DEPTH = 64
MAX_PATH_BYTES = 4096
MAX_ITEMS = 10_000_000

Use = Literal["atime", "mtime"]
LastUse = Literal["exact", "relatime", "unknown"]
Step = Literal["shift", "rename", "copytruncate"]


class ProtocolError(OpsError):
    """A line that is not part of the protocol."""


class RefusedError(OpsError):
    """A request that was understood and is not carried out. ``reason`` is one word for the ledger."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


# -- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One file: its quoted path beneath the surveyed folder, its blocks on disk and what identifies it."""

    path: str
    bytes: int
    device: int
    inode: int
    mtime_ns: int
    atime_ns: int


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log or archive: its quoted path beneath the listed folder, its length, and the rest as :class:`Item`."""

    path: str
    size_bytes: int
    bytes: int
    device: int
    inode: int
    mtime_ns: int
    atime_ns: int


@dataclass(frozen=True, slots=True)
class Move:
    """A log that becomes the archive ``to`` (a quoted name in its own folder), or an archive that gets another number.

    ``rename`` puts a new empty log of the same owner and mode in its place; ``copytruncate`` copies and empties it;
    ``shift`` is for archives. A log may grow meanwhile, so that its device and inode alone must be what the plan saw.
    """

    path: str
    to: str
    step: Step
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that was looked at and left alone, with the named reason."""

    path: str
    reason: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How many things were left alone for one reason."""

    reason: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one item: ``done``, or the named reason why it was left alone at the last moment."""

    path: str
    result: str
    bytes: int


# -- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request. For ``distrust_clock_s`` seconds ages must not be judged: the agent saw the clock stepped."""

    version: int
    distrust_clock_s: float


@dataclass(frozen=True, slots=True)
class Measure:
    """How large is the tree ``path`` (quoted, relative) under the policy's ``root`` (exactly as the policy has it)?"""

    root: str
    path: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Which files would go? See :func:`agent.ops.verbs.survey` for what the numbers mean."""

    root: str
    path: str
    older_than_s: float | None
    down_to_bytes: int | None
    use: Use
    keep_used_within_s: float
    limit: int


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove ``count`` files that ``items`` requests will name."""

    root: str
    path: str
    use: Use
    keep_used_within_s: float
    count: int


@dataclass(frozen=True, slots=True)
class Items:
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Logs:
    """Which logs and archives lie beneath ``path``? At most ``limit`` are named."""

    root: str
    path: str
    limit: int


@dataclass(frozen=True, slots=True)
class Compress:
    """Put ``count`` files that ``items`` requests will name into gzip files beside them."""

    root: str
    path: str
    count: int


@dataclass(frozen=True, slots=True)
class Rotate:
    """Carry out ``count`` moves that ``moves`` requests will name, in their order."""

    root: str
    path: str
    count: int


@dataclass(frozen=True, slots=True)
class Moves:
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """Tell the main process of a unit of the policy, with SIGHUP, to open its logs again."""

    unit: str


Request = Hello | Measure | Survey | Prune | Items | Logs | Compress | Rotate | Moves | Signal


# -- replies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent about once a second while a tree is walked, so that silence means trouble."""

    entries: int


@dataclass(frozen=True, slots=True)
class Measured:
    """``bytes`` are blocks on disk, each inode once, folders included. ``partial``: not all of it could be seen."""

    bytes: int
    files: int
    partial: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Files that would go, in the order of their removal."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class LeftAlone:
    items: tuple[Left, ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The end of a survey: the whole tree, what was left alone (in full, where ``LeftAlone`` gave examples)."""

    files: int
    bytes: int
    left: tuple[Tally, ...]
    last_use: LastUse
    partial: bool


@dataclass(frozen=True, slots=True)
class Listed:
    files: tuple[LogFile, ...]


@dataclass(frozen=True, slots=True)
class Signalled:
    """The unit's main process was sent the signal."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The hands are ready for the next ``items`` or ``moves``."""


@dataclass(frozen=True, slots=True)
class Results:
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """The end of a prune, compression or rotation. ``bytes_freed`` is what statvfs says, ``bytes_removed`` the sum of
    the removed files, or of what compressed ones became smaller.
    """

    files: int
    bytes_removed: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str
    message: str


Reply = (
    Welcome
    | Progress
    | Measured
    | Found
    | Listed
    | LeftAlone
    | Surveyed
    | Ready
    | Results
    | Pruned
    | Signalled
    | Refused
)

_VERBS: Mapping[str, type[Request]] = {cls.__name__.lower(): cls for cls in typing.get_args(Request)}
_REPLIES: Mapping[str, type[Reply]] = {cls.__name__.lower(): cls for cls in typing.get_args(Reply)}


def encode(request_id: int, message: Request | Reply) -> bytes:
    """One line, newline included."""
    name = type(message).__name__.lower()
    key = "verb" if name in _VERBS else "reply"
    body = {"id": request_id, key: name, **dataclasses.asdict(message)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode_request(line: bytes) -> tuple[int, Request]:
    """The id and the request of one line.

    Raises
    ------
    ProtocolError
        With the first thing that is wrong.
    """
    return _decode(line, "verb", _VERBS)


def decode_reply(line: bytes) -> tuple[int, Reply]:
    """The id and the reply of one line; raises as :func:`decode_request`."""
    return _decode(line, "reply", _REPLIES)


M = TypeVar("M")


def _decode(line: bytes, key: str, known: Mapping[str, type[M]]) -> tuple[int, M]:
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"cannot read a line of {len(line)} bytes: at most {MAX_LINE_BYTES}")
    try:
        body = parse_json(line)
    except ValueError as error:
        raise ProtocolError(f"cannot read a line: {error}") from None
    if not isinstance(body, dict):
        raise ProtocolError("cannot read a line: it is no object")
    request_id, name = body.pop("id", None), body.pop(key, None)
    if type(request_id) is not int or not 0 <= request_id < 2**63:
        raise ProtocolError('cannot read a line: it needs an "id", a whole number')
    cls = known.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ProtocolError(f'cannot read a line: unknown {key} "{_shown(name)}"')
    faults: list[str] = []
    message = construct(cls, body, "", faults)
    if message is None:
        raise ProtocolError(f"cannot read {name}: {faults[0]}")
    return request_id, message


# -- strict JSON -----------------------------------------------------------------------------------------------------


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number here")


def parse_json(raw: bytes) -> object:
    """JSON without repeated keys and without NaN and infinities.

    Raises
    ------
    ValueError
        Also for text that is not UTF-8 and for nesting too deep for the parser.
    """
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@functools.cache
def _hints(cls: Hashable) -> Mapping[str, object]:
    return typing.get_type_hints(typing.cast(type, cls))


def construct(cls: type[M], body: object, where: str, faults: list[str]) -> M | None:
    """A dataclass from a parsed object; None with ``faults`` filled when anything does not fit its type hints."""
    if not isinstance(body, dict):
        faults.append(f"{where or 'it'} must be an object")
        return None
    before = len(faults)
    hints = _hints(typing.cast(Hashable, cls))
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    faults += [f'unknown field "{where}{_shown(name)}"' for name in body if name not in hints]
    values: dict[str, object] = {}
    for item in fields:
        if item.name in body:
            values[item.name] = _value(hints[item.name], body[item.name], f"{where}{item.name}", faults)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f'missing field "{where}{item.name}"')
    return None if len(faults) > before else cls(**values)


def _value(hint: object, value: object, where: str, faults: list[str]) -> object:
    """``value`` as its hint wants it; what does not fit is reported and returned as None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        return None if value is None else _value(inner[0], value, where, faults)
    if origin is tuple and isinstance(value, list):
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item, f"{where}[{index}]", faults) for index, item in enumerate(value))
    if origin is Literal and isinstance(value, str) and value in typing.get_args(hint):
        return value
    if dataclasses.is_dataclass(hint):
        return construct(typing.cast("type[object]", hint), value, f"{where}.", faults)
    if hint is float and type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if hint is int and type(value) is int and abs(value) < 2**64:
        return value
    if hint is bool and type(value) is bool:
        return value
    # Every name is quoted and every word is ours: what cannot be printed was made up.
    if hint is str and isinstance(value, str) and value.isprintable():
        return value
    faults.append(f'"{where}" is not {_words(hint)}')
    return None


def _shown(word: object) -> str:
    """What a peer said, fit to be said back to it and to a log."""
    return quote(str(word)[:40].encode("utf-8", "surrogatepass"))


def _words(hint: object) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "a list"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        typing.cast(type, hint), "right"
    )


# -- names as text ---------------------------------------------------------------------------------------------------

_QUOTED = re.compile(rb"(?:[^\\]|\\\\|\\x[0-9a-f]{2})*", re.DOTALL)
_ESCAPE = re.compile(rb"\\(\\|x[0-9a-f]{2})")


def quote(name: bytes) -> str:
    r"""A path as printable text: a backslash is ``\\``, an unprintable or undecodable byte ``\xNN``."""
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_quote_character, text))


def _quote_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def unquote(text: str) -> bytes:
    """The bytes that :func:`quote` was given.

    Raises
    ------
    ValueError
        For a stray backslash or a lone surrogate.
    """
    raw = text.encode("utf-8")
    if b"\\" not in raw:
        return raw
    if not _QUOTED.fullmatch(raw):
        raise ValueError("a backslash stands for nothing")
    return _ESCAPE.sub(lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1][1:], 16)]), raw)


def split(path: str) -> tuple[bytes, ...]:
    """The components of a quoted relative path; none for the empty path, the folder itself.

    Raises
    ------
    RefusedError
        ``bad_path`` for anything that is not a plain way down: absolute, empty component, ``.``, ``..``, NUL, too
        long or too deep.
    """
    if not path:
        return ()
    try:
        raw = unquote(path)
    except ValueError as error:
        raise RefusedError("bad_path", f"cannot use a path: {error}") from None
    parts = tuple(raw.split(b"/"))
    if len(raw) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise RefusedError("bad_path", f"cannot use a path: over {MAX_PATH_BYTES} bytes or {MAX_DEPTH} folders")
    if any(part in (b"", b".", b"..") or b"\0" in part or len(part) > 255 for part in parts):
        raise RefusedError("bad_path", f'cannot use "{path[:80]}": it is no plain way down')
    return parts


P = TypeVar("P", Item, LogFile, Move, Left, Result)


def batches(things: Iterable[P]) -> Iterator[tuple[P, ...]]:
    """Groups that each fit in one line, in order."""
    batch: list[P] = []
    characters = 0
    for thing in things:
        length = len(thing.path) + (len(thing.to) if isinstance(thing, Move) else 0)
        if batch and (len(batch) == MAX_BATCH_ITEMS or characters + length > MAX_BATCH_CHARS):
            yield tuple(batch)
            batch, characters = [], 0
        batch.append(thing)
        characters += length
    if batch:
        yield tuple(batch)
