"""The first screen of ``./dev run``: what this host holds, and three things worth doing, each measured here and now.

It only reads, and never longer than its budget. Whatever may hang (a mount, the GPU driver, systemd, a large tree) is
asked through child processes that are left at the deadline; what they had said by then is shown, and the rest is said
to be missing. Run by path, ``python -I -S hostlook.py REQUEST``, this file is the child that walks trees.
"""

from __future__ import annotations

import fnmatch
import heapq
import json
import os
import re
import selectors
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import IO, Literal, cast

if __name__ != "__main__":  # the child starts with the standard library alone, in 30 ms instead of 150
    from agent.collectors.filesystem import Status, ask, parse_mounts
    from agent.commands.common import size
    from agent.fs import statfs

DAY_S = 86400.0
MIB = 1024**2
GIB = 1024**3

SAMPLE_BYTES = 2 * MIB
"""What is compressed to estimate what gzip would save, and what is read at most to count errors."""

SAMPLE_FILES = 8

TURN_ENTRIES = 64
"""How many entries of a folder are read before the clock is asked whose turn it is."""

TURN_S = 0.1
"""How long a tree is walked before the next has its turn: the small ones are done first, the large share the rest."""

SAMPLE_S = 0.2
"""What of a walk's time is kept for samples: they cost 80 ms where the disk is quick."""

REDIS_DEADLINE_S = 0.3
MARGIN_S = 0.15
"""What is kept of the budget for putting the answers together, and for children to hand theirs over."""

WORTH_BYTES = MIB
"""Less than this to be had is not worth a line."""

SMALLEST_MOUNT_BYTES = 64 * MIB

Kind = Literal["cache", "log", "journal", "packages", "temporary", "cores", "data"]


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


def known_trees(home: str) -> tuple[Tree, ...]:
    """The caches and logs that are looked for, those that the shipped rules watch first and the largest last."""
    caches = (Tree(f"{home}/.cache/{name}", "cache", "", 30 * DAY_S) for name in ("huggingface", "torch", "uv", "pip"))
    return (
        Tree("/tmp/evaluation_cache", "cache", "", 3 * DAY_S, limit_bytes=10 * GIB),
        Tree("/tmp/model_cache", "cache", "", 7 * DAY_S, by_writing=True, limit_bytes=50 * GIB),
        Tree("/var/log/benchmark", "log", r"\.log$", 7 * DAY_S, by_writing=True, errors=True),
        Tree("/var/log", "log", r"\.log$", 7 * DAY_S, by_writing=True),
        Tree("/var/log/journal", "journal"),
        Tree("/tmp/benchmark_*", "temporary", "", DAY_S),
        Tree("/var/cache/apt", "packages", r"\.deb$"),
        Tree("/var/lib/systemd/coredump", "cores"),
        Tree("/var/crash", "cores"),
        *caches,
        Tree("/data/*", "data"),
        Tree("/var/lib/docker", "data"),
        Tree("/var/lib/containerd", "data"),
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where the host is read; tests name others. Commands are argument lists, complete but for their questions."""

    trees: tuple[Tree, ...]
    mounts: str = "/proc/self/mounts"
    meminfo: str = "/proc/meminfo"
    uptime: str = "/proc/uptime"
    reboot: str = "/run/reboot-required"
    redis: tuple[str, int] = ("127.0.0.1", 6379)
    gpus: tuple[str, ...] = ("nvidia-smi",)
    systemd: str = "/run/systemd/system"
    systemctl: tuple[str, ...] = ("systemctl",)
    walker: tuple[str, ...] = (sys.executable, "-I", "-S", __file__)


@dataclass(frozen=True, slots=True)
class MountLook:
    """A file system; the figures are 0 where it did not answer."""

    path: str
    kind: str
    answered: bool = True
    size_bytes: int = 0
    free_bytes: int = 0
    avail_bytes: int = 0
    files: int = 0
    files_free: int = 0

    @property
    def fill(self) -> float:
        """The part in use of what ordinary users may use, as df counts it; 0..1."""
        used = self.size_bytes - self.free_bytes
        return used / (used + self.avail_bytes) if used + self.avail_bytes else 0.0

    @property
    def inode_fill(self) -> float:
        return 1 - self.files_free / self.files if self.files else 0.0


@dataclass(frozen=True, slots=True)
class GpuLook:
    """One line of nvidia-smi; what the device does not tell is None."""

    index: int
    name: str
    busy_percent: float | None
    used_bytes: float | None
    total_bytes: float | None
    celsius: float | None


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


@dataclass(frozen=True, slots=True)
class RedisLook:
    """What Redis said: ``state`` in words for people, ``info`` where it answered."""

    address: str
    state: str
    info: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UnitLook:
    name: str
    state: str
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing, and what the agent would do about it.

    ``urgency`` is 3 for what fails now or soon, 2 for what is over a limit, 1 for what can be had back, 0 for calm
    facts; ``bytes`` orders those of one urgency.
    """

    text: str
    would: str
    urgency: int = 0
    bytes: float = 0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a host. ``gpus`` and ``units`` are a sentence where there is nothing to list."""

    host: str
    mounts: tuple[MountLook, ...]
    gpus: tuple[GpuLook, ...] | str
    folders: tuple[FolderLook, ...]
    redis: RedisLook
    units: tuple[UnitLook, ...] | str
    findings: tuple[Finding, ...]
    at: float
    took_s: float


# -- the look --


def look(budget_s: float = 2.0, places: Places | None = None) -> Look:
    """Look at the host once.

    Parameters
    ----------
    budget_s
        How long the whole look may take; what has not answered by then is missing from it, and said to be.
    places
        Where to read; this host's own by default.
    """
    start, at = time.monotonic(), time.time()
    until = start + budget_s - MARGIN_S
    places = places or Places(known_trees(os.path.expanduser("~")))
    table = _read(places.mounts)
    children = _Children()
    try:
        walks = _start_walks(children, places, mount_points(table), until)
        gpus = _start_gpus(children, places)
        units = _start_units(children, places)
        mounts = _Mounts(children, table)
        redis = ask_redis(places.redis, min(REDIS_DEADLINE_S, until - start))
        children.wait(until)
    finally:
        children.end()
    parts = Look(
        host=describe_host(_read(places.meminfo), _read(places.uptime)),
        mounts=mounts.answers(),
        gpus=gpus if isinstance(gpus, str) else _gpus(gpus, budget_s),
        folders=tuple(folder for trees, child in walks for folder in folders(trees, child.output)),
        redis=redis,
        units=units if isinstance(units, str) else _units(units, budget_s),
        findings=(),
        at=at,
        took_s=0.0,
    )
    found = findings(parts, reboot_required=os.path.exists(places.reboot), meminfo=_read(places.meminfo))
    return replace(parts, findings=found, took_s=time.monotonic() - start)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def describe_host(meminfo: bytes, uptime: bytes) -> str:
    """Name, kernel, processors, memory and time since boot, as far as they are known."""
    memory = _memory(meminfo)
    system = os.uname()
    words = [system.nodename, f"{system.sysname} {system.release}", f"{os.cpu_count()} cores"]
    if memory:
        words.append(f"{size(memory['MemTotal'])} memory, {size(memory['MemAvailable'])} available")
    if uptime:
        words.append(f"up {_age(float(uptime.split()[0]))}")
    return " · ".join(words)


def _memory(meminfo: bytes) -> dict[str, int]:
    pairs = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.decode(errors="replace"), re.MULTILINE)
    memory = {name: int(value) * 1024 for name, value in pairs}
    return memory if {"MemTotal", "MemAvailable"} <= memory.keys() else {}


# -- children: whatever may hang --


class _Child:
    """A program that was asked something. ``answers`` lines, or its end, are its whole answer."""

    def __init__(self, argv: Sequence[str], question: bytes = b"", answers: int = 0, *, gentle: bool = False) -> None:
        self._answers, self._gentle = answers, gentle
        self.output = b""
        self.ended = False
        self.process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if question else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        if self.process and self.process.stdin:
            with suppress(OSError):
                self.process.stdin.write(question)  # far below a pipe's capacity: cannot block

    def take(self) -> bool:
        """Read what is there; whether more is to come."""
        chunk = os.read(cast(IO[bytes], cast(subprocess.Popen[bytes], self.process).stdout).fileno(), 65536)
        self.output += chunk
        self.ended = not chunk or 0 < self._answers <= self.output.count(b"\n")
        return not self.ended

    def end(self) -> None:
        process = self.process
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        if process.poll() is None:
            # To kill a process inside a driver's call can freeze the GPU for good: it is asked to end, then left.
            (process.terminate if self._gentle and not self.ended else process.kill)()
        try:
            process.wait(MARGIN_S / 3)
        except subprocess.TimeoutExpired:
            _left_behind.append(process)


_left_behind: list[subprocess.Popen[bytes]] = []
"""Children that the kernel holds back. They are kept here because a collected one would warn of itself."""


class _Children:
    def __init__(self) -> None:
        self._all: list[_Child] = []

    def start(self, argv: Sequence[str], question: bytes = b"", answers: int = 0, *, gentle: bool = False) -> _Child:
        child = _Child(argv, question, answers, gentle=gentle)
        self._all.append(child)
        return child

    def wait(self, until: float) -> None:
        """Collect what they say until all have said it, or the deadline."""
        with selectors.DefaultSelector() as selector:
            for child in self._all:
                if child.process:
                    selector.register(cast(IO[bytes], child.process.stdout), selectors.EVENT_READ, child)
            while selector.get_map() and (left_s := until - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if not key.data.take():
                        selector.unregister(key.fileobj)

    def end(self) -> None:
        for child in self._all:
            child.end()


# -- mounts --


def mount_points(table: bytes) -> dict[str, str]:
    """The options of every mount point of /proc/mounts, those of pseudo file systems too, longest path first."""
    named = (line.split(b" ")[1:4:2] for line in table.splitlines())
    points = {
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)): options.decode()
        for path, options in named
    }
    return dict(sorted(points.items(), key=lambda point: -len(point[0])))


class _Mounts:
    """The file systems, each once: those that cannot hang are asked at once, the others through a child."""

    def __init__(self, children: _Children, table: bytes) -> None:
        named = list(parse_mounts(table))
        self._kinds = {mount.path: mount.kind for mount in named}
        self._devices = {mount.path: mount.device for mount in named}
        self._statuses: dict[str, Status | None] = {mount.path: ask(mount.path) for mount in named if mount.local}
        if table and "/" not in self._kinds:  # a container's own root is an overlay, which the collector leaves out
            self._kinds["/"] = self._devices["/"] = "overlay"
            self._statuses["/"] = ask("/")
        self._remote = [path for path in self._kinds if path not in self._statuses]
        self._child: _Child | None = None
        if self._remote:
            question = "".join(f"{place} {os.fsencode(path).hex()}\n" for place, path in enumerate(self._remote))
            argv = (sys.executable, "-I", "-S", statfs.__file__)
            self._child = children.start(argv, question.encode(), len(self._remote))

    def answers(self) -> tuple[MountLook, ...]:
        """What is worth showing, the fullest first; a silent one before all."""
        for line in self._child.output.splitlines() if self._child else ():
            place, *figures = line.split()
            if figures[0] != b"error":
                self._statuses[self._remote[int(place)]] = tuple(map(int, figures))
        mounts: dict[str, MountLook] = {}
        for path in sorted(self._kinds, key=len):
            status = self._statuses.get(path)
            device = self._devices[path] if self._devices[path].startswith("/") else path
            if status is None:
                mounts[path] = MountLook(path, self._kinds[path], answered=False)
            elif status[0] >= SMALLEST_MOUNT_BYTES:  # bind mounts of one device say the same: the shortest path tells
                mounts.setdefault(device, MountLook(path, self._kinds[path], True, *status[:5]))
        return tuple(sorted(mounts.values(), key=lambda mount: (mount.answered, -mount.fill)))


# -- trees --


def place_of(path: str, points: Iterable[str]) -> str:
    """The mount point that a path lies on, found without touching the path."""
    return next((point for point in points if path == point or path.startswith(point.rstrip("/") + "/")), "/")


def _start_walks(
    children: _Children, places: Places, points: Mapping[str, str], until: float
) -> list[tuple[tuple[Tree, ...], _Child]]:
    """One child for each mount point that holds a tree, so that a dead one costs its own trees only."""
    trees = [*places.trees]
    for tree in places.trees:
        trees += [replace(tree, path=point) for point in points if tree.kind == "data" and _matches(point, tree.path)]
    by_place: dict[str, list[Tree]] = {}
    for tree in dict.fromkeys(trees):
        place = place_of(tree.path, points)
        unknown_use = "noatime" in points.get(place, "").split(",")  # the last write is all that is known there
        by_place.setdefault(place, []).append(replace(tree, by_writing=tree.by_writing or unknown_use))
    walks = []
    for group in by_place.values():
        request = {"trees": [asdict(tree) for tree in group], "points": list(points), "until": until - MARGIN_S / 3}
        child = children.start((*places.walker, json.dumps(request)))
        walks.append((tuple(group), child))
    return walks


def _matches(path: str, pattern: str) -> bool:
    return "*" in pattern and os.path.dirname(path) == os.path.dirname(pattern) and fnmatch.fnmatchcase(path, pattern)


def folders(trees: Sequence[Tree], output: bytes) -> Iterator[FolderLook]:
    """What a walking child said of its trees, and a silent one for each that it did not come to.

    Parameters
    ----------
    trees
        What it was asked.
    output
        A JSON object a line: the folders that a tree's path names, or one folder's figures, of which the last count.
        The last line may be cut off.
    """
    waiting = {tree.path: FolderLook(tree.path, tree.kind, answered=False) for tree in trees}
    told: dict[str, FolderLook] = {}
    for line in output.split(b"\n")[:-1]:
        answer = json.loads(line)
        if "names" in answer:
            silent = waiting.pop(answer["tree"])
            told.update((name, replace(silent, path=name)) for name in answer["names"])
        else:
            told[answer["path"]] = FolderLook(**answer)
    yield from (*told.values(), *waiting.values())


class Survey:
    """Walks one tree, in the child.

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
        self._largest: list[tuple[int, str]] = []
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


def _keep(heap: list[tuple[float, str]] | list[tuple[int, str]], item: tuple[float, str]) -> None:
    """Keep the few greatest."""
    items = cast(list[tuple[float, str]], heap)
    (heapq.heappush if len(items) < SAMPLE_FILES else heapq.heappushpop)(items, item)


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
        f"{folder}/{name}" for name in names if _matches(f"{folder}/{name}", path) and f"{folder}/{name}" not in points
    ]


def walk_all(request: str, out: IO[bytes]) -> None:
    """What the child does: take turns at the trees, and say what is known of each after every turn of its own.

    Links are begun last: where they lead may be dead.

    Parameters
    ----------
    request
        JSON: ``trees`` as :class:`Tree`, ``points`` the mount points, ``until`` a monotonic instant.
    out
        Where the lines go, as :func:`folders` reads them.
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


# -- GPUs, units, Redis --


def _start_gpus(children: _Children, places: Places) -> _Child | str:
    if not shutil.which(places.gpus[0]):
        return "a driver, but no nvidia-smi to ask it" if os.path.exists("/proc/driver/nvidia") else "no GPU"
    columns = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu"
    query = (f"--query-gpu={columns}", "--format=csv,noheader,nounits")
    return children.start((*places.gpus, *query), gentle=True)


def _gpus(child: _Child, budget_s: float) -> tuple[GpuLook, ...] | str:
    if not child.ended:
        return f"nvidia-smi did not answer within {budget_s:g} s"
    return parse_gpus(child.output.decode(errors="replace")) or "nvidia-smi lists no GPU"


def parse_gpus(text: str) -> tuple[GpuLook, ...]:
    """GPUs from nvidia-smi's table of index, name, percent busy, MiB used, MiB in all and degrees.

    Lines that are none, such as the driver's complaints, are left out; ``[N/A]`` is None.
    """
    gpus = []
    for line in text.splitlines():
        match [part.strip() for part in line.split(",")]:
            case [index, name, busy, used, total, celsius] if index.isdecimal():
                memory = _number(used, MIB), _number(total, MIB)
                gpus.append(GpuLook(int(index), name, _number(busy), memory[0], memory[1], _number(celsius)))
    return tuple(gpus)


def _number(text: str, unit: int = 1) -> float | None:
    return float(text) * unit if re.fullmatch(r"\d+(\.\d+)?", text) else None


UNITS = ("benchmark-framework.service", "redis-server.service", "redis.service", "nginx.service")


def _start_units(children: _Children, places: Places) -> _Child | str:
    if not os.path.isdir(places.systemd):
        return "systemd does not run here"
    properties = "--property=Id,LoadState,ActiveState,NRestarts"
    return children.start((*places.systemctl, "show", properties, "--", *UNITS))


def _units(child: _Child, budget_s: float) -> tuple[UnitLook, ...] | str:
    if not child.ended:
        return f"systemctl did not answer within {budget_s:g} s"
    return parse_units(child.output.decode(errors="replace")) or "systemctl says nothing"


def parse_units(text: str) -> tuple[UnitLook, ...]:
    """Units from ``systemctl show``: one block each, an alias once, Redis under the name that exists."""
    units: dict[str, UnitLook] = {}
    for block in text.strip().split("\n\n"):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = said.get("Id", "").removesuffix(".service")
        if name:
            there = said.get("LoadState") != "not-found"
            restarts = said.get("NRestarts", "")
            state = said.get("ActiveState", "unknown") if there else "not installed"
            units[name] = UnitLook(name, state, int(restarts) if restarts.isdecimal() else 0)
    both = [name for name in ("redis-server", "redis") if name in units]
    for name in sorted(both, key=lambda name: units[name].state != "not installed")[: len(both) - 1]:
        del units[name]
    return tuple(units.values())


def ask_redis(address: tuple[str, int], deadline_s: float) -> RedisLook:
    """What the Redis at an address says of itself, within a deadline for the whole exchange."""
    until = time.monotonic() + deadline_s
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, deadline_s) as link:
            link.sendall(b"*1\r\n$4\r\nINFO\r\n")
            answer = _read_bulk(link, until)
    except ConnectionRefusedError:
        return RedisLook(where, "nothing listens", {})
    except TimeoutError:
        return RedisLook(where, f"does not answer within {deadline_s * 1000:.0f} ms", {})
    except OSError as error:
        return RedisLook(where, (error.strerror or str(error)).lower(), {})
    return parse_info(where, answer)


def _read_bulk(link: socket.socket, until: float) -> bytes:
    """A bulk string with its head, or an error line; what else comes ends with the connection or 1 MiB."""
    answer = b""
    while len(answer) < MIB:
        link.settimeout(max(0.001, until - time.monotonic()))
        chunk = link.recv(65536)
        answer += chunk
        head, end, body = answer.partition(b"\r\n")
        length = int(head[1:]) if re.fullmatch(rb"\$\d{1,9}", head) else 0
        if not chunk or (end and len(body) >= length):
            break
        if time.monotonic() >= until:
            raise TimeoutError
    return answer


def parse_info(where: str, answer: bytes) -> RedisLook:
    """What an answer to INFO says."""
    head, _, body = answer.partition(b"\r\n")
    if head.startswith(b"-NOAUTH"):
        return RedisLook(where, "needs a password", {})
    if head.startswith(b"-"):
        return RedisLook(where, f"refuses: {head[1:80].decode(errors='replace').lower()}", {})
    text = body.decode(errors="replace")
    info = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line and not line.startswith("#"))
    if "redis_version" not in info:
        return RedisLook(where, "something answers, but not as Redis does", {})
    keys = sum(int(count) for count in re.findall(r"^db\d+:keys=(\d+)", text, re.MULTILINE))
    limit = _whole(info, "maxmemory")
    words = [
        f"Redis {info['redis_version']}",
        f"{size(_whole(info, 'used_memory'))} of {size(limit)}" if limit else size(_whole(info, "used_memory")),
        f"{keys:,} keys",
        f"{info.get('connected_clients', '?')} clients",
    ]
    return RedisLook(where, " · ".join(words), info)


def _whole(info: Mapping[str, str], name: str) -> int:
    text = info.get(name, "")
    return int(text) if text.isdecimal() else 0


# -- findings --


def findings(seen: Look, *, reboot_required: bool, meminfo: bytes) -> tuple[Finding, ...]:
    """The three things most worth saying of a host: what fails, what is too large, what can be had back, calm facts."""
    found = [
        *_of_mounts(seen.mounts),
        *_of_logs(seen.folders),
        *(finding for folder in seen.folders for finding in _of_folder(folder, seen.at)),
        *_of_redis(seen.redis.info),
        *_of_units(seen.units),
    ]
    if reboot_required:
        found.append(Finding("a reboot is required by an update", "say so in the report; only a person reboots", 2))
    if len(found) < 3:
        found += _calm(seen, _memory(meminfo))
    return tuple(sorted(found, key=lambda finding: (-finding.urgency, -finding.bytes))[:3])


def _of_mounts(mounts: Sequence[MountLook]) -> Iterator[Finding]:
    for mount in mounts:
        if not mount.answered:
            yield Finding(f"{mount.path}: the file system does not answer", "alert; nothing on it is touched", 3)
        elif mount.fill >= 0.8:
            text = f"{mount.path} is {_percent(mount.fill)} full, {size(mount.avail_bytes)} left"
            would = "alert below 10 % free, and forecast when it is full"
            yield Finding(text, would, 3 if mount.fill >= 0.9 else 2, mount.size_bytes - mount.free_bytes)
        if mount.inode_fill >= 0.8:
            text = f"{mount.path} has used {_percent(mount.inode_fill)} of its inodes"
            yield Finding(text, "alert below 10 % free", 3 if mount.inode_fill >= 0.9 else 2)


def _of_logs(trees: Sequence[FolderLook]) -> Iterator[Finding]:
    """The one tree of logs with most to save: they lie in one another."""
    logs = [folder for folder in trees if folder.kind == "log" and folder.old_bytes >= WORTH_BYTES and folder.gain]
    for folder in sorted(logs, key=lambda folder: -folder.old_bytes)[:1]:
        saved = folder.old_bytes * (folder.gain or 0.0)
        text = f"{folder.path}: {_least(folder)}{size(folder.old_bytes)} of logs older than {_age(folder.old_after_s)}"
        yield Finding(text, f"gzip them and save about {size(saved)}; observed only", 1, saved)


def _of_folder(folder: FolderLook, at: float) -> Iterator[Finding]:
    if folder.error_lines:
        cuda = f", {folder.cuda_lines:,} of them CUDA out of memory" if folder.cuda_lines else ""
        where = f"the last {size(folder.error_bytes)} of {_count(folder.error_files, 'log')} written within a day"
        text = f"{folder.path}: {_count(folder.error_lines, 'ERROR line')} in {where}{cuda}"
        yield Finding(text, "make each new one an event within milliseconds, and alert", 3 if folder.cuda_lines else 2)
    if folder.kind == "cores" and folder.files:
        text = f"{folder.path}: {_count(folder.files, 'core dump')}, {size(folder.bytes)}"
        yield Finding(text, "name them in the report; a crash is for a person to read", 1, folder.bytes)
    if folder.kind in ("cache", "packages", "temporary") and folder.old_bytes >= WORTH_BYTES:
        yield _to_clean(folder, at)


def _to_clean(folder: FolderLook, at: float) -> Finding:
    had = f"{_least(folder)}{size(folder.old_bytes)}"
    if folder.kind == "packages":
        text = f"{folder.path}: {had} of package files, of no use once installed"
        return Finding(text, "name it in the report; apt-get clean frees it", 1, folder.old_bytes)
    verb = "written" if folder.by_writing else "used"
    text = f"{folder.path}: {had} in {_count(folder.old_files, 'file')} not {verb} for {_age(folder.old_after_s)}"
    if not _least(folder) and folder.newest_at is not None and at - folder.newest_at >= folder.old_after_s:
        text = f"{folder.path}: {had}, nothing in it {verb} for {_age(at - folder.newest_at)}"
    if folder.limit_bytes and folder.bytes > folder.limit_bytes:
        text += f", and over its limit of {size(folder.limit_bytes)}"
        return Finding(text, "clean it, oldest use first; observed only", 2, folder.old_bytes)
    would = f"free up to {size(folder.old_bytes)} by clean_cache, once a rule asks for it"
    return Finding(text, would, 1, folder.old_bytes)


def _of_redis(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding("Redis could not write its last snapshot", "alert; a restart now would lose data", 3)
    limit, used = _whole(info, "maxmemory"), _whole(info, "used_memory")
    if limit and used > 0.9 * limit:
        yield Finding(
            f"Redis uses {_percent(used / limit)} of its {size(limit)}", "alert before keys are lost", 2, used
        )
    spare = _whole(info, "mem_fragmentation_bytes")
    if spare > 100 * MIB and float(info.get("mem_fragmentation_ratio", "0")) > 1.5:
        yield Finding(f"Redis holds {size(spare)} in fragments", "purge them; observed only", 1, spare)


def _of_units(units: tuple[UnitLook, ...] | str) -> Iterator[Finding]:
    for unit in () if isinstance(units, str) else units:
        if unit.state == "failed":
            yield Finding(f"the unit {unit.name} has failed", "alert; restarted only where a rule says so", 3)


def _calm(seen: Look, memory: Mapping[str, int]) -> Iterator[Finding]:
    """What is well, for a host with little to say."""
    asked = [mount for mount in seen.mounts if mount.answered]
    if asked and asked[0].fill < 0.8:
        fullest = f"the fullest is {asked[0].path} at {_percent(asked[0].fill)}"
        yield Finding(
            f"every file system is below 80 %: {fullest}", "alert below 10 % free, or a day before it is full"
        )
    if memory:
        text = f"{_percent(memory['MemAvailable'] / memory['MemTotal'])} of memory is available"
        yield Finding(text, "alert below 10 %, before the kernel stops a process", 0, -1)
    logs = [folder for folder in seen.folders if folder.kind == "log" and folder.answered and folder.whole]
    for folder in logs[-1:]:
        if folder.old_bytes < WORTH_BYTES:
            text = f"{folder.path}: only {size(folder.old_bytes)} of logs older than {_age(folder.old_after_s)}"
            yield Finding(text, "do nothing until there is something to gzip", 0, -2)
    inodes = max(asked, key=lambda mount: mount.inode_fill, default=None)
    if inodes and inodes.inode_fill < 0.8:
        text = f"inodes are plenty: {inodes.path} has used {_percent(inodes.inode_fill)} of its own"
        yield Finding(text, "alert below 10 % free", 0, -3)
    yield Finding("no reboot is asked for by an update", "say so in the report when one is", 0, -4)


def _least(folder: FolderLook) -> str:
    return "" if folder.whole and not folder.unreadable else "at least "


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def _age(seconds: float) -> str:
    """One unit says enough of an age."""
    for unit, length in (("d", DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


# -- the screen --

LABEL_CELLS = 10
BAR_CELLS = 20
MOST_MOUNTS, MOST_GPUS, MOST_FOLDERS, MOST_LINES_EACH = 4, 2, 5, 3

_BOLD, _DIM, _RED, _YELLOW = "1", "2", "31", "33"


def lines(seen: Look, width: int, colour: bool) -> Iterator[str]:
    """The screen: 24 lines at most, none wider than ``width`` cells.

    Parameters
    ----------
    seen
        What was found.
    width
        Cells of a line; below 40 counts as 40.
    colour
        Whether a terminal is there: colours, and a bar for each mount. Without it, plain text.
    """
    room = max(40, width)
    sections = (
        ("host", [(seen.host, "")]),
        ("mounts", list(_mount_rows(seen.mounts, room - LABEL_CELLS, colour))),
        ("GPUs", list(_gpu_rows(seen.gpus))),
        ("folders", list(_folder_rows(seen.folders, seen.at, room - LABEL_CELLS))),
        ("Redis", [(f"{seen.redis.address}  {seen.redis.state}", "" if seen.redis.info else _DIM)]),
        ("units", [_unit_row(seen.units)]),
    )
    for label, rows in sections:
        yield from _section(label, rows, room, colour)
    yield ""
    for number, finding in enumerate(seen.findings, 1):
        text = f"{finding.text} → would {finding.would}"
        parts = textwrap.wrap(
            printable(text), room - 3, max_lines=MOST_LINES_EACH, placeholder=" …", break_long_words=True
        )
        style = _RED if finding.urgency == 3 else _YELLOW if finding.urgency == 2 else ""
        for place, part in enumerate(parts):
            lead = _paint(f"{number}  ", _BOLD, colour) if place == 0 else "   "
            yield lead + _paint(cut(part, room - 3), style, colour)


def _section(label: str, rows: Sequence[tuple[str, str]], room: int, colour: bool) -> Iterator[str]:
    for place, (text, style) in enumerate(rows):
        lead = (label if place == 0 else "").ljust(LABEL_CELLS)
        row = cut(printable(text), room - LABEL_CELLS).rstrip()
        yield _paint(lead, _BOLD if place == 0 else "", colour) + _paint(row, style, colour)


def _mount_rows(mounts: Sequence[MountLook], room: int, bars: bool) -> Iterator[tuple[str, str]]:
    if not mounts:
        yield "no file system could be read", _DIM
    shown = mounts if len(mounts) <= MOST_MOUNTS else mounts[: MOST_MOUNTS - 1]
    column = _column([mount.path for mount in shown], room // 3)
    for mount in shown:
        path = pad(mount.path, column)
        if not mount.answered:
            yield f"{path}  does not answer", _RED
            continue
        used = size(mount.size_bytes - mount.free_bytes)
        figures = f"{used:>10} of {size(mount.size_bytes):>10}  {size(mount.avail_bytes):>10} left  {mount.kind}"
        row = f"{_percent(mount.fill):>5}  {figures}"
        bar = _bar(mount.fill, min(BAR_CELLS, room - column - cells(row) - 4)) if bars else ""
        style = _RED if mount.fill >= 0.9 else _YELLOW if mount.fill >= 0.8 else ""
        yield f"{path}  {bar}{row}", style
    if rest := mounts[len(shown) :]:
        yield f"and {len(rest)} more, none above {_percent(max(mount.fill for mount in rest))}", _DIM


def _bar(fill: float, room: int) -> str:
    full = round(fill * room)
    return f"{'█' * full}{'░' * (room - full)}  " if room >= 5 else ""


def _gpu_rows(gpus: tuple[GpuLook, ...] | str) -> Iterator[tuple[str, str]]:
    if isinstance(gpus, str):
        yield gpus, _DIM
        return
    if len(gpus) <= MOST_GPUS:
        for gpu in gpus:
            yield f"{gpu.index}  {gpu.name}  {_gpu_figures([gpu])}", ""
        return
    by_name: dict[str, list[GpuLook]] = {}
    for gpu in gpus:
        by_name.setdefault(gpu.name, []).append(gpu)
    names = list(by_name) if len(by_name) <= MOST_GPUS else [*list(by_name)[: MOST_GPUS - 1]]
    for name in names:
        yield f"{len(by_name[name])} × {name}  {_gpu_figures(by_name[name])}", ""
    if rest := [gpu for name, group in by_name.items() if name not in names for gpu in group]:
        yield f"{len(rest)} others  {_gpu_figures(rest)}", ""


def _gpu_figures(gpus: Sequence[GpuLook]) -> str:
    busy = [gpu.busy_percent for gpu in gpus if gpu.busy_percent is not None]
    memory = [(gpu.used_bytes, gpu.total_bytes) for gpu in gpus if gpu.used_bytes is not None and gpu.total_bytes]
    hot = [gpu.celsius for gpu in gpus if gpu.celsius is not None]
    words = []
    if busy:
        words.append(f"{sum(busy) / len(busy):.0f} % busy")
    if memory:
        words.append(f"{size(sum(used for used, _ in memory))} of {size(sum(total for _, total in memory))}")
    if hot:
        words.append(f"{max(hot):.0f} °C")
    return " · ".join(words) or "tells nothing of itself"


def _folder_rows(trees: Sequence[FolderLook], at: float, room: int) -> Iterator[tuple[str, str]]:
    known = sorted((tree for tree in trees if tree.answered and not _empty(tree)), key=lambda tree: -tree.bytes)
    silent = [tree for tree in trees if not tree.answered]
    if not known and not silent:
        yield "none of the known caches and logs is here", _DIM
    most = MOST_FOLDERS - bool(silent)
    shown = known[:most]
    column = _column([tree.path for tree in shown], room // 2)
    for tree in shown:
        notes = [f"{tree.files:,} files" if tree.files != 1 else "1 file"]
        if tree.newest_at is not None:
            notes.append(f"last {'written' if tree.by_writing else 'used'} {_age(at - tree.newest_at)} ago")
        if tree.unreadable:
            notes.append("partly readable")
        if not tree.whole:
            notes.append("unfinished")
        least = "" if tree.whole and not tree.unreadable else "≥ "
        yield f"{pad(tree.path, column)}  {least + size(tree.bytes):>12}  {', '.join(notes)}", ""
    if silent:
        yield f"not measured in time: {', '.join(tree.path for tree in silent)}", _YELLOW


def _empty(tree: FolderLook) -> bool:
    return tree.files == 0 and tree.whole and not tree.unreadable


def _unit_row(units: tuple[UnitLook, ...] | str) -> tuple[str, str]:
    if isinstance(units, str):
        return units, _DIM
    words = [f"{unit.name} {unit.state}{f' ({unit.restarts} restarts)' if unit.restarts else ''}" for unit in units]
    return " · ".join(words), _RED if any(unit.state == "failed" for unit in units) else ""


def _paint(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style and text else text


def printable(text: str) -> str:
    """One line, whatever a file's name or a server's answer holds."""
    return "".join(character if character.isprintable() else "�" for character in text)


def cells(text: str) -> int:
    """Columns of a terminal that a printable text takes."""
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """At most ``room`` columns of a text, with a sign where something is missing."""
    if cells(text) <= room:
        return text
    kept, left = [], room - 1
    for character in text:
        left -= _cells_of(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def pad(text: str, column: int) -> str:
    """A text in a column of its own: cut or filled to its width."""
    text = cut(printable(text), column)
    return text + " " * (column - cells(text))


def _column(texts: Iterable[str], most: int) -> int:
    return min(max(8, most), max((cells(printable(text)) for text in texts), default=0))


if __name__ == "__main__":
    walk_all(sys.argv[1], sys.stdout.buffer)
