"""Notices that the wall clock was set, and that the host slept: what orders samples, and what a gap is put down to."""

from __future__ import annotations

from dataclasses import dataclass

from agent.clock import Clock

LEAST_S = 1.0
"""A smaller change is a clock being slewed, or a loop that was busy between two readings of its clocks."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of time between two looks, in seconds.

    Attributes
    ----------
    stepped_s
        How far the wall clock was set, backward negative; 0 when it was not.
    asleep_s
        How long the host was suspended; 0 when it was not.
    """

    stepped_s: float
    asleep_s: float


class TimeWatch:
    """Compares the host's clocks with each other; it must be asked from time to time.

    The boot clock never steps and counts suspend: against it the wall clock shows that it was set, and the clock that
    stands still in suspend shows how long that was.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_s, self._asleep_s = self._offsets()

    def look(self) -> Change | None:
        """What changed since the last look by at least :data:`LEAST_S`; None as a rule."""
        ahead_s, asleep_s = self._offsets()
        stepped_s, slept_s = ahead_s - self._ahead_s, asleep_s - self._asleep_s
        self._ahead_s, self._asleep_s = ahead_s, asleep_s
        if abs(stepped_s) < LEAST_S and slept_s < LEAST_S:
            return None
        return Change(stepped_s if abs(stepped_s) >= LEAST_S else 0.0, slept_s if slept_s >= LEAST_S else 0.0)

    def _offsets(self) -> tuple[float, float]:
        boot = self._clock.boot()
        return self._clock.wall() - boot, boot - self._clock.awake()
