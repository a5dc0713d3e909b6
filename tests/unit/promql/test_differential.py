"""Our evaluator and Prometheus' on the same series and expressions.

``UPKEEP_DIFFERENTIAL=N`` compares N expressions that nobody has seen before; without it, the same 300 each time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent.errors import ExpressionError
from agent.promql.evaluate import evaluate
from agent.promql.parse import parse
from agent.promql.values import Scalar, Vector
from tests.support import promtool
from tests.support.promqltest import MemorySource, metric_labels, sequence

PER_FILE = 10
ASKED = os.environ.get("UPKEEP_DIFFERENTIAL")
INTERVAL_S = 15


def _pick(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


def _text(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(template.format, *parts)


# --- series ------------------------------------------------------------------------------------------------------

_number = st.integers(-40, 400).map(lambda n: f"{n / 4:g}")
_gauge = st.one_of(_number, _number, _number, _number, _pick("_ _x3 stale NaN Inf -Inf 0"))
_slope = st.builds("{}+{}x{}".format, st.integers(0, 50), st.integers(0, 20), st.integers(0, 12))
_counter = st.one_of(_slope, _pick("_ _x30 stale"))
_values = {
    "a": st.lists(_gauge, min_size=1, max_size=60).map(" ".join),
    "b": st.lists(_gauge, min_size=1, max_size=60).map(" ".join),
    "c": st.lists(_counter, min_size=1, max_size=6).map(" ".join),
}
_names = [
    *(f'{metric}{{x="{x}",y="{y}"}}' for metric in "abc" for x in "12" for y in "pq"),
    *(f'{metric}{{x="{x}"}}' for metric in "abc" for x in "12"),
    "a",
    "b",
]


@st.composite
def _series(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.lists(st.sampled_from(_names), unique=True, min_size=2, max_size=10))
    series = {name: draw(_values[name[0]]) for name in names}
    if draw(st.booleans()):
        for x in "12":
            slopes = sorted(draw(st.lists(st.integers(0, 9), min_size=3, max_size=3)))
            for le, slope in zip(("0.5", "2", "+Inf"), slopes, strict=True):
                series[f'h_bucket{{x="{x}",le="{le}"}}'] = f"0+{slope}x40"
    return series


# --- expressions -------------------------------------------------------------------------------------------------

_nothing = st.just("")
_matchers = st.sampled_from(["", '{x="1"}', '{y!="p"}', '{x=~"1|2",y!~"q.*"}', '{y=""}', '{x=~".+"}', '{y=~"p?"}'])
_moved = st.sampled_from(
    [" offset 1m", " offset -30s", " offset 7s", " @ 120", " @ 61.5 offset 20s", " @ end()", " @ start()", " @ -5"]
)
_offset = st.one_of(_nothing, _nothing, _nothing, _moved)
_range = _pick("15s 20s 45s 1m 2m 5m 7m30s 1h")
_step = st.one_of(_nothing, _pick("15s 20s 7s 1m"))
_literal = _pick("0 1 2 -3 0.5 10 100 Inf NaN")
_scalar = st.one_of(
    _literal, _literal, st.sampled_from(["time()", 'scalar(a{x="1",y="p"})', "pi()", "(1 + 2)", "-time()"])
)
_labels = st.sampled_from(["", "x", "y", "x, y", "z"])
_grouping = st.one_of(_nothing, _text("by ({}) ", _labels), _text("without ({}) ", _labels))
_pairing = st.one_of(_nothing, _text("on({}) ", _labels), _text("ignoring({}) ", _labels))
_matching = st.one_of(
    _pairing,
    _text("on(x) group_left({}) ", st.sampled_from(["", "y", "z"])),
    st.sampled_from(["on(x) group_right() ", "ignoring(y) group_left() "]),
)

_selector = _text("{}{}{}", _pick("a b c"), _matchers, _offset)

# What is exact in both: only on this may an operator stand that turns the last digit into another result.
_exact = st.recursive(
    st.one_of(_selector, _selector, _selector, st.just('{__name__=~"a|b",x="1"}')),
    lambda inner: st.one_of(
        _text("-{}", inner),
        _text("({} {} {}{})", inner, _pick("+ -"), _matching, inner),
        _text("({} {} {}{})", inner, _pick("and or unless"), _pairing, inner),
        _text("({} {} {})", inner, _pick("> < >= <= == != >bool ==bool"), _scalar),
        _text("({} {} {})", _scalar, _pick("> < ==bool"), inner),
        _text("({} {} {}{})", inner, _pick("> <= == !=bool"), _matching, inner),
        _text("{} {}({})", _pick("min max count group"), _grouping, inner),
        _text('count_values {}("v", {})', _grouping, inner),
        _text("count(topk {}({}, {}))", _grouping, _pick("1 2 0 -1"), inner),
        _text("{}({})", _pick("abs floor ceil sgn round timestamp sort absent"), inner),
        _text("clamp({}, {}, {})", inner, _literal, _literal),
        _text("vector(scalar({}))", inner),
        _text('label_replace({}, "z", "$1-v", "x", "(.*)")', inner),
        _text('label_replace({}, "x", "", "y", "p")', inner),
        _text('label_join({}, "z", "/", "x", "y")', inner),
    ),
    max_leaves=4,
)
_window = st.one_of(
    _text("{}{}[{}]{}", _pick("a b c"), _matchers, _range, _offset),
    _text("({})[{}:{}]{}", st.one_of(_selector, _exact), _range, _step, _offset),
)
_over_time = _pick(
    "rate increase irate delta idelta deriv resets changes avg_over_time sum_over_time min_over_time max_over_time "
    "count_over_time last_over_time present_over_time stddev_over_time stdvar_over_time absent_over_time"
)
_curve = _pick("exp ln log2 log10 sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh deg rad")
_calendar = _pick("hour minute month year day_of_week day_of_month day_of_year days_in_month")
_buckets = st.sampled_from(["h_bucket", "rate(h_bucket[2m])", "sum by (le) (h_bucket)", "a"])
_close = st.recursive(
    st.one_of(
        _exact,
        _text("{}({})", _over_time, _window),
        _text("{}({})", _over_time, _window),
        _text("quantile_over_time({}, {})", _literal, _window),
        _text("predict_linear({}, {})", _window, _pick("60 -30 3600")),
        _text("holt_winters({}, 0.3, {})", _window, _pick("0.6 0.1 2")),
        _text("histogram_quantile({}, {})", _literal, _buckets),
        _text("{}((-1000 < ({}) < 1000) * 1000000)", _calendar, _exact),  # a calendar has no day for infinity
        _text("{}()", _calendar),
    ),
    lambda inner: st.one_of(
        _text("({} {} {}{})", inner, _pick("* / +"), _matching, inner),
        _text("({} {} {})", inner, _pick("* / ^ %"), _scalar),
        _text("({} {} {})", _scalar, _pick("/ ^ %"), inner),
        _text("{} {}({})", _pick("sum avg max"), _grouping, inner),
        # The deviation of one infinity or NaN is 0 in Prometheus 2.42, and NaN in later ones and here.
        _text("{} {}(-1e300 < ({}) < 1e300)", _pick("stddev stdvar"), _grouping, inner),
        _text("quantile {}({}, {})", _grouping, _literal, inner),
        _text("{}({})", _curve, inner),
    ),
    max_leaves=3,
)
_at = _pick("0s 1m 1m40s 2m 3m7s 5m 7m30s 10m 16m")
_questions = st.lists(st.builds(promtool.Question, _close, _at), min_size=PER_FILE, max_size=PER_FILE, unique=True)


# --- the comparison ----------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    minutes, _, rest = text.rpartition("m")
    return 60 * float(minutes or 0) + float(rest.rstrip("s") or 0)


def _ours(source: MemorySource, question: promtool.Question) -> promtool.Answer:
    try:
        value = evaluate(parse(question.expr), source, _seconds(question.at))
    except ExpressionError as error:
        return str(error)
    match value:
        case Scalar(number):
            return {(): number}
        case Vector(samples):
            return dict(samples)
    raise AssertionError(value)


def _agree(ours: promtool.Answer, theirs: promtool.Answer) -> bool:
    if isinstance(ours, str) or isinstance(theirs, str):
        return isinstance(ours, str) and isinstance(theirs, str)
    return ours.keys() == theirs.keys() and all(_close_to(value, theirs[labels]) for labels, value in ours.items())


def _close_to(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    # The differences of numbers up to 1e4 cancel to about 1e-12; what is left of them has no digits to compare.
    return left == right or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


def compare(series: dict[str, str], questions: list[promtool.Question], folder: Path) -> None:
    source = MemorySource()
    for name, values in series.items():
        samples = {index * float(INTERVAL_S): v for index, v in enumerate(sequence(values)) if v is not None}
        source.add(metric_labels(name), samples)
    for question, theirs in zip(questions, promtool.ask(series, f"{INTERVAL_S}s", questions, folder), strict=True):
        ours = _ours(source, question)
        assert _agree(ours, theirs), f"{question}\nours:     {ours}\npromtool: {theirs}\n{series}"


def _campaign(test: Callable[..., None]) -> Callable[..., None]:
    wanted = int(ASKED or 300)
    return settings(
        max_examples=max(1, wanted // PER_FILE),
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # the message names the one expression; to shrink it would cost a minute
        suppress_health_check=list(HealthCheck),
    )(test)


@_campaign
@given(series=_series(), questions=_questions)
def test_agrees_with_promtool(
    series: dict[str, str], questions: list[promtool.Question], tmp_path_factory: pytest.TempPathFactory
) -> None:
    promtool.needed()
    compare(series, questions, tmp_path_factory.getbasetemp())
