"""When rules are judged, and what an evaluation stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.model import STALE, AlertState, Mode, Reading, Series, is_stale, make_labels
from agent.promql.evaluate import evaluate
from agent.promql.parse import parse
from agent.promql.values import Vector
from tests.support.bench import Bench, bench, rules_of

RULES = """
groups:
  - name: g
    interval: 15s
    rules:
      - record: double
        expr: x * 2
        labels: {{kind: recorded}}
      - alert: High
        expr: x > 10
        for: 30s
        labels: {{severity: warning, team: '{{{{ $labels.host }}}}-team'}}
        annotations: {{summary: '{{{{ $labels.host }}}} is at {{{{ $value }}}}'}}
      - alert: Full
        expr: x > 100
        clear: x < 50
        remediation: {{steps: [{{notify: {{message: look}}}}]}}
"""


def play(folder: Path, scene: Callable[[Bench], Awaitable[None]], rules: str = RULES) -> None:
    async def run() -> None:
        async with bench(folder, rules=rules, mode=Mode.ACT) as made:
            await scene(made)

    asyncio.run(run())


async def put(on: Bench, value: float, host: str = "a") -> None:
    """A second passes and x is measured."""
    on.clock.advance(1)
    await on.store.metrics.append([Reading(on.clock.wall(), (Series("x", (("host", host),)),), [value])])


def states(on: Bench, rule: str) -> dict[str, AlertState]:
    return {dict(alert.labels)["host"]: alert.state for alert in on.engine.alerts() if alert.rule == rule}


def test_pending_becomes_firing_when_its_time_has_passed_and_labels_are_expanded(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 20)
        await on.engine.once()
        assert states(on, "High") == {"a": AlertState.PENDING}
        on.clock.advance(29)
        await put(on, 20)
        await on.engine.once()
        assert states(on, "High") == {"a": AlertState.FIRING}
        [alert] = on.engine.alerts()
        assert alert.labels == make_labels(host="a", severity="warning", team="a-team")

    play(tmp_path, scene)


def test_hysteresis_keeps_an_alert_between_its_two_thresholds(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        for value, firing in ((99, False), (101, True), (80, True), (50, True), (49, False), (80, False)):
            await put(on, value)
            await on.engine.once()
            assert bool(states(on, "Full")) is firing, value

    play(tmp_path, scene)


def test_data_that_vanished_hold_an_alert_and_say_so(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 20)
        on.clock.advance(40)
        await put(on, 20)
        await on.engine.once()
        on.clock.advance(40)
        await put(on, 20)
        await on.engine.once()
        await put(on, STALE)
        await on.engine.once()
        [alert] = on.engine.alerts()
        assert (alert.state, alert.missing) == (AlertState.FIRING, True)
        await put(on, 5)
        await on.engine.once()
        assert on.engine.alerts() == []

    play(tmp_path, scene)


def test_one_label_set_clears_without_the_other(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 200, "a")
        await put(on, 200, "b")
        await on.engine.once()
        assert states(on, "Full") == {"a": AlertState.FIRING, "b": AlertState.FIRING}
        await put(on, 10, "b")
        await on.engine.once()
        assert states(on, "Full") == {"a": AlertState.FIRING}

    play(tmp_path, scene)


def test_an_alert_and_the_action_it_asks_for_are_one_commit_and_asked_once(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        for _ in range(3):
            await put(on, 200)
            await on.engine.once()
        assert [action.rule for action in on.actions()] == ["Full"]

    play(tmp_path, scene)


def test_alerts_come_back_after_a_restart_pending_timers_included(tmp_path: Path) -> None:
    async def before(on: Bench) -> None:
        await put(on, 20)
        await on.engine.once()

    async def after(on: Bench) -> None:
        [alert] = on.engine.alerts()
        assert alert.state is AlertState.PENDING
        on.clock.advance(40)
        await put(on, 20)
        await on.engine.once()
        assert states(on, "High") == {"a": AlertState.FIRING}

    play(tmp_path, before)
    play(tmp_path, after)


def test_a_reload_keeps_the_state_of_rules_that_stay_and_closes_those_that_went(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 200)
        await on.engine.once()
        [high, full] = sorted(on.engine.alerts(), key=lambda alert: alert.rule, reverse=True)
        kept = RULES.format().replace("alert: Full", "alert: Renamed")
        await on.engine.replace(rules_of(kept, on.folder))
        assert on.engine.alerts() == [high]
        stored = {alert.rule for alert in await on.store.ledger.alerts()}
        assert stored == {"High"}
        assert full.rule == "Full"

    play(tmp_path, scene)


def test_a_recording_rule_makes_a_series_that_rules_can_use(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 4)
        await on.engine.once()
        value = evaluate(parse("double"), on.store.metrics.recent, on.clock.wall())
        assert isinstance(value, Vector)
        assert value.samples == ((make_labels(__name__="double", host="a", kind="recorded"), 8.0),)

    play(tmp_path, scene)


def test_alerts_are_a_series_and_end_with_a_stale_marker(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 200)
        await on.engine.once()
        await put(on, 1)
        await on.engine.once()
        node = parse('ALERTS{alertname="Full"}')
        matchers = node.matchers  # type: ignore[union-attr]
        [points] = on.store.metrics.recent.select(matchers, 0, on.clock.wall() + 1)
        assert points.values[0] == 1.0
        assert is_stale(points.values[-1])

    play(tmp_path, scene)


def test_a_rule_that_cannot_be_judged_is_told_once_and_keeps_its_alerts(tmp_path: Path) -> None:
    rules = "groups: [{{name: g, rules: [{{alert: Twice, expr: 'x + on() x > 0'}}]}}]\n"

    async def scene(on: Bench) -> None:
        await put(on, 1, "a")
        await put(on, 1, "b")
        for _ in range(3):
            await on.engine.once()
        assert [event.kind for event in on.events] == ["rule_failed"]
        assert 'rule "Twice"' in on.events[0].message

    play(tmp_path, scene, rules)


def test_more_alerts_than_the_groups_limit_are_an_error_and_none_of_them_stands(tmp_path: Path) -> None:
    rules = "groups: [{{name: g, limit: 1, rules: [{{alert: Any, expr: 'x > 0'}}]}}]\n"

    async def scene(on: Bench) -> None:
        await put(on, 1, "a")
        await put(on, 1, "b")
        await on.engine.once()
        assert on.engine.alerts() == []
        assert "2 alerts are more than the group's limit of 1" in on.events[0].message

    play(tmp_path, scene, rules)


def test_a_rule_that_looks_back_over_a_day_reads_the_files_and_then_rests(tmp_path: Path) -> None:
    rules = "groups: [{{name: g, rules: [{{alert: Day, expr: 'max_over_time(x[1d]) > 100'}}]}}]\n"

    async def scene(on: Bench) -> None:
        opened = []
        open_files = on.engine._history
        on.engine._history = lambda: opened.append(on.clock.boot()) or open_files()  # type: ignore[func-returns-value]
        await put(on, 200)
        for _ in range(48):
            await on.engine.once()
            on.clock.advance(15)
        assert [round(later - opened[0]) for later in opened] == [0, 360]
        assert states(on, "Day") == {"a": AlertState.FIRING}

    play(tmp_path, scene, rules)


def test_a_commit_wakes_only_the_rules_that_select_it(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        running = asyncio.create_task(on.engine.run())
        await asyncio.sleep(0.05)  # the first round of every group
        await put(on, 200)
        on.engine.wake({"y"})
        await asyncio.sleep(0.05)
        assert not on.engine.alerts()
        on.engine.wake({"x"})
        await asyncio.sleep(0.05)
        assert states(on, "Full") == {"a": AlertState.FIRING}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(tmp_path, scene)


def test_a_recording_rule_sees_what_those_before_it_recorded(tmp_path: Path) -> None:
    chain = "{{record: b, expr: x + 1}}, {{record: c, expr: b * 2}}, {{alert: C, expr: c}}"
    rules = f"groups: [{{{{name: g, rules: [{chain}]}}}}]\n"

    async def scene(on: Bench) -> None:
        await put(on, 20)
        await on.engine.once()
        assert [alert.value for alert in on.engine.alerts()] == [42.0]

    play(tmp_path, scene, rules)


def test_alerts_are_the_same_with_what_windows_carry_and_without(tmp_path: Path) -> None:
    rules = "groups: [{{name: g, rules: [{{alert: Hour, expr: 'avg_over_time(x[1h]) > 100'}}]}}]\n"

    async def scene(on: Bench) -> None:
        for second in range(900):
            await put(on, 99 + second % 7 / 2)
            if second % 15:
                continue
            await on.engine.once()
            value = evaluate(parse("avg_over_time(x[1h]) > 100"), on.store.metrics, on.clock.wall())
            assert isinstance(value, Vector)
            assert [alert.value for alert in on.engine.alerts()] == [number for _, number in value.samples]

    play(tmp_path, scene, rules)
