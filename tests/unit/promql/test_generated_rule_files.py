"""Rule files as no person would write them: whatever they hold, they are read or refused in words, and soon.

``UPKEEP_RULE_FILES=N`` tries N that nobody has seen before; without it, the same 200 each time.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from agent import rulecheck, rulefile, yamlfile
from agent.errors import ExpressionError
from agent.promql.evaluate import evaluate
from agent.promql.values import Points
from tests.support.promqltest import MemorySource

ASKED = os.environ.get("UPKEEP_RULE_FILES")
FILES = int(ASKED or 200)
LIMIT_S = 2.0
NOW = 1_700_000_000.0

ROOT = Path(__file__).parents[3]
SEEDS = [
    *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.yaml"))),
    *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests/testdata/rules").glob("*.yaml"))),
]
_WORDS = (
    "groups: patterns: jobs: name: rules: alert: record: expr: for: keep_firing_for: labels: annotations: interval: "
    "limit: clear: on_missing: remediation: steps: cooldown: mode: regex: samples: schedule: notify: clean_cache: "
    "- [ ] { } , : | > ' \" & * ! # % @ ` ? <<: --- ... ~ null yes 1e400 -1 0x1f 12:30 5m 1y "
    "99999999999999999999 \\u0000"
)
WORDS = _WORDS.split()
EXPRESSIONS = (
    *(
        "x",
        "x offset -5m",
        "x @ end()",
        "{__name__=~'.+'}",
        "x{a=~'(a+)+$'}",
        "1/0",
        "--+-x",
        "x^x^x^x",
        "((((((x))))))",
    ),
    *("rate(x[5m])", "x[5m:1s]", "x[10y:1ms]", "max_over_time(x[1h:1s])", "predict_linear(x[1h], 1e308)", "absent(x)"),
    *("sum by (a) (x)", "topk(NaN, x)", "x / on (a) group_left (le) y", "quantile_over_time(2, x[1h])"),
    *("label_replace(x, 'a', '$1', 'b', '(.*)')", "histogram_quantile(0.9, x)", "holt_winters(x[1h], 0.5, 0.5)"),
)
TEMPLATES = (
    "{{ $value }}",
    "{{ $labels.x | humanize }}",
    "{{ query `x` | first | value }}",
    "{{ if }}",
    "{{",
    "}}",
    "{{ . }}",
)

TIMES = [NOW - 15 * k for k in range(40, -1, -1)]
SOURCE = MemorySource(
    Points((("__name__", name), ("a", str(n)), ("le", le)), TIMES, [float(k * n) for k in range(len(TIMES))])
    for name in ("x", "y", "up", "node_load1")
    for n, le in enumerate(("1", "5", "+Inf"))
)


def _files(chance: random.Random) -> Iterator[str]:
    for number in range(FILES):
        text = chance.choice(SEEDS) if number % 4 else _invented(chance)
        for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
            text = _mutated(chance, text)
        yield text


def _mutated(chance: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    match chance.randrange(9):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2:
            lines[at] = " " * chance.randrange(12) + lines[at].lstrip()
        case 3:
            lines[at] = lines[at].split(":")[0] + ": " + chance.choice(WORDS)
        case 4:
            lines[at] = lines[at].split(":")[0] + ": " + _expression(chance)
        case 5:
            lines[at] = lines[at].split(":")[0] + ": '" + " ".join(chance.choices(TEMPLATES, k=3)) + "'"
        case 6:
            place = chance.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:place]
                + chr(chance.choice((0, 9, 34, 39, 92, 123, 0x2028, 0xD7FF, 0x1F600)))
                + lines[at][place:]
            )
        case 7:
            lines = lines[:at] + lines[at:] * chance.choice((1, 2, 30))
        case 8:
            lines[at] += chance.choice(("(", "[", "{", "- ")) * chance.choice((1, 40, 3000))
    return "\n".join(lines)[: yamlfile.MAX_BYTES]


def _expression(chance: random.Random) -> str:
    operators = ("+", "/", "and", "unless on (a)", "> bool", "%")
    text = chance.choice(EXPRESSIONS)
    for _ in range(chance.randrange(6)):
        text = chance.choice(
            (f"({text})", f"-{text}", f"{text} {chance.choice(operators)} {chance.choice(EXPRESSIONS)}")
        )
    return text


def _invented(chance: random.Random) -> str:
    if chance.random() < 0.3:
        return " ".join(chance.choices(WORDS, k=chance.randrange(200))).replace("- ", "\n- ")
    rules = "".join(
        f"  - alert: A{n}\n    expr: {json.dumps(_expression(chance))}\n    for: {chance.choice(('0s', '1h'))}\n"
        f"    annotations: {{summary: {json.dumps(chance.choice(TEMPLATES[:3]))}}}\n"
        for n in range(chance.randrange(12))
    )
    return f"groups:\n- name: g\n  rules:\n{rules}"


def test_no_rule_file_breaks_or_delays(tmp_path: Path) -> None:
    chance = random.Random(None if ASKED else 7)
    loaded, slowest = 0, 0.0
    for text in _files(chance):
        before = time.process_time()
        try:
            found = _taken_up(text)
        except Exception as error:
            (tmp_path / "broken.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
            raise AssertionError(f"{tmp_path}/broken.yaml breaks: {error!r}") from error
        loaded += found
        slowest = max(slowest, took := time.process_time() - before)
        assert took < LIMIT_S, f"{took:.1f} s:\n{text[:2000]}"
    print(f"{FILES} files, {loaded} loaded, the slowest took {slowest:.2f} s")
    assert loaded > FILES / 10  # else nothing but the first fault of each is tried


def _taken_up(text: str) -> bool:
    """Whether a file is a rule set; then each of its rules is judged once."""
    root, faults = yamlfile.parse("f", text)
    rules, found = rulefile.from_nodes({"f": yamlfile.Parsed(root, faults, text)})
    assert all(fault.message and fault.line >= 0 for fault in found)
    if rules is None:
        assert found
        return False
    rulecheck.warnings(rules, None)
    for group in rules.groups:
        for rule in group.rules:
            try:
                evaluate(rule.expr.node, SOURCE, NOW)
            except ExpressionError:
                pass  # as Prometheus: the rule fails when it is judged, and is told of
    return True
