from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import schedule
from agent.calendar import Calendar
from agent.clock import ManualClock
from agent.errors import UpkeepError
from agent.model import Mode
from agent.rulefile import Job, Place, Step
from agent.specs import Notify
from agent.store import Retention, Store

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def job(cron: str = "30 2 * * *", *, catch_up: bool = False, name: str = "j") -> Job:
    place = Place("f", 1, 1)
    return Job(
        name, cron, (Step("notify", Notify("one"), 0, place), Step("notify", Notify("two"), 0, place)), catch_up, place
    )


Scene = Callable[[Calendar, ManualClock, Store], Awaitable[None]]


def play(folder: Path, start: str, jobs: list[Job], scene: Scene) -> None:
    async def run() -> None:
        clock = ManualClock(wall=at(start))
        store = await Store.open(folder, clock=clock, limits=Retention())
        try:
            calendar = Calendar(
                jobs, ledger=store.ledger, clock=clock, zone="Europe/Berlin", mode=Mode.ACT, requested=lambda: None
            )
            await scene(calendar, clock, store)
        finally:
            await store.close()

    asyncio.run(run())


async def pass_time(calendar: Calendar, clock: ManualClock, hours: float, every_s: float = 60.0) -> None:
    for _ in range(int(hours * 3600 / every_s)):
        clock.advance(every_s)
        await calendar.look()


async def asked(store: Store) -> list[str]:
    return [datetime.fromtimestamp(action.fired_at, BERLIN).isoformat() for action in await store.ledger.open_actions()]


@pytest.mark.parametrize(
    ("start", "due"),
    [
        ("2026-03-28T12:00", "2026-03-29T03:00:00+02:00"),  # 02:30 does not exist that night
        ("2026-10-24T12:00", "2026-10-25T02:30:00+02:00"),  # 02:30 comes twice that night
        ("2026-06-01T12:00", "2026-06-02T02:30:00+02:00"),
    ],
)
def test_a_daily_job_runs_once_on_every_night_and_each_step_is_an_action(tmp_path: Path, start: str, due: str) -> None:
    async def scene(calendar: Calendar, clock: ManualClock, store: Store) -> None:
        await pass_time(calendar, clock, 23)
        assert await asked(store) == [due, due]

    play(tmp_path, start, [job()], scene)


def test_what_was_due_before_the_agent_knew_the_job_is_no_missed_run(tmp_path: Path) -> None:
    async def scene(calendar: Calendar, clock: ManualClock, store: Store) -> None:
        await calendar.look()
        assert await asked(store) == []

    play(tmp_path, "2026-06-01T12:00", [job(catch_up=True)], scene)


@pytest.mark.parametrize(("catch_up", "runs"), [(True, 1), (False, 0)])
def test_a_run_missed_while_asleep_is_caught_up_once_or_not_at_all(tmp_path: Path, catch_up: bool, runs: int) -> None:
    async def scene(calendar: Calendar, clock: ManualClock, store: Store) -> None:
        await pass_time(calendar, clock, 15)
        before = len(await asked(store))
        clock.advance(3 * 86400)  # suspended for three nights
        await pass_time(calendar, clock, 2)
        assert len(await asked(store)) - before == 2 * runs

    play(tmp_path, "2026-06-01T12:00", [job(catch_up=catch_up)], scene)


@pytest.mark.parametrize("step_s", [-86400.0, -3600.0])
def test_a_clock_that_steps_back_runs_nothing_twice(tmp_path: Path, step_s: float) -> None:
    async def scene(calendar: Calendar, clock: ManualClock, store: Store) -> None:
        await pass_time(calendar, clock, 15)
        assert len(await asked(store)) == 2
        clock.step_wall(step_s)
        await pass_time(calendar, clock, abs(step_s) / 3600)
        assert len(await asked(store)) == 2

    play(tmp_path, "2026-06-01T12:00", [job()], scene)


def test_a_job_can_be_run_by_a_person_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    async def scene(calendar: Calendar, clock: ManualClock, store: Store) -> None:
        actions = await calendar.begin_now("j", "sre (uid 1000)")
        assert {action.cause for action in actions} == {"person sre (uid 1000), job j"}
        with pytest.raises(UpkeepError, match=r'unknown job "k" \(known: j\)'):
            await calendar.begin_now("k", "sre")

    play(tmp_path, "2026-06-01T12:00", [job()], scene)


NAMES = (
    "Europe/Berlin America/New_York Australia/Lord_Howe Africa/Casablanca Asia/Kolkata Pacific/Apia America/St_Johns "
    "Europe/London Asia/Tehran UTC"
)
ZONES = NAMES.split()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.integers(0, 3 * 365 * 86400),
    st.sampled_from(["30 2 * * *", "0 3 * * 0", "0 0 1 * *", "*/15 * * * *"]),
)
def test_the_last_due_instant_and_the_next_are_neighbours(zone: str, offset: int, cron: str) -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC).timestamp() + offset
    last = schedule.last_due(cron, now, zone)
    following = schedule.next_due(cron, now, zone)
    assert last is not None
    assert last <= now < following
    assert schedule.last_due(cron, following, zone) == following
    assert schedule.next_due(cron, last, zone) == following


@pytest.mark.parametrize("zone", ZONES)
def test_a_nightly_job_runs_exactly_once_for_each_of_three_years_of_days(zone: str) -> None:
    now = datetime(2025, 1, 1, 12, tzinfo=ZoneInfo(zone)).timestamp()
    days = []
    while len(days) < 3 * 365:
        now = schedule.next_due("30 2 * * *", now, zone)
        days.append(datetime.fromtimestamp(now, ZoneInfo(zone)).date())
    # Apia skipped no day in these years; every zone has every date once.
    assert all(later - earlier == timedelta(days=1) for earlier, later in pairwise(days))
