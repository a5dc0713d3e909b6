"""How fast a GPU is beside its peers and beside itself, by the clock it holds under full load.

A GPU that throttles, lost power or has a bad link runs at a lower clock than others of its kind under the same load.
Time comes in as an argument; memory is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

LOADED_PERCENT = 90.0
MINUTE_S = 60.0
LEAST_MINUTES = 30
MOST_MINUTES = 1440
"""A baseline is the median of these many loaded minutes: half an hour at least, a day of them at most."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One GPU at one instant: its model, its use in percent and the clock of its processors in MHz."""

    uuid: str
    model: str
    use_percent: float
    clock_mhz: float


@dataclass(slots=True)
class _History:
    minutes: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_MINUTES))
    minute: float = 0.0
    clocks: list[float] = field(default_factory=list)
    baseline_mhz: float | None = None


class Pace:
    """Keeps a baseline for each GPU, from the start of the agent on."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def take(self, at: float, gpus: Iterable[Loaded]) -> Mapping[str, Mapping[str, float]]:
        """Speeds as shares of one: UUID → what it is compared with (``peers``, ``itself``) → share.

        A GPU that is not under full load has none; nor has one without another of its model under full load, or without
        half an hour of its own.
        """
        loaded = [gpu for gpu in gpus if gpu.use_percent >= LOADED_PERCENT and gpu.clock_mhz > 0]
        found: dict[str, dict[str, float]] = {gpu.uuid: {} for gpu in loaded}
        for gpu in loaded:
            peers = [other.clock_mhz for other in loaded if other.model == gpu.model and other.uuid != gpu.uuid]
            if peers:
                found[gpu.uuid]["peers"] = gpu.clock_mhz / median(peers)
            baseline_mhz = self._baseline(at, gpu)
            if baseline_mhz is not None:
                found[gpu.uuid]["itself"] = gpu.clock_mhz / baseline_mhz
        return found

    def _baseline(self, at: float, gpu: Loaded) -> float | None:
        history = self._histories.setdefault(gpu.uuid, _History())
        minute = at // MINUTE_S
        if minute != history.minute and history.clocks:
            history.minutes.append(median(history.clocks))
            history.clocks.clear()
            if len(history.minutes) >= LEAST_MINUTES:
                history.baseline_mhz = median(history.minutes)
        history.minute = minute
        history.clocks.append(gpu.clock_mhz)
        return history.baseline_mhz


def median(numbers: Collection[float]) -> float:
    """As :func:`statistics.median`, whose module costs the idle agent a MiB."""
    ordered, middle = sorted(numbers), len(numbers) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
