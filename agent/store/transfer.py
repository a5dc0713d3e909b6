"""Samples out of a store and into one: what ``upkeep export`` writes and ``upkeep import`` reads.

Imported samples become chunks, one layout for each series: hot rows are the agent's own, and what rules look back on.
"""

from __future__ import annotations

import json
import math
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from agent.errors import StoreError
from agent.model import Event, Series, is_stale
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import chunk, rollup
from agent.store.chunk import WINDOW_S
from agent.store.database import PAGE_BYTES
from agent.store.openmetrics import head, labels_text, number_text
from agent.store.read import Reader
from agent.store.series import decode_labels, encode_labels

WINDOW_MS = WINDOW_S * 1000
SLICE_S = 86400.0
"""One series is read a day at a time, so that memory does not grow with what is asked for."""

BUFFERED = 500_000
"""Samples that are held, 16 bytes each, before they become chunks."""

ROWS_AT_ONCE = 500
"""Minutes or hours of another store, some kilobytes each, that are read at once."""

Write = Callable[[str], object]
Progress = Callable[[int, int], object]
Selector = Sequence[Matcher]


# -- export ----------------------------------------------------------------------------------------------------------


def series_of(reader: Reader, selectors: Sequence[Selector]) -> list[Series]:
    """The series that one of the selectors names, or all without any; by metric, then by labels."""
    _, rows = reader.sql("SELECT metric, labels FROM series")
    found = []
    for metric, text in rows:
        named = {NAME: metric, **json.loads(text)}
        if not selectors or any(all(m.matches(named.get(m.name, "")) for m in each) for each in selectors):
            found.append(Series(metric, decode_labels(text)))
    return sorted(found, key=lambda series: (series.metric, series.labels))


def samples_of(reader: Reader, series: Series, start: float, end: float) -> Iterator[tuple[list[int], list[float]]]:
    """What is kept of one series at full resolution, by days: instants in milliseconds, values; no stale markers."""
    matchers = [Matcher(NAME, MatchOp.EQUAL, series.metric)]
    matchers += [Matcher(name, MatchOp.EQUAL, value) for name, value in series.labels]
    its_labels = tuple(sorted(((NAME, series.metric), *series.labels)))
    low, high = _kept(reader)
    start, end = max(start, low), min(end, high)
    for day in range(int(start // SLICE_S), int(end // SLICE_S) + 1) if start <= end else ():
        # Up to the last millisecond of the day: instants are whole milliseconds.
        until = min(end, (day + 1) * SLICE_S - 0.001)
        for points in reader.select(matchers, max(start, day * SLICE_S), until):
            if points.labels == its_labels:  # not those with more labels
                pairs = zip(points.times, points.values, strict=True)
                kept = [(round(at * 1000), value) for at, value in pairs if value == value or not is_stale(value)]
                if kept:
                    yield [at for at, _ in kept], [value for _, value in kept]


def export_openmetrics(
    reader: Reader, series: Sequence[Series], start: float, end: float, write: Write, progress: Progress
) -> int:
    """Write samples as OpenMetrics text, each with its instant; return how many.

    Parameters
    ----------
    series
        As :func:`series_of` gives them: those of a metric one after the other.
    start, end
        The closed interval, in seconds.
    write
        Called with some thousands of lines at a time.
    progress
        Called with how many series are done, of how many.
    """
    names, metric, count = {one.metric for one in series}, "", 0
    for done, one in enumerate(series):
        progress(done, len(series))
        lead = f"{one.metric}{labels_text(one.labels)} "
        for instants, values in samples_of(reader, one, start, end):
            if one.metric != metric:
                metric = one.metric
                write("\n".join(head(metric, names)) + "\n")
            pairs = zip(instants, values, strict=True)
            write("".join([f"{lead}{number_text(value)} {at / 1000:.3f}\n" for at, value in pairs]))
            count += len(values)
    write("# EOF\n")
    return count


def export_csv(
    reader: Reader, series: Sequence[Series], start: float, end: float, write: Write, progress: Progress
) -> int:
    """As :func:`export_openmetrics`, with the columns of the view ``samples`` (RFC 4180, lines end with LF)."""
    write("time,metric,labels,value\n")
    count = 0
    for done, one in enumerate(series):
        progress(done, len(series))
        labels = encode_labels(one.labels).replace('"', '""')
        middle = f'Z,{one.metric},"{labels}",'
        for instants, values in samples_of(reader, one, start, end):
            pairs = zip(instants, values, strict=True)
            write("".join([f"{_iso(at)}{middle}{number_text(value)}\n" for at, value in pairs]))
            count += len(values)
    return count


def _kept(reader: Reader) -> tuple[float, float]:
    """An interval that holds every sample."""
    [(chunk_low, chunk_high)] = reader.sql("SELECT min(id), max(id) FROM chunk")[1]
    [(tick_low, tick_high)] = reader.sql("SELECT min(id), max(id) FROM tick")[1]
    low = [at for at in (chunk_low and chunk_low // WINDOW_MS * WINDOW_S, tick_low and tick_low // 1000 / 1000) if at]
    high = [
        at
        for at in (chunk_high and (chunk_high // WINDOW_MS + 1) * WINDOW_S, tick_high and tick_high // 1000 / 1000)
        if at
    ]
    return (min(low), max(high)) if low else (math.inf, -math.inf)


def _iso(at_ms: int) -> str:
    seconds, thousandths = divmod(at_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{thousandths:03d}"


# -- import ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the samples of an import."""

    samples: int
    series: int
    already_there: int
    """Samples of a series and an instant that the store has: its own stay."""
    too_old: int
    """Samples from before what is kept at full resolution."""
    roll_ups: int = 0
    """Minutes and hours that were new here, in whole or for some series."""


@dataclass(frozen=True, slots=True)
class RollUp:
    """One row of the minutes or the hours of another store; ``start_s`` is its first second."""

    table: str
    start_s: int
    series: tuple[Series, ...]
    vals: str
    counts: str


class Importer:
    """Takes samples into a store in one transaction: all of them or none.

    Parameters
    ----------
    connection
        A writer's; the caller holds the state lock.
    oldest_s
        The instant before which nothing is kept at full resolution.
    room_bytes, max_series
        What the file may take in all, and how many series it may hold.
    """

    def __init__(self, connection: sqlite3.Connection, oldest_s: float, room_bytes: int, max_series: int) -> None:
        self._connection, self._room_bytes = connection, room_bytes
        # Chunks go by windows: what would be dropped with its window is not taken in.
        self._oldest_ms = math.ceil(oldest_s / WINDOW_S) * WINDOW_MS
        self._buffer: dict[Series, tuple[array[int], array[float]]] = {}
        self._buffered = 0
        self._samples = self._there = self._old = self._roll_ups = 0
        self._touched: set[int] = set()
        with _said():
            connection.execute("BEGIN IMMEDIATE")
            self._held = _Held(connection, max_series)

    def add(self, series: Series, at_ms: int, value: float) -> None:
        """One sample. Of two with the same series and instant the first counts.

        Raises
        ------
        StoreError
            There is no room. Nothing was imported.
        """
        if at_ms < self._oldest_ms:
            self._old += 1
            return
        columns = self._buffer.get(series)
        if columns is None:
            columns = self._buffer[series] = (array("q"), array("d"))
        columns[0].append(at_ms)
        columns[1].append(value)
        self._buffered += 1
        if self._buffered >= BUFFERED:
            self._flush()

    def add_roll_up(self, row: RollUp) -> None:
        """Minutes or hours of some series; where the store has that stretch of a series, its own stays.

        Raises
        ------
        StoreError
            There is no room. Nothing was imported.
        """
        ids = tuple(map(self._held.series_id, row.series))
        with _said():
            ours = self._connection.execute(
                f"SELECT layout, vals, counts FROM {row.table} WHERE id = ?", (row.start_s,)
            ).fetchall()
            vals, counts = row.vals, row.counts
            if ours:
                layout, our_vals, our_counts = ours[0]
                merged = dict(zip(ids, rollup.decode_row(vals, counts), strict=True))
                there = dict(zip(self._held.series_ids(layout), rollup.decode_row(our_vals, our_counts), strict=True))
                merged |= {number: one for number, one in there.items() if one is not None or number not in merged}
                if not any(one is not None for number, one in merged.items() if there.get(number) is None):
                    return
                ids = tuple(sorted(merged))
                vals, counts = rollup.encode_row(map(merged.get, ids))
            self._connection.execute(
                f"INSERT OR REPLACE INTO {row.table} (id, layout, vals, counts) VALUES (?, ?, ?, ?)",
                (row.start_s, self._held.layout(ids), vals, counts),
            )
        self._roll_ups += 1
        if not self._roll_ups % ROWS_AT_ONCE:
            self._flush()

    def commit(self, event: Callable[[Imported], Event]) -> Imported:
        """Commit all, and with it an event that says so.

        Raises
        ------
        StoreError
            There is no room. Nothing was imported.
        """
        self._flush()
        done = Imported(self._samples, len(self._touched), self._there, self._old, self._roll_ups)
        told = event(done)
        row = (
            round(told.at * 1000),
            told.kind,
            told.severity.value,
            told.source,
            told.message,
            encode_labels(told.labels),
        )
        with _said():
            self._connection.execute(
                "INSERT INTO event (at_ms, kind, severity, source, message, labels) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            self._connection.execute("COMMIT")
        return done

    def _flush(self) -> None:
        with _said():
            for series, (instants, values) in self._buffer.items():
                self._store(series, instants, values)
            self._buffer.clear()
            self._buffered = 0
            [(pages,)] = self._connection.execute("PRAGMA page_count")
            [(free,)] = self._connection.execute("PRAGMA freelist_count")
        if (pages - free) * PAGE_BYTES > self._room_bytes:
            raise StoreError(
                f"cannot import so much: the store would take more than the {self._room_bytes >> 20} MiB that "
                "retention.max_size leaves it; nothing was imported"
            )

    def _store(self, series: Series, instants: array[int], values: array[float]) -> None:
        number = self._held.series_id(series)
        pairs = sorted(dict(zip(reversed(instants), reversed(values), strict=True)).items())
        at = new = 0
        while at < len(pairs):
            window = pairs[at][0] // WINDOW_MS * WINDOW_MS
            after = bisect_left(pairs, (window + WINDOW_MS,), at)
            there = self._held.instants(number, window)
            fresh = [pair for pair in pairs[at:after] if pair[0] not in there]
            if fresh:
                self._held.add(number, window, fresh)
                new += len(fresh)
            at = after
        if new:
            self._touched.add(number)
        self._samples += new
        self._there += len(instants) - new


@contextmanager
def _said() -> Iterator[None]:
    """SQLite's errors as the store's."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"cannot import: {error}; nothing was imported") from error


class _Held:
    """What a store holds, as far as an import has to know: series, their layouts, the instants of each."""

    def __init__(self, connection: sqlite3.Connection, max_series: int) -> None:
        self._connection, self._max_series = connection, max_series
        self._ids: dict[Series, int] = {}
        for number, metric, labels in connection.execute("SELECT id, metric, labels FROM series"):
            self._ids[Series(metric, decode_labels(labels))] = number
        self._next_series = max(self._ids.values(), default=0) + 1
        self._own: dict[int, int] = dict(
            connection.execute("SELECT max(series), layout FROM slot GROUP BY layout HAVING count(*) = 1")
        )
        [(layout,)] = connection.execute("SELECT coalesce(max(layout), 0) FROM slot")
        self._next_layout = layout + 1
        self._stored: dict[tuple[int, ...], int] = {}
        self._chunks: dict[tuple[int, int], list[int]] = {}
        self._last: dict[int, int] = {}
        for number, its_layout in connection.execute("SELECT id, layout FROM chunk ORDER BY id"):
            self._remember(number, its_layout)
        self._chunk_instants = lru_cache(maxsize=2048)(self._read_instants)
        self._layouts = lru_cache(maxsize=4096)(self._read_layouts)
        self._hot: dict[int, array[int]] | None = None
        [(self._hot_ms,)] = connection.execute("SELECT coalesce(min(id) / 1000, 1 << 62) FROM tick")

    def series_id(self, series: Series) -> int:
        """The number of a series, which is stored when it is new."""
        number = self._ids.get(series)
        if number is None:
            if len(self._ids) >= self._max_series:
                why = f"retention.max_series allows {self._max_series} series; nothing was imported"
                raise StoreError(f"cannot import {series}: {why}")
            number = self._ids[series] = self._next_series
            self._next_series += 1
            row = (number, series.metric, encode_labels(series.labels))
            self._connection.execute("INSERT INTO series (id, metric, labels) VALUES (?, ?, ?)", row)
        return number

    def instants(self, number: int, window: int) -> set[int]:
        """The instants of a series in one window, in milliseconds."""
        found: set[int] = set()
        for layout in self._layouts(number):
            for one in self._chunks.get((layout, window), ()):
                found.update(self._chunk_instants(one))
            if window + WINDOW_MS > self._hot_ms:
                hot = self._hot_rows().get(layout, array("q"))
                found.update(hot[bisect_left(hot, window) : bisect_left(hot, window + WINDOW_MS)])
        return found

    def add(self, number: int, window: int, pairs: Sequence[tuple[int, float]]) -> None:
        """Store samples of one series and window as a chunk."""
        layout = self._own.get(number)
        if layout is None:
            layout = self._own[number] = self.layout((number,))
            self._layouts.cache_clear()
        parts = [chunk.encode_integers([at for at, _ in pairs]), chunk.encode_values([value for _, value in pairs])]
        one = self._last.get(window, window - 1) + 1
        self._connection.execute(
            "INSERT INTO chunk (id, layout, data) VALUES (?, ?, ?)", (one, layout, chunk.pack(parts))
        )
        self._remember(one, layout)

    def layout(self, ids: tuple[int, ...]) -> int:
        """A layout of these series in this order: one that this import stored, or a new one."""
        layout = self._stored.get(ids)
        if layout is None:
            layout = self._stored[ids] = self._next_layout
            self._next_layout += 1
            rows = [(layout, position, number) for position, number in enumerate(ids)]
            self._connection.executemany("INSERT INTO slot (layout, position, series) VALUES (?, ?, ?)", rows)
        return layout

    def series_ids(self, layout: int) -> list[int]:
        """The numbers of a layout's series, by position."""
        rows = self._connection.execute("SELECT series FROM slot WHERE layout = ? ORDER BY position", (layout,))
        return [number for (number,) in rows]

    def _remember(self, one: int, layout: int) -> None:
        window = one // WINDOW_MS * WINDOW_MS
        self._chunks.setdefault((layout, window), []).append(one)
        self._last[window] = one

    def _read_layouts(self, number: int) -> list[int]:
        rows = self._connection.execute("SELECT layout FROM slot WHERE series = ?", (number,))
        return [layout for (layout,) in rows]

    def _read_instants(self, one: int) -> array[int]:
        [(data,)] = self._connection.execute("SELECT data FROM chunk WHERE id = ?", (one,))
        return array("q", chunk.decode_integers(chunk.part(data, 0)))

    def _hot_rows(self) -> dict[int, array[int]]:
        if self._hot is None:
            self._hot = {}
            for one, layout in self._connection.execute("SELECT id, layout FROM tick ORDER BY id"):
                self._hot.setdefault(layout, array("q")).append(one // 1000)
        return self._hot


def samples_of_all(reader: Reader, end: float, progress: Progress) -> Iterator[tuple[Series, int, float]]:
    """Every sample of another store up to an instant, series by series."""
    series = series_of(reader, ())
    for done, one in enumerate(series):
        progress(done, len(series))
        for instants, values in samples_of(reader, one, 0.0, end):
            yield from zip([one] * len(values), instants, values, strict=True)


def roll_ups_of(reader: Reader, table: str, start_s: float, end_s: float) -> Iterator[RollUp]:
    """The rows of ``minute`` or ``hour`` of another store that begin in an interval, its end excluded."""
    layouts: dict[int, tuple[Series, ...]] = {}
    last = math.ceil(start_s) - 1
    while True:
        rows = reader.sql(
            f"SELECT id, layout, vals, counts FROM {table} WHERE id > ? AND id < ? ORDER BY id LIMIT {ROWS_AT_ONCE}",
            (last, end_s),
        )[1]
        for last, layout, vals, counts in rows:
            if layout not in layouts:
                its = reader.sql(
                    "SELECT metric, labels FROM slot JOIN series ON series.id = slot.series WHERE layout = ? "
                    "ORDER BY position",
                    (layout,),
                )[1]
                layouts[layout] = tuple(Series(metric, decode_labels(labels)) for metric, labels in its)
            yield RollUp(table, last, layouts[layout], vals, counts)
        if not rows:
            return


def take_in(
    connection: sqlite3.Connection,
    samples: Iterable[tuple[Series, int, float]],
    roll_ups: Iterable[RollUp] = (),
    *,
    oldest_s: float,
    room_bytes: int,
    max_series: int,
    event: Callable[[Imported], Event],
) -> Imported:
    """Import samples in one transaction; whatever is raised, nothing was imported then.

    Raises
    ------
    StoreError
        There is no room, or the file cannot be written.
    """
    try:
        importer = Importer(connection, oldest_s, room_bytes, max_series)
        for series, at_ms, value in samples:
            importer.add(series, at_ms, value)
        for row in roll_ups:
            importer.add_roll_up(row)
        return importer.commit(event)
    finally:
        if connection.in_transaction:
            connection.rollback()
