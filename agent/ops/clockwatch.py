"""Whether the wall clock can be believed: after a step, every age is wrong, and a step forward makes all files old."""

from __future__ import annotations

from agent.clock import Clock

JUMP_S = 3600.0
STABLE_S = 3600.0


class ClockWatch:
    """Compares the wall clock with the boot clock, which never steps; it must be asked from time to time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = clock.wall() - clock.boot()
        self._until = 0.0

    def distrusted_s(self) -> float:
        """Seconds for which no age may be judged: an hour from where a step of over an hour was seen; 0 when fine."""
        boot = self._clock.boot()
        offset_s = self._clock.wall() - boot
        if abs(offset_s - self._offset_s) > JUMP_S:
            self._offset_s, self._until = offset_s, boot + STABLE_S
        return max(self._until - boot, 0.0)

    def distrust_for(self, seconds: float) -> None:
        """Believe somebody else who saw a step. This can only lengthen the distrust, and by an hour at most."""
        self._until = max(self._until, self._clock.boot() + min(seconds, STABLE_S))
