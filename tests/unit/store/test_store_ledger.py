"""Alerts, actions and what else is kept for good, through a real file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    ItemResult,
    Mode,
    Outcome,
    Plan,
    PlanItem,
    Skipped,
    Verdict,
)
from agent.store import Circuit, JobRun, Reader, ReportRecord, Silence, Store

WithStore = Callable[..., None]

ALERT = Alert("CacheTooLarge", (("path", "/tmp/c"), ("severity", "warning")), AlertState.PENDING, 1.5, 100.0)
ACTION = Action(
    id=0,
    cause="alert",
    rule=ALERT.rule,
    labels=ALERT.labels,
    fired_at=160.0,
    step=0,
    attempt=1,
    handler="clean_cache",
    params={"path": "/tmp/c", "older_than": 259200.0},
    resource="directory:/tmp/c",
    status=ActionStatus.REQUESTED,
    requested_at=161.0,
    mode=Mode.ACT,
)
PLAN = Plan(
    handler="clean_cache",
    resource="directory:/tmp/c",
    summary="remove 2 files",
    items=(PlanItem("unlink", "a", 10, (1, 2, 3)), PlanItem("unlink", "b", 20)),
    skipped=(Skipped("open", "in_use", 5),),
    considered_items=3,
    considered_bytes=35,
)


def test_alerts_come_back_as_they_were(with_store: WithStore) -> None:
    firing = replace(ALERT, state=AlertState.FIRING, fired_at=160.0, clear_since=170.0, missing=True, value=math.inf)
    other = replace(ALERT, labels=())

    async def first(store: Store) -> None:
        assert await store.ledger.commit_alerts([ALERT, other], []) == []
        await store.ledger.commit_alerts([firing], [])

    async def second(store: Store) -> None:
        assert sorted(await store.ledger.alerts(), key=lambda alert: alert.labels) == [other, firing]

    with_store(first)
    with_store(second)


def test_an_alert_that_fired_ends_and_one_that_did_not_leaves_nothing(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    firing = replace(ALERT, state=AlertState.FIRING, fired_at=160.0)
    never = replace(ALERT, labels=())

    async def body(store: Store) -> None:
        await store.ledger.commit_alerts([firing, never], [])
        await store.ledger.commit_alerts([replace(one, state=AlertState.INACTIVE) for one in (firing, never)], [])
        assert await store.ledger.alerts() == []
        again = replace(firing, active_since=300.0, fired_at=310.0)
        await store.ledger.commit_alerts([again], [])
        # A new episode without an end between: the old one ends where the new one begins.
        later = replace(firing, active_since=400.0, fired_at=410.0)
        await store.ledger.commit_alerts([later], [])

    with_store(body)
    with Reader.open(state_dir) as reader:
        found = [(one.alert.active_since, one.ended_at) for one in reader.alerts()]
        assert found == [(400.0, None), (300.0, 400.0), (100.0, clock.wall())]
        states = reader.sql("SELECT state, severity, fired FROM alerts ORDER BY id")[1]
        assert states[0] == ("inactive", "warning", "1970-01-01T00:02:40.000Z")
        assert states[2][0] == "firing"
        assert [one.alert.active_since for one in reader.alerts(since=clock.wall() + 1)] == [400.0]


def test_a_request_is_taken_once(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        [first] = await store.ledger.commit_alerts([ALERT], [ACTION])
        assert await store.ledger.commit_alerts([ALERT], [ACTION]) == []
        [second] = await store.ledger.commit_alerts([], [ACTION, replace(ACTION, step=1)])
        assert (first.id, second.step) == (1, 1)
        assert second.id > first.id
        assert await store.ledger.open_actions() == [first, second]
        assert await store.ledger.action(first.id) == first
        assert await store.ledger.action(99) is None

    with_store(body)


def test_jobs_due_at_one_instant_are_different_requests(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        jobs = [replace(ACTION, cause=f"job:{name}", rule="", labels=()) for name in ("logs", "health")]
        for job in jobs:
            assert await store.ledger.request(job) is not None
            assert await store.ledger.request(job) is None
        assert [one.cause for one in await store.ledger.open_actions()] == ["job:logs", "job:health"]

    with_store(body)


def test_alert_and_action_are_one_transaction(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        broken = replace(ACTION, labels=None)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await store.ledger.commit_alerts([ALERT], [broken])
        with pytest.raises(StoreError, match="NOT NULL"):
            await store.ledger.commit_alerts([ALERT], [replace(ACTION, cause=None)])  # type: ignore[arg-type]
        assert await store.ledger.alerts() == []
        assert await store.ledger.open_actions() == []

    with_store(body)


def test_the_story_of_an_action(with_store: WithStore, state_dir: Path) -> None:
    outcome = Outcome(
        (ItemResult("b", "done", 20), ItemResult("a", "in_use"), ItemResult("surprise", "done", 7)),
        bytes_freed=4096,
        bytes_removed=27,
        text="removed 2 files",
    )

    async def body(store: Store) -> None:
        [asked] = await store.ledger.commit_alerts([ALERT], [ACTION])
        running = replace(asked, status=ActionStatus.RUNNING, plan=PLAN, started_at=162.0)
        await store.ledger.save_action(running)
        assert await store.ledger.action(asked.id) == running
        verifying = replace(running, status=ActionStatus.VERIFYING, outcome=outcome)
        await store.ledger.save_action(verifying)
        done = replace(verifying, status=ActionStatus.DONE, verdict=Verdict.FIXED, finished_at=170.0)
        await store.ledger.save_action(done)
        assert await store.ledger.action(asked.id) == done
        assert await store.ledger.open_actions() == []
        with Reader.open(state_dir) as reader:
            assert reader.actions() == [done]
            assert reader.action(asked.id) == done
            assert reader.actions(since=162.0) == []

    with_store(body)
    with Reader.open(state_dir) as reader:
        names, [row] = reader.sql("SELECT * FROM actions")
        found = dict(zip(names, row, strict=True))
        assert found["time"] == "1970-01-01T00:02:41.000Z"
        wanted = {"outcome": "fixed", "bytes_freed": 4096, "status": "done", "planned_items": 2, "planned_bytes": 30}
        assert wanted.items() <= found.items()
        items = reader.sql("SELECT part, change, target, bytes, result, bytes_removed FROM action_items")[1]
        assert items == [
            ("plan", "unlink", "a", 10, "in_use", 0),
            ("plan", "unlink", "b", 20, "done", 20),
            ("skipped", "in_use", "open", 5, None, None),
            ("extra", "", "surprise", 0, "done", 7),
        ]


def test_saving_an_action_that_is_not_there_is_an_error(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(StoreError, match="cannot save action 7: the ledger has no such action"):
            await store.ledger.save_action(replace(ACTION, id=7))

    with_store(body)


def test_a_file_name_that_is_not_unicode_is_written_out(with_store: WithStore) -> None:
    name = os.fsdecode(b"odd-\xff\xfe")

    async def body(store: Store) -> None:
        asked = await store.ledger.request(ACTION)
        assert asked is not None
        plan = Plan("clean_cache", name, name, (PlanItem("unlink", name, 1),), (Skipped(name, "in_use"),))
        await store.ledger.save_action(replace(asked, plan=plan))
        found = await store.ledger.action(asked.id)
        assert found is not None
        assert found.plan is not None
        assert [item.target for item in found.plan.items] == ["odd-\\udcff\\udcfe"]
        assert found.plan.skipped[0].target == "odd-\\udcff\\udcfe"

    with_store(body)


names = st.text(st.characters(blacklist_categories=("Cs",)), max_size=6)
sizes = st.integers(0, 2**62)
plans = st.builds(
    Plan,
    handler=names,
    resource=names,
    summary=names,
    items=st.lists(
        st.builds(
            PlanItem,
            names,
            names,
            sizes,
            st.tuples(sizes, sizes),
        ),
        max_size=5,
    ).map(tuple),
    skipped=st.lists(st.builds(Skipped, names, names, sizes), max_size=5).map(tuple),
    considered_items=sizes,
    considered_bytes=sizes,
    refused=names,
)
outcomes = st.builds(
    Outcome,
    items=st.lists(st.builds(ItemResult, names, names, sizes), max_size=5).map(tuple),
    bytes_freed=st.integers(-(2**40), 2**40),
    bytes_removed=sizes,
    error=names,
    text=names,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.none() | plans, st.none() | outcomes), min_size=1, max_size=4))
def test_any_plan_and_outcome_come_back(
    with_store: WithStore, stages: list[tuple[Plan | None, Outcome | None]]
) -> None:
    async def body(store: Store) -> None:
        request = replace(ACTION, attempt=max([a.attempt for a in await store.ledger.open_actions()], default=0) + 1)
        asked = await store.ledger.request(request)
        assert asked is not None
        for plan, outcome in stages:
            stage = replace(asked, plan=plan, outcome=outcome)
            await store.ledger.save_action(stage)
            assert await store.ledger.action(asked.id) == stage

    with_store(body)


def test_cooldowns_count_on_the_boot_clock(
    with_store: WithStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(store: Store) -> None:
        asked = await store.ledger.request(ACTION)
        observed = await store.ledger.request(replace(ACTION, attempt=2))
        assert asked is not None
        assert observed is not None
        running = replace(asked, status=ActionStatus.RUNNING, started_at=clock.wall())
        await store.ledger.save_action(running)
        await store.ledger.save_action(replace(observed, status=ActionStatus.OBSERVED))
        clock.advance(100)
        clock.step_wall(86_400)  # somebody sets the clock: no cooldown ends by that
        await store.ledger.save_action(replace(running, status=ActionStatus.DONE, verdict=Verdict.NO_EFFECT))
        [past] = await store.ledger.past_actions(within_s=3600)
        assert (past.id, past.age_s, past.verdict) == (asked.id, 100.0, Verdict.NO_EFFECT)
        assert (past.rule, past.handler, past.resource) == (ACTION.rule, ACTION.handler, ACTION.resource)
        assert await store.ledger.past_actions(within_s=100) == []
        clock.step_wall(-86_400)

    async def after_reboot(store: Store) -> None:
        # The boot clock began anew: the wall clock's difference counts, or the uptime where that is longer.
        [past] = await store.ledger.past_actions(within_s=3600)
        assert past.age_s == pytest.approx(500.0)
        assert await store.ledger.past_actions(within_s=400) == []

    with_store(first)
    monkeypatch.setattr("agent.store.ledger.boot_id", lambda: "another boot")
    clock.advance(400)
    clock._boot = 5.0
    with_store(after_reboot)


def test_silences(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    now = clock.wall()

    async def body(store: Store) -> None:
        once = await store.ledger.add_silence(Silence('{rule="A"}', "upgrade", "uid 0", now, 60))
        nightly = await store.ledger.add_silence(Silence('{rule="B"}', "backup", "uid 0", now, 60, "0 3 * * *"))
        assert await store.ledger.silences(now + 59) == [once, nightly]
        assert await store.ledger.silences(now + 60) == [nightly]
        assert await store.ledger.end_silence(nightly.id) is True
        assert await store.ledger.end_silence(nightly.id) is False
        assert await store.ledger.silences(now + 60) == []
        assert await store.ledger.silences(now) == [once]

    with_store(body)


def test_circuits(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        circuit = Circuit("clean_cache", "directory:/tmp/c", 5.0, "two without effect")
        await store.ledger.open_circuit(circuit)
        await store.ledger.open_circuit(replace(circuit, opened_at=9.0))
        assert await store.ledger.circuits() == [circuit]
        assert await store.ledger.close_circuit(circuit.handler, circuit.resource) is True
        assert await store.ledger.close_circuit(circuit.handler, circuit.resource) is False
        assert await store.ledger.circuits() == []

    with_store(body)


def test_job_runs_reports_and_rule_sets(with_store: WithStore, state_dir: Path) -> None:
    async def body(store: Store) -> None:
        first, second = JobRun("logs", 10.0, 10.1), JobRun("logs", 20.0, 20.1)
        for run in (second, first, JobRun("health", 5.0, 5.0)):
            await store.ledger.save_run(run)
        finished = replace(second, finished_at=21.0, result="done", message="3 files")
        await store.ledger.save_run(finished)
        assert await store.ledger.last_runs() == {"logs": finished, "health": JobRun("health", 5.0, 5.0)}
        await store.ledger.add_report(ReportRecord("weekly", 0.0, 604800.0, 604801.0, "/r/weekly.html", "calm"))
        await store.ledger.keep_rules("abc", "groups: []")
        await store.ledger.keep_rules("abc", "changed")
        assert await store.ledger.rules("abc") == "groups: []"
        assert await store.ledger.rules("none") is None

    with_store(body)
    with Reader.open(state_dir) as reader:
        assert reader.sql("SELECT job, result FROM job_runs ORDER BY time DESC")[1][0] == ("logs", "done")
        assert reader.sql("SELECT time, kind, path, mailed FROM reports")[1] == [
            ("1970-01-08T00:00:01.000Z", "weekly", "/r/weekly.html", None)
        ]
