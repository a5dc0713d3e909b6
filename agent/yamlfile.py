"""Read YAML files into located nodes; the agent does it in a child process that can do nothing else.

libyaml parses text that anybody with an editor wrote, so it runs apart, limited in time and memory; what comes back is
JSON of plain nodes. A command that only looks parses where it stands: it has the caller's own rights, and ends with its
answer. Only the events of the parser are used: no tag is resolved, no alias followed, no ``NO`` becomes False, no
``12:30`` becomes 750, and a repeated key is a fault rather than the last one winning.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import resource
import stat
import sys
from collections.abc import Sequence
from typing import NamedTuple

from agent.errors import Fault
from agent.located import Faults, MappingNode, Node, Scalar, SequenceNode

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
CPU_LIMIT_S = 2
MEMORY_LIMIT_BYTES = 256 * 1024 * 1024
DEADLINE_S = 10.0
EDITORS = "upkeep-editors"

Composed = tuple[Node | None, tuple[Fault, ...]]
"""A document's root (None when there is none, or it cannot be parsed) and what is wrong with it."""


class Parsed(NamedTuple):
    """A file: its root, what is wrong with it, and the very text that was parsed."""

    root: Node | None
    faults: tuple[Fault, ...]
    text: str


def read(paths: Sequence[str], *, apart: bool = True) -> dict[str, Parsed]:
    """Located nodes and faults of each file.

    Parameters
    ----------
    apart
        Parse in one limited child, at the price of its start (40 ms); else here.

    Returns
    -------
    dict
        For each path, in the order given, what was found in it.
    """
    texts: dict[str, str] = {}
    composed: dict[str, Composed] = {}
    for path in paths:
        faults = Faults(path)
        text = _text(path, faults)
        if text is None:
            composed[path] = (None, tuple(faults.found))
        else:
            texts[path] = text
    if texts:
        composed.update(_in_child(texts) if apart else {path: parse(path, text) for path, text in texts.items()})
    return {path: Parsed(*composed[path], texts.get(path, "")) for path in paths}


def parse_apart(texts: dict[str, str]) -> dict[str, Parsed]:
    """Located nodes and faults of texts that lie in no file, parsed in the limited child."""
    composed = _in_child(texts) if texts else {}
    return {name: Parsed(*composed[name], text) for name, text in texts.items()}


def _text(path: str, faults: Faults) -> str | None:
    """The file's text, after the checks that need no parser: kind, owner, writers, size, encoding."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        faults.add(None, f"cannot read: {(error.strerror or str(error)).lower()}")
        return None
    try:
        problem = _untrusted(os.fstat(descriptor))
        raw = b"" if problem else os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if problem:
        faults.add(None, problem)
        return None
    if len(raw) > MAX_BYTES:
        faults.add(None, f"cannot read: larger than {MAX_BYTES // 1024} KiB")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        faults.found.append(Fault(path, line, column, f"cannot read: byte 0x{raw[error.start]:02x} is not UTF-8"))
        return None


def _untrusted(status: os.stat_result) -> str:
    """Why a file may not steer the agent, or nothing: whoever may write it may act through it."""
    if not stat.S_ISREG(status.st_mode):
        return "cannot read: not a regular file"
    if status.st_uid not in (0, os.geteuid()):
        return f"cannot trust: owned by uid {status.st_uid}, must be root or the agent's own user"
    if status.st_mode & stat.S_IWOTH:
        return "cannot trust: others may write it; run: chmod o-w"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (_private_group(status.st_uid), _editors(status.st_uid)):
        return f"cannot trust: its group may write it; run: chmod g-w, or let root own it and its group be {EDITORS}"
    return ""


def _editors(owner: int) -> int:
    """The group whose members may write rules that root owns."""
    try:
        return grp.getgrnam(EDITORS).gr_gid if owner == 0 else -1
    except KeyError:
        return -1


def _private_group(uid: int) -> int:
    """The user's own group: with one per user, as Ubuntu makes them, umask 002 is no weaker than 022."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return -1


def _in_child(texts: dict[str, str]) -> dict[str, Composed]:
    """Parse in a child under CPU and memory limits; a child that dies is a fault of the file that killed it."""
    import subprocess  # a look-up starts no child, and counts its milliseconds

    command = [sys.executable, "-I", "-c", _CHILD, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    try:
        child = subprocess.run(
            command, input=json.dumps(texts).encode(), capture_output=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        child = None
    if child is not None and child.returncode == 0:
        return {path: _decode(path, answer) for path, answer in json.loads(child.stdout).items()}
    if len(texts) > 1:
        return {path: _in_child({path: text})[path] for path, text in texts.items()}
    [path] = texts
    return {path: (None, (Fault(path, 0, 0, f"cannot parse within {CPU_LIMIT_S} s and 256 MiB: simplify it"),))}


# -I keeps the current directory and PYTHONPATH out of the child; the package's own parent is the one path it is given.
_CHILD = "import sys; sys.path.append(sys.argv[1]); from agent.yamlfile import child; child()"


def child() -> None:
    """The child's whole life: texts in on standard input, nodes out on standard output."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    texts = json.load(sys.stdin)
    json.dump({path: _encode(*parse(path, text)) for path, text in texts.items()}, sys.stdout)


def parse(path: str, text: str) -> Composed:
    """Located nodes of one YAML document: no aliases, tags, repeated keys or second documents."""
    import yaml  # heavy, and and who parses in a child never wants it

    faults = Faults(path)
    try:
        root = _Composer(yaml, text, faults).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        faults.found.append(Fault(path, *place, f"cannot parse: {error.problem or error.context}"))
        return None, tuple(faults.found)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        faults.found.append(Fault(path, *place, f"cannot parse: {error.reason}"))
        return None, tuple(faults.found)
    return root, tuple(faults.found)


class _Composer:
    """Builds nodes from the parser's events; stops at the first alias, since nothing after it could be trusted."""

    def __init__(self, yaml, text: str, faults: Faults) -> None:  # type: ignore[no-untyped-def]
        self._yaml = yaml
        self._faults = faults
        self._events = yaml.parse(text, Loader=yaml.CSafeLoader)

    def document(self) -> Node | None:
        yaml = self._yaml
        root: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fault(event, "cannot use a second document: one file holds one")
                    return root
                root = self._node(next(self._events), 0)
        return root

    def _node(self, event, depth: int) -> Node:  # type: ignore[no-untyped-def]
        yaml = self._yaml
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self._fault(event, f'cannot use an alias ("*{event.anchor}"): write the value out')
            return Scalar("", False, line, column)
        if event.anchor is not None:
            self._fault(event, f'cannot use an anchor ("&{event.anchor}"): aliases are not allowed')
        if event.tag is not None and event.tag != "!":
            self._fault(event, f'cannot use a tag ("{event.tag}"): values are read as their text')
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(event.value, not event.style, line, column)
        if isinstance(event, yaml.SequenceStartEvent):
            return SequenceNode(tuple(self._items(yaml.SequenceEndEvent, depth)), line, column)
        return self._mapping(depth, line, column)

    def _items(self, end, depth: int):  # type: ignore[no-untyped-def]
        for event in self._events:
            if isinstance(event, end):
                return
            yield self._node(event, depth + 1)

    def _mapping(self, depth: int, line: int, column: int) -> MappingNode:
        entries: dict[str, tuple[Scalar, Node]] = {}
        nodes = self._items(self._yaml.MappingEndEvent, depth)
        for key in nodes:
            value = next(nodes)
            if not isinstance(key, Scalar):
                self._faults.add(key, "cannot use this as a key: a key is one word")
            elif key.text in entries:
                first = entries[key.text][0]
                self._faults.add(key, f'repeated key "{key.text}" (first on line {first.line})')
            else:
                entries[key.text] = (key, value)
        return MappingNode(tuple(entries.values()), line, column)

    def _fault(self, event, message: str) -> None:  # type: ignore[no-untyped-def]
        mark = event.start_mark
        self._faults.found.append(Fault(self._faults.path, mark.line + 1, mark.column + 1, message))


def _encode(root: Node | None, faults: Sequence[Fault]) -> object:
    return [_plain(root), [[fault.line, fault.column, fault.message] for fault in faults]]


def _decode(path: str, answer: object) -> Composed:
    root: object
    faults: Sequence[tuple[int, int, str]]
    root, faults = answer  # type: ignore[misc]
    return _located(root), tuple(Fault(path, line, column, message) for line, column, message in faults)


def _plain(node: Node | None) -> object:
    if node is None:
        return None
    if isinstance(node, Scalar):
        return [node.line, node.column, node.text, node.plain]
    if isinstance(node, SequenceNode):
        return [node.line, node.column, [_plain(item) for item in node.items]]
    return [node.line, node.column, {key.text: [_plain(key), _plain(value)] for key, value in node.entries}]


def _located(plain) -> Node | None:  # type: ignore[no-untyped-def]
    if plain is None:
        return None
    line, column, value, *more = plain
    if isinstance(value, str):
        return Scalar(value, more[0], line, column)
    if isinstance(value, list):
        return SequenceNode(tuple(_located(item) for item in value), line, column)  # type: ignore[misc]
    return MappingNode(tuple((_located(key), _located(item)) for key, item in value.values()), line, column)  # type: ignore[misc]
