from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import pytest

from agent.errors import ExpressionError
from agent.model import STALE
from agent.promql.evaluate import MAX_STEPS, evaluate, evaluate_range
from agent.promql.nodes import NAME, Matcher
from agent.promql.parse import parse
from agent.promql.values import Matrix, Options, Points, Scalar, String, Vector
from tests.support.promqltest import MemorySource

NOW = 1_700_000_000.0


class Counting:
    """A source that remembers what it was asked for."""

    def __init__(self, *series: Points) -> None:
        self._inner = MemorySource(series)
        self.asked: list[tuple[float, float]] = []

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> Iterator[Points]:
        self.asked.append((start, end))
        return self._inner.select(matchers, start, end)


def series(name: str, samples: dict[float, float], **labels: str) -> Points:
    return Points(tuple(sorted({NAME: name, **labels}.items())), list(samples), list(samples.values()))


def test_the_kinds_of_value() -> None:
    source = MemorySource([series("a", {NOW: 1.0})])
    assert evaluate(parse("1 + 1"), source, NOW) == Scalar(2.0)
    assert evaluate(parse('"text"'), source, NOW) == String("text")
    assert evaluate(parse("a"), source, NOW) == Vector((((((NAME, "a"),)), 1.0),))
    assert evaluate(parse("(a[5m])"), source, NOW) == Matrix((series("a", {NOW: 1.0}),))


def test_a_sample_of_this_very_instant_counts() -> None:
    # Neither instant is a whole millisecond; the sample must not wait for the next evaluation.
    at = NOW + 0.12341
    source = MemorySource([series("a", {at: 1.0})])
    assert evaluate(parse("a > 0"), source, at) == Vector((((((NAME, "a"),)), 1.0),))
    assert evaluate(parse("count_over_time(a[1s])"), source, at) == Vector((((), 1.0),))


def test_rates_of_today_have_all_their_digits() -> None:
    samples = {NOW + 5 * i: 3.0 * i for i in range(13)}
    value = evaluate(parse("rate(a[1m])"), MemorySource([series("a", samples)]), NOW + 60)
    assert value == Vector((((), 0.6),))


def test_views_of_arrays_are_as_good_as_lists() -> None:
    times, values = array("d", [NOW - 30, NOW - 20, NOW - 10, NOW]), array("d", [1.0, 5.0, 2.0, STALE])

    class Arrays:
        def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
            return [Points(((NAME, "a"),), times, values)]

    asked = "increase(a[1m]), resets(a[1m]), avg_over_time(a[1m]), deriv(a[1m]), quantile_over_time(0.5, a[1m])"
    for text in asked.split("), "):
        found = evaluate(parse(text.rstrip(")") + ")"), Arrays(), NOW)
        assert isinstance(found, Vector)
        assert len(found.samples) == 1
    assert evaluate(parse("a"), Arrays(), NOW) == Vector(())


def test_a_range_asks_its_source_once_for_each_selector() -> None:
    samples = {NOW + 10.0 * i: float(i) for i in range(100)}
    source = Counting(series("a", samples))
    matrix = evaluate_range(parse("max_over_time(rate(a[1m])[5m:10s]) > a offset 1m"), source, NOW + 600, NOW + 900, 30)
    assert len(matrix.series) <= 1
    assert [(round(start - NOW), round(end - NOW)) for start, end in source.asked] == [(240, 900), (240, 840)]


def test_a_range_is_its_instants() -> None:
    samples = {NOW + 10.0 * i: float(i * i % 17) for i in range(60)}
    source = MemorySource([series("a", samples, x="1"), series("a", {NOW + 100: 3.0}, x="2")])
    expr = parse("sum_over_time((a > 5)[1m:10s]) or a offset 1m")
    matrix = evaluate_range(expr, source, NOW + 60, NOW + 300, 60)
    steps = {points.labels: dict(zip(points.times, points.values, strict=True)) for points in matrix.series}
    for at in (NOW + 60, NOW + 120, NOW + 180, NOW + 240, NOW + 300):
        single = evaluate(expr, source, at)
        assert isinstance(single, Vector)
        assert dict(single.samples) == {labels: values[at] for labels, values in steps.items() if at in values}


def test_options() -> None:
    source = MemorySource([series("a", {NOW: 1.0})])
    assert evaluate(parse("a"), source, NOW + 61, Options(lookback_s=60)) == Vector(())
    counted = evaluate(parse("count_over_time(vector(1)[1m:])"), source, NOW, Options(subquery_step_s=10))
    assert counted == Vector((((), 7.0),))


@pytest.mark.parametrize(
    "text", ["count_over_time(vector(1)[10y:1ms])", "sum_over_time(sum_over_time(a[1h:1s])[1h:1s])"]
)
def test_a_subquery_without_end_is_stopped(text: str) -> None:
    with pytest.raises(ExpressionError, match=f"more than {MAX_STEPS} steps"):
        evaluate(parse(text), MemorySource(), NOW)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a + on(y) b", "multiple matches for labels"),
        ("b + on(y) a", "many-to-many matching not allowed"),
        ("a * on(y) group_left(x) b", "grouping labels must ensure unique matches"),
        ('abs({__name__=~"a|b"})', "same labelset"),
        ('label_replace(a, "x", "", "", "")', "same labelset"),
        ("topk(NaN, a)", "cannot take the first NaN elements"),
        ("holt_winters(a[5m], 2, 0.5)", "invalid smoothing factor 2"),
        ('label_replace(a, "y", "", "x", "(")', "cannot compile"),
    ],
)
def test_fails_where_prometheus_does(text: str, reason: str) -> None:
    source = MemorySource(
        [series("a", {NOW: 1.0}, x="1"), series("a", {NOW: 2.0}, x="2"), series("b", {NOW: 3.0}, x="1")]
    )
    with pytest.raises(ExpressionError) as caught:
        evaluate(parse(text), source, NOW)
    assert reason in str(caught.value)


def test_a_range_needs_a_step_and_a_vector() -> None:
    with pytest.raises(ExpressionError, match="step 0"):
        evaluate_range(parse("a"), MemorySource(), NOW, NOW + 60, 0)
    with pytest.raises(ExpressionError, match="range vector over a range"):
        evaluate_range(parse("a[5m]"), MemorySource(), NOW, NOW + 60, 10)
