"""Processors, load, memory, paging, pressure and open files, as node_exporter names them."""

from __future__ import annotations

import os
from operator import lt

from agent.metrics import METRICS
from agent.model import Reading, Series
from agent.procfs import Files, NamedNumbers, Parser

MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""The modes of /proc/stat in its order; ``guest`` is already part of ``user``."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_BACKWARDS_TICKS = 3 * TICKS_PER_SECOND
"""``iowait`` and ``idle`` may run back a little (proc(5) calls them unreliable), which ``rate()`` would take for a
reset. A longer way back is a processor that was off and starts from 0."""


class StatParser:
    """Parses /proc/stat: time of each processor by mode, and the kernel's totals."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._places: list[int] = []
        self._width = 1
        self._ticks: list[int] = []
        self._processors: tuple[Series, ...] = ()
        self._totals = NamedNumbers(
            {
                b"ctxt": (Series("node_context_switches_total"), 1),
                b"btime": (Series("node_boot_time_seconds"), 1),
                b"processes": (Series("node_forks_total"), 1),
                b"procs_running": (Series("node_procs_running"), 1),
                b"procs_blocked": (Series("node_procs_blocked"), 1),
            }
        )
        self._layout: tuple[tuple[Series, ...], tuple[Series, ...]] = ((), ())
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """Seconds of each processor and mode, then the interrupts and the other totals.

        Raises
        ------
        ValueError
            The text is not that of /proc/stat.
        """
        processors, found, rest = raw.partition(b"\nintr ")
        if not found:
            raise ValueError("cannot read the processors' times: no line 'intr'")
        interrupts, _, rest = rest.partition(b"\n")  # one number for each interrupt follows: thousands, never split
        values = self._seconds(processors.split())
        values.append(int(interrupts.partition(b" ")[0]))
        values += self._totals.parse(rest)
        if self._layout != (self._processors, self._totals.series):
            self._layout = (self._processors, self._totals.series)
            self.series = (*self._processors, Series("node_intr_total"), *self._totals.series)
        return values

    def _seconds(self, words: list[bytes]) -> list[float]:
        if words[0 :: self._width] != self._names:
            self._learn(words)
        ticks = list(map(int, map(words.__getitem__, self._places)))
        if any(map(lt, ticks, self._ticks)):
            pairs = zip(ticks, self._ticks, strict=True)
            ticks = [was if now < was <= now + _BACKWARDS_TICKS else now for now, was in pairs]
        self._ticks = ticks
        return [count / TICKS_PER_SECOND for count in ticks]

    def _learn(self, words: list[bytes]) -> None:
        starts = [place for place, word in enumerate(words) if word.startswith(b"cpu")]
        self._width = starts[1] - starts[0]
        self._names = words[0 :: self._width]
        modes = MODES[: self._width - 1]
        processors = [place for place in starts if words[place] != b"cpu"]
        self._places = [place + 1 + mode for place in processors for mode in range(len(modes))]
        self._ticks = []
        self._processors = tuple(
            Series("node_cpu_seconds_total", (("cpu", words[place][3:].decode()), ("mode", mode)))
            for place in processors
            for mode in modes
        )


class LoadParser:
    """Parses /proc/loadavg."""

    series = (Series("node_load1"), Series("node_load5"), Series("node_load15"))

    def parse(self, raw: bytes) -> list[float]:
        return [float(word) for word in raw.split()[:3]]


class OpenFilesParser:
    """Parses /proc/sys/fs/file-nr: allocated, unused (always 0), maximum."""

    series = (Series("node_filefd_allocated"), Series("node_filefd_maximum"))

    def parse(self, raw: bytes) -> list[float]:
        allocated, _, maximum = raw.split()
        return [int(allocated), int(maximum)]


class PressureParser:
    """Parses a file of /proc/pressure: microseconds in which some task, or all tasks, waited.

    Parameters
    ----------
    resource
        ``cpu``, ``memory`` or ``io``. For the host as a whole the line ``full`` of ``cpu`` means nothing.
    """

    def __init__(self, resource: str) -> None:
        kinds = ("waiting",) if resource == "cpu" else ("waiting", "stalled")
        self.series = tuple(Series(f"node_pressure_{resource}_{kind}_seconds_total") for kind in kinds)

    def parse(self, raw: bytes) -> list[float]:
        totals = raw.split(b"total=")[1:]
        return [int(total.partition(b"\n")[0]) / 1e6 for total in totals[: len(self.series)]]


def memory_parser() -> NamedNumbers:
    """Parses /proc/meminfo: those of its lines that the metric table names, KiB turned into bytes."""
    wanted: dict[bytes, tuple[Series, int]] = {}
    for metric in METRICS:
        if metric.startswith("node_memory_"):
            name = metric.removeprefix("node_memory_").removesuffix("_bytes")
            wanted[f"{name}:".encode()] = (Series(metric), 1024 if metric.endswith("_bytes") else 1)
    return NamedNumbers(wanted)


def paging_parser() -> NamedNumbers:
    """Parses /proc/vmstat: those of its lines that the metric table names."""
    prefix = "node_vmstat_"
    return NamedNumbers(
        {metric.removeprefix(prefix).encode(): (Series(metric), 1) for metric in METRICS if metric.startswith(prefix)}
    )


class SystemCollector:
    """Processors, load and memory. Reads files of /proc that never block.

    Parameters
    ----------
    proc
        Where /proc is mounted.
    """

    name = "system"

    def __init__(self, proc: str = "/proc") -> None:
        parsers: dict[str, Parser] = {
            "stat": StatParser(),
            "loadavg": LoadParser(),
            "meminfo": memory_parser(),
        }
        self._files = Files({f"{proc}/{name}": parser for name, parser in parsers.items()})
        self._of: tuple[Series, ...] = ()
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        values = self._files.read()
        values.append(at)
        if self._files.series is not self._of:
            self._of = self._files.series
            self._series = (*self._of, Series("node_time_seconds"))
        return Reading(at, self._series, values)


class PressureCollector:
    """Paging, pressure and open files.

    They cost as much as all of :class:`SystemCollector`, and what is judged of them are rates over minutes: they are
    read less often.

    Parameters
    ----------
    proc
        Where /proc is mounted.
    """

    name = "system:pressure"

    def __init__(self, proc: str = "/proc") -> None:
        parsers: dict[str, Parser] = {
            "vmstat": paging_parser(),
            "sys/fs/file-nr": OpenFilesParser(),
            **{f"pressure/{resource}": PressureParser(resource) for resource in ("cpu", "memory", "io")},
        }
        self._files = Files({f"{proc}/{name}": parser for name, parser in parsers.items()})

    async def collect(self, at: float) -> Reading:
        values = self._files.read()
        return Reading(at, self._files.series, values)
