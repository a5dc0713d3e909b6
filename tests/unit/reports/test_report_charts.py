from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import charts
from reports.charts import Chart, Line, Mark

BERLIN = ZoneInfo("Europe/Berlin")
START = 1_763_334_000.0  # Monday, midnight in Berlin
WEEK_S = 7 * 86400.0

numbers = st.floats(-1e12, 1e12, allow_nan=False)


def flat(count: int, value: float = 10.0, step_s: float = 60.0, start: float = START) -> Line:
    times = [start + i * step_s for i in range(count)]
    return Line(times, [value] * count, [value] * count, [value] * count, step_s)


def spiky(count: int, at: int, top: float) -> Line:
    line = flat(count)
    high = list(line.high)
    high[at] = top
    return Line(line.times, line.low, high, line.mean, line.step_s)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    steps = draw(st.lists(st.sampled_from([60.0, 60.0, 60.0, 61.0, 600.0, 7200.0]), min_size=1, max_size=200))
    times = [START]
    for step in steps:
        times.append(times[-1] + step)
    ends = [sorted((draw(numbers), draw(numbers))) for _ in times]
    low, high = [pair[0] for pair in ends], [pair[1] for pair in ends]
    return Line(times, low, high, [(a + b) / 2 for a, b in ends], 60.0)


@settings(max_examples=60)
@given(lines(), st.integers(1, 80))
def test_no_extreme_is_lost_and_no_gap_is_closed(line: Line, width: int) -> None:
    start, end = line.times[0], line.times[-1]
    found = charts.columns(line, start, end, width)
    assert min(column.low for column in found) == min(line.low)
    assert max(column.high for column in found) == max(line.high)
    gaps = line.gaps(start, end)
    assert len(found) <= width + len(gaps)
    assert [(a.last, b.first) for a, b in pairwise(found) if b.first - a.last > charts.GAP_STEPS * 60] == gaps
    for column in found:
        assert not any(column.first < gap_end and gap_start < column.last for gap_start, gap_end in gaps)


def test_gaps_are_told_at_both_ends() -> None:
    line = flat(10, start=START + 3600)
    assert line.gaps(START, START + 7200) == [(START, START + 3600), (line.times[-1], START + 7200)]


def heights(svg: str, name: str) -> list[float]:
    """The absolute y of every point of the paths of one class."""
    found = []
    for path in re.findall(rf'<path class="{name}" d="([^"]*)"', svg):
        y = 0.0
        for step, numbers_text in re.findall(r"([Mlhvz])([^Mlhvz]*)", path):
            values = [float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", numbers_text)]
            if step == "M":
                y = values[1]
            elif step in "lv" and values:
                y += values[-1]
            found.append(y)
    return found


def test_a_spike_of_one_minute_in_a_week_reaches_the_picture() -> None:
    chart = Chart("Busy", "percent", START, START + WEEK_S, spiky(10_080, 5_003, 97.0), 100.0)
    drawn = charts.svg(chart, BERLIN, "words")
    plot = charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert min(heights(drawn, "band")) == pytest.approx(charts.TOP + plot * 0.03, abs=0.1)
    assert len(drawn) < 3_000


def test_a_gap_parts_the_line_and_is_shown() -> None:
    line = flat(10_080)
    keep = [i for i in range(10_080) if not 4_000 < i < 4_300]
    parted = Line([line.times[i] for i in keep], *([10.0] * len(keep) for _ in range(3)), 60.0)
    drawn = charts.svg(Chart("Busy", "percent", START, START + WEEK_S, parted, 100.0), BERLIN, "words")
    assert re.search(r'<path class="line" d="([^"]*)"', drawn)[1].count("M") == 2  # type: ignore[index]
    assert 'class="nodata"' in drawn


def test_a_lone_point_is_visible() -> None:
    drawn = charts.svg(Chart("x", "number", START, START + 3600, flat(1)), UTC, "words")
    assert '<path class="dot" d="M' in drawn


def test_the_picture_is_only_shapes_and_words() -> None:
    marks = (
        Mark("alert", START + 3600, START + 9000, "alert <b>&\"'"),
        Mark("action", START + 9000, START + 9000, "clean_cache: fixed"),
        Mark("failed", START + 90_000, START + 90_000, "clean_cache: no effect"),
        Mark("failed", START - 90_000, START - 90_000, "before"),
    )
    drawn = charts.svg(Chart("x", "bytes", START, START + WEEK_S, flat(10_000, 5e9), None, marks), BERLIN, "c1")
    assert set(re.findall(r"<([a-z]+)", drawn)) == {"svg", "path", "text", "rect", "title"}
    assert set(re.findall(r" ([a-z-]+)=", drawn)) <= {
        "class", "viewBox", "viewbox", "role", "aria-labelledby", "d", "x", "y", "width", "height",
    }  # fmt: skip
    assert "alert &lt;b&gt;&amp;" in drawn
    assert drawn.count("<title>") == 3
    assert {"alert", "action", "failed"} <= set(re.findall(r'<path class="(\w+)"', drawn))


@given(st.lists(st.tuples(st.floats(-50, 600), st.floats(-50, 600)), min_size=1, max_size=60))
def test_a_compact_path_visits_the_same_points(points: list[tuple[float, float]]) -> None:
    raw = "M " + " \nL ".join(f"{x} {y}" for x, y in points) + " "
    if "e" in raw:
        raw = "M " + " \nL ".join(f"{x:.6f} {y:.6f}" for x, y in points) + " "
    x = y = 0
    visited = []
    for step, text in re.findall(r"([Mlhv])([^Mlhv]*)", charts.compact(raw)):
        values = [round(float(n) * 10) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text)]
        dx, dy = {"h": (values[0], 0), "v": (0, values[0])}.get(step, (values[0], values[-1]))
        x, y = (dx, dy) if step == "M" else (x + dx, y + dy)
        visited.append((x, y))
    wanted = [(round(float(f"{x:.6f}") * 10), round(float(f"{y:.6f}") * 10)) for x, y in points]
    assert visited[0] == wanted[0]
    assert visited[-1] == wanted[-1]
    assert {max(p[1] for p in visited), min(p[1] for p in visited)} == {
        max(p[1] for p in wanted), min(p[1] for p in wanted),
    }  # fmt: skip
    assert set(visited) <= set(wanted)


def test_a_week_is_named_by_its_days_across_a_change_of_the_clocks() -> None:
    start, end = datetime(2026, 10, 19, tzinfo=BERLIN).timestamp(), datetime(2026, 10, 26, tzinfo=BERLIN).timestamp()
    ticks = charts.time_ticks(start, end, BERLIN)
    assert [said for _, said in ticks] == ["Mon 19", "Tue 20", "Wed 21", "Thu 22", "Fri 23", "Sat 24", "Sun 25"]
    assert all(datetime.fromtimestamp(at, BERLIN).hour == 0 for at, _ in ticks)


@given(st.floats(60, 40 * 86400), st.floats(0, 400 * 86400))
def test_a_time_axis_has_a_few_names_within_it(span: float, into: float) -> None:
    start = START + into
    ticks = charts.time_ticks(start, start + span, BERLIN)
    assert 1 <= len(ticks) <= 9
    assert all(start <= at <= start + span for at, _ in ticks)
    assert [at for at, _ in ticks] == sorted({at for at, _ in ticks})


@given(st.floats(1e-6, 1e15), st.sampled_from(["bytes", "number"]))
def test_value_ticks_reach_the_top(top: float, unit: str) -> None:
    ticks = charts.value_ticks(top, unit)  # type: ignore[arg-type]
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6)
    assert 2 <= len(ticks) <= 6
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)


def test_a_chart_in_words() -> None:
    line = spiky(10_080, 5_003, 97.0)
    marks = (Mark("action", START, START, "x"), Mark("failed", START, START, "y"), Mark("failed", START, START, "z"))
    said = charts.in_words(Chart("Busy", "percent", START, START + WEEK_S + 7200, line, 100.0, marks), BERLIN)
    assert said.replace("\u00a0", " ") == (
        "Mean 10 %, highest 97 % on Thu 20 Nov, 11:23, last 10 %. No data for 2 h 1 min."
        " Marked: 1 action, 2 actions without effect."
    )
    assert charts.in_words(Chart("x", "number", START, START + 60, flat(3)), UTC) == "Steady at 10."
    assert charts.in_words(Chart("x", "number", START, START + 60, flat(0)), UTC) == "No data."
