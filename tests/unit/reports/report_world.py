"""A host's history, written by the real store in virtual time: what the tests of the reports read."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.clock import ManualClock
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    Event,
    ItemResult,
    Labels,
    Mode,
    Outcome,
    Plan,
    PlanItem,
    Reading,
    Series,
    Severity,
    Skipped,
    Verdict,
    make_labels,
)
from agent.store import Retention, Store

GIB = 1024.0**3
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
CPUS = 8
CACHE = "/tmp/evaluation_cache"
MOUNTS = (("/", "/dev/nvme0n1p2", 234, 0.61), ("/data", "/dev/md0", 14_900, 0.83), ("/boot", "/dev/nvme0n1p1", 1, 0.22))
DIRECTORIES = ((CACHE, 6.0), ("/tmp/model_cache", 37.0), ("/data/models", 8_200.0), ("/var/log/benchmark", 2.1))


@dataclass(slots=True)
class World:
    """What is being written; ``clock`` stands at the instant of the last sample."""

    store: Store
    clock: ManualClock

    async def alert(
        self, rule: str, labels: Labels, *, at: float, value: float = 1.0, ended: float | None = None
    ) -> Alert:
        """One alert that fired at ``at`` and, when ``ended`` is given, has ended."""
        fired = Alert(rule, labels, AlertState.FIRING, value, at - MINUTE_S, at)
        await self.store.ledger.commit_alerts([fired], [])
        if ended is not None:
            self.clock.step_wall(ended - self.clock.wall())
            await self.store.ledger.commit_alerts([replace(fired, state=AlertState.INACTIVE)], [])
        return fired

    async def action(self, action: Action) -> Action:
        """One action as it ended."""
        asked = replace(action, status=ActionStatus.REQUESTED, plan=None, outcome=None, verdict=None)
        [asked] = await self.store.ledger.commit_alerts([], [asked])
        await self.store.ledger.save_action(replace(action, id=asked.id))
        return asked


def cleaning(
    alert: Alert,
    *,
    at: float,
    verdict: Verdict | None = Verdict.FIXED,
    status: ActionStatus = ActionStatus.DONE,
    freed: float = 2.1,
    path: str = CACHE,
    reason: str = "",
) -> Action:
    """An action of ``clean_cache`` for an alert, as dispatch leaves it; ``freed`` in GiB."""
    acted = status is ActionStatus.DONE
    size = int(freed * GIB)
    items = tuple(PlanItem("remove", f"{path}/run-{i:03}.bin", size // 12, (1, i, 1, 1)) for i in range(12))
    skipped = (
        Skipped(f"{path}/in-use.bin", "open", 40 << 20),
        Skipped(f"{path}/shared.bin", "hard_link", 12 << 20),
        Skipped(f"{path}/outside", "symlink", 0),
    )
    summary = f"remove 12 of 340 files from {path}, oldest use first; left alone: 1 open, 1 hard link, 1 symbolic link"
    params = {"path": path, "older_than": 259200.0, "down_to": 8 << 30, "use": "atime", "keep_used_within": 600.0}
    outcome = Outcome(tuple(ItemResult(item.target, "done", item.bytes) for item in items), size, size)
    return Action(
        0, f"alert {alert.rule}", alert.rule, alert.labels, alert.fired_at or 0.0, 0, 1, "clean_cache", params,
        f"cache:{path}", status, reason, verdict if acted else None,
        Plan("clean_cache", f"cache:{path}", summary, items, skipped, 340, size * 4),
        outcome if acted else None, at, at + 1 if acted else None, at + 12 if acted else None,
        Mode.ACT if acted else Mode.OBSERVE,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """How much is written: from ``start`` to ``end`` every ``step_s``, without the stretches of ``gaps``."""

    start: float
    end: float
    step_s: float = 15.0
    gaps: tuple[tuple[float, float], ...] = ()
    extra_series: int = 0
    spikes: tuple[float, ...] = ()

    def instants(self) -> Iterator[float]:
        at = self.start
        while at < self.end:
            if not any(start <= at < end for start, end in self.gaps):
                yield at
            at += self.step_s


@asynccontextmanager
async def open_world(folder: Path, start: float) -> AsyncIterator[World]:
    """A new host; its store is closed whatever happens, or its threads would outlive a failing test."""
    clock = ManualClock(wall=start)
    store = await Store.open(folder, clock=clock, limits=Retention())
    try:
        yield World(store, clock)
    finally:
        await store.close()


async def sample(world: World, shape: Shape) -> None:
    """Write what collectors would have read on a host that works by day; the newest samples are always folded."""
    series = tuple(_series(shape.extra_series))
    rng = random.Random(7)
    idle = [1e5] * CPUS
    previous = folded = shape.start
    for at in shape.instants():
        if at - folded >= 10 * MINUTE_S:
            await world.store.maintain(previous + 80.0)
            folded = at
        passed, previous = min(at - previous, 60.0), at
        busy = 0.12 + 0.5 * max(0.0, math.sin((at % DAY_S) / DAY_S * math.tau - 1.8)) + 0.06 * rng.random()
        spike = any(abs(at - instant) < shape.step_s for instant in shape.spikes)
        busy = 0.985 if spike else min(busy, 0.97)
        idle = [seconds + passed * (1 - busy) for seconds in idle]
        values = _values(at, shape, busy, idle, rng)
        world.clock.step_wall(at - world.clock.wall())
        await world.store.metrics.append([Reading(at, series, values)])
    world.clock.step_wall(shape.end + 20.0 - world.clock.wall())
    await world.store.maintain(shape.end + 20.0)


def _series(extra: int) -> Iterator[Series]:
    for cpu in range(CPUS):
        yield Series("node_cpu_seconds_total", make_labels(cpu=str(cpu), mode="idle"))
    for name in ("load1", "memory_MemTotal_bytes", "memory_MemAvailable_bytes", "time_seconds", "boot_time_seconds"):
        yield Series(f"node_{name}")
    for path, device, _, _ in MOUNTS:
        for figure in ("size_bytes", "avail_bytes", "files", "files_free"):
            labels = make_labels(device=device, mountpoint=path, fstype="ext4")
            yield Series(f"node_filesystem_{figure}", labels)
    for path, _ in DIRECTORIES:
        for figure in ("size_bytes", "files", "oldest_timestamp_seconds"):
            yield Series(f"directory_{figure}", make_labels(path=path))
    for number in range(extra):
        yield Series("node_network_receive_bytes_total", make_labels(device=f"eth{number}"))


def _values(at: float, shape: Shape, busy: float, idle: list[float], rng: random.Random) -> list[float]:
    through = (at - shape.start) / (shape.end - shape.start)
    values = [*idle, busy * CPUS * 1.1, 128 * GIB, 128 * GIB * (0.75 - 0.5 * busy), at, shape.start - 41 * DAY_S]
    for path, _, size, fill in MOUNTS:
        used = fill + (0.09 * through if path == "/data" else 0.0)
        values += [size * GIB, size * GIB * (1 - used), 1e7, 8.9e6]
    for path, size in DIRECTORIES:
        grown = size + (4.2 * ((through * 7) % 1.0) if path == CACHE else 0.0) + 0.01 * size * rng.random()
        values += [grown * GIB, 340.0, at - 9 * DAY_S]
    return [*values, *(1e6 * through * (n + 1) for n in range(shape.extra_series))]


def match(pattern: str, line: str, *, at: float, file: str = "/var/log/benchmark/worker.log") -> Event:
    """An event as the log watcher records one."""
    return Event("log_match", Severity.ERROR, line, "logwatch", at, make_labels(pattern=pattern, file=file, line="7"))


def make(folder: Path, shape: Shape) -> None:
    """A working week: two repairs, one that did not help and still fires, an observed one, log matches, a gap."""

    async def write() -> None:
        async with open_world(folder, shape.start) as world:
            await sample(world, shape)
            await _happenings(world, shape)

    asyncio.run(write())


async def _happenings(world: World, shape: Shape) -> None:
    length = shape.end - shape.start
    labels = make_labels(path=CACHE, severity="warning")
    for part in (0.14, 0.43, 0.71):
        at = shape.start + part * length
        alert = await world.alert("EvaluationCacheTooLarge", labels, at=at, value=10.4 * GIB, ended=at + 14)
        await world.action(cleaning(alert, at=at))
    model = make_labels(path="/tmp/model_cache", severity="warning")
    at = shape.start + 0.9 * length
    stubborn = await world.alert("ModelCacheTooLarge", model, at=at, value=51 * GIB)
    await world.action(cleaning(stubborn, at=at, path="/tmp/model_cache", verdict=Verdict.NO_EFFECT, freed=0.02))
    full = make_labels(mountpoint="/data", device="/dev/md0", severity="critical")
    await world.alert("DiskFullIn24Hours", full, at=shape.start + 0.95 * length, value=0.08)
    logs = make_labels(path="/var/log/benchmark", severity="info")
    observed = await world.alert("LogsTooOld", logs, at=shape.start + 0.5 * length)
    await world.action(
        cleaning(observed, at=shape.start + 0.5 * length, path="/var/log/benchmark", status=ActionStatus.OBSERVED,
                 reason="observe_mode", freed=1.4)
    )  # fmt: skip
    events = []
    for number in range(60):
        at = shape.start + (number * 37 % 60) / 60 * length
        events.append(
            match("cuda_out_of_memory", f"ERROR worker {number}: CUDA out of memory. GPU {number % 4}", at=at)
        )
        if number % 3 == 0:
            events.append(match("high_latency", f"WARNING high latency: {number * 17} ms in domain maths", at=at))
    await world.store.metrics.add_events(events)
