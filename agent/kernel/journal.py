"""Where kernel lines come from: the journal of this boot from its start, or /dev/kmsg where only that can be opened.

Each line has a position, so that a start in the same boot goes on behind what was committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.clock import Clock
from agent.journal import COMMAND, follow

KMSG = "/dev/kmsg"
JOURNALD = "/run/systemd/journal/socket"
_KMSG_BYTES = 8192  # the kernel hands out one record a read, and refuses a buffer that is too small for it


@dataclass(frozen=True, slots=True)
class Line:
    """One message, when it was logged (seconds since the epoch), and its position within the boot."""

    text: str
    at: float
    position: str


class Source(Protocol):
    def lines(self, after: str) -> AsyncGenerator[Line, None]:
        """Lines behind a position (empty: from the boot's start), then those that come. It ends where the source does.

        Raises
        ------
        OSError
            It cannot be opened.
        """


def find_source(clock: Clock, *, journald: str = JOURNALD, kmsg: str = KMSG) -> Source:
    """The journal where its daemon runs, else /dev/kmsg where it may be read, else silence (a container)."""
    if shutil.which("journalctl") and os.path.exists(journald):
        return Journal()
    try:
        os.close(os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return Silence()
    return Kmsg(clock, kmsg)


class Silence:
    """Where no log can be read: nothing comes, and what NVML tells is judged all the same."""

    async def lines(self, after: str) -> AsyncGenerator[Line, None]:
        await asyncio.Event().wait()
        yield Line("", 0.0, after)


class Journal:
    """``journalctl``, followed."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command

    async def lines(self, after: str) -> AsyncGenerator[Line, None]:
        where = ["--after-cursor", after] if after else ["--no-tail"]
        async with contextlib.aclosing(follow(("-k", "-b"), where, self._command)) as entries:
            async for entry in entries:
                yield Line(entry.text, entry.at, entry.cursor)


class Kmsg:
    """The kernel's own buffer, which holds what it holds: its oldest lines may be gone."""

    def __init__(self, clock: Clock, path: str = KMSG) -> None:
        self._clock = clock
        self._path = path

    async def lines(self, after: str) -> AsyncGenerator[Line, None]:
        first = int(after) + 1 if after.isdecimal() else 0
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            loop.add_reader(fd, readable.set)
            while True:
                try:
                    raw = os.read(fd, _KMSG_BYTES)
                except BlockingIOError:
                    readable.clear()
                    await readable.wait()
                    continue
                except BrokenPipeError:  # overtaken: the next read goes on with the oldest line that is left
                    continue
                if not raw:
                    return
                line = parse_record(raw, self._clock.wall() - self._clock.boot())
                if line is not None and int(line.position) >= first:
                    yield line
        finally:
            loop.remove_reader(fd)
            os.close(fd)


def parse_record(raw: bytes, booted_at: float) -> Line | None:
    """One record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg); None for what user space wrote into it.

    Parameters
    ----------
    booted_at
        When the host started, seconds since the epoch. The kernel's clock stands still in suspend; ours may differ by
        that.
    """
    head, _, text = raw.partition(b";")
    fields = head.split(b",")
    if len(fields) < 3 or not all(field.isdigit() for field in fields[:3]) or int(fields[0]) >> 3:
        return None
    message = text.partition(b"\n")[0].decode("utf-8", "replace").replace("\\x0a", "\n")
    return Line(message, booted_at + int(fields[2]) / 1e6, fields[1].decode())
