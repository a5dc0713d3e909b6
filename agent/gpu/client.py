"""The agent's side of the probe: start it or reach it, ask it, and never wait for it longer than a deadline.

A child is never killed. It holds a lock for as long as it lives, so that an agent that was started again does not start
a second probe beside one that hangs in the driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agent.clock import Clock
from agent.gpu import host
from agent.gpu.protocol import (
    MAX_LINE_BYTES,
    VERSION,
    Column,
    DriverState,
    GpuError,
    Read,
    Seen,
    decode,
    encode,
    without_driver,
)
from agent.gpu.release import released_until

DEADLINE_S = 5.0
"""How long an answer may take; the probe's own patience is 3 s."""

LOOK_AGAIN_S = 60.0
"""How often a host without a driver, or with one that cannot be used, is looked at again."""

RETRY_S = 10.0
RENEW_LOST_S = 300.0
"""A GPU that was lost comes back only to a session that begins afterwards."""

STOP_S = 1.0

_MAIN = Path(__file__).with_name("__main__.py")
_LOCK_FD = 3
LOCK = "gpu.lock"
"""In the state directory: whoever holds it is the agent's own probe, and its process number stands in it."""


class StuckError(GpuError):
    """An earlier probe still holds the lock."""


@dataclass(slots=True)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self) -> None:
        """Hang up. The probe ends by itself once its calls have come back; here nobody waits for that."""
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), STOP_S)


class Link(Protocol):
    """How a probe is reached."""

    async def open(self) -> Connection:
        """A connection to a probe.

        Raises
        ------
        StuckError
            There is one that cannot be reached, so no other may be started.
        OSError
            There is none, and none can be started.
        """

    def tidy(self) -> None:
        """Bury probes that have ended."""


class ChildLink:
    """A probe of our own, started when it is needed.

    It is no child of the event loop's: the loop kills the children that outlive it.

    Parameters
    ----------
    lock
        The file that a probe holds locked while it lives, with its process number in it.
    environment
        The probe's; None is the agent's own.
    """

    def __init__(self, lock: Path, environment: Mapping[str, str] | None = None) -> None:
        self._lock = lock
        self._environment = environment
        self._unreaped: set[int] = set()

    async def open(self) -> Connection:
        self.tidy()
        held = self._take_lock()
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                pid = self._spawn(theirs.fileno(), held)
            os.pwrite(held, f"{pid:<11}\n".encode(), 0)
        finally:
            os.close(held)  # the probe's copy keeps the lock
        self._unreaped.add(pid)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES)
        return Connection(reader, writer)

    def _take_lock(self) -> int:
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 16, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StuckError(f"the probe with process number {pid} has not ended yet") from None
        except OSError:
            os.close(fd)
            raise
        return fd

    def _spawn(self, stdin: int, lock: int) -> int:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", os.fspath(_MAIN)],
            self._environment if self._environment is not None else os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
            ],
            setsid=True,  # Ctrl-C in a terminal is for the agent
        )

    def tidy(self) -> None:
        for pid in list(self._unreaped):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._unreaped.discard(pid)


def holder(lock: Path) -> int | None:
    """The process number of the probe that holds the lock; None where nobody does."""
    try:
        with open(lock, encoding="ascii", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except OSError:  # none yet, or not for this user to see
        return None
    return None


class SocketLink:
    """A probe that systemd runs, one at most."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def open(self) -> Connection:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE_BYTES)
        return Connection(reader, writer)

    def tidy(self) -> None:
        """They are systemd's."""


class Probe:
    """What the agent knows of the GPUs, asked for anew at each :meth:`read`.

    Without a driver it costs a look at a few files once a minute, and no process.

    Parameters
    ----------
    link
        How the probe is reached.
    clock
        Deadlines run on its boot clock.
    state_dir
        Where a release is written down.
    root
        Where the host's files begin; tests name another.
    deadline_s
        How long an answer may take.
    """

    def __init__(
        self, link: Link, clock: Clock, state_dir: Path, *, root: str = "/", deadline_s: float = DEADLINE_S
    ) -> None:
        self._link = link
        self._clock = clock
        self._state_dir = state_dir
        self._root = root
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._number = 0
        self._answer: asyncio.Task[Seen] | None = None
        self._asked_at = 0.0
        self._columns: dict[str, tuple[Column, ...]] = {}
        self._look_at = float("-inf")
        self._last = without_driver("no_driver", "")
        self._lost_at: float | None = None
        self.files = host.DriverFiles(False)
        """What the host's own files said when they were last looked at."""

    async def read(self) -> Seen:
        """Everything there is to say now; never later than the deadline, and never an error.

        Where the driver is not ``ready`` the reason is its state; GPUs that hang or are lost say so themselves.
        """
        self._link.tidy()
        if released_until(self._state_dir, self._clock.wall()):
            await self.close()
            self._look_at = float("-inf")
            return self._keep(without_driver("released", ""))
        boot = self._clock.boot()
        if boot >= self._look_at:
            self._look_at = boot + LOOK_AGAIN_S
            self.files = host.driver_files(self._root)
            if self._connection is None:
                await self._open()
        if self._connection is None:
            return self._last
        try:
            seen = self._known(await self._ask())
        except TimeoutError:
            silent_s = self._clock.boot() - self._asked_at
            return self._keep(without_driver("hung", f"the probe has not answered for {silent_s:.0f} s"))
        except GpuError as error:
            await self.close()
            self._retry(RETRY_S)
            return self._keep(without_driver("no_probe", str(error)))
        await self._judge(seen)
        return self._keep(seen)

    async def close(self) -> None:
        """Let go of the driver."""
        connection, self._connection = self._connection, None
        if self._answer is not None:
            self._answer.cancel()
            await asyncio.wait({self._answer})
            self._answer = None
        if connection is not None:
            await connection.close()

    def _keep(self, seen: Seen) -> Seen:
        self._last = seen
        return seen

    def _retry(self, seconds: float) -> None:
        self._look_at = min(self._look_at, self._clock.boot() + seconds)

    async def _open(self) -> None:
        self._columns.clear()
        self._lost_at = None
        if not self.files.loaded:
            self._keep(without_driver("no_driver", ""))
            return
        state: DriverState
        try:
            self._connection = await self._link.open()
            return
        except StuckError as error:
            state, message = "stuck", str(error)
        except OSError as error:
            state, message = "no_probe", f"cannot start the probe: {(error.strerror or str(error)).lower()}"
        self._keep(without_driver(state, message))
        self._retry(RETRY_S)

    async def _ask(self) -> Seen:
        """The answer to this question, or to an earlier one that is still open: no second one is asked."""
        if self._answer is None:
            assert self._connection is not None
            self._number += 1
            self._asked_at = self._clock.boot()
            self._answer = asyncio.create_task(self._talk(self._connection, self._number))
        done, _ = await asyncio.wait({self._answer}, timeout=self._deadline_s)
        if not done:
            raise TimeoutError
        answer, self._answer = self._answer, None
        return answer.result()

    async def _talk(self, connection: Connection, number: int) -> Seen:
        try:
            connection.writer.write(encode(number, Read(VERSION)))
            line = await connection.reader.readline()
        except ConnectionError:
            line = b""
        except (OSError, ValueError) as error:
            raise GpuError(f"cannot hear the probe: {error}") from None
        if not line:
            raise GpuError("cannot hear the probe: it has ended")
        found, seen = decode(line, Seen)
        if found != number:
            raise GpuError("cannot follow the probe: it answered another question")
        return seen

    def _known(self, seen: Seen) -> Seen:
        """The answer with the columns that were told before."""
        for gpu in seen.gpus:
            if gpu.columns is not None:
                self._columns[gpu.uuid] = gpu.columns
        gpus = tuple(replace(gpu, columns=self._columns.get(gpu.uuid, ()) if gpu.values else ()) for gpu in seen.gpus)
        if any(len(gpu.columns or ()) != len(gpu.values) for gpu in gpus):
            raise GpuError("cannot follow the probe: values without columns")
        return replace(seen, gpus=gpus)

    async def _judge(self, seen: Seen) -> None:
        """Hang up where only a new probe can do better: it begins a new session, with the library of that day."""
        boot = self._clock.boot()
        if seen.state not in ("ready", "hung"):
            await self.close()
            # A session that worked and broke is renewed at once: the driver was loaded anew. A second failure waits.
            self._look_at = boot if self._last.state == "ready" else boot + LOOK_AGAIN_S
            return
        if not any(gpu.state == "lost" for gpu in seen.gpus):
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = boot
        elif boot - self._lost_at >= RENEW_LOST_S and all(gpu.state != "hung" for gpu in seen.gpus):
            await self.close()
            self._look_at = boot
