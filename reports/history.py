"""Series over a period at the resolution that fits it: samples for hours, minutes for days, hours for months.

The roll-ups keep the smallest and largest value of each minute and hour, so no spike is lost on the way to a chart.
All series of one call are decoded in one pass over the packed rows.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from agent.model import Series, make_labels
from agent.store.read import Reader
from reports.charts import GAP_STEPS, Line

RAW_UP_TO_S = 4 * 3600.0
MINUTES_UP_TO_S = 9 * 86400.0


@dataclass(frozen=True, slots=True)
class Resolution:
    """A table of packed rows, what its ``id`` counts, and the width of its rows in seconds (0: single samples)."""

    table: str
    per_second: int
    step_s: float

    def instant(self, number: int) -> float:
        """The instant that an ``id`` names; the last three digits of a sample's tell rows of one millisecond apart."""
        return number // 1000 / 1000 if self.per_second > 1 else float(number)


RAW = Resolution("tick", 1_000_000, 0.0)
MINUTES = Resolution("minute", 1, 60.0)
HOURS = Resolution("hour", 1, 3600.0)


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest value of one series."""

    metric: str
    labels: Mapping[str, str]
    value: float
    at: float


def _column() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Track:
    """One series over the period, column by column; ``last`` is the newest value in each step."""

    times: array[float] = field(default_factory=_column)
    low: array[float] = field(default_factory=_column)
    high: array[float] = field(default_factory=_column)
    mean: array[float] = field(default_factory=_column)
    last: array[float] = field(default_factory=_column)
    step_s: float = 0.0

    def add(self, at: float, entry: object) -> None:
        """One packed entry: a number, ``[min, max, mean, last]``, or nothing that can be drawn."""
        if isinstance(entry, int | float):
            low = high = mean = last = entry
        elif isinstance(entry, list) and not any(isinstance(value, str) for value in entry):
            low, high, mean, last = entry
        else:
            return  # absent, or a NaN or an infinity, which are stored as text
        self.times.append(at)
        self.low.append(low)
        self.high.append(high)
        self.mean.append(mean)
        self.last.append(last)

    def line(self, scale: float = 1.0) -> Line:
        """As it is drawn, each value multiplied by ``scale``."""
        low, high, mean = (array("d", [v * scale for v in column]) for column in (self.low, self.high, self.mean))
        return Line(self.times, low, high, mean, self.step_s)

    def rate(self) -> Line:
        """Of a counter: its increase per second from step to step; a reset to zero has no point."""
        times, values = _column(), _column()
        for (t0, v0), (t1, v1) in pairwise(zip(self.times, self.last, strict=True)):
            if v1 >= v0 and t1 - t0 <= 5 * max(self.step_s, 1.0):
                times.append(t1)
                values.append((v1 - v0) / (t1 - t0))
        return Line(times, values, values, values, self.step_s)


Wanted = Mapping[str, Mapping[str, str]]
"""Metric name → the labels that its series must have."""

Places = dict[int, list[tuple[int, Series]]]
"""Layout → the positions of its rows that hold a wanted series."""

_CHUNK = 500
_PATHS = 60
"""So many entries are picked with one call: SQLite takes 127 arguments."""


def resolution(length_s: float) -> Resolution:
    if length_s <= RAW_UP_TO_S:
        return RAW
    return MINUTES if length_s <= MINUTES_UP_TO_S else HOURS


def tracks(
    read: Reader, wanted: Wanted, start: float, end: float, averaged: Collection[str] = ()
) -> dict[Series, Track]:
    """Every wanted series that has points between ``start`` and ``end``.

    The rows still being gathered in the agent's memory are not part of it: the last minute (hour) may be missing.

    Parameters
    ----------
    averaged
        Metrics whose series are told as one, without labels: the mean over all of them at each step. A host may have
        hundreds of processors, and their single curves would fill the memory.
    """
    chosen = resolution(end - start)
    places = _places(read, _series(read, wanted))
    names = {series: Series(series.metric) if series.metric in averaged else series for series in _all(places)}
    found = {name: Track(step_s=chosen.step_s) for name in names.values()}
    single = {
        layout: [(i, found[series]) for i, (_, series) in enumerate(those) if names[series] is series]
        for layout, those in places.items()
    }
    together = {layout: _together(those, averaged) for layout, those in places.items()}
    for at, layout, entries in _rows(read, chosen, places, start, end):
        for i, track in single[layout]:
            track.add(at, entries[i])
        for metric, members in together[layout].items():
            found[Series(metric)].add(at, _mean_of_lasts([entries[i] for i in members]))
    if not chosen.step_s:
        for track in found.values():
            track.step_s = _usual_step(track.times)
    return {series: track for series, track in found.items() if track.times}


def _all(places: Places) -> set[Series]:
    return {series for those in places.values() for _, series in those}


def _together(those: Sequence[tuple[int, Series]], averaged: Collection[str]) -> dict[str, list[int]]:
    """Averaged metric → where its series are among the entries of a row."""
    found: dict[str, list[int]] = {}
    for i, (_, series) in enumerate(those):
        if series.metric in averaged:
            found.setdefault(series.metric, []).append(i)
    return found


def _mean_of_lasts(entries: Sequence[object]) -> float | None:
    lasts = [entry[3] if isinstance(entry, list) else entry for entry in entries]
    numbers = [value for value in lasts if isinstance(value, int | float)]
    return math.fsum(numbers) / len(numbers) if numbers else None


def sampled_instants(read: Reader, start: float, end: float) -> Line:
    """When anything at all was sampled, as a line without values."""
    chosen = resolution(end - start)
    _, rows = read.sql(
        f"SELECT DISTINCT id / {chosen.per_second} FROM {chosen.table} WHERE id >= ? AND id < ? ORDER BY 1",
        (int(start * chosen.per_second), int(end * chosen.per_second)),
    )
    times = [float(str(row[0])) for row in rows]
    return Line(times, times, times, times, chosen.step_s or _usual_step(times))


@dataclass(frozen=True, slots=True)
class Sampled:
    """When anything at all was sampled, and why not.

    Attributes
    ----------
    instants
        A line without values.
    asleep
        When the host slept, or what a clock set forward left out: nobody missed anything then.
    gaps
        The stretches of which nothing is known.
    """

    instants: Line
    asleep: tuple[tuple[float, float], ...]
    gaps: tuple[tuple[float, float], ...]


def sampling(read: Reader, start: float, end: float) -> Sampled:
    """What coverage is told from."""
    instants = sampled_instants(read, start, end)
    asleep = _asleep(read, start, end)
    least = GAP_STEPS * instants.step_s
    gaps = [part for gap in instants.gaps(start, end) for part in _without(gap, asleep) if part[1] - part[0] > least]
    return Sampled(instants, tuple(asleep), tuple(gaps))


def _asleep(read: Reader, start: float, end: float) -> list[tuple[float, float]]:
    _, rows = read.sql(
        "SELECT at_ms / 1000.0 - seconds, at_ms / 1000.0 FROM main.epoch WHERE seconds > 0"
        " AND at_ms / 1000.0 > ? AND at_ms / 1000.0 - seconds < ? ORDER BY 1",
        (start, end),
    )
    return [(max(float(str(began)), start), min(float(str(ended)), end)) for began, ended in rows]


def _without(gap: tuple[float, float], spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """What is left of a stretch without others, which are given in order."""
    since, until = gap
    for began, ended in spans:
        if began > since:
            yield since, min(began, until)
        since = max(since, ended)
    if since < until:
        yield since, until


def first_sample(read: Reader) -> float | None:
    """When this host was first sampled, as far as anything is kept.

    The roll-ups reach further back but name only the beginning of their minute or hour; the finest that tells of the
    same hour is believed.
    """
    _, [(hour, minute, tick)] = read.sql(
        "SELECT (SELECT min(id) FROM hour), (SELECT min(id) FROM minute), (SELECT min(id) FROM tick) / 1000 / 1000.0"
    )
    first = hour
    for finer, width in ((minute, HOURS.step_s), (tick, MINUTES.step_s)):
        if finer is not None and (first is None or finer < first + width):
            first = finer
    return None if first is None else float(first)


def latest(read: Reader, prefix: str) -> list[Latest]:
    """The newest values of all series whose metric begins with ``prefix``."""
    _, rows = read.sql(
        "SELECT metric, labels, value, unixepoch(time) FROM latest WHERE substr(metric, 1, ?) = ?",
        (len(prefix), prefix),
    )
    return [
        Latest(str(metric), json.loads(str(labels)), value, float(str(at)))
        for metric, labels, value, at in rows
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _series(read: Reader, wanted: Wanted) -> dict[int, Series]:
    marks = ", ".join("?" * len(wanted))
    _, rows = read.sql(f"SELECT id, metric, labels FROM main.series WHERE metric IN ({marks})", tuple(wanted))
    found = {}
    for number, metric, text in rows:
        labels = json.loads(str(text))
        if wanted[str(metric)].items() <= labels.items():
            found[int(str(number))] = Series(str(metric), make_labels(labels))
    return found


def _places(read: Reader, series: Mapping[int, Series]) -> Places:
    places: Places = {}
    _, rows = read.sql("SELECT layout, position, series FROM slot")
    for layout, position, number in rows:
        if (found := series.get(int(str(number)))) is not None:
            places.setdefault(int(str(layout)), []).append((int(str(position)), found))
    return places


def _rows(
    read: Reader, chosen: Resolution, places: Places, start: float, end: float
) -> Iterator[tuple[float, int, Sequence[object]]]:
    """Instant, layout and wanted entries of each row, in time order.

    SQLite picks the entries out of a packed row: eight times faster than decoding all of it here. A chunk of rows at a
    time, so that weeks of them never lie in memory together.
    """
    if not places:
        return
    query = (
        f"SELECT id, layout, {', '.join(_picked(places))} FROM {chosen.table}"
        f" WHERE id > ? AND id < ? AND layout IN ({', '.join(map(str, places))}) ORDER BY id LIMIT {_CHUNK}"
    )
    after, until = int(start * chosen.per_second) - 1, int(end * chosen.per_second)
    while True:
        _, rows = read.sql(query, (after, until))
        for number, layout, *picked in rows:
            after = number
            yield (
                chosen.instant(number),
                layout,
                [entry for part in picked if part for entry in json.loads(part)[:-1]],
            )
        if len(rows) < _CHUNK:
            return


def _picked(places: Places) -> Iterator[str]:
    """SQL columns that together hold a JSON array of the wanted entries, for each layout its own."""
    longest = max(map(len, places.values()))
    for first in range(0, longest, _PATHS):
        cases = []
        for layout, found in places.items():
            paths = [f"'$[{position}]'" for position, _ in found[first : first + _PATHS]]
            if paths:  # twice the last one: with a single path SQLite gives the bare entry, not an array
                cases.append(f"WHEN {layout} THEN json_extract(vals, {', '.join([*paths, paths[-1]])})")
        yield f"CASE layout {' '.join(cases)} END"


def _usual_step(times: Sequence[float]) -> float:
    """The median distance of single samples."""
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2] if steps else 1.0
