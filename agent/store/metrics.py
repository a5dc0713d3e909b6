"""Samples, events and tail offsets: the writer's side of metrics.db and the memory that rules are judged on."""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from agent.clock import Clock
from agent.errors import StoreError
from agent.model import STALE, Event, Reading, Series
from agent.promql.nodes import Matcher
from agent.promql.values import Points
from agent.store import rollup
from agent.store.database import Database, StoreFullError
from agent.store.epochs import Epochs
from agent.store.recent import SPAN_S, Recent
from agent.store.retention import Keeper, Retention, used_bytes
from agent.store.rollup import HOUR_S, MINUTE_S
from agent.store.series import (
    Budget,
    Layout,
    Layouts,
    decode_labels,
    decode_values,
    encode_labels,
    encode_values,
    layout_statements,
    seal,
)
from agent.store.statement import Many, Row, Statement
from agent.store.wal import SPACED_S, Wal

DEADLINE_S = 0.5
"""How long a tick waits for its commit before it goes on; its rows then wait in memory."""

COMMIT_EVERY_S = 5.0
"""Ticks that come faster share a commit, which costs more than all else of a tick (docs/decisions/080)."""

WAITING_BYTES = 8 << 20
FOLD_AFTER_S = 15.0
"""A minute is folded so long after its end: a slow collector's reading carries the instant at which it began."""

MINUTES_SPAN_S = 8 * 3600.0
"""How far rules can look back: the shipped ``predict_linear(…[6h])`` needs six hours."""

_FOLDED_AT_ONCE = 50
"""Series of a minute, which take a millisecond or two: an alert's handler must not wait for all of them."""
_ROWS_A_STATEMENT = 64
_TRIES = 8
"""For one flush on a full disk: each makes room for some rows."""
_GRAIN_S = 0.05
"""Ticks come this much early or late: at the default interval each one is still a commit."""
_INSERTS = {
    n: "INSERT OR REPLACE INTO tick (id, layout, vals) VALUES " + ", ".join(["(?, ?, ?)"] * n) for n in range(1, 65)
}

TickRow = tuple[int, Layout, str]


class Metrics:
    """What ``Store.metrics`` is.

    A PromQL source from memory alone, so that rules go on while SQLite is stuck: every sample of the last hour
    (:attr:`recent`), and before it one point a minute, the last of that minute, for eight hours.
    """

    def __init__(
        self, database: Database, epochs: Epochs, limits: Retention, layouts: Layouts, folded_until: dict[int, int]
    ) -> None:
        self.epochs = epochs
        self.recent = Recent()
        self._minutes = Recent(span_s=MINUTES_SPAN_S)
        self.fault = ""
        """Why rows are waiting in memory; empty while the file takes them."""
        self.dropped_rows = 0
        """Rows that found no room in memory while the file could not take them."""
        self.damaged_rows = 0
        """Rows of the file that are not what was written: they are passed over."""
        self.log = Wal(database)
        self._database = database
        self._limits = limits
        self._keeper = Keeper(database, limits)
        self._layouts = layouts
        self._cover_budget = Budget()
        self._waiting: deque[TickRow] = deque()
        self._waiting_bytes = 0
        self._flushing: asyncio.Task[None] | None = None
        self._fresh: list[Reading] = []
        """What rules see and what is not yet a row: text is made of many at once, while caches are warm."""
        self._commit_due = float("-inf")
        self._rows = 0
        self._folded_until = folded_until
        self._cover: dict[int, Layout] = {}

    @classmethod
    async def open(cls, database: Database, *, clock: Clock, limits: Retention) -> Metrics:
        """Begin where the file ends: its series, its layouts, and its last hour into memory."""
        known = await database.read("SELECT id, metric, labels FROM series")
        series = {Series(metric, decode_labels(labels)): number for number, metric, labels in known}
        [(last_layout,)] = await database.read("SELECT coalesce(max(layout), 0) FROM slot")
        folded = {}
        for table, span in _FOLDED:
            [(last,)] = await database.read(f"SELECT max(id) FROM {table}")
            folded[span] = 0 if last is None else last + span
        metrics = cls(
            database, Epochs(database, clock), limits, Layouts(series, last_layout + 1, limits.max_series), folded
        )
        await metrics.epochs.begin("started")
        await metrics._keeper.begin()
        await metrics._warm(clock.wall())
        return metrics

    @property
    def waiting_rows(self) -> int:
        """Rows that are in memory and not yet in the file."""
        return len(self._waiting) + len(self._fresh)

    @property
    def series_known(self) -> int:
        """Series that have a number: those of the file, and new ones."""
        return len(self._layouts)

    @property
    def refused_values(self) -> int:
        """Values that were not stored, for their series were too many."""
        return self._layouts.refused_values

    @property
    def refused_metric(self) -> str:
        """The metric of the last series that was refused."""
        return self._layouts.refused_metric

    async def append_tick(self, readings: Sequence[Reading], boot: float) -> None:
        """As :meth:`append`, for readings that come at a pace: at most one commit in :data:`COMMIT_EVERY_S`.

        Rules see them at once; whoever reads the file sees them by then, and that much is what a kill can lose.

        Parameters
        ----------
        boot
            The instant on the boot clock.
        """
        for reading in self._parts(readings):
            self._remember(self._layouts.of(reading.series), reading)
            self._fresh.append(reading)
        if boot >= self._commit_due:
            self._commit_due = boot + (SPACED_S if self.log.held else COMMIT_EVERY_S) - _GRAIN_S
            await self.append(())

    async def append(self, readings: Sequence[Reading], *, deadline_s: float = DEADLINE_S) -> None:
        """Take in the readings of one tick and commit them, in one statement.

        Rules see them at once. When the file does not take them within ``deadline_s``, or at all (:attr:`fault` says
        why), they wait in memory, the newest :data:`WAITING_BYTES` of them, and go in with a later tick.
        """
        for reading in self._fresh:
            self._wait(self._row(reading))
        self._fresh.clear()
        for reading in self._parts(readings):
            self._wait(self._take_in(reading))
        if self._flushing is not None:
            if not self._flushing.done():
                return
            self._flushing = None
        try:
            async with asyncio.timeout(deadline_s):
                await self._flush()
        except TimeoutError:
            # SQLite is stuck. One task waits for it with these rows and all that follow; no tick does.
            self.fault = f"the disk did not take a commit within {deadline_s:g} s"
            self._flushing = asyncio.create_task(self._flush())

    async def commit_log(
        self, events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Commit what was read from logs and how far it was read, in one transaction; rules see it afterwards.

        Parameters
        ----------
        events, readings
            What the lines gave: events in order, counters with their instants.
        offsets
            The state of each tail whose position changed, by path; an empty state forgets the tail.

        Raises
        ------
        StoreError
            Nothing was stored; the caller keeps its lines and tries again.
        """
        await self.log.admit()
        parts = list(self._parts(readings))
        rows = [self._row(reading) for reading in parts]
        kept = [(path, json.dumps(state)) for path, state in offsets.items() if state]
        gone = [(path,) for path, state in offsets.items() if not state]
        new = _new_layouts(rows)
        way = self.epochs.make_way()
        statements = [*way.statements, *layout_statements(new)]
        statements += [_insert(rows[at : at + _ROWS_A_STATEMENT]) for at in range(0, len(rows), _ROWS_A_STATEMENT)]
        if events:
            statements.append(_insert_events(events))
        if kept:
            statements.append(Many("INSERT OR REPLACE INTO tail (path, state) VALUES (?, ?)", kept))
        if gone:
            statements.append(Many("DELETE FROM tail WHERE path = ?", gone))
        try:
            await self._database.write(*statements)
        except StoreFullError:
            await self._make_room()  # for the next try
            raise
        self.epochs.passed(way)
        for layout in new:
            layout.stored = True
        for reading in parts:
            self._remember(self._layouts.of(reading.series), reading)

    async def add_events(self, events: Sequence[Event]) -> None:
        """Commit events."""
        if events:
            await self.log.admit()
            await self._database.write(_insert_events(events))

    async def offsets(self) -> dict[str, Mapping[str, object]]:
        """The stored state of each tail, by path."""
        return {path: json.loads(state) for path, state in await self._database.read("SELECT path, state FROM tail")}

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
        """Every series that meets all matchers, with its points in the closed interval as far as memory reaches."""
        recent = self.recent.select(matchers, start, end)
        begin = self.recent.start()
        if begin is not None and start >= begin:
            return recent
        found = {points.labels: points for points in recent}
        for older in self._minutes.select(matchers, start, end):
            newer = found.get(older.labels)
            found[older.labels] = older if newer is None else _joined(older, newer)
        return list(found.values())

    async def maintain(self, at: float, *, beside_bytes: int = 0) -> None:
        """Fold finished minutes and hours, pack old rows, prune, keep the file small; to be called once a minute.

        ``beside_bytes`` is what the other file takes of the size that both may have.
        """
        try:
            if not self._database.restore_ballast():
                await self.log.empty()
                self._database.restore_ballast()
            await self.log.admit()
            if not self.log.held:  # what rewrites pages would fill the log that cannot be emptied
                await self._keeper.maintain(at, beside_bytes=beside_bytes)  # first: it makes the room for the rest
            await self._fold_minutes(at - FOLD_AFTER_S)
            await self._fold_hours(at - FOLD_AFTER_S)
        except StoreError as error:
            self.fault = str(error)  # what could not be folded is folded next time: memory holds an hour
        self._layouts.forget(self.recent.trim(at))
        self._layouts.rest()
        self._minutes.trim(at)

    async def tidy(self) -> None:
        """Drop layouts and series that nothing refers to; reads every row in small steps, so once a day is enough."""
        await self.epochs.prune(self._limits.raw_s, self._limits.hours_s)
        made_later = self._layouts.next_layout
        in_use = self._layouts_in_use() | await self._keeper.used_layouts() | self._layouts_in_use()
        forgotten = await self._keeper.drop_names(in_use, made_later)
        self._layouts.forget_series(forgotten, self._cover.values())

    async def size_bytes(self) -> int:
        """What the content of the file takes on the disk."""
        return await used_bytes(self._database)

    async def settled(self) -> None:
        """Return when no commit of a tick is under way any more."""
        if self._flushing is not None:
            await asyncio.wait({self._flushing})

    async def close(self) -> None:
        """Give waiting rows a last chance; while the disk is stuck no process that uses it could end anyway."""
        await self.append((), deadline_s=DEADLINE_S)
        await self.settled()

    # One row: what is read becomes text once, and waits until the file has it.

    def _parts(self, readings: Iterable[Reading]) -> Iterable[Reading]:
        """The readings, cut where their series change too often."""
        return (part for reading in readings if reading.series for part in self._layouts.parts(reading))

    def _layouts_in_use(self) -> set[int]:
        """Those that rows to come may name."""
        fresh = [self._layouts.of(reading.series) for reading in self._fresh]
        waiting = [layout for _, layout, _ in self._waiting]
        return {*self._layouts.ids(), *(layout.id for layout in (*fresh, *waiting, *self._cover.values()))}

    def _take_in(self, reading: Reading) -> TickRow:
        row = self._row(reading)
        self._remember(row[1], reading)
        return row

    def _row(self, reading: Reading) -> TickRow:
        layout = self._layouts.of(reading.series)
        if len(reading.values) != len(reading.series):
            raise ValueError(f"a reading has {len(reading.values)} values for {len(reading.series)} series")
        self._rows = (self._rows + 1) % 1000
        return round(reading.at * 1000) * 1000 + self._rows, layout, seal(encode_values(reading.values))

    def _remember(self, layout: Layout, reading: Reading) -> None:
        self.recent.add(layout, round(reading.at * 1000) / 1000, reading.values)

    def _wait(self, row: TickRow) -> None:
        self._waiting.append(row)
        self._waiting_bytes += len(row[2])
        while self._waiting_bytes > WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft()[2])
            self.dropped_rows += 1

    async def _flush(self) -> None:
        for _ in range(_TRIES):
            if not await self._flush_once():
                break

    async def _flush_once(self) -> bool:
        """Whether room was made, and another try may find it."""
        try:
            if why := await self.log.full_for_samples():
                self.fault = why
                return False
            while self._waiting:
                await self._flush_some([self._waiting[at] for at in range(min(len(self._waiting), _ROWS_A_STATEMENT))])
            self.fault = ""
        except StoreFullError as error:
            self.fault = str(error)
            return await self._make_room()
        except StoreError as error:
            self.fault = str(error)
        return False

    async def _flush_some(self, rows: list[TickRow]) -> None:
        # The same rows may go in twice, when a commit came after its deadline: their keys are their own, they replace
        # themselves.
        new, way = _new_layouts(rows), self.epochs.make_way()
        if new or way.statements or self.fault:
            await self._database.write(*way.statements, *layout_statements(new), _insert(rows))
            self.epochs.passed(way)
            for layout in new:
                layout.stored = True
        else:
            await self._database.write_one(*_insert(rows))
        for row in rows:
            # Rows that were dropped for want of memory meanwhile are no longer at the head.
            if self._waiting and self._waiting[0] is row:
                self._waiting_bytes -= len(self._waiting.popleft()[2])

    async def _make_room(self) -> bool:
        """On a full disk the oldest rows make room for the newest, within the pages that the file has."""
        try:
            await self._database.checkpoint()
            made = await self._keeper.make_room()
            await self._database.checkpoint()
        except StoreError:
            return False  # not even that fits: the rows wait in memory, and every tick tries again
        return made

    # Roll-ups.

    async def _fold_minutes(self, until: float) -> None:
        first, last = self._unfolded(MINUTE_S, until, self.recent.start())
        for start in range(first, last, MINUTE_S):
            found = {}
            for count, (series, values) in enumerate(self.recent.window(start, start + MINUTE_S), 1):
                if (summary := rollup.summarize(values)) is not None:
                    found[self._layouts.series_id(series)] = summary
                if count % _FOLDED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            await self._store_rollup("minute", MINUTE_S, start, found)
            await asyncio.sleep(0)

    async def _fold_hours(self, until: float) -> None:
        [(oldest,)] = await self._database.read(
            "SELECT min(id) FROM minute WHERE id >= ?", (self._folded_until[HOUR_S],)
        )
        first, last = self._unfolded(HOUR_S, until, oldest)
        for start in range(first, last, HOUR_S):
            rows = await self._database.read(
                "SELECT layout, vals, counts FROM minute WHERE id >= ? AND id < ? ORDER BY id", (start, start + HOUR_S)
            )
            ids = {layout: await self._series_ids(layout) for layout in {row[0] for row in rows}}
            parts = []
            for layout, vals, counts in rows:
                try:
                    parts.append((ids[layout], rollup.decode_row(vals, counts)))
                except ValueError:
                    self.damaged_rows += 1
                await asyncio.sleep(0)  # a row takes a tenth of a millisecond, an hour of them would hold up a tick
            await self._store_rollup("hour", HOUR_S, start, rollup.combine_rows(parts))

    def _unfolded(self, span: int, until: float, oldest: float | None) -> tuple[int, int]:
        """The first instant to fold and the end of the last whole stretch."""
        last = int(until // span) * span
        if self._folded_until[span] > last + span:
            self._folded_until[span] = last  # the clock stepped back: what comes now is folded again
        if oldest is None:
            return last, last
        return max(self._folded_until[span], int(oldest // span) * span), last

    async def _store_rollup(self, table: str, span: int, start: int, found: Mapping[int, rollup.Summary]) -> None:
        if found:
            await self._wake(found)
            layout, statements = self._covering(span, start, found)
            vals, counts = rollup.encode_row(map(found.get, layout.series_ids))
            insert = f"INSERT OR REPLACE INTO {table} (id, layout, vals, counts) VALUES (?, ?, ?, ?)"
            await self._database.write(*statements, (insert, (start, layout.id, vals, counts)))
            layout.stored = True
            if span == MINUTE_S:
                last = [STALE if (one := found.get(number)) is None else one.last for number in layout.series_ids]
                self._minutes.add(layout, start + span, last)
        self._folded_until[span] = start + span

    async def _wake(self, series_ids: Iterable[int]) -> None:
        """Read the names of series that ended so long ago that memory has let go of them."""
        marks = ",".join(map(str, self._layouts.resting(series_ids)))
        if marks:
            for metric, labels in await self._database.read(f"SELECT metric, labels FROM series WHERE id IN ({marks})"):
                self._layouts.series_id(Series(metric, decode_labels(labels)))

    def _covering(self, span: int, start: int, found: Mapping[int, object]) -> tuple[Layout, list[Statement]]:
        """The layout of the last roll-up while it covers these series and is half used, else a new one.

        Where series come and go all the time, a new one is made only so often: who comes and goes between has samples
        and no roll-up.
        """
        layout = self._cover.get(span)
        if layout is None or (
            not (len(layout.series_ids) <= 2 * len(found) and found.keys() <= set(layout.series_ids))
            and self._cover_budget.take(len(found), start)
        ):
            layout = self._cover[span] = self._layouts.combined(sorted(found))
        return layout, [] if layout.stored else layout_statements([layout])

    async def _series_ids(self, layout: int) -> list[int]:
        slots = await self._database.read("SELECT series FROM slot WHERE layout = ? ORDER BY position", (layout,))
        return [number for (number,) in slots]

    async def _warm(self, at: float) -> None:
        """The end of the file into memory: minutes, the last hour, and what the last run had not folded yet."""
        since = int(at - MINUTES_SPAN_S)
        for start, layout_id, vals in await self._database.read(
            "SELECT id, layout, vals FROM minute WHERE id BETWEEN ? AND ?", (since, int(at))
        ):
            cover = self._cover.get(MINUTE_S)
            if cover is None or cover.id != layout_id:
                cover = self._cover[MINUTE_S] = self._layouts.kept(layout_id, await self._series_ids(layout_id))
            try:
                self._minutes.add(cover, start + MINUTE_S, rollup.decode_last(vals))
            except ValueError:
                self.damaged_rows += 1
        until = int(at * 1_000_000)  # what lies ahead was stored before the clock was set back
        [(newest,)] = await self._database.read("SELECT max(id) FROM tick WHERE id <= ?", (until,))
        if newest is None:
            return
        since = min(at - SPAN_S, max(self._folded_until[MINUTE_S], newest / 1_000_000 - SPAN_S))
        rows = await self._database.read(
            "SELECT id, layout, vals FROM tick WHERE id BETWEEN ? AND ?", (int(since * 1_000_000), until)
        )
        layouts: dict[int, Layout] = {}
        for number, layout_id, vals in rows:
            layout = layouts.get(layout_id)
            if layout is None:
                layout = layouts[layout_id] = self._layouts.adopt(layout_id, await self._series_ids(layout_id))
            try:
                self.recent.add(layout, number // 1000 / 1000, decode_values(vals))
            except ValueError:
                self.damaged_rows += 1
        self._rows = rows[-1][0] % 1000 if rows else 0


def _joined(older: Points, newer: Points) -> Points:
    """Minutes up to where full resolution begins, then that."""
    high = bisect_left(older.times, newer.times[0])
    return Points(newer.labels, [*older.times[:high], *newer.times], [*older.values[:high], *newer.values])


_FOLDED = (("minute", MINUTE_S), ("hour", HOUR_S))


def _new_layouts(rows: Iterable[TickRow]) -> list[Layout]:
    return list({layout.id: layout for _, layout, _ in rows if not layout.stored}.values())


def _insert(rows: Sequence[TickRow]) -> tuple[str, list[object]]:
    return _INSERTS[len(rows)], [value for number, layout, vals in rows for value in (number, layout.id, vals)]


def _insert_events(events: Sequence[Event]) -> Statement:
    rows: list[Row] = [
        (round(e.at * 1000), e.kind, e.severity.value, e.source, e.message, encode_labels(e.labels)) for e in events
    ]
    return Many("INSERT INTO event (at_ms, kind, severity, source, message, labels) VALUES (?, ?, ?, ?, ?, ?)", rows)
