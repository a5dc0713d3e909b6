"""The last hour in memory, as rows and columns: what rules are judged on, whatever the disk does."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from agent.model import Labels, Series, is_stale
from agent.promql.nodes import LOOKBACK_S, NAME, Matcher, MatchOp
from agent.promql.values import Points
from agent.store.series import Layout

SPAN_S = 3720.0
"""An hour and a little: whoever follows the window of an hour must see what leaves it."""
MAX_BYTES = 32 << 20
_SLACK = 1.125
"""Columns are cut when they hold this much more than their span: cutting costs a move of what stays."""


class Block:
    """The rows of one layout, one after the other in one array; their instants rise strictly.

    A column is a slice with a step. Two hundred columns of their own would cost a tick two hundred cache misses.
    """

    __slots__ = ("layout", "times", "values", "width")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.width = len(layout.series)
        self.times = array("d")
        self.values = array("d")

    def add(self, at: float, values: Sequence[float]) -> None:
        times = self.times
        if times and at <= times[-1]:
            # The wall clock stepped back (or this instant is written again): what it had marked as later never was.
            self._keep(0, bisect_left(times, at))
        times.append(at)
        self.values.extend(values)

    def cut(self, before: float) -> None:
        """Drop the rows before an instant."""
        self._keep(bisect_left(self.times, before), len(self.times))

    def column(self, position: int, low: int, high: int) -> array[float]:
        """The values of one series in the rows from ``low`` to before ``high``."""
        return self.values[low * self.width + position : high * self.width : self.width]

    def rows(self, start: float, end: float) -> tuple[int, int]:
        """The rows within the closed interval, as a range."""
        return bisect_left(self.times, start), bisect_right(self.times, end)

    def _keep(self, low: int, high: int) -> None:
        for row, width in ((self.times, 1), (self.values, self.width)):
            del row[high * width :]
            del row[: low * width]


@dataclass(frozen=True, slots=True)
class Track:
    """Where the points of one series are: one place, or several after its source changed its layout."""

    labels: Labels
    named: dict[str, str]
    places: list[tuple[Block, int]] = field(default_factory=list)

    def points(self, start: float, end: float) -> Points | None:
        """The series' points within the closed interval; None when there are none."""
        found = []
        for block, position in self.places:
            low, high = block.rows(start, end)
            if low < high:
                found.append((block.times[low:high], block.column(position, low, high)))
        if not found:
            return None
        if len(found) == 1:
            return Points(self.labels, *found[0])
        merged: dict[float, float] = {}
        for times, values in found:
            for at, value in zip(times, values, strict=True):
                if at not in merged or not is_stale(value):  # a series that moved to another layout did not end here
                    merged[at] = value
        instants = sorted(merged)
        return Points(self.labels, instants, [merged[at] for at in instants])

    def newest(self, start: float, end: float) -> tuple[float, float] | None:
        """The instant and value of the last point within ``(start, end]``; None when there is none."""
        last: tuple[float, float] | None = None
        for block, position in self.places:
            row = bisect_right(block.times, end) - 1
            if row >= 0 and block.times[row] > start and (last is None or block.times[row] > last[0]):
                last = block.times[row], block.values[row * block.width + position]
        return last


class Recent:
    """The last hour of every series, as a source for PromQL.

    Parameters
    ----------
    span_s
        How much time is kept.
    max_bytes
        A bound on the values kept; when it is reached, the oldest eighth of the time goes.
    """

    def __init__(self, span_s: float = SPAN_S, max_bytes: int = MAX_BYTES) -> None:
        self._span_s, self._max_bytes = span_s, max_bytes
        self._blocks: dict[int, Block] = {}
        self._tracks: dict[str, dict[Labels, Track]] = {}
        self._start: float | None = None

    def add(self, layout: Layout, at: float, values: Sequence[float]) -> None:
        """Take in one row; it replaces what the layout had at or after that instant."""
        if len(values) != len(layout.series):
            raise ValueError(f"a reading has {len(values)} values for {len(layout.series)} series")
        block = self._blocks.get(layout.id)
        if block is None:
            block = self._blocks[layout.id] = Block(layout)
            self._enter(block)
        first = block.times[0] if block.times else None
        block.add(at, values)
        if block.times[0] < at - self._span_s * _SLACK:
            block.cut(at - self._span_s)
        if block.times[0] != first:
            self._start = None

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
        """Every series that meets all matchers, with its points in the closed interval, in seconds."""
        found: list[Points] = []
        block, low, high, times = None, 0, 0, array("d")
        for track in self._matching(matchers):
            if len(track.places) > 1:
                merged = track.points(start, end)
                found += [merged] if merged else []
                continue
            [(place, position)] = track.places
            if place is not block:  # the series of a metric mostly lie side by side, and share their instants
                block = place
                low, high = block.rows(start, end)
                times = block.times[low:high]
            if low < high:
                found.append(Points(track.labels, times, block.column(position, low, high)))
        return found

    def latest(self, at: float, within_s: float = LOOKBACK_S) -> Iterator[tuple[Series, float, float]]:
        """The newest value of every series that is not stale, with its instant, metric by metric.

        What an instant query at ``at`` finds: a sample that is older than ``within_s`` says nothing of now.
        """
        for metric, tracks in self._tracks.items():
            for labels, track in tracks.items():
                newest = track.newest(at - within_s, at)
                if newest is not None and not is_stale(newest[1]):
                    yield Series(metric, labels), newest[1], newest[0]

    def trim(self, at: float) -> list[Layout]:
        """Drop what is too old or too much; return the layouts of which nothing is left."""
        before = at - self._span_s
        while self.bytes_held() > self._max_bytes:
            oldest = self.start()
            assert oldest is not None, "what takes room has an instant"
            before = max(before + 1, oldest + (at - oldest) / 8)
            self._cut(before)
        self._cut(before)
        empty = [block for block in self._blocks.values() if not block.times]
        for block in empty:
            del self._blocks[block.layout.id]
            self._leave(block)
        return [block.layout for block in empty]

    def bytes_held(self) -> int:
        """The size of all columns."""
        return sum(8 * (len(block.times) + len(block.values)) for block in self._blocks.values())

    def start(self) -> float | None:
        """The oldest instant held."""
        if self._start is None:
            self._start = min((block.times[0] for block in self._blocks.values() if block.times), default=None)
        return self._start

    def window(self, start: float, end: float) -> Iterator[tuple[Series, Sequence[float]]]:
        """The values of every series within ``[start, end)``, in the order of time."""
        # Whoever folds thousands of series lets others run in between, and they may add some.
        tracks = [(metric, *item) for metric, tracks in self._tracks.items() for item in tracks.items()]
        for metric, labels, track in tracks:
            points = track.points(start, math.nextafter(end, start))
            if points is not None:
                yield Series(metric, labels), points.values

    def _cut(self, before: float) -> None:
        self._start = None
        for block in self._blocks.values():
            if block.times and block.times[0] < before:
                block.cut(before)

    def _enter(self, block: Block) -> None:
        for position, series in enumerate(block.layout.series):
            tracks = self._tracks.setdefault(series.metric, {})
            track = tracks.get(series.labels)
            if track is None:
                labels = tuple(sorted(((NAME, series.metric), *series.labels)))
                track = tracks[series.labels] = Track(labels, dict(labels))
            track.places.append((block, position))

    def _leave(self, block: Block) -> None:
        for series in block.layout.series:
            tracks = self._tracks[series.metric]
            track = tracks[series.labels]
            track.places[:] = [place for place in track.places if place[0] is not block]
            if not track.places:
                del tracks[series.labels]
            if not tracks:
                del self._tracks[series.metric]

    def _matching(self, matchers: Sequence[Matcher]) -> Iterable[Track]:
        metric = next((m.value for m in matchers if m.name == NAME and m.op is MatchOp.EQUAL), None)
        if metric is not None:
            candidates: Iterable[Track] = self._tracks.get(metric, {}).values()
            matchers = [m for m in matchers if m.name != NAME or m.op is not MatchOp.EQUAL or m.value != metric]
        else:
            candidates = (track for tracks in self._tracks.values() for track in tracks.values())
        if not matchers:
            return candidates
        return [t for t in candidates if all(m.matches(t.named.get(m.name, "")) for m in matchers)]
