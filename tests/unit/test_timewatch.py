"""What two looks at the clocks tell."""

from __future__ import annotations

import pytest

from agent.clock import ManualClock
from agent.timewatch import Change, TimeWatch


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 1.5, -1.5])
def test_a_clock_that_was_set_is_told_once(step_s: float) -> None:
    clock = ManualClock()
    watch = TimeWatch(clock)
    clock.advance(5)
    clock.step_wall(step_s)
    assert watch.look() == Change(pytest.approx(step_s), 0.0)  # type: ignore[arg-type]
    clock.advance(5)
    assert watch.look() is None


def test_sleep_is_no_step() -> None:
    clock = ManualClock()
    watch = TimeWatch(clock)
    clock.suspend(7200)
    assert watch.look() == Change(0.0, 7200.0)
    assert watch.look() is None


def test_a_clock_that_was_set_while_the_host_slept_is_both() -> None:
    clock = ManualClock()
    watch = TimeWatch(clock)
    clock.suspend(7200)
    clock.step_wall(-30)
    assert watch.look() == Change(-30.0, 7200.0)


def test_a_clock_that_is_slewed_for_hours_was_never_set() -> None:
    clock = ManualClock()
    watch = TimeWatch(clock)
    for _ in range(20_000):
        clock.advance(1)
        clock.step_wall(0.0005)
        assert watch.look() is None
