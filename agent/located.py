"""From located text to frozen dataclasses: every value of a file keeps its place, and every fault is reported at once.

The nodes below are all that leaves the YAML parser (agent/yamlfile.py). :func:`build` turns them into a dataclass by
the dataclass's own type hints: the dataclass *is* the schema, so the two cannot drift.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from agent.errors import Fault


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value as its text. ``plain`` is false where it was quoted or a block: ``"no"`` and ``no`` stay apart."""

    text: str
    plain: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class SequenceNode:
    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class MappingNode:
    entries: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int

    def get(self, key: str) -> Node | None:
        return next((value for name, value in self.entries if name.text == key), None)


Node = Scalar | SequenceNode | MappingNode
Converter = Callable[[Scalar], object]

MISSING = object()
"""What a converter gives back for a value at fault, after it has said why."""


@dataclass(frozen=True, slots=True)
class FromNode:
    """In ``Annotated``: a value built from a whole node; ``build`` reports its own faults and may give MISSING."""

    build: Callable[[Node, Faults], object]


_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Faults:
    """Collects what is wrong with one file while it is built."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[Fault] = []

    def add(self, node: Node | None, message: str, *, warning: bool = False) -> None:
        line, column = (node.line, node.column) if node else (0, 0)
        self.found.append(Fault(self.path, line, column, message, warning))

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.found if not fault.warning]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`` (did you mean "x"?)`` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


# -- scalars ---------------------------------------------------------------------------------------------------------

_DURATION_UNITS = {"y": 365 * 86400.0, "w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGTP]i?B|B)")
_SIZE_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_duration(text: str) -> float:
    """Seconds of a Prometheus duration such as ``2m30s``; ``0`` needs no unit.

    Raises
    ------
    ValueError
        With what is wrong, naming ``text``.
    """
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if not match or not text:
        bare = re.fullmatch(r"\d+(\.\d+)?", text)
        hint = f'a duration needs a unit: "{text}s", "{text}m", "{text}h"?' if bare else "write it like 30s, 2m30s, 3d"
        raise ValueError(f'cannot read "{text}" as a duration: {hint}')
    return sum(
        int(part) * unit
        for part, unit in zip(match.groups(), _DURATION_UNITS.values(), strict=True)
        if part is not None
    )


def parse_size(text: str) -> int:
    """Bytes of a size with a unit: ``10GiB`` (powers of 1024), ``10GB`` (powers of 1000), ``512B``.

    Raises
    ------
    ValueError
        With what is wrong, naming ``text``.
    """
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if not match:
        hint = "write it like 10GiB, 500MB, 512B"
        if re.fullmatch(r"\d+(\.\d+)?", text):
            hint = f'a size needs a unit: "{text}GiB", "{text}MB"?'
        elif re.fullmatch(r"\d+(\.\d+)? ?[kKMGTP]i?", text):
            hint = f'say bytes: "{text.rstrip("i")}iB" (1024) or "{text.rstrip("i")}B" (1000)?'
        raise ValueError(f'cannot read "{text}" as a size: {hint}')
    number, unit = match.groups()
    power = _SIZE_POWERS.get(unit[0].upper(), 0) if unit != "B" else 0
    factor: int = (1024 if "i" in unit else 1000) ** power
    return round(float(number) * factor)


def parse_path(text: str) -> str:
    """An absolute path without ``..``, ``~`` or variables: nothing here is expanded, ever.

    Raises
    ------
    ValueError
        With what is wrong, naming ``text``.
    """
    if not text:
        raise ValueError("cannot use an empty path: write an absolute one")
    if "$" in text or text.startswith("~"):
        raise ValueError(f'cannot use "{text}": variables and ~ are not expanded, write the whole path')
    if not text.startswith("/"):
        raise ValueError(f'cannot use "{text}": write an absolute path')
    parts = text.split("/")
    if ".." in parts or "." in parts or "\0" in text:
        raise ValueError(f'cannot use "{text}": a path may not hold "." or ".."')
    return "/" + "/".join(part for part in parts if part)


def _bool(node: Scalar) -> bool:
    if node.plain and node.text in ("true", "false"):
        return node.text == "true"
    raise ValueError(f'cannot read "{node.text}" as a switch: write true or false')


def _int(node: Scalar) -> int:
    if not re.fullmatch(r"[+-]?(0|[1-9]\d*)", node.text):
        raise ValueError(f'cannot read "{node.text}" as a whole number')
    return int(node.text)


def _float(node: Scalar) -> float:
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", node.text):
        raise ValueError(f'cannot read "{node.text}" as a number')
    return float(node.text)


def _percent(node: Scalar) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", node.text):
        raise ValueError(f'cannot read "{node.text}" as a percentage: write it like 50%')
    share = float(node.text[:-1]) / 100
    if share > 1:
        raise ValueError(f'cannot use "{node.text}": a share ends at 100%')
    return share


_TAGGED: Mapping[str, Converter] = {
    "duration": lambda node: parse_duration(node.text),
    "size": lambda node: parse_size(node.text),
    "path": lambda node: parse_path(node.text),
    "percent": _percent,
}
Duration = typing.Annotated[float, "duration"]
"""Seconds, written with a unit."""
Size = typing.Annotated[int, "size"]
"""Bytes, written with a unit."""
AbsPath = typing.Annotated[str, "path"]
"""An absolute path, nothing expanded."""
Share = typing.Annotated[float, "percent"]
"""0 to 1, written as a percentage."""

_PLAIN: Mapping[object, Converter] = {str: lambda node: node.text, bool: _bool, int: _int, float: _float}


# -- dataclasses -----------------------------------------------------------------------------------------------------


@functools.cache
def _hints(cls: Hashable) -> Mapping[str, object]:
    return typing.get_type_hints(cls, include_extras=True)


def hints(cls: type) -> Mapping[str, object]:
    """A dataclass's type hints with their annotations, resolved once."""
    return _hints(cls)


def key_of(field: dataclasses.Field[object]) -> str:
    """The word a person writes for a field: ``for_`` is ``for``."""
    return field.name.rstrip("_")


def is_null(node: Node | None) -> bool:
    return node is None or (isinstance(node, Scalar) and node.plain and node.text in _NULLS)


def is_false(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text == "false"


T = typing.TypeVar("T")


def build(cls: type[T], node: Node | None, faults: Faults) -> T | None:
    """A frozen dataclass from a mapping node, or None when anything in it is at fault.

    Parameters
    ----------
    cls
        The dataclass. Its hints say what each key may hold: ``str``, ``bool``, ``int``, ``float``, an ``Enum``, a
        ``Literal``, a ``tuple[X, ...]``, a ``Mapping[str, X]``, a dataclass, ``X | None``, or ``Annotated[X, how]``
        where ``how`` is one of the tags above or a function from :class:`Scalar` that raises ``ValueError``.
    node
        What was written; None and an empty value mean "all defaults".
    faults
        Receives everything that is wrong.
    """
    before = len(faults.errors)
    if node is None or is_null(node):
        node = MappingNode((), node.line if node else 0, node.column if node else 0)
    if not isinstance(node, MappingNode):
        faults.add(node, f"cannot use this here: expected keys ({_some_keys(cls)}), found {_kind(node)}")
        return None
    fields = {key_of(field): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in node.entries:
        field = fields.get(key.text)
        if field is None or not field.init:
            faults.add(key, f'unknown key "{key.text}"{did_you_mean(key.text, list(fields))}')
            continue
        built = convert(hints(cls)[field.name], value, faults)
        if built is not MISSING:
            values[field.name] = built
    written = {key.text for key, _ in node.entries}
    for key_text, field in fields.items():
        if _required(field) and key_text not in written:
            faults.add(node, f'missing key "{key_text}"')
    if len(faults.errors) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        faults.add(node, str(error))
        return None


def convert(hint: object, node: Node, faults: Faults) -> object:
    """The value of one node as its hint wants it; ``MISSING`` when it is at fault (which is then reported)."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        _, how, *_ = typing.get_args(hint)
        if isinstance(how, FromNode):
            return how.build(node, faults)
        return _scalar(_TAGGED[how] if isinstance(how, str) else how, node, faults)
    if origin in (typing.Union, types.UnionType):
        return _optional(hint, node, faults)
    if origin is typing.Literal:
        return _choice([str(arg) for arg in typing.get_args(hint)], node, faults)
    if origin is tuple:
        return _tuple(typing.get_args(hint)[0], node, faults)
    if origin is not None and issubclass(origin, Mapping):
        key_hint, inner = typing.get_args(hint)
        return _mapping(key_hint, inner, node, faults)
    if isinstance(hint, type) and issubclass(hint, Enum):
        chosen = _choice([str(member.value) for member in hint], node, faults)
        return chosen if chosen is MISSING else hint(chosen)
    if dataclasses.is_dataclass(hint):
        built = build(typing.cast(type, hint), node, faults)
        return MISSING if built is None else built
    return _scalar(_PLAIN[hint], node, faults)


def _scalar(how: Converter, node: Node, faults: Faults) -> object:
    if not isinstance(node, Scalar):
        faults.add(node, f"cannot use this here: expected one value, found {_kind(node)}")
        return MISSING
    try:
        return how(node)
    except ValueError as error:
        faults.add(node, str(error))
        return MISSING


def _optional(hint: object, node: Node, faults: Faults) -> object:
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if dataclasses.is_dataclass(inner[0]):
        # `system: {}` and `system:` mean "with defaults", `system: false` means "not at all".
        return None if is_false(node) else convert(inner[0], node, faults)
    return None if is_null(node) else convert(inner[0], node, faults)


def _choice(known: Sequence[str], node: Node, faults: Faults) -> object:
    if isinstance(node, Scalar) and node.text in known:
        return node.text
    if isinstance(node, Scalar):
        faults.add(node, f'unknown word "{node.text}": use one of {", ".join(known)}{did_you_mean(node.text, known)}')
    else:
        faults.add(node, f"cannot use this here: expected one of {', '.join(known)}, found {_kind(node)}")
    return MISSING


def _tuple(inner: object, node: Node, faults: Faults) -> object:
    if is_null(node):
        return ()
    if not isinstance(node, SequenceNode):
        faults.add(node, f"cannot use this here: expected a list, found {_kind(node)}")
        return MISSING
    built = [convert(inner, item, faults) for item in node.items]
    return MISSING if MISSING in built else tuple(built)


def _mapping(key_hint: object, inner: object, node: Node, faults: Faults) -> object:
    if is_null(node):
        return {}
    if not isinstance(node, MappingNode):
        faults.add(node, f"cannot use this here: expected keys and values, found {_kind(node)}")
        return MISSING
    built = {convert(key_hint, key, faults): convert(inner, value, faults) for key, value in node.entries}
    return MISSING if MISSING in built or MISSING in built.values() else built


def _required(field: dataclasses.Field[object]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _some_keys(cls: type) -> str:
    names = [key_of(field) for field in dataclasses.fields(cls)]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _kind(node: Node) -> str:
    if isinstance(node, Scalar):
        return f'"{node.text}"' if node.text else "nothing"
    return "a list" if isinstance(node, SequenceNode) else "keys and values"
