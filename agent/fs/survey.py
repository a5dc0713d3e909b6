"""Survey trees for the first look at a host: blocks on disk, what is old in them, and samples of what they hold.

Run as a program it walks the trees of its one argument, as :func:`walk_all` reads it, in turns and within a time, and
says what it knows of each after every turn: the reader may leave at any moment with the last line of each.
"""

from __future__ import annotations

import fnmatch
import heapq
import json
import os
import re
import stat
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Literal

DAY_S = 86400.0
MIB = 1024**2

SAMPLE_BYTES = 2 * MIB
"""What is compressed to estimate what gzip would save, and what is read at most to count errors."""

SAMPLE_FILES = 8

TURN_ENTRIES = 64
"""How many entries of a folder are read before the clock is asked whose turn it is."""

TURN_S = 0.1
"""How long a tree is walked before the next has its turn: the small ones are done first, the large share the rest."""

SAMPLE_S = 0.2
"""What of a walk's time is kept for samples: they cost 80 ms where the disk is quick."""

WORTH_BYTES = MIB
"""Less than this to be had is not worth a line."""

Kind = Literal["cache", "log", "temporary", "data"]


@dataclass(frozen=True, slots=True)
class Tree:
    """A place worth a look, and which of its files count as old.

    ``path`` may end in one pattern (``/data/*``); ``names`` is a regular expression over file names. Age is taken from
    the last use, or where ``by_writing`` from the last write. ``limit_bytes`` is the shipped rule's, 0 without one.
    ``errors`` asks for error lines to be counted in the files written within a day.
    """

    path: str
    kind: Kind
    names: str = ""
    older_than_s: float = 0.0
    by_writing: bool = False
    limit_bytes: int = 0
    errors: bool = False


@dataclass(frozen=True, slots=True)
class FolderLook:
    """A tree as far as it was walked: bytes as blocks on disk, each inode once, never across a device.

    ``old_*`` are the files that the tree's own test of name and age names, hard-linked ones left out. ``newest_at`` is
    the last use of any file, or where ``by_writing`` the last write. ``gain`` is the part of the old bytes that gzip
    saves, 0..1, from a sample.
    """

    path: str
    kind: Kind
    bytes: int = 0
    files: int = 0
    newest_at: float | None = None
    old_bytes: int = 0
    old_files: int = 0
    old_after_s: float = 0.0
    by_writing: bool = False
    limit_bytes: int = 0
    unreadable: int = 0
    whole: bool = True
    answered: bool = True
    gain: float | None = None
    error_files: int = 0
    error_bytes: int = 0
    error_lines: int = 0
    cuda_lines: int = 0

    @property
    def partial(self) -> bool:
        """Whether the figures are the least there is, and not all of it."""
        return not self.whole or self.unreadable > 0


def matches(path: str, pattern: str) -> bool:
    """Whether a tree's path is a pattern that means this path."""
    return "*" in pattern and os.path.dirname(path) == os.path.dirname(pattern) and fnmatch.fnmatchcase(path, pattern)


class Survey:
    """Walks one tree.

    Parameters
    ----------
    tree
        What to look for.
    points
        Mount points: none is entered or even asked, since it may be dead.
    at
        Now, in seconds since the epoch.
    """

    def __init__(self, tree: Tree, points: frozenset[str], at: float) -> None:
        self._tree, self._points, self._at = tree, points, at
        self._names = re.compile(tree.names)
        self._seen: set[tuple[int, int]] = set()
        self._largest: list[tuple[float, str]] = []
        self._recent: list[tuple[float, str]] = []
        self._newest = float("-inf")
        self._bytes = self._files = self._old_bytes = self._old_files = self._unreadable = 0
        self._whole = False

    def walk(self, roots: Iterable[str]) -> Iterator[None]:
        """Walk the roots, yielding now and then so that other trees have their turn.

        A link named as a root is followed, except where a pattern named it; none below is.
        """
        for root in roots:
            try:
                status = os.stat(root, follow_symlinks="*" not in self._tree.path)
            except OSError:
                self._unreadable += 1
                continue
            if not stat.S_ISDIR(status.st_mode):
                self._count(os.path.basename(root), root, status)
                continue
            self._bytes += status.st_blocks * 512
            above = [root]
            while above:
                yield from self._list(above.pop(), status.st_dev, above)
        self._whole = True

    def _list(self, folder: str, device: int, above: list[str]) -> Iterator[None]:
        try:
            with os.scandir(folder) as entries:
                for place, entry in enumerate(entries):
                    if place % TURN_ENTRIES == 0:
                        yield
                    self._enter(entry, device, above)
        except OSError:
            self._unreadable += 1

    def _enter(self, entry: os.DirEntry[str], device: int, above: list[str]) -> None:
        if entry.path in self._points:
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return  # gone since the folder was listed
        if not stat.S_ISDIR(status.st_mode):
            self._count(entry.name, entry.path, status)
        elif status.st_dev == device:
            self._bytes += status.st_blocks * 512
            above.append(entry.path)

    def _count(self, name: str, path: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
        size_bytes = status.st_blocks * 512
        self._bytes += size_bytes
        if not stat.S_ISREG(status.st_mode):
            return
        self._files += 1
        last = status.st_mtime if self._tree.by_writing else max(status.st_atime, status.st_mtime)
        self._newest = max(self._newest, last)
        if not self._names.search(name):
            return
        if self._at - status.st_mtime < DAY_S:
            _keep(self._recent, (status.st_mtime, path))
        if status.st_nlink == 1 and self._at - last >= self._tree.older_than_s:
            self._old_bytes += size_bytes
            self._old_files += 1
            _keep(self._largest, (size_bytes, path))

    @property
    def begun(self) -> bool:
        return bool(self._bytes or self._unreadable)

    def result(self, path: str, *, sampled: bool) -> FolderLook:
        """What was found so far, under the name it is shown by; ``sampled`` reads what its files hold, too."""
        tree = self._tree
        found = FolderLook(
            path,
            tree.kind,
            bytes=self._bytes,
            files=self._files,
            newest_at=self._newest if self._files else None,
            old_bytes=self._old_bytes,
            old_files=self._old_files,
            old_after_s=tree.older_than_s,
            by_writing=tree.by_writing,
            limit_bytes=tree.limit_bytes,
            unreadable=self._unreadable,
            whole=self._whole,
        )
        if sampled and tree.kind == "log" and self._old_bytes >= WORTH_BYTES:
            found = replace(found, gain=gzip_gain([path for _, path in self._largest]))
        return with_errors(found, [path for _, path in self._recent]) if sampled and tree.errors else found


def _keep(heap: list[tuple[float, str]], item: tuple[float, str]) -> None:
    """Keep the few greatest."""
    (heapq.heappush if len(heap) < SAMPLE_FILES else heapq.heappushpop)(heap, item)


def gzip_gain(paths: Sequence[str]) -> float | None:
    """The part of these files that gzip saves, 0..1, by compressing the middle of each; None where none can be read."""
    raw = packed = 0
    for path in paths:
        data = read_part(path, SAMPLE_BYTES // len(paths), middle=True)
        raw += len(data)
        packed += min(len(data), len(zlib.compress(data, 6)))
    return 1 - packed / raw if raw else None


def with_errors(folder: FolderLook, paths: Sequence[str]) -> FolderLook:
    """A folder with the lines that hold ``ERROR``, and ``CUDA out of memory`` too, counted in the ends of its files."""
    ends = [data for path in paths if (data := read_part(path, SAMPLE_BYTES // len(paths), middle=False))]
    errors = [line for data in ends for line in data.split(b"\n") if b"ERROR" in line]
    return replace(
        folder,
        error_files=len(ends),
        error_bytes=sum(map(len, ends)),
        error_lines=len(errors),
        cuda_lines=sum(b"CUDA out of memory" in line for line in errors),
    )


def read_part(path: str, length: int, *, middle: bool) -> bytes:
    """The middle or the end of a regular file; nothing of anything else, and nothing where it may not be read."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags | os.O_NOATIME)
        except PermissionError:  # O_NOATIME is for the owner and root
            fd = os.open(path, flags)
    except OSError:
        return b""
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        spare = max(0, status.st_size - length)
        try:
            return os.pread(file.fileno(), length, spare // 2 if middle else spare)
        except OSError:
            return b""


def roots(path: str, points: Iterable[str]) -> list[str]:
    """What a tree's path names: itself, or what its pattern matches. Nothing that does not exist."""
    if "*" not in path:
        return [path] if os.path.lexists(path) else []
    folder = os.path.dirname(path)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [
        f"{folder}/{name}" for name in names if matches(f"{folder}/{name}", path) and f"{folder}/{name}" not in points
    ]


def walk_all(request: str, out: IO[bytes]) -> None:
    """What the program does: take turns at the trees, and say what is known of each after every turn of its own.

    Links are begun last: where they lead may be dead.

    Parameters
    ----------
    request
        JSON: ``trees`` as :class:`Tree`, ``points`` the mount points, ``until`` a monotonic instant.
    out
        Where the lines go, each a JSON object: what a tree's path names, ``{"tree": PATH, "names": [PATH…]}``, or one
        :class:`FolderLook`, of which the last of each path counts.
    """
    asked = json.loads(request)
    trees = sorted((Tree(**tree) for tree in asked["trees"]), key=lambda tree: os.path.islink(tree.path))
    walks = deque(_walks(trees, frozenset(asked["points"]), out))
    until = asked["until"] - SAMPLE_S
    while walks and time.monotonic() < until:
        path, survey, steps = walks.popleft()
        turn_ends = min(time.monotonic() + TURN_S, until)
        unfinished = any(time.monotonic() >= turn_ends for _ in steps)
        _say(out, asdict(survey.result(path, sampled=not unfinished)))
        if unfinished:
            walks.append((path, survey, steps))
    for path, survey, _ in walks:
        if survey.begun:
            _say(out, asdict(survey.result(path, sampled=True)))


def _walks(
    trees: Iterable[Tree], points: frozenset[str], out: IO[bytes]
) -> Iterator[tuple[str, Survey, Iterator[None]]]:
    """A walk for each tree that exists: one for each match of a pattern, but one for all matches of temporary files."""
    for tree in trees:
        apart = points - {tree.path}
        named = roots(tree.path, apart)
        groups = {tree.path: named} if tree.kind == "temporary" else {root: [root] for root in named}
        for path, group in groups.items():
            if group:
                survey = Survey(tree, apart, time.time())
                yield path, survey, survey.walk(group)
        _say(out, {"tree": tree.path, "names": [path for path, group in groups.items() if group]})


def _say(out: IO[bytes], answer: Mapping[str, object]) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    walk_all(sys.argv[1], sys.stdout.buffer)
