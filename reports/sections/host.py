"""The host: processors, memory and load as charts, mounts with their fill."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.model import Series
from agent.store.read import Reader
from reports.charts import Chart, Line, Mark
from reports.history import Latest, Track, latest, tracks
from reports.marks import Happenings, labelled, named
from reports.period import Period

LEAST_POINTS = 12
"""With fewer points a chart would tell less than the numbers do."""

MOST_MOUNTS = 12
MOST_MOUNT_CHARTS = 4
MOVED = 2.0
"""A mount gets a chart when its fill moved by more than this many percent of its size."""

FULL, NEARLY_FULL = 95.0, 90.0

_IDLE = "node_cpu_seconds_total"
_MOUNTS = ("node_filesystem_size_bytes", "node_filesystem_avail_bytes")
_WANTED: Mapping[str, Mapping[str, str]] = {
    _IDLE: {"mode": "idle"},
    "node_load1": {},
    "node_memory_MemTotal_bytes": {},
    "node_memory_MemAvailable_bytes": {},
    "node_memory_SwapTotal_bytes": {},
    "node_memory_SwapFree_bytes": {},
    **{metric: {} for metric in _MOUNTS},
}


@dataclass(frozen=True, slots=True)
class Mount:
    """One file system over the period.

    ``fill`` is the percentage that is not available to an ordinary user, 100 · (1 − avail / size), as the rules judge
    it; ``inodes`` the percentage of inodes in use; ``change_bytes`` by how much less is available than at the start.
    """

    path: str
    kind: str
    size_bytes: float
    avail_bytes: float
    fill: float
    inodes: float | None
    change_bytes: float | None
    read_only: bool

    @property
    def level(self) -> str:
        worst = max(self.fill, self.inodes or 0.0)
        return "full" if worst >= FULL else "high" if worst >= NEARLY_FULL else "fine"


@dataclass(frozen=True, slots=True)
class Host:
    """``charts`` of what moved; ``mounts`` fullest first; ``memory_bytes`` and ``processors`` where known."""

    charts: tuple[Chart, ...]
    mounts: tuple[Mount, ...]
    mounts_left_out: int
    processors: int | None
    memory_bytes: float | None
    memory_used: float | None
    load1: float | None
    up_s: float | None

    @property
    def fullest(self) -> Mount | None:
        return self.mounts[0] if self.mounts else None


class HostSection:
    name = "host"

    def build(self, read: Reader, period: Period) -> Host:
        now = latest(read, "node_")
        happened = Happenings.of(read, period)
        fills = tracks(read, _WANTED, period.start, period.end, averaged=(_IDLE,))
        gauges = {series.metric: track for series, track in fills.items() if not series.labels}
        mounts = _mounts(now, fills)
        charts = [_processor_chart(gauges, period, happened), _memory_chart(gauges, period, happened)]
        charts += [_load_chart(gauges, period, happened), _swap_chart(gauges, period, happened)]
        charts += _mount_charts(mounts, fills, period, happened)
        single = {each.metric: each.value for each in now if not each.labels}
        return Host(
            tuple(chart for chart in charts if chart is not None and len(chart.line.times) >= LEAST_POINTS),
            tuple(mounts[:MOST_MOUNTS]),
            len(mounts) - len(mounts[:MOST_MOUNTS]),
            len({e.labels["cpu"] for e in now if e.metric == "node_cpu_seconds_total" and "cpu" in e.labels}) or None,
            single.get("node_memory_MemTotal_bytes"),
            _memory_used(single),
            single.get("node_load1"),
            _up_s(single),
        )


def _memory_used(single: Mapping[str, float]) -> float | None:
    total, available = single.get("node_memory_MemTotal_bytes"), single.get("node_memory_MemAvailable_bytes")
    return 100 * (1 - available / total) if total and available is not None else None


def _up_s(single: Mapping[str, float]) -> float | None:
    now, boot = single.get("node_time_seconds"), single.get("node_boot_time_seconds")
    return now - boot if now is not None and boot is not None else None


# ── charts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _processor_chart(gauges: Mapping[str, Track], period: Period, happened: Happenings) -> Chart | None:
    """Busy is what is not idle, as the mean over all processors: 100 · (1 − rate of the idle seconds)."""
    idle = gauges.get(_IDLE, Track()).rate()
    busy = array("d", [min(max(100 * (1 - share), 0.0), 100.0) for share in idle.mean])
    line = Line(idle.times, busy, busy, busy, idle.step_s)
    return _chart("Processors busy", line, period, happened.marks(named("cpu", "processor")), 100.0)


def _memory_chart(gauges: Mapping[str, Track], period: Period, happened: Happenings) -> Chart | None:
    line = _share_used(gauges.get("node_memory_MemTotal_bytes"), gauges.get("node_memory_MemAvailable_bytes"))
    return None if line is None else _chart("Memory used", line, period, happened.marks(named("memory")), 100.0)


def _swap_chart(gauges: Mapping[str, Track], period: Period, happened: Happenings) -> Chart | None:
    """Only where swap was used at all."""
    line = _share_used(gauges.get("node_memory_SwapTotal_bytes"), gauges.get("node_memory_SwapFree_bytes"))
    if line is None or max(line.high, default=0.0) < 1.0:
        return None
    return _chart("Swap used", line, period, happened.marks(named("swap")), 100.0)


def _load_chart(gauges: Mapping[str, Track], period: Period, happened: Happenings) -> Chart | None:
    track = gauges.get("node_load1")
    if track is None:
        return None
    marks = happened.marks(named("load"))
    return Chart("Load, one minute", "number", period.start, period.end, track.line(), None, marks)


def _mount_charts(
    mounts: Sequence[Mount], fills: Mapping[Series, Track], period: Period, happened: Happenings
) -> list[Chart | None]:
    """The mounts that moved, most first; one that stands still is told by its row in the table."""
    found = []
    for mount in mounts:
        line = _share_used(*(_of_mount(fills, metric, mount.path) for metric in _MOUNTS))
        if line is None or not line.times:
            continue
        moved = max(line.high) - min(line.low)
        marks = happened.marks(labelled("mountpoint", mount.path))
        if moved >= MOVED or marks:
            found.append((moved, _chart(f"Disk {mount.path}", line, period, marks, 100.0)))
    found.sort(key=lambda pair: -pair[0])
    return [chart for _, chart in found[:MOST_MOUNT_CHARTS]]


def _of_mount(fills: Mapping[Series, Track], metric: str, path: str) -> Track | None:
    return next((t for s, t in fills.items() if s.metric == metric and ("mountpoint", path) in s.labels), None)


def _share_used(total: Track | None, free: Track | None) -> Line | None:
    """``100 · (1 − free / total)`` at each step where both are known."""
    if total is None or free is None:
        return None
    totals = dict(zip(total.times, total.mean, strict=True))
    known = [i for i, at in enumerate(free.times) if totals.get(at)]

    def used(column: Sequence[float]) -> array[float]:
        return array("d", [100 * (1 - column[i] / totals[free.times[i]]) for i in known])

    times = array("d", [free.times[i] for i in known])
    return Line(times, used(free.high), used(free.low), used(free.mean), free.step_s)


def _chart(title: str, line: Line, period: Period, marks: tuple[Mark, ...], ceiling: float) -> Chart | None:
    return Chart(title, "percent", period.start, period.end, line, ceiling, marks) if line.times else None


# ── mounts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _mounts(now: Sequence[Latest], fills: Mapping[Series, Track]) -> list[Mount]:
    """Each file system once, by its shortest mount point, fullest first."""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for each in now:
        if each.metric.startswith("node_filesystem_"):
            key = each.labels.get("device", ""), each.labels.get("mountpoint", ""), each.labels.get("fstype", "")
            values.setdefault(key, {})[each.metric.removeprefix("node_filesystem_")] = each.value
    found: dict[object, Mount] = {}
    for (device, path, kind), figures in sorted(values.items(), key=lambda item: (len(item[0][1]), item[0])):
        if figures.get("size_bytes") and "avail_bytes" in figures:
            # one device mounted twice (bind mounts, subvolumes) is one file system; tmpfs devices share a name
            same = (device, figures["size_bytes"]) if device.startswith("/") else path
            found.setdefault(same, _mount(path, kind, figures, _of_mount(fills, "node_filesystem_avail_bytes", path)))
    return sorted(found.values(), key=lambda mount: (-mount.fill, mount.path))


def _mount(path: str, kind: str, figures: Mapping[str, float], avail: Track | None) -> Mount:
    size, free = figures["size_bytes"], figures["avail_bytes"]
    files, files_free = figures.get("files"), figures.get("files_free")
    return Mount(
        path,
        kind,
        size,
        free,
        100 * (1 - free / size),
        100 * (1 - files_free / files) if files and files_free is not None else None,
        avail.mean[0] - free if avail is not None else None,
        figures.get("readonly") == 1,
    )
