"""What must not be lost, doubled or stopped for ever, whatever breaks at which instant."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import dispatch as dispatching
from agent.errors import StoreError
from agent.model import Action, ActionStatus, Mode, Verdict
from tests.support.bench import Bench, bench

Scene = Callable[[Bench], Awaitable[None]]


def play(folder: Path, scene: Scene, **settings: Any) -> None:
    async def run() -> None:
        async with bench(folder, **settings) as made:
            await scene(made)

    asyncio.run(run())


async def asked(on: Bench, cause: str = "person sre", **fields: Any) -> Action:
    """An action in the ledger that no alert asked for."""
    action = Action(
        id=0, cause=cause, rule="", labels=(), fired_at=on.clock.wall(), step=0, attempt=1, handler="notify",
        params={"message": "hello"}, resource="", status=ActionStatus.REQUESTED, requested_at=on.clock.wall(),
        mode=Mode.ACT,
    )  # fmt: skip
    [stored] = await on.store.ledger.commit_alerts([], [dataclasses.replace(action, **fields)])
    return stored


def test_what_a_person_asks_for_is_done_once_though_dispatch_finds_it_at_the_same_time(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        action = await asked(on)
        await asyncio.gather(on.dispatch.carry_out(action), on.dispatch.round())
        await on.settle()
        assert on.told.messages == ["hello"]
        await on.dispatch.carry_out(action)
        assert on.told.messages == ["hello"], "an action that has ended is not carried out again"

    play(tmp_path, scene)


def test_an_outcome_that_cannot_be_saved_is_saved_when_the_ledger_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "RETRY_S", 0.0)

    async def scene(on: Bench) -> None:
        save, refused = on.store.ledger.save_action, []

        async def full(action: Action, *rest: Any) -> None:
            if action.status is not ActionStatus.RUNNING and len(refused) < 5:
                refused.append(action.status)
                raise StoreError("cannot write the ledger: the disk is full")
            await save(action, *rest)

        on.store.ledger.save_action = full  # type: ignore[method-assign]
        on.fill(6)
        await on.step()
        [action] = on.actions()
        assert len(refused) == 5
        assert (action.status, action.verdict) == (ActionStatus.DONE, Verdict.FIXED)
        assert action.outcome is not None
        assert action.outcome.bytes_removed > 0
        await on.step()
        on.fill(6, prefix="again")
        await on.step()
        assert on.actions()[1].verdict is Verdict.FIXED, "its resource is free again"

    play(tmp_path, scene)


def test_a_round_that_breaks_stops_no_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(on: Bench) -> None:
        measured = asyncio.Event()

        async def slow(metrics: object) -> float:
            await measured.wait()
            return await on.measure()

        on.dispatch._collect_now = slow  # type: ignore[assignment]
        on.fill(6)
        on.clock.advance(1)
        await on.measure()
        await on.engine.once()
        await on.dispatch.round()
        assert len(on.dispatch.verifying) == 1

        async def broken() -> bool:
            raise StoreError("cannot read the ledger")

        monkeypatch.setattr(on.dispatch, "round", broken)
        with pytest.raises(StoreError):
            await on.dispatch.run()
        measured.set()
        monkeypatch.undo()
        await on.settle()
        assert on.actions()[0].verdict is Verdict.FIXED

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("handler", "params"),
    [
        ("clean_cache", {"path": 5, "down_to": 1}),
        ("clean_cache", {"path": "/x", "down_to": "much"}),
        ("notify", {"message": 5}),
        ("notify", {}),
        ("of_another_version", {}),
    ],
)
def test_parameters_that_no_file_could_hold_end_their_action_and_no_other(
    tmp_path: Path, handler: str, params: dict[str, Any]
) -> None:
    async def scene(on: Bench) -> None:
        await asked(on, handler=handler, params=params)
        await asked(on, cause="person else")
        await on.dispatch.round()
        await on.settle()
        first, second = on.actions()
        assert first.status in (ActionStatus.DONE, ActionStatus.REFUSED)
        assert first.verdict is not Verdict.FIXED
        assert first.outcome is not None
        assert first.outcome.error
        assert second.status is ActionStatus.DONE

    play(tmp_path, scene)


def test_an_interrupted_action_whose_handler_is_gone_is_closed_and_the_start_goes_on(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        action = await asked(on, handler="of_an_older_version")
        await on.store.ledger.save_action(dataclasses.replace(action, status=ActionStatus.RUNNING))
        await on.dispatch.recover()
        assert on.actions()[0].status is ActionStatus.INTERRUPTED

    play(tmp_path, scene)


def test_what_a_person_asked_for_and_interrupted_is_not_begun_again_by_itself(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        action = await asked(on)
        await on.store.ledger.save_action(dataclasses.replace(action, status=ActionStatus.RUNNING))
        await on.dispatch.recover()
        await on.dispatch.round()
        assert [each.status for each in on.actions()] == [ActionStatus.INTERRUPTED]
        assert on.told.messages == []

    play(tmp_path, scene)


@pytest.mark.parametrize("interrupted", [True, False])
def test_the_next_attempt_or_rung_is_committed_with_the_end_of_the_last_one(tmp_path: Path, interrupted: bool) -> None:
    """A crash between two commits would leave a ladder that nobody climbs on."""

    async def scene(on: Bench) -> None:
        held = [path.open("rb") for path in on.fill(6)]
        on.paused = interrupted
        await on.step() if interrupted else await on.engine.once()
        if interrupted:
            [action] = on.actions()
            await on.store.ledger.save_action(dataclasses.replace(action, status=ActionStatus.RUNNING, reason=""))
        else:
            await on.measure()
            await on.engine.once()
        save = on.store.ledger.save_action

        class Killed(BaseException):
            pass

        async def die_after(action: Action, *rest: Any) -> None:
            await save(action, *rest)
            if action.status in (ActionStatus.DONE, ActionStatus.INTERRUPTED):
                raise Killed

        on.store.ledger.save_action = die_after  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await (on.dispatch.recover() if interrupted else on.dispatch.round())
        assert len(on.actions()) == 2
        assert on.actions()[1].status is ActionStatus.REQUESTED
        for file in held:
            file.close()

    play(tmp_path, scene)


def test_an_action_of_an_earlier_time_that_the_alert_fired_is_not_carried_out_for_the_next_one(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        files = on.fill(6)
        for _ in range(2):
            on.clock.advance(1)
            await on.measure()
            await on.engine.once()
            if len(on.actions()) == 1:
                for path in files:
                    path.rename(path.with_suffix(".away"))
                    path.with_suffix(".away").rename(tmp_path / path.name)
                on.clock.advance(1)
                await on.measure()
                await on.engine.once()
                files = on.fill(6, prefix="again")
        assert [action.status for action in on.actions()] == [ActionStatus.REQUESTED] * 2
        await on.dispatch.round()
        await on.settle()
        assert [action.reason for action in on.actions()] == ["alert_cleared", ""]

    play(tmp_path, scene)


def test_an_open_action_obeys_the_stricter_of_its_own_mode_and_that_in_force(tmp_path: Path) -> None:
    async def ask(on: Bench) -> None:
        on.fill(6)
        on.paused = True
        await on.step()

    async def observe(on: Bench) -> None:
        await on.step()
        assert on.actions()[0].status is ActionStatus.OBSERVED

    play(tmp_path, ask, mode=Mode.ACT)
    play(tmp_path, observe, mode=Mode.OBSERVE)


def test_a_plan_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "PLAN_DEADLINE_S", 0.01, raising=False)

    async def scene(on: Bench) -> None:
        async def for_ever(*args: object, **more: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(on.dispatch._tools.ops, "survey", for_ever)
        on.fill(6)
        async with asyncio.timeout(5):
            await on.step()
        first, second = on.actions()
        assert (first.reason, first.verdict) == ("plan_failed", Verdict.FAILED)
        assert second.handler == "notify"

    play(tmp_path, scene)
