"""From a fired alert to a proven repair, on the real store and the real hands, a second at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.config import Limits, RemediationConfig
from agent.errors import StoreError
from agent.model import Action, ActionStatus, Mode, Verdict
from agent.store import Silence
from tests.support.bench import MIB, Bench, bench

Scene = Callable[[Bench], Awaitable[None]]


def play(folder: Path, scene: Scene, **settings: Any) -> None:
    async def run() -> None:
        async with bench(folder, **settings) as made:
            await scene(made)

    asyncio.run(run())


def test_a_cache_over_its_limit_is_cleaned_and_proven(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        [action] = on.actions()
        assert (action.status, action.verdict, action.reason) == (ActionStatus.DONE, Verdict.FIXED, "")
        assert action.outcome is not None
        assert action.outcome.bytes_removed == 5 * MIB
        assert [path for path in files if path.exists()] == [files[0]], "the newest stays"
        await on.step()
        assert on.engine.alerts() == []
        assert on.told.messages == []

    play(tmp_path, scene)


def test_a_repair_that_cannot_help_goes_on_to_a_person(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        held = [path.open("rb") for path in on.fill(6)]
        await on.step()
        await on.step()
        first, second = on.actions()
        assert (first.handler, first.verdict, first.reason) == ("clean_cache", Verdict.NO_EFFECT, "nothing_to_do")
        assert (second.handler, second.status) == ("notify", ActionStatus.DONE)
        assert [message.split(":")[0] for message in on.told.messages] == ["the cache does not shrink"]
        await on.step()
        assert len(on.actions()) == 2, "the ladder is climbed once"
        for file in held:
            file.close()

    play(tmp_path, scene)


def test_a_repair_that_does_not_bring_the_value_back_has_no_effect_and_twice_opens_the_circuit(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        async def still_large(metrics: object) -> float:
            return on.clock.wall()

        on.dispatch._collect_now = still_large  # type: ignore[assignment]
        for turn in range(2):
            on.fill(6, prefix=f"turn{turn}")
            await on.step()
            assert on.actions("clean_cache")[turn].verdict is Verdict.NO_EFFECT
            for _ in range(3):
                await on.step()  # the next measurement is true again: the alert clears
            assert on.engine.alerts() == []
        assert [event.kind for event in on.events] == ["circuit_opened"]
        files = on.fill(6, prefix="third")
        await on.step()
        assert on.actions("clean_cache")[2].reason == "circuit_open"
        assert all(path.exists() for path in files)
        name = f"path:{on.cache}"
        assert await on.store.ledger.close_circuit("clean_cache", name)

    play(tmp_path, scene)


def test_a_value_that_moved_the_wrong_way_is_worse(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        async def larger(metrics: object) -> float:
            on.fill(20, prefix="more")
            return await on.measure()

        on.dispatch._collect_now = larger  # type: ignore[assignment]
        on.fill(6)
        await on.step()
        assert on.actions("clean_cache")[0].verdict is Verdict.WORSE

    play(tmp_path, scene)


def test_a_pause_holds_and_says_so_once_and_resume_goes_on(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        on.paused = True
        for _ in range(3):
            await on.step()
        [action] = on.actions()
        assert (action.status, action.reason) == (ActionStatus.REQUESTED, "paused")
        assert all(path.exists() for path in files)
        on.paused = False
        await on.step()
        assert on.actions()[0].verdict is Verdict.FIXED

    play(tmp_path, scene)


def test_a_pause_stops_a_change_under_way_between_two_batches_and_the_rest_stays(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        names = [f"{index:03d}" + "x" * 200 for index in range(400)]  # more than one batch of names
        for name in names:
            path = on.cache / name
            path.write_bytes(b"x" * 16384)
            os.utime(path, (1_600_000_000, 1_600_000_000))
        asked = iter([False])
        on.dispatch._tools = dataclasses.replace(on.dispatch._tools, paused=lambda: next(asked, True))
        await on.step()
        action = on.actions("clean_cache")[0]
        assert action.outcome is not None
        assert action.outcome.error == "stopped: acting was paused"
        results = [item.result for item in action.outcome.items]
        left = sum((on.cache / name).exists() for name in names)
        assert 0 < results.count("done") < len(results)
        assert left == 400 - results.count("done")
        assert set(results) == {"done", "not_reached"}

    play(tmp_path, scene)


def test_observe_mode_records_the_plan_and_the_ladder_ends_at_a_person(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        await on.step()
        observed, told = on.actions()
        assert (observed.status, observed.reason) == (ActionStatus.OBSERVED, "observe_mode")
        assert observed.plan is not None
        assert observed.plan.bytes == 5 * MIB
        assert told.status is ActionStatus.DONE
        assert all(path.exists() for path in files)

    play(tmp_path, scene, mode=Mode.OBSERVE)


def test_ask_waits_for_a_person_with_its_plan(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        [action] = on.actions()
        assert (action.status, action.reason) == (ActionStatus.AWAITING_APPROVAL, "awaiting_approval")
        assert action.plan is not None
        assert len(action.plan.items) == 5
        assert all(path.exists() for path in files)
        approved = dataclasses.replace(action, status=ActionStatus.REQUESTED, reason="", extra={"approved": "sre"})
        await on.store.ledger.save_action(approved)
        await on.step()
        assert on.actions()[0].verdict is Verdict.FIXED

    play(tmp_path, scene, mode=Mode.ASK)


def test_a_cooldown_keeps_the_next_episode_waiting(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        on.fill(6)
        await on.step()
        await on.step()
        on.fill(6, prefix="again")
        await on.step()
        assert on.actions()[1].reason == "cooldown"
        on.clock.advance(600)
        await on.step()
        assert on.actions()[1].verdict is Verdict.FIXED

    play(tmp_path, scene, cooldown="10m")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"limits": Limits(actions_per_hour=1)}, "hourly_limit"), ({"per": "1 per day"}, "rule_limit")],
)
def test_limits_hold_the_second_action(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    async def scene(on: Bench) -> None:
        on.fill(6)
        await on.step()
        await on.step()
        files = on.fill(6, prefix="again")
        await on.step()
        assert on.actions()[1].reason == reason
        assert all(path.exists() for path in files)

    play(tmp_path, scene, **settings)


def test_a_plan_over_the_percent_cap_is_refused_and_a_person_told(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        await on.step()
        assert on.actions()[0].reason == "over_percent_cap"
        assert len(on.told.messages) == 1
        assert all(path.exists() for path in files)

    play(tmp_path, scene, limits=Limits(percent_per_action=0.2))


def test_caps_on_files_cut_the_plan_oldest_first(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        assert [path for path in files if not path.exists()] == files[4:]
        assert "cut to 2 items" in (on.actions()[0].plan or pytest.fail("no plan")).summary

    play(tmp_path, scene, limits=Limits(files_per_action=2))


def test_an_alert_that_cleared_meanwhile_is_not_acted_upon(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        on.paused = True
        await on.step()
        for path in files[1:]:
            path.unlink()
        on.paused = False
        await on.step()
        [action] = on.actions()
        assert (action.status, action.reason) == (ActionStatus.REFUSED, "alert_cleared")
        assert files[0].exists()

    play(tmp_path, scene)


def test_a_silence_holds_and_ends_by_itself(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        matchers = 'alertname="CacheTooLarge"'
        await on.store.ledger.add_silence(Silence(matchers, "moving house", "sre", on.clock.wall(), 60.0))
        on.fill(6)
        await on.step()
        assert on.actions()[0].reason == "silenced"
        on.clock.advance(60)
        await on.step()
        assert on.actions()[0].verdict is Verdict.FIXED

    play(tmp_path, scene)


def test_a_disabled_handler_never_acts(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        await on.step()
        assert on.actions()[0].reason == "handler_disabled"
        assert all(path.exists() for path in files)

    cache = str(tmp_path / "cache")
    config = RemediationConfig(roots=(cache,), boot_grace=0.0, disabled_handlers=("clean_cache",))
    play(tmp_path, scene, config=config)


def test_an_intent_that_cannot_be_committed_means_nothing_is_touched(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)

        async def refuse(action: Action) -> None:
            raise StoreError("cannot write the ledger: the disk is full")

        write, on.store.ledger.save_action = on.store.ledger.save_action, refuse  # type: ignore[method-assign]
        await on.step()
        assert all(path.exists() for path in files)
        on.store.ledger.save_action = write  # type: ignore[method-assign]
        await on.step()
        assert on.actions()[0].verdict is Verdict.FIXED

    play(tmp_path, scene)


def test_missing_data_fire_no_repair(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        on.paused = True
        await on.step()
        on.clock.advance(400)  # the last sample is older than five minutes
        await on.engine.once()
        on.paused = False
        await on.dispatch.round()
        assert [alert.missing for alert in on.engine.alerts()] == [True]
        assert all(path.exists() for path in files)

    play(tmp_path, scene)


def test_a_running_action_found_at_start_is_closed_and_planned_afresh(tmp_path: Path) -> None:
    async def before(on: Bench) -> None:
        on.fill(6)
        on.paused = True
        await on.step()
        [action] = on.actions()
        await on.store.ledger.save_action(
            dataclasses.replace(action, status=ActionStatus.RUNNING, reason="", started_at=on.clock.wall())
        )

    async def after(on: Bench) -> None:
        await on.measure()
        await on.dispatch.recover()
        await on.step()
        first, second = on.actions()
        assert (first.status, first.reason) == (ActionStatus.INTERRUPTED, "agent_stopped_while_running")
        assert (second.attempt, second.verdict) == (2, Verdict.FIXED)

    play(tmp_path, before)
    play(tmp_path, after)


def test_an_action_found_being_verified_is_verified_and_not_repeated(tmp_path: Path) -> None:
    async def before(on: Bench) -> None:
        files = on.fill(6)
        on.paused = True
        await on.step()
        for path in files[1:]:
            path.unlink()
        [action] = on.actions()
        await on.store.ledger.save_action(
            dataclasses.replace(action, status=ActionStatus.VERIFYING, reason="", started_at=on.clock.wall())
        )

    async def after(on: Bench) -> None:
        await on.dispatch.recover()
        await on.settle()
        [action] = on.actions()
        assert (action.status, action.verdict) == (ActionStatus.DONE, Verdict.FIXED)

    play(tmp_path, before)
    play(tmp_path, after)
