"""What the hands may touch and how much: roots and limits, in JSON so that the standard library can read it.

The agent cannot widen it: under systemd it is a file of root's (``/etc/upkeep/ops.json``), by hand it is the first line
the hands read, written by the process that started them as the same user.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import Fault, FaultyFilesError
from agent.ops.protocol import construct, parse_json, quote
from agent.roots import unsafe_root

SYSTEM_PATH = "/etc/upkeep/ops.json"
MAX_POLICY_BYTES = 256 * 1024
MAX_ROOTS = 256
LITERAL_BEFORE_GLOB = 3

_GLOB = re.compile(r"[*?]")
_UNIT = re.compile(r"[A-Za-z0-9:_.@-]{1,200}\.service")


@dataclass(frozen=True, slots=True)
class Limits:
    """The hands' own brakes, whatever they are asked for: a cap on one prune and on prunes in an hour."""

    actions_per_hour: int = 60
    files_per_action: int = 100_000
    bytes_per_action: int = 200 * 1024**3


@dataclass(frozen=True, slots=True)
class Policy:
    """Roots (the only trees that may change), limits, and the uids that may ask (empty: only the hands' own).

    ``units`` are services whose main process may be told (SIGHUP) to open its logs again.

    A root is an absolute path of at least two components. Its last component may hold ``*`` and ``?`` after at least
    three literal characters; its folder must then be sticky, as /tmp is, and what is asked for must lie inside a match.
    """

    roots: tuple[str, ...] = ()
    limits: Limits = Limits()
    peers: tuple[int, ...] = ()
    units: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line that :func:`parse` reads back."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))


def parse(raw: bytes, name: str) -> Policy:
    """A policy from JSON.

    Parameters
    ----------
    raw
        The text, UTF-8.
    name
        What its faults are reported under.

    Raises
    ------
    FaultyFilesError
        With everything that is wrong with it.
    """
    faults: list[str] = []
    policy = None
    try:
        if len(raw) > MAX_POLICY_BYTES:
            raise ValueError(f"it is larger than {MAX_POLICY_BYTES} bytes")
        policy = construct(Policy, parse_json(raw), "", faults)
    except ValueError as error:
        faults.append(f"cannot read it: {error}")
    if policy is not None:
        faults += check(policy)
    if policy is None or faults:
        raise FaultyFilesError([Fault(name, 0, 0, fault) for fault in faults])
    return policy


def load(path: str = SYSTEM_PATH) -> Policy:
    """The policy of a root-started service; only a plain file that root owns and nobody else may write is read.

    Raises
    ------
    FaultyFilesError
        When it cannot be read, others may write it, or anything in it is wrong.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FaultyFilesError([Fault(path, 0, 0, f"cannot open it: {error.strerror}")]) from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise FaultyFilesError(
                [Fault(path, 0, 0, "cannot trust it: only its owner, root, may be able to write it")]
            )
        return parse(file.read(MAX_POLICY_BYTES + 1), path)


def check(policy: Policy) -> list[str]:
    """Everything that is wrong with a policy's values, in words."""
    faults = [fault for root in policy.roots if (fault := root_fault(root))]
    if len(policy.roots) > MAX_ROOTS:
        faults.append(f"cannot use {len(policy.roots)} roots: at most {MAX_ROOTS}")
    if len(set(policy.roots)) < len(policy.roots):
        faults.append("cannot use roots: one is named twice")
    for name, value in dataclasses.asdict(policy.limits).items():
        if value < 1:
            faults.append(f'cannot use "{value}" as limits.{name}: it must be at least 1')
    faults += [
        f'cannot use "{quote(os.fsencode(unit))}" as a unit: write a service\'s whole name'
        for unit in policy.units
        if not _UNIT.fullmatch(unit)
    ]
    faults += [f'cannot use "{uid}" as a peer: it is no uid' for uid in policy.peers if not 0 <= uid < 2**32 - 1]
    return faults


def root_fault(root: str) -> str:
    """Why a tree may not be a root, or nothing. Whether it exists, or is a link, is seen each time it is opened."""
    parts = root.split("/")[1:]
    if not root.startswith("/") or len(parts) < 2:
        return f'cannot use "{root}" as a root: a root is absolute and has at least two components'
    if any(part in ("", ".", "..") for part in parts) or not root.isprintable() or "\\" in root:
        return f'cannot use "{quote(os.fsencode(root))}" as a root: write it plainly, without "//", "." or ".."'
    folder, pattern = split_glob(root)
    if _GLOB.search(folder) or "[" in root:
        return f'cannot use "{root}" as a root: only its last component may hold * and ?'
    if pattern and len(_GLOB.split(pattern)[0]) < LITERAL_BEFORE_GLOB:
        return f'cannot use "{root}" as a root: its glob must begin with {LITERAL_BEFORE_GLOB} literal characters'
    if parts[0] == "home" and len(parts) == 2:
        return f'cannot use "{root}" as a root: it is a home; name a folder in it'
    return unsafe_root(root)


def split_glob(root: str) -> tuple[str, str]:
    """The folder to open and the glob that the next component must match; no glob for a plain root."""
    folder, _, last = root.rpartition("/")
    return (folder, last) if _GLOB.search(last) else (root, "")


def matches(component: bytes, pattern: str) -> bool:
    """Whether a component is one that a root's glob names."""
    return fnmatch.fnmatchcase(component, os.fsencode(pattern))


def locate(roots: Sequence[str], path: str) -> tuple[str, str] | None:
    """The root that holds an absolute path and the quoted way down from there; None when no root does.

    The innermost root wins. For a glob root the way begins with the matching component.
    """
    raw = os.fsencode(path.rstrip("/"))
    best: tuple[str, str] | None = None
    for root in sorted(roots, key=len):
        folder, pattern = split_glob(root)
        beneath = os.fsencode(folder)
        if raw == beneath and not pattern:
            best = (root, "")
        elif raw.startswith(beneath + b"/"):
            way = raw[len(beneath) + 1 :]
            if not pattern or matches(way.split(b"/")[0], pattern):
                best = (root, quote(way))
    return best
