"""Reads, writes and busy time of each block device, as node_exporter names them."""

from __future__ import annotations

import re
from operator import truediv

from agent.model import Reading, Series
from agent.procfs import Files

LEFT_OUT = re.compile(r"(ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+")
"""node_exporter's default: partitions, RAM disks, loops and floppies."""

SECTOR_BYTES = 512
"""The unit of /proc/diskstats, whatever the device's own sectors are."""

_COUNT, _BYTES, _SECONDS = 1.0, 1 / SECTOR_BYTES, 1000.0

COLUMNS = (
    ("node_disk_reads_completed_total", _COUNT),
    ("node_disk_reads_merged_total", _COUNT),
    ("node_disk_read_bytes_total", _BYTES),
    ("node_disk_read_time_seconds_total", _SECONDS),
    ("node_disk_writes_completed_total", _COUNT),
    ("node_disk_writes_merged_total", _COUNT),
    ("node_disk_written_bytes_total", _BYTES),
    ("node_disk_write_time_seconds_total", _SECONDS),
    ("node_disk_io_now", _COUNT),
    ("node_disk_io_time_seconds_total", _SECONDS),
    ("node_disk_io_time_weighted_seconds_total", _SECONDS),
)
"""The columns after the device's name (Linux, Documentation/admin-guide/iostats.rst), each with what divides it into
its base unit."""

_NAME = 2


class DiskParser:
    """Parses /proc/diskstats. Newer kernels append columns; all lines have as many."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._width = 1
        self._places: list[int] = []
        self._divisors: list[float] = []
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """The values of each device, in the order of :data:`COLUMNS`.

        Raises
        ------
        ValueError
            The text is not that of /proc/diskstats.
        """
        words = raw.split()
        if words[_NAME :: self._width] != self._names:
            self._learn(words, raw)
        return list(map(truediv, map(int, map(words.__getitem__, self._places)), self._divisors))

    def _learn(self, words: list[bytes], raw: bytes) -> None:
        lines = raw.count(b"\n")
        self._width = len(words) // lines if lines else 1
        if lines and (self._width * lines != len(words) or self._width <= _NAME + len(COLUMNS)):
            raise ValueError("cannot read /proc/diskstats: its lines are not of one kind")
        self._names = words[_NAME :: self._width]
        devices = [(line, name.decode()) for line, name in enumerate(self._names)]
        devices = [(line, name) for line, name in devices if not LEFT_OUT.fullmatch(name)]
        first = _NAME + 1
        self._places = [line * self._width + first + column for line, _ in devices for column in range(len(COLUMNS))]
        self._divisors = [divisor for _ in devices for _, divisor in COLUMNS]
        self.series = tuple(Series(metric, (("device", name),)) for _, name in devices for metric, _ in COLUMNS)


class DiskCollector:
    """Block devices. Reads a file of /proc that never blocks."""

    name = "disk"

    def __init__(self, proc: str = "/proc") -> None:
        self._files = Files({f"{proc}/diskstats": DiskParser()})

    async def collect(self, at: float) -> Reading:
        values = self._files.read()
        return Reading(at, self._files.series, values)
