"""``upkeep test rules``: a failure shows what differs and nothing else; ``--watch`` tests again what was saved."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent import ruletest
from agent.commands import test as command
from tests.support.history import write_file

RULES = """
groups:
  - name: g
    rules:
      - alert: Large
        expr: directory_size_bytes > 10
        for: 3m
        labels: {severity: warning}
        annotations: {summary: '{{ $labels.path }} holds {{ $value }}', description: as ever}
"""
TEST = """
rule_files: [r.yaml]
tests:
  - interval: 1m
    input_series:
      - {series: 'directory_size_bytes{path="/a"}', values: '20x9'}
      - {series: 'directory_size_bytes{path="/b"}', values: '1x4 30x9'}
    alert_rule_test:
      - eval_time: 6m
        alertname: Large
        exp_alerts: [ALERTS]
"""


def failures(tmp_path: Path, alerts: str) -> list[str]:
    write_file(tmp_path / "r.yaml", RULES)
    path = write_file(tmp_path / "t.yaml", TEST.replace("ALERTS", alerts))
    return [line for failure in ruletest.run_file(str(path)).failures for line in failure.splitlines()[1:]]


def alert(path: str = "/a", summary: str = "/a holds 20", severity: str = "warning") -> str:
    told = f"exp_annotations: {{summary: {summary}, description: as ever}}"
    return f"{{exp_labels: {{path: {path}, severity: {severity}}}, {told}}}"


PENDING = '    pending, fires in 2m: {alertname="Large", path="/b", severity="warning"}'


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        (alert(), []),
        (
            alert(summary="/a holds 21"),
            [
                '    {alertname="Large", path="/a", severity="warning"}',
                '      exp summary: "/a holds 21"',
                '      got summary: "/a holds 20"',
                PENDING,
            ],
        ),
        (
            alert(severity="error"),
            ['      exp label severity: "error"', '      got label severity: "warning"', PENDING],
        ),
        (
            f"{alert()}, {alert('/b', '/b holds 30')}",
            ['    exp: {alertname="Large", path="/b", severity="warning"}', "    got: nothing", PENDING],
        ),
        ("", ["    exp: nothing", '    got: {alertname="Large", path="/a", severity="warning"}', PENDING]),
        (
            "{exp_labels: {path: /a, severity: warning}, exp_annotations: {summary: /a holds 20}}",
            [
                '    {alertname="Large", path="/a", severity="warning"}',
                "      exp description: nothing",
                '      got description: "as ever"',
                PENDING,
            ],
        ),
    ],
)
def test_a_failure_shows_what_differs(tmp_path: Path, alerts: str, said: list[str]) -> None:
    assert failures(tmp_path, alerts) == said


@pytest.mark.parametrize(
    ("expected", "fits"),
    [
        ("{handler: clean_cache, alertname: Large, resource: 'path:/a', status: requested}", True),
        ("{handler: clean_cache, resource: 'path:/b'}", False),
        ("{handler: clean_cache, status: observed}", False),
        ("{handler: notify}", False),
    ],
)
def test_an_action_is_known_by_handler_resource_and_status(tmp_path: Path, expected: str, fits: bool) -> None:
    ladder = "remediation: {steps: [{clean_cache: {path: /a, down_to: 1GiB}}]}"
    write_file(tmp_path / "r.yaml", RULES.rstrip("\n") + f"\n        {ladder}\n")
    asked = f"    action_test: [{{eval_time: 6m, exp_actions: [{expected}]}}]\n"
    path = write_file(tmp_path / "t.yaml", TEST.replace("ALERTS", alert()) + asked)
    assert (ruletest.run_file(str(path)).failures == ()) is fits


def test_what_was_saved_is_tested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, one = write_file(tmp_path / "r.yaml", RULES), write_file(tmp_path / "1.yaml", TEST)
    other = write_file(tmp_path / "2.yaml", TEST.replace("r.yaml", "other.yaml"))
    saves = [
        lambda: None,
        lambda: other.write_text("tests: []\n"),
        lambda: rules.write_text(RULES + "\n"),
        lambda: rules.replace(tmp_path / "gone"),
        lambda: write_file(tmp_path / "r.yaml", RULES),
    ]
    monkeypatch.setattr(time, "sleep", lambda seconds: saves.pop(0)())
    due = command.changes([str(one), str(other)])
    assert [next(due) for _ in range(5)] == [[str(one), str(other)], [str(other)], [str(one)], [str(one)], [str(one)]]
    assert saves == []
