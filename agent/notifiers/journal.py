"""The notifier that is always there: a line in the log, which is the journal under systemd, and an event."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from agent.clock import Clock
from agent.model import Event, Severity

log = logging.getLogger(__name__)


class Journal:
    """Writes messages to the log and records them.

    Parameters
    ----------
    record
        Takes events to the store.
    clock
        Dates them.
    """

    def __init__(self, record: Callable[[Sequence[Event]], Awaitable[None]], clock: Clock) -> None:
        self._record = record
        self._clock = clock

    async def notify(self, message: str) -> None:
        log.warning("notify message=%r", message)
        await self._record([Event("notification", Severity.WARNING, message, "notify", self._clock.wall())])
