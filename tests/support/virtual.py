"""Virtual time: an event loop whose clock jumps to the next timer, so that an hour of waiting takes no time.

Only timers, tasks and futures may be waited for. Where nothing is left that could ever wake the loop, the test would
wait for ever, and fails instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: tells the loop how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("nothing can wake the loop: a wait without a timer in virtual time")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time. ``time()`` starts at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class LoopClock:
    """An ``agent.clock.Clock`` that follows the running loop.

    Parameters
    ----------
    wall, boot
        What both clocks say when the loop's is 0. Add to ``boot_ahead`` to let the host sleep while the loop does not.
    """

    def __init__(self, wall: float = 1_700_000_000.0, boot: float = 1_000.0) -> None:
        self._wall, self._boot = wall, boot
        self.boot_ahead = 0.0

    def wall(self) -> float:
        return self._wall + self.boot_ahead + asyncio.get_running_loop().time()

    def boot(self) -> float:
        return self._boot + self.boot_ahead + asyncio.get_running_loop().time()

    def awake(self) -> float:
        return self._boot + asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
