"""Runs the kernel's log into events and counters; they commit with the position up to which it was read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from agent.clock import Clock
from agent.errors import StoreError
from agent.followed import follow_again, in_batches
from agent.kernel.book import Book
from agent.kernel.journal import Line, Source
from agent.kernel.messages import Parser
from agent.model import Event, Reading

log = logging.getLogger(__name__)

KEY = "kernel:log"
"""Under this name the position is stored beside those of log files."""

MOST_WAITING = 2000
"""Events that wait for a store that does not take them; older ones are let go."""

CHECK_S = 5.0
REMEMBER_S = 60.0
"""How often a position is committed that brought no event: boot has thousands of ordinary lines."""

AGAIN_S = 10.0
LAST_AGAIN_S = 600.0

Commit = Callable[[Sequence[Event], Sequence[Reading], Mapping[str, Mapping[str, object]]], Awaitable[None]]


class KernelWatch:
    """Reads one source for ever.

    Parameters
    ----------
    source
        Where the lines come from.
    book
        What they become.
    commit
        Stores events, readings and the position in one transaction.
    boot_id
        The kernel's identity of this boot: a position of another one means nothing.
    stored
        What was committed last under :data:`KEY`; its counters are already in the book.
    told
        Called after a commit that brought events: rules that select their counters need not wait for a tick.
    """

    def __init__(
        self,
        source: Source,
        book: Book,
        commit: Commit,
        clock: Clock,
        *,
        boot_id: str,
        stored: Mapping[str, Any] | None = None,
        told: Callable[[], Awaitable[None]],
    ) -> None:
        self._source = source
        self._book = book
        self._commit = commit
        self._clock = clock
        self._boot_id = boot_id
        self._told = told
        self._position = str(stored["position"]) if stored and stored.get("boot") == boot_id else ""
        self._committed = self._position
        self._committed_at = clock.boot()
        self._parser = Parser()
        self._events: list[Event] = []

    async def run(self) -> None:
        """Until cancelled. A source that ends or fails is opened again behind what was read."""
        await follow_again("kernel_log", self._follow, lambda: self._position, again_s=AGAIN_S, most_s=LAST_AGAIN_S)

    async def _follow(self) -> None:
        await in_batches(self._source.lines(self._position), self._take, quiet_s=CHECK_S)

    async def _take(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for finding in self._parser.parse(line.text):
                if (event := self._book.take(finding, line.at)) is not None:
                    self._events.append(event)
            self._position = line.position
        self._events += self._book.due(self._clock.wall())
        boot = self._clock.boot()
        stale = self._position != self._committed and boot - self._committed_at >= REMEMBER_S
        if not self._events and not stale:
            return
        state = {"boot": self._boot_id, "position": self._position, **self._book.to_json()}
        try:
            await self._commit(self._events, (), {KEY: state})
        except StoreError as error:
            log.error("kernel_events_wait count=%d error=%s", len(self._events), error)
            del self._events[:-MOST_WAITING]
            return
        told, self._events = bool(self._events), []
        self._committed, self._committed_at = self._position, boot
        if told:
            await self._told()


def restored(stored: Mapping[str, Any] | None, boot_id: str) -> Mapping[str, Any] | None:
    """What was stored, if it is of this boot: on a new one the whole log is read, and counting begins afresh."""
    return stored if stored and stored.get("boot") == boot_id else None
