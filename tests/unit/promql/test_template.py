"""Expected texts are what promtool 2.42 wrote for the same templates, labels and values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ExpressionError
from agent.promql import template
from agent.promql.evaluate import evaluate
from agent.promql.nodes import NAME
from tests.support.promqltest import MemorySource

LABELS = (("gpu", "0"), ("path", "/a b"))
SOURCE = MemorySource()
SOURCE.add(((NAME, "other"), ("x", "y")), {0.0: 42.5})


def expand(text: str, value: float = 80.0) -> str:
    return template.compile(text).expand(LABELS, value, lambda expr: evaluate(expr, SOURCE, 0.0))


@pytest.mark.parametrize(
    ("value", "plain", "humanize", "humanize1024", "percentage", "duration"),
    [
        (0.0, "0", "0", "0", "0%", "0s"),
        (1.0, "1", "1", "1", "100%", "1s"),
        (-1.0, "-1", "-1", "-1", "-100%", "-1s"),
        (0.5, "0.5", "500m", "0.5", "50%", "500ms"),
        (-0.25, "-0.25", "-250m", "-0.25", "-25%", "-250ms"),
        (0.00012, "0.00012", "120u", "0.00012", "0.012%", "120us"),
        (1.5e-5, "1.5e-05", "15u", "1.5e-05", "0.0015%", "15us"),
        (99.5, "99.5", "99.5", "99.5", "9950%", "1m 39s"),
        (1025.0, "1025", "1.025k", "1.001ki", "1.025e+05%", "17m 5s"),
        (12345.678, "12345.678", "12.35k", "12.06ki", "1.235e+06%", "3h 25m 45s"),
        (90061.0, "90061", "90.06k", "87.95ki", "9.006e+06%", "1d 1h 1m 1s"),
        (100000.0, "100000", "100k", "97.66ki", "1e+07%", "1d 3h 46m 40s"),
        (1234567.0, "1.234567e+06", "1.235M", "1.177Mi", "1.235e+08%", "14d 6h 56m 7s"),
        (math.nan, "NaN", "NaN", "NaN", "NaN%", "NaN"),
        (math.inf, "+Inf", "+Inf", "+Inf", "+Inf%", "+Inf"),
        (-math.inf, "-Inf", "-Inf", "-Inf", "-Inf%", "-Inf"),
    ],
)
def test_numbers(value: float, plain: str, humanize: str, humanize1024: str, percentage: str, duration: str) -> None:
    assert expand("{{ $value }}", value) == plain
    assert expand("{{ $value | humanize }}", value) == humanize
    assert expand("{{ humanize1024 $value }}", value) == humanize1024
    assert expand("{{ .Value | humanizePercentage }}", value) == percentage
    assert expand("{{ $value | humanizeDuration }}", value) == duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no action, one } and {", "no action, one } and {"),
        ("{{ $labels.gpu }}{{ .Labels.path }}{{ $labels.nope }}", "0/a b"),
        ("{{ $labels }}", "map[gpu:0 path:/a b]"),
        ('{{ index $labels "gpu" }} {{ len $labels.path }}', "0 4"),
        ("{{ $value | humanizeTimestamp }}", "1970-01-01 00:01:20 +0000 UTC"),
        ("{{ 1435065584.128 | humanizeTimestamp }}", "2015-06-23 13:19:44.128 +0000 UTC"),
        ('{{ "12345" | humanize }}', "12.35k"),
        # printf
        ('{{ printf "%.2f" $value }} {{ $value | printf "%.1f%%" }} {{ printf "%g %e %.3g" 80.0 80.0 80.0 }}',
         "80.00 80.0% 80 8.000000e+01 80"),
        ('{{ printf "%08.3f|%-8.1f|%8.1f|%+.1f" $value $value $value $value }}', "0080.000|80.0    |    80.0|+80.0"),
        ('{{ printf "%q %s %10s|%-10s|" $labels.path $labels.gpu "ab" "cd" }}', '"/a b" 0         ab|cd        |'),
        ('{{ printf "%d" $value }}', "%!d(float64=80)"),
        ('{{ printf "%s" $value }}', "%!s(float64=80)"),
        ('{{ printf "%s %s" "a" }}', "a %!s(MISSING)"),
        ('{{ printf "%s" "a" "b" }}', "a%!(EXTRA string=b)"),
        ('{{ printf "%5d|%d|%t %x %X %o" 3 4 true 255 255 8 }}', "    3|4|true ff FF 10"),
        # conditions
        ("{{ if $labels.gpu }}gpu {{ $labels.gpu }}{{ else }}none{{ end }}", "gpu 0"),
        ("{{ if gt $value 100.0 }}big{{ else if gt $value 10.0 }}mid{{ else }}small{{ end }}", "mid"),
        ('{{ if and $labels.gpu (ne $labels.path "x") }}both{{ end }}', "both"),
        ("{{ if or $labels.nope $labels.gpu }}{{ or $labels.nope $labels.gpu }}{{ end }}", "0"),
        ('{{ if not (eq $labels.gpu "1" "2") }}other{{ end }}', "other"),
        # queries
        ('{{ query "other" | first | value }} {{ query "other" | first | label "x" }}', "42.5 y"),
        ('{{ (query "2 * other" | first | value) | printf "%.3f" }}', "85.000"),
        ('{{ with query "other" }}{{ . | first | value | humanize }}{{ else }}none{{ end }}', "42.5"),
        ('{{ with query "nothing" }}{{ . | first | value | humanize }}{{ else }}none{{ end }}', "none"),
        ('{{ range query "other or vector(1)" }}{{ .Labels.x }}={{ .Value }} {{ end }}', "y=42.5 =1 "),
        ('{{ range query "nothing" }}x{{ else }}none{{ end }}', "none"),
        ("{{ range $labels }}[{{ . }}]{{ end }}", "[0][/a b]"),
        # texts and blanks
        ("a {{- $value -}} b {{/* said by nobody */}} c", "a80b  c"),
        ('{{ "a b" | title }} {{ toUpper "abc" }} {{ toLower "ABC" }}', "A B ABC abc"),
        ('{{ reReplaceAll "/(.*) (.*)" "$2-$1" $labels.path }} {{ match "a b" $labels.path }}', "b-a true"),
        ('{{ true }} {{ 1.50 }} {{ 12 }} {{ "q\\"uote" }} {{ `raw\\n` }}', 'true 1.5 12 q"uote raw\\n'),
        ('{{ print "a" "b" }}', "ab"),
    ],
)  # fmt: skip
def test_expands_as_prometheus_does(text: str, expected: str) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    "text", ['{{ query "nothing" | first | value }}', '{{ "x" | humanize }}', "{{ $labels.gpu.x }}"]
)
def test_a_failure_is_said_in_the_text(text: str) -> None:
    assert expand(text).startswith("<error expanding template: ")


@pytest.mark.parametrize(
    ("text", "offset", "reason"),
    [
        ("abc {{ nothing }}", 14, 'function "nothing" is not part'),
        ("{{ $unknown }}", 11, 'unknown variable "$unknown"'),
        ("{{ $value", 9, "not closed"),
        ("{{ if $value }}x", 16, 'without "end"'),
        ("x{{ end }}", 7, '"end" without'),
        ("{{ else }}", 7, '"else" without'),
        ('{{ define "a" }}{{ end }}', 9, '"define" is not part'),
        ('{{ range query "a" }}x', 22, '"range" without "end"'),
        ('{{ query "a +" }}', 17, "cannot parse"),
        ('{{ query "a[5m]" }}', 19, "range vector"),
        ("{{ query $labels.gpu }}", 23, "one expression in quotes"),
        ("{{ $value | 5 }}", 16, "only a function"),
        ("{{ ($value }}", 13, "a bracket is not closed"),
        ("{{ $x := 1 }}", 5, "unknown variable"),
        ("{{ ! }}", 2, "unexpected character"),
    ],
)
def test_refuses_with_the_place(text: str, offset: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        template.compile(text)
    assert str(caught.value).startswith(f"cannot read the template at offset {offset}: ")
    assert reason in str(caught.value)


@given(st.text(alphabet='{}$.|()"`- abeglnrstuvwif%1', max_size=60))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        compiled = template.compile(text)
    except ExpressionError:
        return
    compiled.expand(LABELS, 1.0, lambda expr: evaluate(expr, SOURCE, 0.0))


@given(st.text(max_size=40))
def test_what_a_label_holds_is_never_a_template(value: str) -> None:
    compiled = template.compile("<{{ $labels.path }}>")
    assert compiled.expand((("path", value),), 1.0, lambda expr: evaluate(expr, SOURCE, 0.0)) == f"<{value}>"
