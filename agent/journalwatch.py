"""Runs entries of the journal into events and counters, as log files are; they commit with the cursor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from agent import journal
from agent.clock import Clock
from agent.errors import StoreError
from agent.followed import follow_again, in_batches
from agent.journal import Entry
from agent.logwatch.counts import FileCounts, LabelBound, Throttle
from agent.logwatch.patterns import Match, Matcher, readable
from agent.logwatch.tailer import LINE_BYTES
from agent.model import Event, Reading, Severity, make_labels

log = logging.getLogger(__name__)

PREFIX = "journal:"
"""Before the source's name in the store's table of offsets, and before the unit in the label ``file``."""

QUIET_COMMIT_S = 1.0
"""Entries without a match wait this long for their commit; a crash reads them again, and counts them once."""
EVENTS_PER_S = 50
LONGEST_MESSAGE = 2048
AGAIN_S, LAST_AGAIN_S = 1.0, 60.0
RETRY_S = 0.5

Commit = Callable[[Sequence[Event], Sequence[Reading], Mapping[str, Mapping[str, Any]]], Awaitable[None]]
Follow = Callable[[Sequence[str], Sequence[str]], AsyncGenerator[Entry, None]]


class JournalWatch:
    """Reads the journal of some units for ever.

    Parameters
    ----------
    units
        Whose entries; none: all that are not the kernel's.
    priority
        The least urgent that is read, 0 (emerg) to 7 (debug).
    matcher
        The compiled patterns: each line of a message is matched by itself.
    commit
        Stores events, readings and the cursor in one transaction. It may raise: the same batch is then offered again,
        and nothing further is read before it is taken.
    stored
        What was committed under :attr:`key`. Empty: a first start, at which reading begins with what comes.
    wake
        Told the names of the counters that changed, after each commit.
    """

    def __init__(
        self,
        units: Sequence[str],
        matcher: Matcher,
        commit: Commit,
        clock: Clock,
        *,
        priority: int = 7,
        stored: Mapping[str, Any] | None = None,
        wake: Callable[[frozenset[str]], None] = lambda names: None,
        follow: Follow = journal.follow,
    ) -> None:
        self.key = PREFIX + ",".join(sorted(units))
        self._filters = [word for unit in units for word in ("-u", unit)] + ["-p", str(priority)]
        self._matcher = matcher
        self._commit_to = commit
        self._clock = clock
        self._wake = wake
        self._follow = follow
        self._cursor = str((stored or {}).get("cursor", ""))
        self._bound = LabelBound()
        self._throttle = Throttle(EVENTS_PER_S)
        names = [pattern.name for pattern in matcher.patterns]
        self._counts = FileCounts(self.key, names, self._bound, (stored or {}).get("counts", {}))
        self._events: list[Event] = []
        self._committed_at = clock.boot()

    async def run(self) -> None:
        """Until cancelled. ``journalctl`` that ends is started again behind what was read."""
        await follow_again("journal", self._read, lambda: self._cursor, again_s=AGAIN_S, most_s=LAST_AGAIN_S)

    async def _read(self) -> None:
        where = ["--after-cursor", self._cursor] if self._cursor else ["--lines=0"]
        await in_batches(self._follow(self._filters, where), self._take, quiet_s=QUIET_COMMIT_S)

    async def _take(self, entries: Sequence[Entry]) -> None:
        boot, matched = self._clock.boot(), False
        for entry in entries:
            matched |= self._match(entry, boot)
            self._cursor = entry.cursor
        for pattern, folded in self._throttle.due(boot):
            self._events.append(self._folded(pattern, folded))
        changed = bool(entries) or bool(self._events) or self._counts.emitted_at < self._committed_at
        if changed and (matched or self._events or boot - self._committed_at >= QUIET_COMMIT_S):
            await self._commit(boot)

    def _match(self, entry: Entry, boot: float) -> bool:
        """Count one message, and keep an event for each line that matches."""
        data = b"".join(_line(line) for line in entry.text.split("\n"))
        self._counts.read(data.count(b"\n"), len(data))
        matched = False
        for match in self._matcher.scan(data):
            matched = True
            groups = self._bound.admit(match.pattern.name, match.groups)
            self._counts.match(match.pattern.name, groups)
            if self._throttle.admit(match.pattern.name, boot):
                self._events.append(self._event(entry, data, match))
        return matched

    def _event(self, entry: Entry, data: bytes, match: Match) -> Event:
        labels = dict(match.groups)
        # By the unit that systemd saw, never by what the message says of itself.
        labels.update(pattern=match.pattern.name, file=PREFIX + entry.unit)
        message = readable(data[match.start : match.end], LONGEST_MESSAGE)
        return Event("log_match", match.pattern.severity, message, "logwatch", entry.at, make_labels(labels))

    def _folded(self, pattern: str, folded: int) -> Event:
        message = f'{folded} more matches of "{pattern}" within a second are counted and not stored'
        labels = make_labels(pattern=pattern, count=str(folded))
        return Event("log_folded", Severity.INFO, message, "logwatch", self._clock.wall(), labels)

    async def _commit(self, boot: float) -> None:
        """Events, counters and the cursor in one transaction, offered again until it is taken."""
        events, self._events = self._events, []
        readings = self._counts.readings(self._clock.wall())
        state = {self.key: {"cursor": self._cursor, "counts": self._counts.to_json()}}
        failed = False
        while True:
            try:
                await self._commit_to(events, readings, state)
                break
            except (StoreError, OSError) as error:
                if not failed:
                    log.warning("journal_commit_failed error=%s", error)
                failed = True
            await asyncio.sleep(RETRY_S)
        self._counts.emitted_at = self._committed_at = boot
        self._wake(frozenset(series.metric for reading in readings for series in reading.series))


def _line(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:LINE_BYTES] + b"\n"
