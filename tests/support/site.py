"""The HTTP side on a real store and a real socket, and a client that can also say what no browser would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

from agent.clock import Clock, ManualClock
from agent.model import Alert, Mode, Reading, Series, make_labels
from agent.serve import Facts, bind, serve
from agent.store import Retention, Store

GIB = 1024.0**3


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(slots=True)
class Site:
    """A running site. What its ``facts`` tell can be changed: they ask these fields."""

    store: Store
    folder: Path
    port: int = 0
    alerts: list[Alert] = field(default_factory=list)
    paused: bool = False
    stuck: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    async def raw(self, request: bytes) -> bytes:
        """Send anything; everything that comes back until the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            await hung_up(writer)

    async def ask(self, target: str, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
        """One request, its target sent as it is."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return parsed(await self.raw("\r\n".join([*lines, "", ""]).encode()))


async def hung_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever the other end did with it."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def parsed(response: bytes) -> Answer:
    head, _, body = response.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return Answer(int(first.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def site(folder: Path, clock: Clock | None = None, mode: Mode = Mode.OBSERVE) -> AsyncIterator[Site]:
    """A site on a new store in ``folder``."""
    chosen = clock or ManualClock(wall=1_700_002_800.0)
    store = await Store.open(folder, clock=chosen, limits=Retention())
    bound = bind("127.0.0.1:0")
    running = Site(store, folder, bound.getsockname()[1])
    facts = Facts(
        state_dir=folder,
        recent=store.metrics.recent,
        clock=chosen,
        zone=ZoneInfo("Europe/Berlin"),
        mode=mode,
        alerts=lambda: running.alerts,
        paused=lambda: running.paused,
        stuck=lambda: running.stuck,
        limits=lambda: running.limits,
        host="testhost",
    )
    task = asyncio.create_task(serve(bound, facts))
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.wait([task])
        bound.close()
        await store.close()


def reading(at: float, values: dict[Series, float]) -> Reading:
    return Reading(at, tuple(values), list(values.values()))


def host_values(at: float, seconds_up: float = 7 * 86400.0) -> dict[Series, float]:
    """What the collectors read on a host with four processors that are three quarters idle."""
    values = {
        Series("node_cpu_seconds_total", make_labels(cpu=str(cpu), mode="idle")): 1e5 + 0.75 * (at % 1e6)
        for cpu in range(4)
    }
    for name, value in {
        "node_load1": 1.25,
        "node_memory_MemTotal_bytes": 64 * GIB,
        "node_memory_MemAvailable_bytes": 40 * GIB,
        "node_memory_SwapTotal_bytes": 8 * GIB,
        "node_memory_SwapFree_bytes": 7 * GIB,
        "node_boot_time_seconds": at - seconds_up,
    }.items():
        values[Series(name)] = value
    mounts = (("/", "/dev/sda1", 100, 39), ("/data", "/dev/sdb1", 4000, 80), ("/boot", "/dev/sda2", 1, 0.12))
    for path, device, size, free in mounts:
        labels = make_labels(device=device, mountpoint=path, fstype="ext4")
        values[Series("node_filesystem_size_bytes", labels)] = size * GIB
        values[Series("node_filesystem_avail_bytes", labels)] = free * GIB
        values[Series("node_filesystem_readonly", labels)] = float(path == "/boot")
    for path, size in (("/tmp/evaluation_cache", 9.2), ("/tmp/model_cache", 31), ("/data/models", 812)):
        values[Series("directory_size_bytes", make_labels(path=path))] = size * GIB
        values[Series("directory_files", make_labels(path=path))] = 340.0
    for name in ("disk", "system"):
        values[Series("upkeep_collector_up", make_labels(collector=name))] = 1.0
    return values


async def sampled(running: Site, clock: ManualClock, extra: Sequence[tuple[Series, float]] = ()) -> None:
    """A minute of samples up to now."""
    end = clock.wall()
    for step in range(7):
        at = end - 60 + 10 * step
        await running.store.metrics.append([reading(at, {**host_values(at), **dict(extra)})])
