"""The programs that use most processor time and memory, as process-exporter names them.

Processes are taken together by their program's name: a label for each process would make series without end.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass

from agent.model import Reading, Sample, make_labels

MOST = 10
"""So many by processor time, and so many by memory; up to twice as many while they change places."""

NAMES_KEPT = 500
"""Names that are told apart in the agent's life; processes of later ones count as :data:`OTHERS`."""

KERNEL, OTHERS = "kernel threads", "others"

_AT_ONCE = 100
"""Processes that are read before others get a turn: a millisecond."""

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the kernel's include/linux/sched.h
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc/PID/stat shows it; ``started`` tells two of one number apart."""

    name: str
    user_ticks: int
    system_ticks: int
    started: int
    resident_bytes: int


def parse(raw: bytes) -> Process:
    """A process from the text of /proc/PID/stat, whose name may itself hold blanks and brackets (proc(5))."""
    head, _, rest = raw.rpartition(b")")
    words = rest.split()
    kernel = int(words[6]) & _KERNEL_THREAD
    name = KERNEL if kernel else head.partition(b"(")[2].decode(errors="replace")
    return Process(name, int(words[11]), int(words[12]), int(words[19]), int(words[21]) * _PAGE_BYTES)


@dataclass(slots=True)
class _Group:
    """All processes of one name. Times only grow: a process that ends leaves what it used."""

    user_ticks: int = 0
    system_ticks: int = 0
    lately_ticks: int = 0
    resident_bytes: int = 0
    processes: int = 0


class Groups:
    """Adds up processes by name from one look to the next. Time used before the first look is not counted."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._ticks: dict[tuple[int, int], tuple[int, int]] | None = None
        self._told: set[str] = set()

    def take(self, processes: Iterable[tuple[int, Process]]) -> None:
        """What runs now, by process number."""
        for group in self._groups.values():
            group.lately_ticks = group.resident_bytes = group.processes = 0
        before, self._ticks = self._ticks, {}
        for pid, process in processes:
            key, ticks = (pid, process.started), (process.user_ticks, process.system_ticks)
            self._ticks[key] = ticks
            was = ticks if before is None else before.get(key, (0, 0))
            group = self._group(process.name)
            user, system = max(ticks[0] - was[0], 0), max(ticks[1] - was[1], 0)
            group.user_ticks += user
            group.system_ticks += system
            group.lately_ticks += user + system
            group.resident_bytes += process.resident_bytes
            group.processes += 1

    def _group(self, name: str) -> _Group:
        if name not in self._groups and len(self._groups) >= NAMES_KEPT:
            name = OTHERS
        return self._groups.setdefault(name, _Group())

    def samples(self, at: float) -> list[Sample]:
        """Those that used most processor time since the last look, and those that hold most memory now.

        One that was told stays while it is among twice as many: names at the edge would come and go with each look, and
        each change of what is told is dear to the store.
        """
        living = [(name, group) for name, group in self._groups.items() if group.processes]
        by_time = heapq.nlargest(2 * MOST, living, key=lambda one: (one[1].lately_ticks, one[1].resident_bytes))
        by_memory = heapq.nlargest(2 * MOST, living, key=lambda one: one[1].resident_bytes)
        at_edge = [one for one in (*by_time[MOST:], *by_memory[MOST:]) if one[0] in self._told]
        chosen = dict([*by_time[:MOST], *by_memory[:MOST], *at_edge])
        self._told = set(chosen)
        samples = []
        for name, group in sorted(chosen.items()):
            for mode, ticks in (("system", group.system_ticks), ("user", group.user_ticks)):
                labels = make_labels(groupname=name, mode=mode)
                samples.append(
                    Sample("namedprocess_namegroup_cpu_seconds_total", ticks / _TICKS_PER_SECOND, at, labels)
                )
            labels = make_labels(groupname=name, memtype="resident")
            samples.append(Sample("namedprocess_namegroup_memory_bytes", group.resident_bytes, at, labels))
            labels = make_labels(groupname=name)
            samples.append(Sample("namedprocess_namegroup_num_procs", group.processes, at, labels))
        return samples


class ProcessesCollector:
    """All processes, a few at a time. Where others' processes are hidden (``hidepid``) there is nothing to say.

    Parameters
    ----------
    proc
        Where /proc is mounted.
    """

    name = "processes"

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._groups = Groups()
        self._last = Reading(0.0, (), ())

    async def collect(self, at: float) -> Reading:
        if not os.path.exists(f"{self._proc}/1/stat"):
            return Reading(at, (), ())
        found: list[tuple[int, Process]] = []
        pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        for start in range(0, len(pids), _AT_ONCE):
            found += [(pid, process) for pid in pids[start : start + _AT_ONCE] if (process := self._read(pid))]
            await asyncio.sleep(0)
        self._groups.take(found)
        reading = Reading.of(at, self._groups.samples(at))
        if reading.series == self._last.series:
            reading = Reading(at, self._last.series, reading.values)
        self._last = reading
        return reading

    def _read(self, pid: int) -> Process | None:
        try:
            file = os.open(f"{self._proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return parse(os.read(file, 4096))
            finally:
                os.close(file)
        except OSError:
            return None  # it has ended
