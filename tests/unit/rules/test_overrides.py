"""Overrides: what they change, and each reason why one is refused, at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import config, overrides, rulefile
from agent.app import load_rules
from agent.cli import main
from agent.errors import FaultyFilesError
from agent.model import Mode
from agent.rulefile import AlertRule, RuleSet
from tests.support.history import write_file

RULES = """
groups:
  - name: g
    rules:
      - alert: Full
        expr: >-
          (node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.10)
          and on (mountpoint) node_filesystem_readonly == 0
        labels: {severity: warning}
      - alert: Full
        expr: node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.05
        labels: {severity: critical}
      - alert: Large
        expr: directory_size_bytes{path="/tmp/c"} > 10 * 1024^3
        for: 2m
        remediation: {steps: [{clean_cache: {path: /tmp/c, down_to: 5GiB}}]}
      - {alert: Old, expr: 86400 < time() - redis_rdb_last_save_timestamp_seconds}
      - {alert: Busy, expr: node_load15 / 4 > 2 unless on () node_load1 > 90}
      - {alert: Hot, expr: DCGM_FI_DEV_GPU_UTIL > 95}
      - {alert: Used, expr: DCGM_FI_DEV_FB_USED > 70000}
      - {alert: Down, expr: redis_up == 0}
      - {alert: Either, expr: node_load1 > 5 or node_load5 > 5}
      - {alert: Both, expr: node_load1 > node_load15}
      - {alert: Held, expr: node_load1 > 5, clear: node_load1 < 4}
      - {alert: Gone, expr: absent(node_load1)}
"""


def load(tmp_path: Path, written: str) -> RuleSet:
    write_file(tmp_path / "rules.d" / "r.yaml", RULES)
    path = write_file(tmp_path / "upkeep.yaml", f"shipped_rules: false\noverrides:\n  {written}\n")
    return load_rules(config.load(str(path)))


def named(rules: RuleSet, name: str) -> AlertRule:
    [rule] = [rule for rule in rules.alert_rules if rule.name == name]
    return rule


@pytest.mark.parametrize(
    ("key", "threshold", "name", "expr"),
    [
        (
            "'Full{severity=\"critical\"}'",
            "2%",
            "critical",
            "node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.02",
        ),
        (
            "'Full{severity=\"warning\"}'",
            "0.2",
            "warning",
            "(node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.2) and on (mountpoint) "
            "node_filesystem_readonly == 0",
        ),
        ("Large", "12GiB", "Large", 'directory_size_bytes{path="/tmp/c"} > 12884901888'),
        ("Old", "2d", "Old", "172800 < time() - redis_rdb_last_save_timestamp_seconds"),
        ("Busy", "3.5", "Busy", "node_load15 / 4 > 3.5 unless on () node_load1 > 90"),
        ("Hot", "99%", "Hot", "DCGM_FI_DEV_GPU_UTIL > 99"),
        ("Hot", "98", "Hot", "DCGM_FI_DEV_GPU_UTIL > 98"),
        ("Used", "60GiB", "Used", "DCGM_FI_DEV_FB_USED > 61440"),
    ],
)
def test_a_threshold_is_read_in_the_unit_of_what_the_rule_measures(
    tmp_path: Path, key: str, threshold: str, name: str, expr: str
) -> None:
    changed = load(tmp_path, f"{key}: {{threshold: {threshold}}}")
    plain = load(tmp_path, "Nothing: {disabled: true}")
    found = [rule for rule in changed.alert_rules if name in (rule.name, *(each.text for each in rule.labels.values()))]
    assert [rule.expr.text for rule in found] == [expr]
    others = [rule.expr.text for rule in changed.alert_rules if rule is not found[0]]
    assert set(others) < {rule.expr.text for rule in plain.alert_rules}
    assert changed.digest != plain.digest
    assert threshold in changed.text


CASES = {
    "Hot: {threshold: 110}": "what it measures lies between 0 and 100",
    "Large: {threshold: 12}": "it measures bytes: write a unit, such as 12GiB",
    "Large: {threshold: 2d}": 'cannot read "2d" as a size: write it like 10GiB, 500MB, 512B',
    "Old: {threshold: 2}": "it measures seconds: write a unit, such as 2d",
    "Busy: {threshold: 50%}": "a percentage does not fit: what the rule measures is no share of anything known",
    "Busy: {threshold: 1GiB}": "it measures a plain number: write a number",
    "Down: {threshold: 1}": 'it asks for a state ("=="), not for a size',
    "Either: {threshold: 1}": 'its expression is an "or" of several conditions',
    "Both: {threshold: 1}": "it compares two measurements, not one with a number",
    "Held: {threshold: 6}": 'its "clear" has a threshold of its own, which would have to go along',
    "Gone: {threshold: 6}": "its expression is no comparison",
}


@pytest.mark.parametrize(("written", "reason"), CASES.items())
def test_what_cannot_be_meant_is_refused_at_its_place(tmp_path: Path, written: str, reason: str) -> None:
    with pytest.raises(FaultyFilesError) as refused:
        load(tmp_path, written)
    name, threshold = written.split(":")[0], written.split(": ")[2].rstrip("}")
    said = f'cannot set the threshold of "{name}" to "{threshold}": {reason}'
    assert str(refused.value) == f"{tmp_path}/upkeep.yaml:3:3: {said}"


def test_one_of_several_rules_must_be_chosen_and_the_other_share_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(FaultyFilesError) as refused:
        load(tmp_path, "Full: {threshold: 5%}")
    assert str(refused.value).endswith(
        'cannot set the threshold of "Full": 2 rules have that name; write '
        "'Full{severity=\"warning\"}' or 'Full{severity=\"critical\"}'"
    )
    with pytest.raises(FaultyFilesError, match="it fires when the share falls below 5%; did you mean 5%\\?"):
        load(tmp_path, "'Full{severity=\"critical\"}': {threshold: 95%}")


@pytest.mark.parametrize(
    ("written", "place", "message"),
    [
        ("Large: {}", "3:10", "cannot override nothing: give threshold, for, mode or disabled: true"),
        ("Large: {disabled: true, mode: act}", "3:10", "cannot change what is left out: give disabled: true alone"),
        ("Large: {threshold: lots}", "3:22", 'cannot read "lots" as a threshold: write it like 95%, 12GiB, 2d or 3.5'),
        ("Large: {thresold: 1}", "3:11", 'unknown key "thresold" (did you mean "threshold"?)'),
        ("'La rge': {mode: act}", "3:3", 'cannot override "La rge": write the name of a rule, or NAME{LABEL="VALUE"}'),
    ],
)
def test_what_is_no_override_is_a_fault_of_the_file(tmp_path: Path, written: str, place: str, message: str) -> None:
    with pytest.raises(FaultyFilesError) as refused:
        load(tmp_path, written)
    assert f"upkeep.yaml:{place}: {message}" in str(refused.value)


def test_mode_for_and_disabled(tmp_path: Path) -> None:
    rules = load(tmp_path, "Large: {mode: act, for: 10m}\n  Full: {disabled: true}\n  Busy: {for: 0}")
    large = named(rules, "Large")
    assert large.remediation is not None
    assert (large.remediation.mode, large.timing.for_s) == (Mode.ACT, 600.0)
    assert "Full" not in {rule.name for rule in rules.alert_rules}
    assert named(rules, "Busy").timing.for_s == 0.0


def test_what_has_no_effect_is_a_warning_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, "Larg: {disabled: true}\n  Busy: {mode: act}")
    assert main(["check", "--config", str(tmp_path / "upkeep.yaml")]) == 0
    said = capsys.readouterr().err
    assert 'upkeep.yaml:3:3: warning: no rule "Larg" to override (did you mean "Large"?)' in said
    assert 'upkeep.yaml:4:3: warning: "mode" has no effect on "Busy": it names no remediation' in said


def test_every_shipped_threshold_can_be_found_or_says_why_not() -> None:
    rules = list(rulefile.load(rulefile.shipped()).alert_rules)
    without = []
    for rule in rules:
        try:
            overrides.deciding(rule.expr.node)
        except ValueError as reason:
            without.append(str(reason))
    assert len(without) < len(rules) / 2
    assert {reason.split()[0] for reason in without} <= {"it", "its"}
