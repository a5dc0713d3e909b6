"""Hypothesis strategies for series and PromQL expressions over them, as text.

Numbers are quarters, so that sums of them are exact: what turns the last digit into another result (a comparison,
``floor``) is made over ``exact`` expressions only, which give the same bits in any correct evaluator.
"""

from __future__ import annotations

from hypothesis import strategies as st


def pick(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


def text(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(template.format, *parts)


# --- series ------------------------------------------------------------------------------------------------------

_number = st.integers(-40, 400).map(lambda n: f"{n / 4:g}")
_gauge = st.one_of(_number, _number, _number, _number, pick("_ _x3 stale NaN Inf -Inf 0"))
_slope = st.builds("{}+{}x{}".format, st.integers(0, 50), st.integers(0, 20), st.integers(0, 12))
_counter = st.one_of(_slope, pick("_ _x30 stale"))
_values = {
    "a": st.lists(_gauge, min_size=5, max_size=60).map(" ".join),
    "b": st.lists(_gauge, min_size=5, max_size=60).map(" ".join),
    "c": st.lists(_counter, min_size=2, max_size=6).map(" ".join),
}
_names = [
    *(f'{metric}{{x="{x}",y="{y}"}}' for metric in "abc" for x in "12" for y in "pq"),
    *(f'{metric}{{x="{x}"}}' for metric in "abc" for x in "12"),
    "a",
    "b",
]


@st.composite
def series(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.lists(st.sampled_from(_names), unique=True, min_size=6, max_size=14))
    made = {name: draw(_values[name[0]]) for name in names}
    if draw(st.booleans()):
        for x in "12":
            slopes = sorted(draw(st.lists(st.integers(0, 9), min_size=3, max_size=3)))
            for le, slope in zip(("0.5", "2", "+Inf"), slopes, strict=True):
                made[f'h_bucket{{x="{x}",le="{le}"}}'] = f"0+{slope}x40"
    return made


# --- expressions -------------------------------------------------------------------------------------------------

_nothing = st.just("")
_matchers = st.sampled_from(["", '{x="1"}', '{y!="p"}', '{x=~"1|2",y!~"q.*"}', '{y=""}', '{x=~".+"}', '{y=~"p?"}'])
_moved = st.sampled_from(
    [" offset 1m", " offset -30s", " offset 7s", " @ 120", " @ 61.5 offset 20s", " @ end()", " @ start()", " @ -5"]
)
_offset = st.one_of(_nothing, _nothing, _nothing, _moved)
_range = pick("15s 20s 45s 1m 2m 5m 7m30s 1h")
_step = st.one_of(_nothing, pick("15s 20s 7s 1m"))
_literal = pick("0 1 2 -3 0.5 10 100 Inf NaN")
_scalar = st.one_of(
    _literal, _literal, st.sampled_from(["time()", 'scalar(a{x="1",y="p"})', "pi()", "(1 + 2)", "-time()"])
)
_labels = st.sampled_from(["", "x", "y", "x, y", "z"])
_grouping = st.one_of(_nothing, text("by ({}) ", _labels), text("without ({}) ", _labels))
_pairing = st.one_of(_nothing, text("on({}) ", _labels), text("ignoring({}) ", _labels))
_matching = st.one_of(
    _pairing,
    text("on(x) group_left({}) ", st.sampled_from(["", "y", "z"])),
    st.sampled_from(["on(x) group_right() ", "ignoring(y) group_left() "]),
)

_selector = text("{}{}{}", pick("a b c"), _matchers, _offset)

# What is exact in both: only on this may an operator stand that turns the last digit into another result.
exact = st.recursive(
    st.one_of(_selector, _selector, _selector, st.just('{__name__=~"a|b",x="1"}')),
    lambda inner: st.one_of(
        text("-{}", inner),
        text("({} {} {}{})", inner, pick("+ -"), _matching, inner),
        text("({} % {})", inner, _literal),
        text("({} % {})", _literal, inner),
        text("({} {} {}{})", inner, pick("and or unless"), _pairing, inner),
        text("({} {} {})", inner, pick("> < >= <= == != >bool ==bool"), _scalar),
        text("({} {} {})", _scalar, pick("> < ==bool"), inner),
        text("({} {} {}{})", inner, pick("> <= == !=bool"), _matching, inner),
        text("{} {}({})", pick("min max count group"), _grouping, inner),
        text('count_values {}("v", {})', _grouping, inner),
        text("count(topk {}({}, {}))", _grouping, pick("1 2 0 -1"), inner),
        text("{}({})", pick("abs floor ceil sgn round timestamp sort absent"), inner),
        text("clamp({}, {}, {})", inner, _literal, _literal),
        text("vector(scalar({}))", inner),
        text('label_replace({}, "z", "$1-v", "x", "(.*)")', inner),
        text('label_replace({}, "x", "", "y", "p")', inner),
        text('label_join({}, "z", "/", "x", "y")', inner),
    ),
    max_leaves=4,
)
_window = st.one_of(
    text("{}{}[{}]{}", pick("a b c"), _matchers, _range, _offset),
    text("({})[{}:{}]{}", st.one_of(_selector, exact), _range, _step, _offset),
)
_over_time = pick(
    "rate increase irate delta idelta deriv resets changes avg_over_time sum_over_time min_over_time max_over_time "
    "count_over_time last_over_time present_over_time stddev_over_time stdvar_over_time absent_over_time"
)
_curve = pick("exp ln log2 log10 sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh deg rad")
_calendar = pick("hour minute month year day_of_week day_of_month day_of_year days_in_month")
_buckets = st.sampled_from(["h_bucket", "rate(h_bucket[2m])", "sum by (le) (h_bucket)", "a"])
close = st.recursive(
    st.one_of(
        exact,
        text("{}({})", _over_time, _window),
        text("{}({})", _over_time, _window),
        text("quantile_over_time({}, {})", _literal, _window),
        text("predict_linear({}, {})", _window, pick("60 -30 3600")),
        text("holt_winters({}, 0.3, {})", _window, pick("0.6 0.1 0.9 0.5 2")),
        text("histogram_quantile({}, {})", _literal, _buckets),
        text("{}((-1000 < ({}) < 1000) * 1000000)", _calendar, exact),  # a calendar has no day for infinity
        text("{}()", _calendar),
    ),
    lambda inner: st.one_of(
        text("({} {} {}{})", inner, pick("* / +"), _matching, inner),
        text("({} {} {})", inner, pick("* / ^"), _scalar),
        text("({} {} {})", _scalar, pick("/ ^"), inner),
        text("{} {}({})", pick("sum avg max"), _grouping, inner),
        # The deviation of one infinity or NaN is 0 in Prometheus 2.42, and NaN in later ones and here.
        text("{} {}(-1e300 < ({}) < 1e300)", pick("stddev stdvar"), _grouping, inner),
        text("quantile {}({}, {})", _grouping, _literal, inner),
        text("{}({})", _curve, inner),
    ),
    max_leaves=3,
)
