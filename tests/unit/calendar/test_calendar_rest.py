"""How long the calendar sleeps: never over a job, never for long, whatever happens to the wall clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_calendar import at, job

from agent.calendar import LATEST_S, LOOK_AT_MOST_S, Calendar
from agent.clock import ManualClock
from agent.model import Mode
from agent.schedule import next_due


def calendar(clock: ManualClock, *crons: str) -> Calendar:
    jobs = [job(cron, name=cron) for cron in crons]
    return Calendar(jobs, ledger=None, clock=clock, zone="Europe/Berlin", mode=Mode.ACT, requested=lambda: None)  # type: ignore[arg-type]


@given(st.floats(0, 86400))
def test_it_wakes_at_the_instant_of_the_next_job_or_before(seconds: float) -> None:
    clock = ManualClock(wall=at("2026-03-28T12:00:00") + seconds)  # the night of the spring change lies ahead
    crons = ("*/7 * * * *", "30 2 * * *")
    rest_s = calendar(clock, *crons).rest_s()
    soonest = min(next_due(cron, clock.wall(), "Europe/Berlin") for cron in crons)
    assert 0 < rest_s == min(soonest - clock.wall(), LOOK_AT_MOST_S)


def test_a_clock_set_while_it_sleeps_makes_no_run_too_late() -> None:
    # Set forward to the very instant after a job was due, it looks again before that run counts as missed.
    assert LOOK_AT_MOST_S < LATEST_S


def test_without_jobs_it_looks_as_often_as_a_reload_may_bring_some() -> None:
    assert calendar(ManualClock()).rest_s() == LOOK_AT_MOST_S
