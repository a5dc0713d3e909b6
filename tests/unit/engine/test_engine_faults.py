"""What must not stop the judging of rules: one that breaks, long intervals, clocks that step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import engine as judging
from agent.model import AlertState, Mode, Reading, Series
from tests.support.bench import Bench, bench

RULES = """
groups:
  - name: g
    interval: 10m
    rules:
      - record: both
        expr: '{{__name__=~"x|y"}}'
      - alert: First
        expr: x > 50
        annotations: {{summary: "{{{{ $value | humanize }}}}"}}
        remediation: {{steps: [{{notify: {{message: look}}}}]}}
      - alert: Second
        expr: x > 50
        for: 10s
"""


def play(folder: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        async with bench(folder, rules=RULES, mode=Mode.ACT) as made:
            await scene(made)

    asyncio.run(run())


async def put(on: Bench, value: float, metric: str = "x") -> None:
    on.clock.advance(1)
    await on.store.metrics.append([Reading(on.clock.wall(), (Series(metric, (("host", "a"),)),), [value])])


def states(on: Bench) -> dict[str, AlertState]:
    return {alert.rule: alert.state for alert in on.engine.alerts()}


def test_a_rule_that_breaks_is_told_once_and_the_others_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by what no rule should be able to raise: an error of ours in one must not be the end of all."""

    async def scene(on: Bench) -> None:
        judge = judging.judge

        def broken(rule: object, *rest: object) -> object:
            if getattr(rule, "name", "") == "First":
                raise ZeroDivisionError
            return judge(rule, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(judging, "judge", broken)
        await put(on, 60)
        await on.engine.once()
        await on.engine.once()
        assert states(on) == {"Second": AlertState.PENDING}
        assert [event.kind for event in on.events] == ["rule_failed"]

    play(tmp_path, scene)


def test_two_series_that_differ_by_name_alone_break_no_recording_and_no_store(tmp_path: Path) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 60, "y")
        await put(on, 60)
        await on.engine.once()
        await put(on, 60)
        assert on.store.metrics.fault == ""
        assert on.store.metrics.waiting_rows == 0
        assert "First" in states(on)

    play(tmp_path, scene)


@pytest.mark.parametrize("value", [float("inf"), 1e308, 5e-324])
def test_any_value_can_be_put_into_words(tmp_path: Path, value: float) -> None:
    async def scene(on: Bench) -> None:
        await put(on, max(value, 51.0))
        await on.engine.once()
        assert states(on)["First"] is AlertState.FIRING

    play(tmp_path, scene)


def test_the_watchdog_hears_of_the_engine_however_long_the_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "LONGEST_SLEEP_S", 0.01)

    async def scene(on: Bench) -> None:
        heard = asyncio.Semaphore(0)
        on.engine._progress = heard.release
        running = asyncio.create_task(on.engine.run())
        async with asyncio.timeout(10):
            for _ in range(3):
                await heard.acquire()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    play(tmp_path, scene)


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_wall_clock_that_is_set_moves_no_timer_and_ends_no_alert(tmp_path: Path, step: float) -> None:
    async def scene(on: Bench) -> None:
        await put(on, 60)
        await on.engine.once()
        assert states(on) == {"First": AlertState.FIRING, "Second": AlertState.PENDING}
        on.clock.step_wall(step)
        for _ in range(10):
            assert states(on)["Second"] is AlertState.PENDING
            await put(on, 60)
            await on.engine.once()
        assert states(on) == {"First": AlertState.FIRING, "Second": AlertState.FIRING}
        await put(on, 10)
        await on.engine.once()
        assert states(on) == {}

    play(tmp_path, scene)
