"""Keep long-lived tasks alive: a crash is an event and a restart with backoff, and progress feeds the watchdog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.clock import Clock

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 60.0
HEALTHY_AFTER_S = 300.0

Crashed = Callable[[str, BaseException], Awaitable[None]]


@dataclass(slots=True)
class Progress:
    """When a loop last did something useful, on the boot clock, and how long it may stay silent."""

    name: str
    patience_s: float
    at: float

    def stuck(self, boot: float) -> bool:
        return boot - self.at > self.patience_s


class Supervisor:
    """Runs named loops until cancelled; each restarts alone when it crashes.

    Parameters
    ----------
    clock
        Backoffs and progress are counted on its boot clock.
    crashed
        Told of every crash, before the backoff; it records the event.
    """

    def __init__(self, clock: Clock, crashed: Crashed) -> None:
        self._clock = clock
        self._crashed = crashed
        self._progress: dict[str, Progress] = {}

    def progress(self, name: str, patience_s: float) -> Callable[[], None]:
        """Register a critical loop; it calls what is returned each time it gets round."""
        entry = Progress(name, patience_s, self._clock.boot())
        self._progress[name] = entry

        def made() -> None:
            entry.at = self._clock.boot()

        return made

    def stuck(self) -> list[str]:
        """The names of critical loops that made no progress within their patience."""
        boot = self._clock.boot()
        return [entry.name for entry in self._progress.values() if entry.stuck(boot)]

    async def keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run ``loop`` for ever; a return is an end, an exception a crash and a restart."""
        backoff = FIRST_BACKOFF_S
        while True:
            started = self._clock.boot()
            try:
                await loop()
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("task_crashed name=%s", name)
                await self._crashed(name, error)
            if self._clock.boot() - started > HEALTHY_AFTER_S:
                backoff = FIRST_BACKOFF_S
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF_S)
