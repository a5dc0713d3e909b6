"""What is carried from one window to the next gives the answers that all samples would give."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import STALE, Series, make_labels
from agent.promql import windows
from agent.promql.evaluate import Memory, evaluate, evaluate_range
from agent.promql.nodes import NAME
from agent.promql.parse import parse
from agent.promql.values import Points, Vector
from agent.promql.windows import CarriedWindow, Carry, Window
from agent.store.recent import Recent
from agent.store.series import Layout
from tests.support.promqltest import MemorySource

NOW = 1_700_000_000.0
LABELS = ((NAME, "a"),)
EXACT = [
    parse(f"{function}(a[{span}])")
    for span in ("20s", "1m", "5m")
    for function in (
        *("rate", "increase", "irate", "delta", "idelta", "resets", "changes", "first_over_time", "last_over_time"),
        *("sum_over_time", "avg_over_time", "min_over_time", "max_over_time", "count_over_time", "stddev_over_time"),
    )
]


@pytest.fixture(autouse=True, scope="module")
def carried_however_short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WORTH_CARRYING", 1)
        yield


_decimal = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
_finite = st.one_of(st.integers(-3, 3).map(float), st.integers(0, 10**12).map(float), _decimal, st.just(-0.0))
_awkward = st.sampled_from([math.inf, -math.inf, math.nan, STALE, 1e-40, 5e-324, 1e300, 0.1])
_value = st.one_of(_finite, _finite, _finite, _finite, _awkward)
_moves = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), _value),
        st.tuples(st.just("sample"), _finite),
        st.tuples(st.just("late"), _finite),
        st.tuples(st.just("gap"), st.integers(1, 400)),
        st.tuples(st.just("cut"), st.integers(1, 20)),
        st.tuples(st.just("ask"), st.integers(0, 9)),
    ),
    max_size=120,
)


def _same(left: Vector, right: Vector) -> bool:
    ours, theirs = dict(left.samples), dict(right.samples)
    return ours.keys() == theirs.keys() and all(
        value == theirs[labels] or (value != value and theirs[labels] != theirs[labels])
        for labels, value in ours.items()
    )


@settings(deadline=None, max_examples=60)
@given(_moves)
def test_memory_changes_no_answer(moves: list[tuple[str, float]]) -> None:
    """However samples come, go, come late or are missing, and however irregularly it is asked."""
    memory, samples, now = Memory(), dict[float, float](), NOW
    for what, number in [*moves, ("ask", 0), ("ask", 5)]:
        match what:
            case "sample":
                now += 5
                samples[now] = number
            case "late":
                samples[now - 7] = number
            case "gap":
                now += number
            case "cut":
                samples = dict(sorted(samples.items())[int(number) :])
            case "ask":
                source = MemorySource([Points(LABELS, sorted(samples), [samples[at] for at in sorted(samples)])])
                for expr in EXACT:
                    carried, plain = (evaluate(expr, source, now + number, memory=kept) for kept in (memory, None))
                    assert isinstance(carried, Vector)
                    assert isinstance(plain, Vector)
                    assert _same(carried, plain), expr


def _line(times: list[float], values: list[float], origin_ms: int) -> tuple[Fraction, Fraction]:
    """The least-squares line without any rounding."""
    xs = [Fraction(round(time * 1000) - origin_ms, 1000) for time in times]
    ys = [Fraction(value) for value in values]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return slope, mean_y - slope * mean_x


@settings(deadline=None)
@given(st.lists(_finite, min_size=12, max_size=80), st.integers(2, 12))
def test_the_line_that_is_carried_is_the_exact_one_rounded_once(values: list[float], width: int) -> None:
    points = Points(LABELS, [NOW + 5 * n + n % 3 * 0.001 for n in range(len(values))], values)
    carry = Carry()
    for low in range(0, len(values) - width, 1 + width // 4):
        assert carry.move(points, low, low + width)
        times, held = list(points.times[low : low + width]), values[low : low + width]
        at_ms = round(times[-1] * 1000)
        window = CarriedWindow(times, held, at_ms - 60_000, at_ms, at_ms, False)
        window.carry = carry
        assert window.line(at_ms) == tuple(map(float, _line(times, held, at_ms)))
        for ours, plain in zip(window.line(at_ms), Window(times, held, 0, 0, 0, False).line(at_ms), strict=True):
            # The plain line loses digits where large sums cancel; on what values are made of, both agree.
            assert math.isclose(ours, plain, rel_tol=1e-9, abs_tol=1e-9 * max(map(abs, held)))


def test_a_range_is_its_instants_when_windows_overlap() -> None:
    source = MemorySource([Points(LABELS, [NOW + 5 * n for n in range(400)], [float(n * n % 97) for n in range(400)])])
    for expr in EXACT:
        matrix = evaluate_range(expr, source, NOW + 300, NOW + 900, 5)
        found = {at: value for points in matrix.series for at, value in zip(points.times, points.values, strict=True)}
        for at, value in found.items():
            single = evaluate(expr, source, at)
            assert isinstance(single, Vector)
            assert single.samples[0][1] == value, expr
        assert len(found) == 121


def test_rules_that_ask_for_the_same_window_share_what_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    enter = windows._Sum.enter
    monkeypatch.setattr(windows._Sum, "enter", lambda *args: built.append(args[3:]) or enter(*args))  # type: ignore[func-returns-value]
    memory, recent = Memory(), Recent()
    layout = Layout(1, (Series("a", make_labels(x="1")),), (1,), stored=True)
    for n in range(200):
        recent.add(layout, NOW + 5 * n, array("d", [0.1 * n]))
        for text in ("avg_over_time(a[5m]) > 3", "sum_over_time(a[5m]) > 100"):
            evaluate(parse(text), recent, NOW + 5 * n, memory=memory)
    first, *later = built
    assert first[0] == 0
    assert {high - low for low, high in later} == {1}
    assert len(later) < 200


def test_a_series_that_went_is_forgotten() -> None:
    memory, expr = Memory(), parse("sum_over_time(a[1m])")
    points = [Points((*LABELS, ("x", str(x))), [NOW, NOW + 5], [1.0, 2.0]) for x in range(3)]
    for at, there in enumerate((points, points, points[:1]), start=5):
        evaluate(expr, MemorySource(there), NOW + at, memory=memory)
    [turn] = memory._turns.values()
    assert len(turn.now) == 1
