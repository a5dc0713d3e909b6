"""What the agent says of itself: its cost, and the figures its parts keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from agent.model import Reading, Series
from agent.procfs import PinnedFile

Figures = Callable[[], tuple[tuple[Series, ...], Sequence[float]]]
"""Called at each tick for a part's own series and their values; the same tuple object while the series hold."""

_OWN = (
    Series("up", (("job", "upkeep"),)),
    Series("process_cpu_seconds_total"),
    Series("process_resident_memory_bytes"),
    Series("process_open_fds"),
)
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_USER, _SYSTEM, _RESIDENT = 11, 12, 21


def parse(raw: bytes) -> tuple[float, int]:
    """Processor seconds and resident bytes from the text of /proc/PID/stat.

    The columns (proc(5)) are counted from the end of the name, which may itself hold blanks and brackets.
    """
    words = raw[raw.rindex(b")") + 2 :].split()
    return (int(words[_USER]) + int(words[_SYSTEM])) / _TICKS_PER_SECOND, int(words[_RESIDENT]) * _PAGE_BYTES


class SelfCollector:
    """The agent's own process, and what its parts report.

    Parameters
    ----------
    figures
        The parts to ask; more can be added once they exist.
    """

    name = "self"

    def __init__(self, figures: Iterable[Figures] = ()) -> None:
        self._stat = PinnedFile("/proc/self/stat")
        self._figures = list(figures)
        self._layout: list[tuple[Series, ...]] = []
        self._series: tuple[Series, ...] = _OWN

    def add(self, figures: Figures) -> None:
        """Ask one more part from the next tick on."""
        self._figures.append(figures)

    async def collect(self, at: float) -> Reading:
        processor_s, resident_bytes = parse(self._stat.read())
        open_files = len(os.listdir("/proc/self/fd")) - 1  # the listing itself is one
        values = [1.0, processor_s, resident_bytes, open_files]
        layout: list[tuple[Series, ...]] = []
        for figures in self._figures:
            series, more = figures()
            layout.append(series)
            values += more
        if layout != self._layout:
            self._layout = layout
            self._series = (*_OWN, *(series for part in layout for series in part))
        return Reading(at, self._series, values)
