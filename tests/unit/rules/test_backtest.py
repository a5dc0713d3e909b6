"""A backtest says what the engine would have said, instant by instant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import backtest, rulefile, yamlfile
from agent.engine import States, judge, kept
from agent.errors import ExpressionError
from agent.model import STALE, AlertState, Labels, make_labels
from agent.promql.nodes import NAME
from agent.rulefile import RuleSet
from agent.ruletest import MemorySource

START = 1_700_006_400.0
RULES = """
groups:
  - name: g
    interval: 30s
    rules:
      - {alert: Over, expr: m > 5, for: 1m, labels: {severity: warning}}
      - {alert: Kept, expr: m > 5 and n < 3, keep_firing_for: 2m}
      - {alert: Cleared, expr: m > 6, clear: m < 2}
      - {alert: Missed, expr: m > 5, on_missing: fire, for: 1m}
      - {alert: Gone, expr: m > 5, on_missing: clear}
      - {alert: Absent, expr: absent(n), for: 30s}
      - {alert: Risen, expr: 'increase(m[2m]) > 3', labels: {much: '{{ if gt $value 6.0 }}yes{{ end }}'}}
      - {alert: Twice, expr: 'm * on (host) n > 9'}
      - {alert: Peak, expr: 'max_over_time((m - n)[3m:30s]) > 4'}
"""


def rules_of(text: str) -> RuleSet:
    root, faults = yamlfile.parse("r.yaml", text)
    rules, found = rulefile.from_nodes({"r.yaml": yamlfile.Parsed(root, faults, text)})
    assert rules is not None, found
    return rules


def naively(
    rules: RuleSet, source: MemorySource, start: float, end: float
) -> dict[str, list[tuple[Labels, float, float | None]]]:
    """Every rule judged by the engine's own function at each instant, one after the other."""
    found: dict[str, list[tuple[Labels, float, float | None]]] = {}
    for group in rules.groups:
        for rule in rules.alert_rules:
            states: States = {}
            firings = found.setdefault(rule.name, [])
            at = start
            while at <= end:
                try:
                    after = judge(rule, states, source, at)
                except ExpressionError:
                    at += group.interval_s
                    continue
                for labels, alert in after.items():
                    fired = labels in states and states[labels].state is AlertState.FIRING
                    if alert.state is AlertState.FIRING and not fired:
                        firings.append((labels, at, None))
                    if alert.state is AlertState.INACTIVE and fired:
                        index = max(i for i, each in enumerate(firings) if each[0] == labels)
                        firings[index] = (labels, firings[index][1], at)
                states = kept(rule, after)
                at += group.interval_s
    return found


VALUES = st.lists(st.one_of(st.none(), st.just(STALE), st.integers(0, 9).map(float)), min_size=1, max_size=40)


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from([("m", "a"), ("m", "b"), ("n", "a"), ("n", "b")]), VALUES, min_size=1))
def test_it_says_what_the_engine_would_have_said(series: dict[tuple[str, str], list[float | None]]) -> None:
    source, rules = MemorySource(), rules_of(RULES)
    for (name, host), values in series.items():
        for index, value in enumerate(values):
            if value is not None:
                source.add(make_labels({NAME: name, "host": host}), START + index * 20, value)
    tested = backtest.run(rules, source, START, START + 1200)
    said = {
        each.rule.name: sorted((firing.labels, firing.fired_at, firing.ended_at) for firing in each.firings)
        for each in tested
    }
    assert said == {name: sorted(firings) for name, firings in naively(rules, source, START, START + 1200).items()}


def steps(source: MemorySource, name: str, values: list[float], every_s: float = 60.0) -> None:
    for index, value in enumerate(values):
        source.add(make_labels({NAME: name, "path": "/tmp/c"}), START + index * every_s, value)


CLEANING = """
groups:
  - name: g
    interval: 1m
    rules:
      - alert: Large
        expr: directory_size_bytes > 10
        remediation:
          cooldown: 30m
          limit: 2 per day
          steps: [{clean_cache: {path: /tmp/c, down_to: 1GiB}}, {notify: {message: x}}]
"""


def test_the_first_rung_waits_for_its_cooldown_and_its_limit() -> None:
    source = MemorySource()
    minutes = [0.0] * 300
    for at, lasts in ((10, 5), (20, 5), (30, 60), (120, 3), (200, 90)):
        minutes[at : at + lasts] = [11.0] * lasts
    steps(source, "directory_size_bytes", minutes)
    [tested] = backtest.run(rules_of(CLEANING), source, START, START + 300 * 60)
    said = [(each.handler, each.resource, (each.at - START) / 60, each.held) for each in tested.asked]
    assert said == [
        ("clean_cache", "path:/tmp/c", 10.0, ""),
        ("clean_cache", "path:/tmp/c", 40.0, "cooldown"),  # over after five minutes: it never had its turn
        ("clean_cache", "path:/tmp/c", 40.0, ""),  # stood long enough
        ("clean_cache", "path:/tmp/c", 1450.0, "rule_limit"),
        ("clean_cache", "path:/tmp/c", 1450.0, "rule_limit"),
    ]
    assert [(each.fired_at - START) / 60 for each in tested.firings] == [10.0, 20.0, 30.0, 120.0, 200.0]


def test_an_alert_that_stands_at_the_end_has_no_end() -> None:
    source = MemorySource()
    steps(source, "directory_size_bytes", [0.0, 11.0, 11.0])
    [tested] = backtest.run(rules_of(CLEANING), source, START, START + 120)
    assert [(each.fired_at, each.ended_at, each.value) for each in tested.firings] == [(START + 60, None, 11.0)]


def test_recording_rules_feed_the_rules_after_them_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "BLOCK_S", 300.0)
    text = """
groups:
  - name: g
    interval: 1m
    rules:
      - {record: 'c:size:double', expr: directory_size_bytes * 2}
      - {alert: Grew, expr: 'increase(c:size:double[10m]) > 30'}
"""
    source = MemorySource()
    steps(source, "directory_size_bytes", [float(index) for index in range(40)])
    whole = backtest.run(rules_of(text), source, START, START + 40 * 60)
    assert [each.fired_at for each in whole[0].firings] == []
    steep = text.replace("> 30", "> 17")
    [tested] = backtest.run(rules_of(steep), source, START, START + 40 * 60)
    assert [firing.fired_at for firing in tested.firings] == [START + 9 * 60]


def test_metrics_without_data_and_expressions_that_fail_are_named() -> None:
    source = MemorySource()
    for host in ("a", "b"):
        source.add(make_labels({NAME: "m", "host": host, "x": "1"}), START, 1.0)
    text = """
groups:
  - name: g
    rules:
      - {alert: Unseen, expr: nothing_makes_this > 1}
      - {alert: Doubled, expr: 'sum by (x) (m) * on (x) m > 0'}
"""
    unseen, doubled = backtest.run(rules_of(text), source, START, START + 60)
    assert unseen.unseen == {"nothing_makes_this"}
    assert doubled.failed == 5
    assert "many-to-many" in doubled.error or "multiple matches" in doubled.error


def test_progress_reaches_the_whole() -> None:
    told: list[tuple[float, float]] = []
    backtest.run(
        rules_of(CLEANING), MemorySource(), START, START + 86400, lambda done, whole: told.append((done, whole))
    )
    assert told[-1] == (86400.0, 86400.0)
    assert told == sorted(told)


@pytest.mark.parametrize("path", rulefile.shipped(), ids=lambda path: Path(path).stem)
def test_every_shipped_rule_can_be_backtested(path: str) -> None:
    for each in backtest.run(rulefile.load([path]), MemorySource(), START, START + 60):
        assert (each.failed, each.error) == (0, "")
