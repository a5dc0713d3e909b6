"""``upkeep explain`` on a real store: every part's value, and each thing that keeps a rule from acting."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent import inhibit
from agent.cli import main
from agent.clock import SystemClock
from agent.model import Action, ActionStatus, Alert, AlertState, Labels, Series, make_labels
from agent.store import Circuit, Retention, Silence, Store
from tests.support.history import make_history, write_file

PATH = make_labels(path="/tmp/c")
RULES = """
groups:
  - name: g
    rules:
      - alert: Large
        expr: directory_size_bytes{path="/tmp/c"} > 10e9 and rate(node_forks_total[2m]) >= 0
        for: 10m
        remediation:
          cooldown: 30m
          limit: 1 per day
          steps: [{clean_cache: {path: /tmp/c, down_to: 5GiB}}, {notify: {message: no use}}]
      - {alert: Blind, expr: redis_up == 0}
      - {alert: Calm, expr: directory_size_bytes > 90e9}
inhibit:
  - {source: 'alertname="Host"', target: 'alertname="Large"'}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    now = time.time()
    series = {Series("directory_size_bytes", PATH): lambda t: 11e9, Series("node_forks_total"): lambda t: t}
    make_history(tmp_path / "state", series, now - 600, now, 15)
    write_file(tmp_path / "rules.d" / "r.yaml", RULES)
    return write_file(tmp_path / "upkeep.yaml", "state_dir: state\nshipped_rules: false\n")


def alert(state: AlertState, ago_s: float, rule: str = "Large", labels: Labels = PATH) -> Alert:
    at = time.time() - ago_s
    return Alert(rule, labels, state, 11e9, at, at if state is AlertState.FIRING else None)


def action(of: Alert, status: ActionStatus, reason: str = "", started_ago_s: float | None = None) -> Action:
    started = None if started_ago_s is None else time.time() - started_ago_s
    return Action(
        id=0, cause="alert Large", rule=of.rule, labels=of.labels, fired_at=of.fired_at or 0.0, step=0, attempt=1,
        handler="clean_cache", params={}, resource="path:/tmp/c", status=status, reason=reason,
        requested_at=started or time.time(), started_at=started, finished_at=started,
    )  # fmt: skip


def store(
    config: Path,
    alerts: Sequence[Alert] = (),
    actions: Sequence[Action] = (),
    silences: Sequence[Silence] = (),
    circuits: Sequence[Circuit] = (),
) -> None:
    async def write() -> None:
        held = await Store.open(config.parent / "state", clock=SystemClock(), limits=Retention())
        try:
            for asked in await held.ledger.commit_alerts(alerts, actions):
                await held.ledger.save_action(replace(asked, status=asked.status))
            for silence in silences:
                await held.ledger.add_silence(silence)
            for circuit in circuits:
                await held.ledger.open_circuit(circuit)
        finally:
            await held.close()

    asyncio.run(write())


def why(config: Path, capsys: pytest.CaptureFixture[str], rule: str = "Large") -> list[str]:
    assert main(["explain", "--config", str(config), "--json", rule]) == 0
    [facts] = json.loads(capsys.readouterr().out)
    return list(facts["why"])


def test_each_part_has_its_value_now(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--config", str(config), "Large"]) == 0
    out = capsys.readouterr().out
    for line in (
        'directory_size_bytes{path="/tmp/c"} > 10000000000',
        "= 1.1e+10  __name__=directory_size_bytes, path=/tmp/c",
        "rate(node_forks_total[2m])",
        "node_forks_total[2m]",
        "points in 1 series",
    ):
        assert line in out


def test_no_data_and_a_false_condition_are_told_apart(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why(config, capsys, "Calm") == ["the condition is false: nothing to do"]
    assert why(config, capsys, "Blind") == [
        'there is no sample of "redis_up", made by the collectors of redis, in the last five minutes'
    ]


def test_a_pending_alert_says_what_is_left_of_for(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(config, [alert(AlertState.PENDING, 240)])
    [sentence] = why(config, capsys)
    assert sentence.startswith("pending: the condition is true and must stay so for 5m5")
    assert "more of 10m" in sentence


def test_a_pending_alert_without_data_does_not_go_on(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(config, [replace(alert(AlertState.PENDING, 240), missing=True)])
    assert why(config, capsys) == ['pending, and its data is missing: "for" does not run on']


def test_every_brake_that_holds_is_named_with_its_figures(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, now = alert(AlertState.FIRING, 7200), alert(AlertState.FIRING, 60)
    past = action(before, ActionStatus.DONE, started_ago_s=600)
    host = alert(AlertState.FIRING, 60, "Host", make_labels(host="a"))
    held = action(now, ActionStatus.REQUESTED, "cooldown")
    silence = Silence('alertname="Large"', "the disk is being moved", "ana", time.time() - 10, 3600.0)
    circuit = Circuit("clean_cache", "path:/tmp/c", time.time(), "no effect twice")
    store(config, [now, host], [past, held], [silence], [circuit])
    inhibit.pause(config.parent / "state", None, "ana")
    asked, *brakes = why(config, capsys)
    assert asked == "step 1 of 2, clean_cache: requested (its cooldown had not passed since the last action)"
    assert [sentence.partition(" by ")[2][:24] for sentence in brakes] == [
        "silence 1 of ana until 2",
        "another alert that fires",
        "the pause (upkeep resume",
        "mode: observe, so it is ",
        "the cooldown of path:/tm",
        "the rule's limit: 1 of 1",
        "the circuit clean_cache:",
    ]  # fmt: skip
    assert "the disk is being moved" in brakes[0]
    assert "19m5" in brakes[4]


def test_a_rule_that_may_act_and_is_free_says_what_became_of_its_steps(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("state_dir: state\nshipped_rules: false\nmode: act\nremediation: {boot_grace: 0}\n")
    now = alert(AlertState.FIRING, 60)
    done = action(now, ActionStatus.DONE, "nothing_to_do", started_ago_s=30)
    told = replace(done, step=1, handler="notify", resource="notify", reason="")
    store(config, [now], [done, told])
    assert why(config, capsys) == [
        "step 1 of 2, clean_cache: done (nothing could be changed: everything is in use, protected or already gone)",
        "step 2 of 2, notify: done",
        "its ladder was climbed to the end: nothing more is done until it has ended and fires anew",
    ]
