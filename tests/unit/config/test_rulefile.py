from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import rulecheck, rulefile, yamlfile
from agent.alerting import OnMissing, Timing
from agent.config import Config
from agent.errors import Fault
from agent.model import Mode
from agent.rulefile import AlertRule, Limit, RecordingRule, RuleSet
from agent.specs import CleanCache, Notify

BAD = sorted((Path(__file__).parents[2] / "testdata" / "rules").glob("*.bad.yaml"))


def check(tmp_path: Path, text: str) -> tuple[RuleSet | None, list[Fault]]:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    path.chmod(0o644)
    return rulefile.check([str(path)])


def one_rule(tmp_path: Path, body: str) -> AlertRule:
    indented = "\n".join("        " + line for line in body.splitlines())
    rules, faults = check(tmp_path, f"groups:\n  - name: g\n    rules:\n      -\n{indented}\n")
    assert rules is not None, faults
    [rule] = rules.alert_rules
    return rule


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_each_message_has_a_file_that_shows_it(path: Path) -> None:
    """Lines `# expect: LINE:COLUMN: message` in the file say what must be said, all of it and nothing else."""
    text = path.read_text()
    expected = [line.removeprefix("# expect: ") for line in text.splitlines() if line.startswith("# expect: ")]
    root, faults = yamlfile.parse("f", text)
    _, found = rulefile.from_nodes({"f": yamlfile.Parsed(root, faults, text)})
    assert [f"{fault.line}:{fault.column}: {fault.message}" for fault in sorted(found)] == expected


def test_a_prometheus_rule_loads_unchanged(tmp_path: Path) -> None:
    rule = one_rule(tmp_path, "alert: A\nexpr: node_load1 > 1\nfor: 5m\nkeep_firing_for: 10m\nlabels: {severity: page}")
    assert rule.timing == Timing(300.0, 600.0, OnMissing.HOLD, False)
    assert rule.remediation is None
    assert rule.labels["severity"].expand((), 0.0, None) == "page"
    assert rule.metrics == {"node_load1"}


def test_a_ladder_is_read_with_its_parameters_and_units(tmp_path: Path) -> None:
    rule = one_rule(
        tmp_path,
        "alert: A\nexpr: x > 1\nclear: x < 0.5\non_missing: clear\n"
        "remediation:\n  cooldown: 1h\n  limit: 6 per day\n  mode: act\n  steps:\n"
        "    - clean_cache: {path: /tmp/c, older_than: 3d, down_to: 8GiB}\n      verify_within: 2m\n"
        "    - notify: {message: look}",
    )
    fix = rule.remediation
    assert fix is not None
    assert (fix.cooldown_s, fix.limit, fix.mode) == (3600.0, Limit(6, 86400.0), Mode.ACT)
    assert fix.steps[0].spec == CleanCache("/tmp/c", 3 * 86400.0, 8 * 1024**3)
    assert fix.steps[0].verify_within_s == 120.0
    assert fix.steps[1].spec == Notify("look")
    assert rule.timing.has_clear


def test_prometheus_string_fields_are_read_as_their_text(tmp_path: Path) -> None:
    rule = one_rule(tmp_path, "alert: NO\nexpr: x > 1\nlabels: {ticket: 0010, on: yes}")
    assert rule.name == "NO"
    assert {name: value.expand((), 0.0, None) for name, value in rule.labels.items()} == {"ticket": "0010", "on": "yes"}


def test_a_recording_rule_has_no_alerts_keys(tmp_path: Path) -> None:
    rules, _ = check(tmp_path, "groups: [{name: g, rules: [{record: 'a:b', expr: sum(x), labels: {l: v}}]}]\n")
    assert rules is not None
    [rule] = rules.groups[0].rules
    assert isinstance(rule, RecordingRule)
    assert rule.labels == {"l": "v"}


def test_the_shipped_rules_load_without_a_warning_and_every_one_has_words_and_a_severity() -> None:
    rules, faults = rulefile.check(rulefile.shipped())
    assert rules is not None
    assert not faults
    assert not rulecheck.warnings(rules, Config())
    for rule in rules.alert_rules:
        assert {"summary", "description"} <= rule.annotations.keys(), rule.name
        assert "severity" in rule.labels, rule.name


def test_every_shipped_rule_and_pattern_has_a_unit_test() -> None:
    rules, _ = rulefile.check(rulefile.shipped())
    assert rules is not None
    tests = "".join(path.read_text() for path in (Path(rulefile.shipped()[0]).parent / "tests").glob("*.yaml"))
    for rule in rules.alert_rules:
        assert f"alertname: {rule.name}" in tests, rule.name
    for pattern in rules.patterns:
        assert pattern.match, pattern.name
        assert pattern.no_match, pattern.name


def test_the_digest_names_the_text(tmp_path: Path) -> None:
    one, _ = check(tmp_path, "groups: []\n")
    other, _ = check(tmp_path, "groups: []\n# said differently\n")
    assert one is not None
    assert other is not None
    assert one.digest != other.digest
    assert "said differently" in other.text


KEYS = "groups name rules alert expr for labels clear remediation steps clean_cache path patterns regex jobs schedule"
MARKS = "up>0 5m 10GiB /tmp/x - : [ ] { } , ' | # & * ! ~ é"
WORDS = st.sampled_from([*KEYS.split(), *MARKS.split(), '"', "\n", "\n  ", "\t"])


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=40).map(" ".join))
def test_no_text_makes_a_traceback_and_every_fault_names_the_file(text: str) -> None:
    root, faults = yamlfile.parse("f.yaml", text)
    _, found = rulefile.from_nodes({"f.yaml": yamlfile.Parsed(root, faults, text)})
    assert all(str(fault).startswith("f.yaml") for fault in found)
