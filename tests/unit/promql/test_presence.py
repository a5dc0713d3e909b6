from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Labels
from agent.promql.evaluate import evaluate
from agent.promql.nodes import NAME, Binary
from agent.promql.parse import parse, unparse
from agent.promql.presence import false_when
from agent.promql.values import Vector, drop_name
from tests.support.promqltest import MemorySource


@pytest.mark.parametrize(
    ("text", "inverse"),
    [
        ("a > 1", "a <= 1"),
        ("1 >= a", "1 < a"),
        ("a != 1", "a == 1"),
        ("a == 1", "(a < 1) or (a > 1)"),
        ("rate(a[5m]) < on (x) group_left () b", "rate(a[5m]) >= on (x) group_left () b"),
        ("(a > 1)", "(a <= 1)"),
        ("a > 1 and on (x) b", "(a <= 1) or (a > 1 unless on (x) b)"),
        ("a > 1 and b > 2", "(a <= 1) or ((a > 1) and (b <= 2))"),
        ("a > 1 unless on (x) b", "(a <= 1) or (a > 1 and on (x) b)"),
        ("a > 1 or b > 2", "((a <= 1) unless (b > 2)) or ((b <= 2) unless (a > 1))"),
    ],
)
def test_inverse(text: str, inverse: str) -> None:
    found = false_when(parse(text))
    assert found is not None
    assert unparse(found) == inverse
    parse(inverse)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "sum(a)",
        "absent(a)",
        "rate(a[5m])",
        "a > bool 1",
        "absent(a) == 1",
        "absent_over_time(a[5m]) > 0",
        "count(a > 1) > 2",
        "a > 1 < 5",
        "topk(3, a) > 1",
        "(a or b) > 1",
        "max_over_time((a > 1)[5m:]) > 3",
        "a or b > 1",
        "absent(a) and b > 1",
        "a unless b > 1",
    ],
)
def test_absence_is_all_there_is_to_know(text: str) -> None:
    assert false_when(parse(text)) is None


# --- the law -----------------------------------------------------------------------------------------------------

_side = st.sampled_from(["a", "b", "c", "sum by (x) (a)", "a + 1", "b / c", "max(c) by (x)"])
_comparison = st.sampled_from([">", "<", ">=", "<=", "==", "!="])
_compared = st.builds("{} {} {}".format, _side, _comparison, st.sampled_from(["1", "2", "3"]))
_condition = st.recursive(
    _compared,
    lambda inner: st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or", "unless", "and on(x)"]), inner),
    max_leaves=4,
)
_number = st.integers(1, 4).map(float)
_names = [f"{metric}{x}{y}" for metric in "abc" for x in "12" for y in "pq"]
_state = st.fixed_dictionaries(dict.fromkeys(_names, _number))


def _results(text: str, values: dict[str, float]) -> tuple[set[Labels], set[Labels]]:
    """The label sets that breach, and those known to be false."""
    source = MemorySource()
    for name, value in values.items():
        source.add(((NAME, name[0]), ("x", name[1]), ("y", name[2])), {0.0: value})
    expr = parse(text)
    inverse = false_when(expr)
    assert inverse is not None
    return _label_sets(evaluate(expr, source, 0.0)), _label_sets(evaluate(inverse, source, 0.0))


def _label_sets(value: object) -> set[Labels]:
    assert isinstance(value, Vector)
    return {drop_name(labels) for labels, _ in value.samples}


@given(text=_condition, before=_state, after=_state)
def test_with_all_data_there_what_ended_is_known(text: str, before: dict[str, float], after: dict[str, float]) -> None:
    breached, _ = _results(text, before)
    still, known = _results(text, after)
    assert breached - still <= known


@given(text=_condition, before=_state)
def test_without_data_nothing_is_known(text: str, before: dict[str, float]) -> None:
    assert _results(text, {}) == (set(), set())
    breached, _ = _results(text, before)
    gone, known = _results(text, {name: float("nan") for name in before})
    # NaN differs from everything, so != holds and stays; nothing else is known either way.
    assert not (breached - gone) & known or "!=" in text or "unless" in text


@given(text=_compared, values=_state)
def test_a_comparison_is_true_or_known_to_be_false(text: str, values: dict[str, float]) -> None:
    breached, known = _results(text, values)
    assert not breached & known
    expr = parse(text)
    assert isinstance(expr, Binary)
    assert breached | known == _label_sets(evaluate(expr.left, _source(values), 0.0))


def _source(values: dict[str, float]) -> MemorySource:
    source = MemorySource()
    for name, value in values.items():
        source.add(((NAME, name[0]), ("x", name[1]), ("y", name[2])), {0.0: value})
    return source
