from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ExpressionError
from agent.promql.nodes import Kind, MatchOp, MatrixSelector, NumberLiteral, Subquery, VectorSelector, kind, walk
from agent.promql.parse import lookback, parse, selectors, unparse
from tests.support import expressions


@given(st.one_of(expressions.close, expressions.exact))
def test_what_is_written_back_parses_to_the_same(text: str) -> None:
    expr = parse(text)
    written = unparse(expr)
    # Texts, not trees: the tree of NaN is not equal to itself.
    assert unparse(parse(written)) == written
    if "NaN" not in text:
        assert parse(written) == expr


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "sum by (x, y) (rate(a[5m]))",
        "sum without (x) (a)",
        "a * on (x) group_left (y) b",
        "a > bool ignoring (x) b",
        "a unless on () b",
        'count_values("le", a)',
        'a{b="c",d!="e",f=~"g|h",i!~"j"}[1d2h3m4s5ms] @ 1.500 offset -30s',
        "(a + b)[5m:30s] @ end() offset 1h",
        "(a)[5m:]",
        "-(a ^ 2)",
        r'a{b="quote \" backslash \\ newline \n"}',
    ],
)
def test_canonical_text_stays_as_it_is(text: str) -> None:
    assert unparse(parse(text)) == text


def test_mends_what_the_package_reads_wrongly() -> None:
    assert parse("a @ -1.5") == VectorSelector(parse("a").matchers, 0, -1500)  # type: ignore[union-attr]
    assert unparse(parse("holt_winters(a[5m], 0.1, 0.2)")) == "holt_winters(a[5m], 0.1, 0.2)"
    assert parse("double_exponential_smoothing(a[5m], 0.1, 0.2)") == parse("holt_winters(a[5m], 0.1, 0.2)")
    assert parse(r"a{b=~`\d+`}").matchers[1].value == r"\d+"  # type: ignore[union-attr]


def test_each_instant_keeps_its_sign() -> None:
    expr = parse('sum_over_time(a{b="@ -7"}[1m] @ -1) + (b @ 2 # @ -3\n) + rate((c @ start())[5m:] @ -4)')
    assert [part.at for part in walk(expr) if isinstance(part, VectorSelector | Subquery)] == [
        -1000,
        2000,
        -4000,
        "start",
    ]


def test_a_bare_number_is_seconds() -> None:
    assert parse("a[10]") == parse("a[10s]")
    assert parse("a offset 90") == parse("a offset 1m30s")
    assert isinstance(matrix := parse("a[1h30m]"), MatrixSelector)
    assert matrix.range_ms == 5_400_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 5000, "longer than 4096 bytes"),
        ("(" * 101 + "a" + ")" * 101, "more than 100 levels of brackets"),
        ("a" + "+a" * 300, "more than 200 levels of operators"),
        ("-" * 500 + "a", "more than 200 levels of operators"),
        ("", "cannot parse"),
        ("a +", "cannot parse"),
        ("rate(a)", "expected type matrix"),
        ("sum(a[5m])", "expected type vector"),
        ("1 > 2", "must use bool"),
        ("a and 1", "set operator"),
        ("{}", "non-empty matcher"),
        ('a{b=~"("}', "cannot parse"),
        ('a{b=~"(?=x)"}', "cannot parse"),
        ("a[0s]", "greater than 0"),
        ("a * on (x) group_left (x) b", "must not occur in on and group"),
        ("a + bool b", "bool"),
        ("rate(a[5m:0s])", "greater than 0"),
        ("limit_ratio(0.5, a)", '"limit_ratio" is not part of this promql'),
        ('count_values("a-b", c)', 'invalid label name "a-b"'),
        ('label_replace(a, "1b", "", "", "")', 'invalid label name "1b"'),
        ('label_join(a, "b", "", "c d")', 'invalid label name "c d"'),
        ('{a="1" or b="2"}', "is not promql"),
        ("unknown(a)", "unknown function"),
        ("a offset NaN", "out of range"),
        ("a @ 1e35", "too large"),
        ('a{""="b"}', 'invalid label name ""'),
        ('sum by ("b c") (a)', 'invalid label name "b c"'),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    said = str(caught.value)
    assert said.startswith("cannot parse")
    assert message in said.lower()


@given(st.text(alphabet="ab(){}[]\"'`\\@#-+*/^<>=!~,:. \n059msh", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        unparse(parse(text))
    except ExpressionError:
        pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 0),
        ("a", 300),
        ("a offset 1h", 3900),
        ("a offset -10m", 0),
        ("rate(a[10m])", 600),
        ("rate(a[10m] offset 5m)", 900),
        ("a > 1 and max_over_time(b[1d]) > 2", 86_400),
        ("max_over_time(rate(a[5m])[1h:1m] offset 1d)", 300 + 3600 + 86_400),
        ("a @ end()", 300),
        ("a @ 1000", math.inf),
    ],
)
def test_lookback(text: str, seconds: float) -> None:
    assert lookback(parse(text)) == seconds


def test_selectors_of_all_parts() -> None:
    found = selectors(parse('a{x="1"} / on () sum(rate(b[5m])) > scalar(max_over_time((c + 1)[5m:]))'))
    assert [selector.matchers[0].value for selector in found] == ["a", "b", "c"]
    assert found[0].matchers[1].op is MatchOp.EQUAL


def test_kinds() -> None:
    assert kind(parse("1 + time()")) is Kind.SCALAR
    assert kind(parse("1 + a")) is Kind.VECTOR
    assert kind(parse("(a)[5m:]")) is Kind.MATRIX
    assert kind(parse('"a"')) is Kind.STRING
    assert isinstance(parse("0x1F"), NumberLiteral)


def test_a_tree_travels_between_processes() -> None:
    expr = parse('rate(a{b=~"c.+",d!~"e|f"}[5m]) > 1')
    again = pickle.loads(pickle.dumps(expr))
    assert again == expr
    assert again.left.args[0].selector.matchers[1].matches("cd")
