"""Series over a period at the resolution that fits it: samples for hours, minutes for days, hours for months.

The roll-ups keep the smallest and largest value of each minute and hour, so no spike is lost on the way to a chart.
All series of one call are decoded in one pass over the packed rows.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from agent.model import Series, make_labels
from agent.store.read import Reader
from reports.charts import Line

RAW_UP_TO_S = 4 * 3600.0
MINUTES_UP_TO_S = 9 * 86400.0


@dataclass(frozen=True, slots=True)
class Resolution:
    """A table of packed rows, what its ``id`` counts, and the width of its rows in seconds (0: single samples)."""

    table: str
    per_second: int
    step_s: float


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
        packed = entry if isinstance(entry, list) else [entry] * 4
        numbers = [float(value) for value in packed if isinstance(value, int | float) and math.isfinite(value)]
        if len(numbers) == 4:  # else absent, or a NaN or an infinity, which are stored as text
            self.times.append(at)
            for column, number in zip((self.low, self.high, self.mean, self.last), numbers, strict=True):
                column.append(number)

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


def resolution(length_s: float) -> Resolution:
    if length_s <= RAW_UP_TO_S:
        return RAW
    return MINUTES if length_s <= MINUTES_UP_TO_S else HOURS


def tracks(read: Reader, wanted: Wanted, start: float, end: float) -> dict[Series, Track]:
    """Every wanted series that has points between ``start`` and ``end``.

    The rows still being gathered in the agent's memory are not part of it: the last minute (hour) may be missing.
    """
    chosen = resolution(end - start)
    places = _places(read, _series(read, wanted))
    found: dict[Series, Track] = {}
    for at, layout, values in _rows(read, chosen, places, start, end):
        for position, series in places[layout]:
            found.setdefault(series, Track()).add(at, values[position])
    for track in found.values():
        track.step_s = chosen.step_s or _usual_step(track.times)
    return {series: track for series, track in found.items() if track.times}


def average(read: Reader, metric: str, labels: Mapping[str, str], start: float, end: float) -> Track:
    """The mean over all matching series at each step, without keeping the single ones: a host has hundreds of CPUs."""
    chosen = resolution(end - start)
    places = _places(read, _series(read, {metric: labels}))
    track = Track()
    for at, layout, values in _rows(read, chosen, places, start, end):
        entries = [values[position] for position, _ in places[layout]]
        lasts = [entry[3] if isinstance(entry, list) else entry for entry in entries]
        numbers = [value for value in lasts if isinstance(value, int | float)]
        if numbers:
            track.add(at, math.fsum(numbers) / len(numbers))
    track.step_s = chosen.step_s or _usual_step(track.times)
    return track


def sampled_instants(read: Reader, start: float, end: float) -> Line:
    """When anything at all was sampled, as a line without values: what coverage is told from."""
    chosen = resolution(end - start)
    _, rows = read.sql(
        f"SELECT DISTINCT id / {chosen.per_second} FROM {chosen.table} WHERE id >= ? AND id < ? ORDER BY 1",
        (int(start * chosen.per_second), int(end * chosen.per_second)),
    )
    times = [float(str(row[0])) for row in rows]
    return Line(times, times, times, times, chosen.step_s or _usual_step(times))


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


def _places(read: Reader, series: Mapping[int, Series]) -> dict[int, list[tuple[int, Series]]]:
    """Layout → which positions of its rows hold a wanted series."""
    places: dict[int, list[tuple[int, Series]]] = {}
    _, rows = read.sql("SELECT layout, position, series FROM slot", ())
    for layout, position, number in rows:
        if (found := series.get(int(str(number)))) is not None:
            places.setdefault(int(str(layout)), []).append((int(str(position)), found))
    return places


def _rows(
    read: Reader, chosen: Resolution, layouts: Mapping[int, object], start: float, end: float
) -> Iterator[tuple[float, int, Sequence[object]]]:
    """Rows in time order; a chunk at a time, so that weeks of them never lie in memory as text together."""
    marks = ", ".join(map(str, layouts))
    after, until = int(start * chosen.per_second) - 1, int(end * chosen.per_second)
    while True:
        _, rows = read.sql(
            f"SELECT id, layout, vals FROM {chosen.table} WHERE id > ? AND id < ? AND layout IN ({marks})"
            " ORDER BY id LIMIT 500",
            (after, until),
        )
        for number, layout, values in rows:
            after = int(str(number))
            yield after / chosen.per_second, int(str(layout)), json.loads(str(values))
        if len(rows) < 500:
            return


def _usual_step(times: Sequence[float]) -> float:
    """The median distance of single samples."""
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 2] if steps else 1.0
