"""Size, free space and inodes of each mount, as node_exporter names them.

Mounts of kinds that cannot hang are asked where the agent stands: the answer is in the kernel's memory. All others,
and whatever lies below one of them, are asked through a child process, each in a thread of its own: a call into a dead
server cannot be interrupted, and a process with such a call cannot exit, so it must not be the agent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.fs import statfs
from agent.model import Reading, Series, make_labels
from agent.procfs import PinnedFile

KINDS_LEFT_OUT = (
    r"^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|overlay"
    r"|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|sysfs|tracefs)$"
)
"""node_exporter's default: kinds that hold no data of their own."""

MOUNT_POINTS_LEFT_OUT = r"^/(dev|proc|run|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)"
"""node_exporter's default on Debian, without ``/mnt`` and ``/media``: that is where GPU hosts keep their data."""

LOCAL_KINDS = r"^(btrfs|exfat|ext[234]|f2fs|ramfs|tmpfs|vfat|xfs)$"
"""Kinds whose ``statvfs`` is answered from memory, even while the device behind them is frozen or gone."""

DEADLINE_S = 5.0
"""node_exporter's own patience with a mount."""

FIGURES = ("size_bytes", "free_bytes", "avail_bytes", "files", "files_free", "readonly", "device_error")

_KIND_LEFT_OUT = re.compile(KINDS_LEFT_OUT)
_POINT_LEFT_OUT = re.compile(MOUNT_POINTS_LEFT_OUT)
_LOCAL_KIND = re.compile(LOCAL_KINDS)
_ESCAPE = re.compile(rb"\\([0-7]{3})")

Status = tuple[int, ...]
"""Size, free and available bytes, inodes, free inodes, and 1 where read-only."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/mounts that is measured; ``local`` says that asking it cannot hang."""

    device: str
    path: str
    kind: str
    local: bool


def parse_mounts(raw: bytes) -> tuple[Mount, ...]:
    """The mounts to measure, each once.

    Parameters
    ----------
    raw
        The text of /proc/mounts, in which blanks and backslashes of a path are written in octal.
    """
    lines = [line.split(b" ")[:3] for line in raw.splitlines()]
    named = [(os.fsdecode(device), _unescape(path), kind.decode()) for device, path, kind in lines]
    hanging = [path for _, path, kind in named if not _cannot_hang(kind)]
    return tuple(
        Mount(device, path, kind, _cannot_hang(kind) and not any(_below(path, other) for other in hanging))
        for device, path, kind in dict.fromkeys(named)
        if not _left_out(path, kind)
    )


def _left_out(path: str, kind: str) -> bool:
    if path == "/":
        return kind in ("rootfs", "squashfs")  # in a container the root is an overlay, and the only one that matters
    return bool(_KIND_LEFT_OUT.search(kind) or _POINT_LEFT_OUT.search(path))


def _unescape(path: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path))


def _cannot_hang(kind: str) -> bool:
    return bool(_LOCAL_KIND.search(kind) or (_KIND_LEFT_OUT.search(kind) and kind != "autofs"))


def _below(path: str, other: str) -> bool:
    return path == other or path.startswith(other.rstrip("/") + "/")


def ask(path: str) -> Status | None:
    """``statvfs`` of a mount that cannot hang; None where it fails."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    unit = status.f_frsize
    return (
        status.f_blocks * unit,
        status.f_bfree * unit,
        status.f_bavail * unit,
        status.f_files,
        status.f_ffree,
        1 if status.f_flag & os.ST_RDONLY else 0,
    )


class MountTable:
    """/proc/mounts, read again only when the kernel says that it changed: it is the dearest file of all.

    Parameters
    ----------
    path
        The file; a plain file serves in tests, and is read at each call.
    """

    def __init__(self, path: str) -> None:
        self._file = PinnedFile(path)
        self._poll: select.poll | None = None
        self._mounts: tuple[Mount, ...] = ()

    def mounts(self) -> tuple[Mount, ...]:
        """The mounts to measure, the same object while the table holds."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._file.fileno(), select.POLLPRI)
        elif not self._poll.poll(0):
            return self._mounts
        self._mounts = parse_mounts(self._file.read())
        return self._mounts


class _Layout:
    """Turns the answers of mounts into a reading; a mount without an answer has its error and nothing else."""

    def __init__(self) -> None:
        self._mounts: tuple[Mount, ...] = ()
        self._answered: list[bool] = []
        self._series: tuple[Series, ...] = ()

    def reading(self, at: float, mounts: tuple[Mount, ...], answers: Sequence[Status | None]) -> Reading:
        answered = [answer is not None for answer in answers]
        if mounts is not self._mounts or answered != self._answered:
            self._mounts, self._answered = mounts, answered
            self._series = tuple(
                Series(f"node_filesystem_{figure}", labels)
                for labels, whole in zip(map(_labels, mounts), answered, strict=True)
                for figure in (FIGURES if whole else FIGURES[-1:])
            )
        values: list[float] = []
        for answer in answers:
            values += (1,) if answer is None else (*answer, 0)
        return Reading(at, self._series, values)


def _labels(mount: Mount) -> tuple[tuple[str, str], ...]:
    return make_labels(device=mount.device, mountpoint=mount.path, fstype=mount.kind)


class LocalFilesystems:
    """Mounts that cannot hang.

    Parameters
    ----------
    table
        The file with the mounts.
    """

    name = "filesystem"

    def __init__(self, table: str = "/proc/self/mounts") -> None:
        self._table = MountTable(table)
        self._layout = _Layout()
        self._all: tuple[Mount, ...] = ()
        self._mounts: tuple[Mount, ...] = ()

    async def collect(self, at: float) -> Reading:
        mounts = self._table.mounts()
        if mounts is not self._all:
            self._all = mounts
            self._mounts = tuple(mount for mount in mounts if mount.local)
        return self._layout.reading(at, self._mounts, [ask(mount.path) for mount in self._mounts])


class RemoteFilesystems:
    """Mounts that may hang. One that does is not waited for again until its answer comes, however late.

    Parameters
    ----------
    table
        The file with the mounts.
    deadline_s
        How long a mount may take to answer.
    """

    name = "filesystem:remote"

    def __init__(self, table: str = "/proc/self/mounts", deadline_s: float = DEADLINE_S) -> None:
        self._table = MountTable(table)
        self._layout = _Layout()
        self._deadline_s = deadline_s
        self._child = _Child()
        self._all: tuple[Mount, ...] = ()
        self._mounts: tuple[Mount, ...] = ()

    async def collect(self, at: float) -> Reading:
        mounts = self._table.mounts()
        if mounts is not self._all:
            self._all = mounts
            self._mounts = tuple(mount for mount in mounts if not mount.local)
        answers = await self._child.ask({mount.path for mount in self._mounts}, self._deadline_s)
        return self._layout.reading(at, self._mounts, [answers.get(mount.path) for mount in self._mounts])

    async def close(self) -> None:
        """Let the child go; one that hangs in the kernel is left behind."""
        await self._child.close()


class _Child:
    """The process that asks. It starts with the first path and lives until the pipe to it is closed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._number = 0
        self._pending: dict[int, tuple[str, asyncio.Future[Status | None]]] = {}

    async def ask(self, paths: Iterable[str], deadline_s: float) -> Mapping[str, Status | None]:
        """The answers that came in time; a path whose last question is still open is not asked again."""
        hanging = {path for path, _ in self._pending.values()}
        wanted = [path for path in paths if path not in hanging]
        if not wanted:
            return {}
        process = await self._started()
        asked = {path: self._question(path, process) for path in wanted}
        await asyncio.wait(asked.values(), timeout=deadline_s)
        return {path: future.result() for path, future in asked.items() if future.done()}

    async def close(self) -> None:
        if self._process is None or self._reader is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.wait({self._reader}, timeout=1.0)
        self._reader.cancel()
        self._process = None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", statfs.__file__, stdin=pipe, stdout=pipe
            )
            self._reader = asyncio.create_task(self._read(self._process))
        return self._process

    def _question(self, path: str, process: asyncio.subprocess.Process) -> asyncio.Future[Status | None]:
        assert process.stdin is not None
        self._number += 1
        future: asyncio.Future[Status | None] = asyncio.get_running_loop().create_future()
        self._pending[self._number] = (path, future)
        process.stdin.write(f"{self._number} {os.fsencode(path).hex()}\n".encode())
        return future

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            number, *figures = line.split()
            _, future = self._pending.pop(int(number))
            future.set_result(None if figures[0] == b"error" else tuple(map(int, figures)))
        await process.wait()
        for _, future in self._pending.values():  # the child is gone: nothing hangs any more, ask afresh
            future.set_result(None)
        self._pending.clear()
