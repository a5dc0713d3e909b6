"""Runs the tailer: events and a sweep wake it; matches become events and counters that commit with the offsets.

Files are read and matched in a thread of their own: a log folder on a hung mount stops this loop and no other.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.clock import Clock
from agent.logwatch.counts import FileCounts, LabelBound, Matched, Throttle
from agent.logwatch.cut import cut_before, position_before
from agent.logwatch.keep import Keeping, Place
from agent.logwatch.patterns import Match, Matcher, without_ansi
from agent.logwatch.tailer import LINE_BYTES, Block, Notice, Position, Tail, Tailer
from agent.logwatch.watch import Watch
from agent.model import Event, Reading, Severity, make_labels

log = logging.getLogger(__name__)

T = TypeVar("T")
Commit = Callable[[Sequence[Event], Sequence[Reading], Mapping[str, Mapping[str, Any]]], Awaitable[None]]

PREFIX = "log:"
"""Before each path in the store's table of offsets; alone, it is the entry of the watched globs."""

SWEEP_S = 10.0
BLIND_SWEEP_S = 1.0
"""Where a folder is not watched: no inotify instance, no watch left, or it rests during a burst."""
COALESCE_S = 0.02
BURST_PER_S = 200
CALM_S = 1.0
QUIET_COMMIT_S = 1.0
"""Lines without a match wait this long for their commit: a crash reads them again, and counts them once."""
EMIT_S = 0.25
"""Counters of a file are sampled at its first match, then this often."""
FORGET_S = 86400.0
"""A path whose files are all gone keeps its counters and their memory this long."""
REPEAT_S = 60.0
"""Counters are sampled anew this often though unchanged: a series is stale after five minutes."""
UNFINISHED_S = 5.0
"""A last line without newline is matched when it has been still this long: crashing programs leave such."""
TURN_BYTES = 2 * 1024 * 1024
EVENTS_PER_S = 50
MOST_REPEATED = 100_000
"""What one line may claim to stand for."""
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0


@dataclass(slots=True)
class _Batch:
    """What is read and not yet committed."""

    events: list[Event] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    at_once: bool = False
    soon: bool = False
    """Holds counters that changed and were sampled too recently to be sampled again."""

    def __bool__(self) -> bool:
        return bool(self.events or self.touched or self.forgotten)


class LogWatch:
    """Watches log files and records each match once.

    Parameters
    ----------
    globs
        Absolute patterns of the files.
    matcher
        The compiled patterns.
    commit
        ``commit(events, readings, offsets)`` stores all three in one transaction. It may raise: the same batch is then
        offered again, and nothing further is read before it is taken.
    clock
        The instants of events; intervals are on its boot clock.
    stored
        The offsets as committed before; entries of other readers are left alone. Empty: a first start, at which files
        are read from their end.
    wake
        Told the names of the counters that changed, after each commit.
    progress
        Called each time the loop gets round.
    keeping
        What of the lines of a file is stored.
    """

    def __init__(
        self,
        globs: Sequence[str],
        matcher: Matcher,
        commit: Commit,
        clock: Clock,
        *,
        stored: Mapping[str, Mapping[str, Any]] | None = None,
        wake: Callable[[frozenset[str]], None] = lambda names: None,
        progress: Callable[[], None] = lambda: None,
        keeping: Keeping | None = None,
        events_per_s: int = EVENTS_PER_S,
        sweep_s: float = SWEEP_S,
    ) -> None:
        self._globs = tuple(globs)
        self._matcher = matcher
        self._commit_to = commit
        self._clock = clock
        self._wake_rules = wake
        self._keeping = keeping or Keeping()
        self._held: dict[Tail, _Held] = {}
        self._progress = progress
        self._sweep_s = sweep_s
        mine = {key[len(PREFIX) :]: entry for key, entry in (stored or {}).items() if key.startswith(PREFIX) and entry}
        known_globs = mine.pop("", {}).get("globs", ())
        self._tailer = Tailer(
            globs, {path: entry.get("tails", ()) for path, entry in mine.items()}, known_globs
        )  # fmt: skip
        self._bound = LabelBound()
        self._stored = mine
        self._counts: dict[str, FileCounts] = {}
        self._gone: dict[str, float] = {}
        self._throttle = Throttle(events_per_s)
        self._batch = _Batch()
        self._globs_stored = set(known_globs) == set(self._globs)
        self._ready: dict[Tail, None] = {}
        self._hints: deque[tuple[str, bool]] = deque(maxlen=65536)
        self._woken = asyncio.Event()
        self._busy: dict[str, _Burst] = {}
        self._resting: dict[str, float] = {}
        self._committed_at = self._swept_at = float("-inf")
        self._unwatched = False
        self._thread = ThreadPoolExecutor(1, "logwatch")

    async def run(self) -> None:
        """Read until cancelled. What was read and not committed is read again at the next start."""
        self._loop = asyncio.get_running_loop()
        watch = await self._off_loop(lambda: Watch(self._hint))
        try:
            while True:
                await self._round(watch)
                self._progress()
        finally:
            # Not waited for: the thread may be stuck on a dead mount.
            self._thread.submit(self._end, watch)
            self._thread.shutdown(wait=False)

    def _end(self, watch: Watch) -> None:
        watch.stop()
        self._tailer.close()

    async def _round(self, watch: Watch) -> None:
        await self._wait()
        self._woken.clear()
        started = self._loop.time()
        boot = self._clock.boot()
        names_changed = self._take_hints(boot)
        self._release(boot)
        if names_changed or boot - self._swept_at >= self._interval():
            await self._off_loop(lambda: self._sweep(watch, boot))
        else:
            await self._rest_or_resume(watch, boot)
        if self._ready:
            await self._off_loop(lambda: self._turn(boot))
        self._fold(boot)
        if self._is_commit_due(boot):
            await self._commit(boot)
        if not self._ready:
            # Events that come meanwhile are taken together: at once when quiet, at most every 20 ms under a burst.
            await asyncio.sleep(max(0.0, started + COALESCE_S - self._loop.time()))

    def _release(self, boot: float) -> None:
        """Read the records that were waited for long enough, as they are."""
        self._ready.update({tail: None for tail, held in self._held.items() if boot >= held.until})

    def _interval(self) -> float:
        return min(self._sweep_s, BLIND_SWEEP_S) if self._unwatched or self._resting else self._sweep_s

    async def _wait(self) -> None:
        """Until an event, the next sweep, the next look at a resting folder, or the next commit."""
        boot = self._clock.boot()
        until = self._swept_at + self._interval()
        if self._ready or self._batch.at_once:
            return
        if self._resting:
            return  # the pause at the end of each round is the polling interval
        if self._batch:
            until = min(until, self._committed_at + self._patience())
        if self._throttle.folding:
            until = min(until, boot + QUIET_COMMIT_S)
        until = min([until, *(held.until for held in self._held.values())])
        if until > boot:
            try:
                await asyncio.wait_for(self._woken.wait(), until - boot)
            except TimeoutError:
                pass

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    def _hint(self, path: str, names_changed: bool) -> None:
        """In watchdog's thread: only what is atomic there."""
        self._hints.append((path, names_changed))
        if len(self._hints) == 1:
            try:
                self._loop.call_soon_threadsafe(self._woken.set)
            except RuntimeError:  # the loop is closed: we are stopping
                pass

    def _take_hints(self, boot: float) -> bool:
        """Sort out what events named; whether names changed, so that only a sweep can tell what is what."""
        names_changed = unknown = False
        while self._hints:
            path, moved = self._hints.popleft()
            names_changed |= moved
            self._busy.setdefault(os.path.dirname(path), _Burst(boot)).count += 1
            tail = self._tailer.at(path)
            if tail is not None:
                self._ready[tail] = None
            else:
                unknown = True
        if unknown:
            self._ready.update(dict.fromkeys(self._tailer.draining()))
        return names_changed

    async def _rest_or_resume(self, watch: Watch, boot: float) -> None:
        for folder, burst in list(self._busy.items()):
            if boot - burst.since < 0.2:
                continue
            del self._busy[folder]
            if burst.count / (boot - burst.since) > BURST_PER_S:
                self._resting[folder] = boot
                await self._off_loop(lambda folder=folder: watch.rest(folder))  # type: ignore[misc]
        for tail in self._tailer.tails if self._resting else ():
            folder = os.path.dirname(tail.path or tail.origin)
            if folder in self._resting and boot - tail.grew_at < CALM_S:
                self._resting[folder] = max(self._resting[folder], tail.grew_at)
                self._ready[tail] = None
        calm = [folder for folder, grew_at in self._resting.items() if boot - grew_at >= CALM_S]
        if calm:
            for folder in calm:
                del self._resting[folder]
            await self._off_loop(lambda: self._sweep(watch, boot))

    def _sweep(self, watch: Watch, boot: float) -> None:
        """Watch what is to be watched, then look: what changes in between wakes us."""
        folders = self._folders()
        self._unwatched = not watch.cover(folders - self._resting.keys())
        self._ready.update(dict.fromkeys(self._tailer.sweep(boot)))
        for tail in self._tailer.tails:
            counts = self._counts_of(tail.origin)
            if boot - counts.emitted_at >= REPEAT_S:
                self._touch(tail.origin, at_once=counts.emitted_at < 0)
            if tail.held_bytes != tail.peeked_bytes and boot - tail.grew_at >= UNFINISHED_S:
                self._peek(tail, boot)
            if self._tailer.is_drained(tail, boot):
                self._finish(tail, boot)
        self._take_notices()
        self._forget(boot)
        self._swept_at = boot

    def _forget(self, boot: float) -> None:
        """Paths that come and go (one log for each run) must not pile up."""
        alive = {tail.origin for tail in self._tailer.tails}
        for origin in [*self._counts, *self._stored]:
            if origin in alive:
                self._gone.pop(origin, None)
            elif boot - self._gone.setdefault(origin, boot) >= FORGET_S:
                self._tailer.forget(origin)
                del self._gone[origin]
                self._counts.pop(origin, None)
                self._stored.pop(origin, None)
                self._batch.forgotten.add(origin)

    def _folders(self) -> set[str]:
        found = {folder for pattern in self._globs for folder in _folders_of(pattern)}
        return found | {os.path.dirname(target) for target in self._tailer.link_targets()}

    def _turn(self, boot: float) -> None:
        """Read each ready file a block at a time until all are read or the turn's budget is spent."""
        budget = TURN_BYTES
        while self._ready and budget > 0:
            for tail in list(self._ready):
                del self._ready[tail]
                block = self._tailer.read(tail, boot)
                if block is not None:
                    budget -= block.bytes
                    if self._take(tail, block, boot):
                        self._ready[tail] = None  # at the end: the next turn goes on with the others
                else:
                    self._held.pop(tail, None)
                if budget <= 0:
                    break
        self._take_notices()

    def _take(self, tail: Tail, block: Block, boot: float, *, complete: bool = False) -> bool:
        """Record what a block holds, up to a record of several lines that is not complete; whether to read on at once.

        Parameters
        ----------
        complete
            Nothing more is waited for.
        """
        data, start, stop = without_ansi(block.data, block.start, block.stop)
        matches = list(self._matcher.scan(data, start, stop))
        ends: list[int] = []
        after, lines = block.after, block.lines
        if matches and self._matcher.multiline:
            held = self._held.get(tail)
            behind = block.truncated or os.fstat(tail.fd).st_size - block.after.offset > LINE_BYTES
            complete = complete or (held is not None and held.is_over(tail.position, boot))
            matches, ends, cut, wait_s = self._records(matches, data, start, stop)
            # With more behind it, a record that fills the block from its beginning would never end.
            if cut < stop and not complete and not (cut == start and behind):
                left = data.count(b"\n", cut, stop)
                place = position_before(tail.fd, tail.position, block, left) if cut > start else None
                if place is None:
                    self._hold_back(tail, tail.position, block, wait_s, boot)
                    return False
                kept = [(match, end) for match, end in zip(matches, ends, strict=True) if match.start < cut]
                matches, ends = [match for match, _ in kept], [end for _, end in kept]
                after, lines, stop = place, block.lines - left, cut
        self._held.pop(tail, None)
        counts = self._counts_of(tail.origin)
        counts.read(lines, after.offset - tail.position.offset)
        self._touch(tail.origin)
        self._record(tail, matches, ends, data, start, stop, boot, truncated=block.truncated)
        tail.position = after
        tail.peeked_bytes = 0
        return True

    def _records(
        self, matches: Iterable[Match], data: bytes | bytearray, start: int, stop: int
    ) -> tuple[list[Match], list[int], int, float]:
        """Matches with the ends of their records; where the first begins that may go on behind ``stop``, and its wait.

        A line within a record of a pattern opens no other record of it.
        """
        kept: list[Match] = []
        ends: list[int] = []
        taken_to: dict[str, int] = {}
        cut, wait_s = stop, 0.0
        for match in matches:
            if match.start < taken_to.get(match.pattern.name, start):
                continue
            end, is_sure = self._matcher.record_end(match, data, stop)
            if match.pattern.multiline is not None:
                taken_to[match.pattern.name] = end
                if not is_sure and match.start < cut:
                    cut, wait_s = match.start, match.pattern.multiline.wait_s
            kept.append(match)
            ends.append(end)
        spans = ((match.start, end) for match, end in zip(kept, ends, strict=True))
        return kept, ends, cut_before(spans, cut), wait_s

    def _hold_back(self, tail: Tail, at: Position, block: Block, wait_s: float, boot: float) -> None:
        """Wait for the rest of a record; what is held is not behind the offset."""
        held = self._held.get(tail)
        if held is None or held.offset != at.offset:
            held = self._held[tail] = _Held(at.offset, boot + wait_s, boot)
        if block.after.offset == held.read_to:
            tail.grew_at = held.grew_at  # read again, not grown
        held.read_to, held.grew_at = block.after.offset, tail.grew_at

    def _peek(self, tail: Tail, boot: float) -> None:
        """Match an unfinished last line; without a match it goes on waiting for its newline."""
        block = self._tailer.read(tail, boot, flush=True)
        grown = tail.held_bytes
        if block is not None and (block.stop == block.start or any(self._matcher.scan(*_cleaned(block)))):
            self._take(tail, block, boot, complete=True)
        else:
            tail.peeked_bytes = grown

    def _finish(self, tail: Tail, boot: float) -> None:
        while (block := self._tailer.read(tail, boot, flush=True)) is not None:
            self._take(tail, block, boot, complete=True)
        self._tailer.let_go(tail)
        self._touch(tail.origin)

    def _record(
        self,
        tail: Tail,
        matches: Sequence[Match],
        ends: Sequence[int],
        data: bytes | bytearray,
        start: int,
        stop: int,
        boot: float,
        *,
        truncated: bool,
    ) -> None:
        counts = self._counts_of(tail.origin)
        line, counted_to = tail.position.line + 1, start
        at = self._clock.wall()
        stored = self._keeping.of(tail.origin)
        self._repeat(counts, counts.last, data, start, stop)
        if stop > start:
            counts.last = ()
        for index, match in enumerate(matches):
            line += data.count(b"\n", counted_to, match.start)
            counted_to = match.start
            end = ends[index] if ends else match.end
            text = bytes(data[match.start : end])
            groups = stored.groups(match, text)
            labels = self._bound.admit(match.pattern.name, groups)
            times = _times(text)
            counts.match(match.pattern.name, labels, times)
            self._repeat(counts, ((match.pattern.name, labels),), data, end + 1, stop)
            if end + 1 >= stop:
                counts.last = (*counts.last, (match.pattern.name, labels))
            self._batch.at_once = True
            rate = match.pattern.rate
            if rate is not None and not counts.reached(match.pattern.name, labels, rate, at, times):
                continue
            if self._throttle.admit(match.pattern.name, boot):
                place = Place(tail.origin, line, at, at - boot, truncated=truncated)
                self._batch.events.append(stored.event(match, text, groups, place, times))

    def _repeat(self, counts: FileCounts, matched: Matched, data: bytes | bytearray, at: int, stop: int) -> None:
        """Count what a line matched again where the line behind it says how often it was repeated."""
        if not matched or at >= stop:
            return
        end = data.find(b"\n", at, stop)
        found = _LAST_REPEATED.search(bytes(data[at : at + 256 if end < 0 else min(end, at + 256)]))
        for pattern, labels in matched if found else ():
            counts.match(pattern, labels, min(int(found[1]), MOST_REPEATED))  # type: ignore[index]
            self._batch.at_once = True

    def _counts_of(self, origin: str) -> FileCounts:
        counts = self._counts.get(origin)
        if counts is None:
            names = [pattern.name for pattern in self._matcher.patterns]
            counts = FileCounts(origin, names, self._bound, self._stored.pop(origin, {}))
            self._counts[origin] = counts
        return counts

    def _touch(self, origin: str, *, at_once: bool = False) -> None:
        self._batch.touched.add(origin)
        self._batch.at_once |= at_once

    def _take_notices(self) -> None:
        at = self._clock.wall()
        for notice in self._tailer.take_notices():
            self._batch.events.append(_notice_event(notice, at))
            self._batch.at_once = True
            if notice.kind == "gap":
                self._counts_of(notice.path).gap()
                self._ready.update(dict.fromkeys(self._tailer.draining()))  # the copy that holds the lost end
                self._touch(notice.path)

    def _fold(self, boot: float) -> None:
        """Say how many matches of a pattern got no row of their own; the counters have them all."""
        for pattern, folded in self._throttle.due(boot):
            self._batch.events.append(
                Event(
                    "log_folded",
                    Severity.INFO,
                    f'{folded} more matches of "{pattern}" within a second are counted and not stored',
                    "logwatch",
                    self._clock.wall(),
                    make_labels(pattern=pattern, count=str(folded)),
                )
            )
            self._batch.at_once = True

    def _is_commit_due(self, boot: float) -> bool:
        if not self._globs_stored:
            return True
        return bool(self._batch) and (self._batch.at_once or boot - self._committed_at >= self._patience())

    def _patience(self) -> float:
        return EMIT_S if self._batch.soon else QUIET_COMMIT_S

    async def _commit(self, boot: float) -> None:
        """Store the batch: offsets, events and counters in one transaction, offered again until it is taken."""
        batch, self._batch = self._batch, _Batch()
        emitting = [origin for origin in batch.touched if boot - self._counts_of(origin).emitted_at >= EMIT_S]
        at = self._clock.wall()
        readings = sorted(
            (reading for origin in emitting for reading in self._counts_of(origin).readings(at)),
            key=lambda reading: reading.at,
        )
        offsets: dict[str, Mapping[str, Any]] = {
            PREFIX + origin: {"tails": self._tailer.entry(origin), **self._counts_of(origin).to_json()}
            for origin in batch.touched
        }
        offsets.update((PREFIX + origin, {}) for origin in batch.forgotten - batch.touched)
        if not self._globs_stored:
            offsets[PREFIX] = {"globs": list(self._globs)}
        await self._insist(batch.events, readings, offsets)
        self._globs_stored = True
        self._committed_at = boot
        for origin in emitting:
            self._counts_of(origin).emitted_at = boot
        unsampled = batch.touched.difference(emitting)
        self._batch.touched.update(unsampled)
        self._batch.soon |= bool(unsampled)
        if readings:
            self._wake_rules(frozenset(series.metric for reading in readings for series in reading.series))

    async def _insist(
        self, events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, Any]]
    ) -> None:
        pause = FIRST_RETRY_S
        failed = False
        while True:
            try:
                await self._commit_to(events, readings, offsets)
            except Exception as error:  # whatever the store says, the batch is kept: reading on would lose it
                if not failed:
                    log.warning("log_commit_failed error=%s", error)
                failed = True
            else:
                if failed:
                    log.warning("log_commit_resumed events=%d", len(events))
                return
            await asyncio.sleep(pause)
            self._progress()
            pause = min(2 * pause, LAST_RETRY_S)


@dataclass(slots=True)
class _Held:
    """A record whose rest is waited for: where it begins, and until when on the boot clock."""

    offset: int
    until: float
    grew_at: float
    read_to: int = -1

    def is_over(self, at: Position, boot: float) -> bool:
        return at.offset == self.offset and boot >= self.until


@dataclass(slots=True)
class _Burst:
    since: float
    count: int = 0


def _folders_of(pattern: str) -> list[str]:
    """Where files of a glob can appear, as far as they exist; the folder may itself be a glob."""
    folder = os.path.dirname(pattern)
    if not glob.has_magic(folder):
        return [folder]
    return [path for path in glob.iglob(folder, recursive=True) if os.path.isdir(path)]


_LAST_REPEATED = re.compile(rb"last message repeated (\d{1,6}) times?(?: |$)")
_REPEATED = re.compile(rb"message repeated (\d{1,6}) times: \[")
"""BSD's and BusyBox' syslog, of the line before; rsyslog, of the line in the brackets."""


def _times(text: bytes) -> int:
    """How many lines this one says that it stands for."""
    if text.find(b"message repeated ", 0, 256) < 0:
        return 1
    found = _REPEATED.search(text, 0, 256)
    return max(1, min(int(found[1]), MOST_REPEATED)) if found else 1


def _cleaned(block: Block) -> tuple[bytes | bytearray, int, int]:
    return without_ansi(block.data, block.start, block.stop)


def _notice_event(notice: Notice, at: float) -> Event:
    severity = Severity.WARNING if notice.kind == "gap" else Severity.INFO
    return Event(f"log_{notice.kind}", severity, notice.message, "logwatch", at, make_labels(file=notice.path))
