"""Time comes in as an argument; only runners ask a clock.

``wall()`` is for schedules, display and stored instants. ``boot()`` (CLOCK_BOOTTIME: counts suspend, never steps) is
for intervals, deadlines and cooldowns. ``awake()`` (CLOCK_MONOTONIC) stands still while the host is suspended: beside
``boot()`` it tells how long that was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    def wall(self) -> float:
        """Seconds since the epoch."""

    def boot(self) -> float:
        """Seconds since boot, suspend included."""

    def awake(self) -> float:
        """Seconds since boot without those in suspend."""


class SystemClock:
    """The host's own clocks."""

    def wall(self) -> float:
        return time.time()

    def boot(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def awake(self) -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)


class ManualClock:
    """A clock that moves only when told: the shipped fake for tests and for rule tests in virtual time."""

    def __init__(self, wall: float = 1_700_000_000.0, boot: float = 1_000.0) -> None:
        self._wall, self._boot, self._asleep = wall, boot, 0.0

    def wall(self) -> float:
        return self._wall

    def boot(self) -> float:
        return self._boot

    def awake(self) -> float:
        return self._boot - self._asleep

    def suspend(self, seconds: float) -> None:
        """Let time pass while the host sleeps."""
        self.advance(seconds)
        self._asleep += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._wall += seconds
        self._boot += seconds

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock alone, as an administrator or NTP would."""
        self._wall += seconds


def boot_id() -> str:
    """The kernel's identity of this boot: instants of CLOCK_BOOTTIME compare only within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
