"""Charts as data, in words, and as small SVG that takes its colours from the page.

A chart is drawn by matplotlib (its ``Figure``, never pyplot, which keeps global state) and then reduced to the few
paths and texts that were meant, each with a class for the style sheet: a tenth of the size, dark mode for nothing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from itertools import pairwise
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from reports.period import midnight
from reports.words import Unit, clean, count, duration, instant, local, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 480, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 12, 28
COLUMNS = WIDTH - LEFT - RIGHT
"""One column of the smallest and largest value for each pixel of the plot at its natural width."""

GAP_STEPS = 2.5
"""Points further apart than this many steps have a gap between them: one late point is not one."""

MOST_MARKS = 30

MarkKind = Literal["alert", "action", "failed"]
_MARK_WORDS: dict[MarkKind, tuple[str, str]] = {
    "alert": ("alert", ""),
    "action": ("action", ""),
    "failed": ("action without effect", "actions without effect"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. Each point stands for a stretch of ``step_s`` seconds.

    ``times`` ascend; ``low``, ``high`` and ``mean`` have the same length; where only single samples exist all three
    are equal. A gap is told from the distance of the points.
    """

    times: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    mean: Sequence[float]
    step_s: float

    def gaps(self, start: float, end: float) -> list[tuple[float, float]]:
        """The stretches between ``start`` and ``end`` without a point, longer than :data:`GAP_STEPS` steps."""
        edges = [start, *self.times, end]
        return [(a, b) for a, b in pairwise(edges) if b - a > GAP_STEPS * self.step_s]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something to see on the time axis: an alert with its length, or the instant of an action (``end == start``)."""

    kind: MarkKind
    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a chart shows; its form comes later and may differ (page, mail).

    ``ceiling`` is the largest possible value where there is one (100 for percent, the size of a disk): the axis ends
    there.
    """

    title: str
    unit: Unit
    start: float
    end: float
    line: Line
    ceiling: float | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """What lies within one pixel's width, and the instant it is drawn at."""

    at: float
    first: float
    last: float
    low: float
    high: float
    mean: float


def columns(line: Line, start: float, end: float, width: int = COLUMNS) -> list[Column]:
    """The curve reduced to columns of one pixel between ``start`` and ``end``; no extreme is lost.

    A column's ``low`` is the smallest ``low`` in it, its ``high`` the largest ``high``, its ``mean`` the mean of the
    means. A gap ends a column, so nothing is ever drawn over one.
    """
    found: list[Column] = []
    for group in _by_column(line, start, end, width):
        members = slice(group.start, group.stop)
        first, last = line.times[group.start], line.times[group.stop - 1]
        mean = math.fsum(line.mean[members]) / len(group)
        found.append(Column((first + last) / 2, first, last, min(line.low[members]), max(line.high[members]), mean))
    return found


def _by_column(line: Line, start: float, end: float, width: int) -> Iterator[range]:
    """Runs of indexes whose points share a column, none with a gap inside."""
    scale, gap_s = width / (end - start), GAP_STEPS * line.step_s
    begin = previous = None
    column = -1
    for i, at in enumerate(line.times):
        if not start <= at <= end:
            continue
        mine = min(int((at - start) * scale), width - 1)
        if begin is not None and previous is not None and (mine != column or at - line.times[previous] > gap_s):
            yield range(begin, previous + 1)
            begin = None
        if begin is None:
            begin, column = i, mine
        previous = i
    if begin is not None and previous is not None:
        yield range(begin, previous + 1)


def in_words(chart: Chart, zone: tzinfo) -> str:
    """The numbers of a chart as a sentence or three: alternative text, caption and text twin in one.

    Mean, the extreme with its time, the last value; then what is missing, then what is marked.
    """
    line, unit = chart.line, chart.unit
    if not line.times:
        return "No data."
    mean = math.fsum(line.mean) / len(line.mean)
    peak = max(range(len(line.high)), key=line.high.__getitem__)
    top = line.high[peak]
    said = f"Mean {quantity(mean, unit)}, highest {quantity(top, unit)} on {instant(line.times[peak], zone)}"
    if top == min(line.low):
        said = f"Steady at {quantity(top, unit)}"
    said += f", last {quantity(line.mean[-1], unit)}." if top != min(line.low) else "."
    return said + _gaps_in_words(chart) + _marks_in_words(chart)


def _gaps_in_words(chart: Chart) -> str:
    gaps = chart.line.gaps(chart.start, chart.end)
    if not gaps:
        return ""
    missing = duration(math.fsum(end - start for start, end in gaps))
    return f" No data for {missing}." if len(gaps) == 1 else f" No data for {missing} in {count(len(gaps), 'gap')}."


def _marks_in_words(chart: Chart) -> str:
    parts = []
    for kind, (one, many) in _MARK_WORDS.items():
        number = sum(mark.kind == kind for mark in chart.marks)
        if number:
            parts.append(count(number, one, many))
    return f" Marked: {', '.join(parts)}." if parts else ""


# ── axes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_CLOCK_STEPS_S = (10, 30, 60, 300, 600, 900, 1800, 3600, 2 * 3600, 3 * 3600, 6 * 3600)
_MOST_TICKS = 7


def time_ticks(start: float, end: float, zone: tzinfo) -> list[tuple[float, str]]:
    """Instants to name on a time axis, at round local times, with their words: at most :data:`_MOST_TICKS`."""
    span = end - start
    if span <= 36 * 3600:
        step = next((step for step in _CLOCK_STEPS_S if span / step <= _MOST_TICKS), _CLOCK_STEPS_S[-1])
        form = "%H:%M" if step >= 60 else "%H:%M:%S"
        return [(at, local(at, zone).strftime(form)) for at in _clock_instants(start, end, step, zone)]
    every = math.ceil(round(span / 86400) / _MOST_TICKS)  # a week may be an hour longer than seven days
    week = span <= 10 * 86400
    day = local(start, zone).date()
    found = []
    while (at := midnight(day, zone)) < end:
        if at >= start and (day.toordinal() - 1) % every == 0:
            found.append((at, f"{day:%a} {day.day}" if week else f"{day.day} {day:%b}"))
        day += timedelta(days=1)
    return found


def _clock_instants(start: float, end: float, step: int, zone: tzinfo) -> Iterator[float]:
    """Instants within the span whose local time of day is a multiple of ``step``, across a change of the clocks."""
    at = float(math.ceil(start))
    while at <= end:
        moment = local(at, zone)
        past = (moment.hour * 3600 + moment.minute * 60 + moment.second) % step
        if past == 0:
            yield at
        at += min(step - past, 3600 - at % 3600)  # never further than the next hour, where the clocks may change


def value_ticks(top: float, unit: Unit) -> list[float]:
    """Three to five round values from 0 to at least ``top``: decimal for numbers, powers of two for bytes."""
    if unit == "percent" and 30 < top <= 100:
        return [0.0, 50.0, 100.0]
    top = max(top, 1e-9)
    if unit == "bytes":
        exponent = math.floor(math.log2(max(top, 4.0) / 4)) if top > 4 else 0
        step = 2.0**exponent
        candidates = [step, step * 2, step * 4]
    else:
        base = 10.0 ** math.floor(math.log10(top / 4))
        candidates = [base, base * 2, base * 2.5, base * 5, base * 10]
    step = next(step for step in candidates if top / step <= 4)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_DRAWN = ("nodata", "grid", "alert", "band", "line", "dot", "action", "failed")
"""The classes of what is drawn, from back to front; the page's style sheet gives each its colour."""


def figure(chart: Chart, zone: tzinfo) -> Figure:
    """The chart as a matplotlib figure whose artists carry their class as group id.

    Its own colours are only a fallback: SVG takes the page's.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    box = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
    axes = drawn.add_axes(box, frameon=False)
    _set_axes(axes, chart, zone)
    top = axes.get_ylim()[1]
    for start, end in chart.line.gaps(chart.start, chart.end):
        axes.axvspan(start, end, color="#eee", gid="nodata", lw=0)
    for mark in chart.marks[:MOST_MARKS]:
        _draw_mark(axes, mark, chart, top)
    _draw_line(axes, chart)
    return drawn


def _set_axes(axes: Axes, chart: Chart, zone: tzinfo) -> None:
    highest = max(chart.line.high, default=1.0)
    ticks = value_ticks(highest if chart.ceiling is None else max(highest, chart.ceiling), chart.unit)
    axes.set_xlim(chart.start, chart.end)
    axes.set_ylim(0, max(ticks[-1], highest) if chart.ceiling is None else max(chart.ceiling, highest))
    shown = [tick for tick in ticks if tick <= axes.get_ylim()[1] * 1.001]
    times = time_ticks(chart.start, chart.end, zone)
    axes.set_yticks(shown, [quantity(tick, chart.unit).replace(".0", "") for tick in shown])
    axes.set_xticks([at for at, _ in times], [words for _, words in times])
    axes.tick_params(length=0, labelsize=11, pad=5)
    axes.tick_params(axis="x", pad=10)  # below the lowest value's own words
    for tick in shown:
        axes.plot([chart.start, chart.end], [tick, tick], color="#ddd", lw=1, gid="grid")


def _draw_mark(axes: Axes, mark: Mark, chart: Chart, top: float) -> None:
    start, end = max(mark.start, chart.start), min(mark.end, chart.end)
    if end < chart.start or start > chart.end:
        return
    if mark.kind == "alert":
        least = (chart.end - chart.start) * 2 / COLUMNS  # an alert of a minute is still two pixels wide in a week
        axes.axvspan(start, max(end, start + least), color="#e8b", lw=0, gid="alert")
    else:
        axes.plot([start, start], [0, top], color="#2a7", lw=1.5, gid=mark.kind)


def _draw_line(axes: Axes, chart: Chart) -> None:
    gap_s = GAP_STEPS * chart.line.step_s
    run: list[Column] = []
    for column in columns(chart.line, chart.start, chart.end):
        if run and column.first - run[-1].last > gap_s:
            _draw_run(axes, run)
            run = []
        run.append(column)
    if run:
        _draw_run(axes, run)


def _draw_run(axes: Axes, run: list[Column]) -> None:
    """One stretch without a gap; a lone column is a dot, else it would be invisible."""
    if len(run) == 1:
        only = run[0]
        axes.plot([only.at, only.at], [only.low, only.high], color="#36c", lw=2, gid="dot")
        return
    at = [column.at for column in run]
    if any(column.low != column.high for column in run):
        # a polygon of its own: collections, as fill_between makes, are written by reference to definitions
        edge = [column.high for column in run] + [column.low for column in run[::-1]]
        axes.fill(at + at[::-1], edge, color="#36c", alpha=0.2, lw=0, gid="band")
    axes.plot(at, [column.mean for column in run], color="#36c", lw=1.5, gid="line")


_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
_ANCHOR = re.compile(r"text-anchor:\s*(\w+)")


def svg(chart: Chart, zone: tzinfo, described_by: str) -> str:
    """The chart as one ``<svg>`` element: no ids, no styles, no colours, one decimal.

    Parameters
    ----------
    described_by
        The id of the page's element that holds :func:`in_words`: what a screen reader says in the picture's place.
    """
    import matplotlib

    raw = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify": False}):
        figure(chart, zone).savefig(raw, format="svg", metadata={"Date": None})
    paths: dict[str, list[str]] = {name: [] for name in _DRAWN}
    texts: list[str] = []
    for group in ElementTree.fromstring(raw.getvalue()).iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("id", "")
        if name in paths:
            paths[name] += [compact(path.get("d", "")) for path in group if path.get("d")]
        texts += [_text(node) for node in group if node.tag.endswith("}text")]
    drawn = "".join(f'<path class="{name}" d="{"".join(parts)}"/>' for name, parts in paths.items() if parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby={quoteattr(described_by)}>'
        f"{drawn}{''.join(texts)}{_hints(chart)}</svg>"
    )


def _text(node: ElementTree.Element) -> str:
    anchor = _ANCHOR.search(node.get("style", ""))
    x, y = (round(float(node.get(axis, "0")), 1) for axis in "xy")
    return f'<text class="{anchor[1] if anchor else "start"}" x="{x:g}" y="{y:g}">{escape(node.text or "")}</text>'


def _hints(chart: Chart) -> str:
    """Invisible strips over the marks that say what each is when pointed at."""
    scale = COLUMNS / (chart.end - chart.start)
    found = []
    for mark in chart.marks[:MOST_MARKS]:
        left = max(LEFT + (mark.start - chart.start) * scale - 3, LEFT)
        right = min(LEFT + (mark.end - chart.start) * scale + 3, WIDTH - RIGHT)
        if left < right:
            found.append(
                f'<rect class="hint" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(clean(mark.label, 120))}</title></rect>'
            )
    return "".join(found)


def compact(path: str) -> str:
    """A path of straight lines in relative coordinates of one decimal, without points that change nothing.

    Rounding errors do not add up: each step is the difference of two rounded positions.
    """
    found: list[str] = []
    for part in re.split(r"(?=[Mz])", path):
        numbers = [round(float(number) * 10) for number in _NUMBER.findall(part)]
        points = _without_middles(list(zip(numbers[::2], numbers[1::2], strict=True)))
        if points:
            found.append(f"M{_tenths(points[0][0])},{_tenths(points[0][1])}")
            found += [_step(a, b) for a, b in pairwise(points)] or ["h0"]  # a point: its round ends are its size
        if part.startswith("z"):
            found.append("z")
    return "".join(found)


def _without_middles(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for point in points:
        while len(kept) > 1 and _between(kept[-2], kept[-1], point):
            kept.pop()
        if not kept or kept[-1] != point:
            kept.append(point)
    return kept or points[:1]


def _between(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """Whether ``b`` lies on the way from ``a`` to ``c``."""
    (ax, ay), (bx, by), (cx, cy) = a, b, c
    return (bx - ax) * (cy - by) == (by - ay) * (cx - bx) and (bx - ax) * (cx - bx) >= 0 <= (by - ay) * (cy - by)


def _tenths(number: int) -> str:
    text = f"{number / 10:.1f}".removesuffix(".0")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def _step(a: tuple[int, int], b: tuple[int, int]) -> str:
    dx, dy = b[0] - a[0], b[1] - a[1]
    if dy == 0:
        return f"h{_tenths(dx)}"
    if dx == 0:
        return f"v{_tenths(dy)}"
    separator = "" if dy < 0 else ","
    return f"l{_tenths(dx)}{separator}{_tenths(dy)}"
