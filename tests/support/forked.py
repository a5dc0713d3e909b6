"""A writer as a forked child, for killing: no interpreter starts anew, so a thousand kills take minutes.

The caller has no thread and no open SQLite file at the moment: neither survives a fork.
"""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

Say = Callable[[object], None]


class Forked:
    """The child, seen from its parent."""

    def __init__(self, pid: int, ear: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self._said = os.fdopen(ear, encoding="utf-8")

    def hear(self) -> str:
        """The next line it says; empty when it has ended."""
        return self._said.readline().removesuffix("\n")

    def kill(self) -> list[str]:
        """Kill it, and return what it had said; what it was about to say does not count."""
        self.end(signal.SIGKILL)
        lines = self._said.read().splitlines(keepends=True)
        assert not [line for line in lines if line.startswith("Traceback")], "".join(lines)
        return [line[:-1] for line in lines if line.endswith("\n")]

    def alive(self) -> bool:
        """Whether it still runs."""
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self, number: int) -> int:
        """Send a signal, wait, and return the exit status (negative: the signal that ended it)."""
        if self.status is None:
            os.kill(self.pid, number)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def close(self) -> None:
        self.end(signal.SIGKILL)
        self._said.close()


@contextmanager
def forked(body: Callable[[Say], Coroutine[None, None, None]]) -> Iterator[Forked]:
    """Run ``body`` in a child that says lines; it is dead at the end, whatever happens."""
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(body, mouth)
    os.close(mouth)
    child = Forked(pid, ear)
    try:
        yield child
    finally:
        child.close()


def _run(body: Callable[[Say], Coroutine[None, None, None]], mouth: int) -> None:
    def say(word: object) -> None:
        os.write(mouth, f"{word}\n".encode())

    status = 1
    try:
        asyncio.run(body(say))
        status = 0
    except BaseException:
        with suppress(OSError):
            say(traceback.format_exc())
    finally:
        os._exit(status)
