"""A real probe process on the stub driver, asked as the agent asks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agent.clock import SystemClock
from agent.gpu.client import ChildLink, Probe
from agent.gpu.protocol import Gpu, Seen
from agent.model import Reading
from tests.support.nvml import Stub


@contextlib.asynccontextmanager
async def probe(stub: Stub, folder: Path, *, deadline_s: float = 5.0) -> AsyncIterator[Probe]:
    """A probe that is gone when the test ends."""
    link = ChildLink(folder / "gpu.lock", stub.environment())
    made = Probe(link, SystemClock(), folder, root=str(stub.root), deadline_s=deadline_s)
    try:
        yield made
    finally:
        stub.change({key: None for key in stub.state if key.startswith("hang.")})
        await made.close()
        await gone(folder)


async def gone(folder: Path, patience_s: float = 15.0) -> None:
    """Wait until the probe that held the lock has ended."""
    pid = pid_of(folder)
    deadline = time.monotonic() + patience_s
    while pid and alive(pid):
        assert time.monotonic() < deadline, f"the probe {pid} does not end"
        await asyncio.sleep(0.02)


def pid_of(folder: Path) -> int:
    """The process number of the last probe; 0 where there was none."""
    lock = folder / "gpu.lock"
    text = lock.read_text().strip() if lock.exists() else ""
    return int(text) if text else 0


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie of our own is buried on the way."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    return Path(f"/proc/{pid}").exists()


async def until(probe: Probe, condition: Callable[[Seen], object], patience_s: float = 15.0) -> Seen:
    """Read until a reading is as wanted."""
    deadline = time.monotonic() + patience_s
    while not condition(seen := await probe.read()):
        assert time.monotonic() < deadline, f"the GPUs did not get there: {shown(seen)}"
        await asyncio.sleep(0.05)
    return seen


def shown(seen: Seen) -> str:
    states = {gpu.uuid[-2:]: (gpu.state, gpu.call) for gpu in seen.gpus}
    return f"{seen.state} {seen.message} {seen.faults} {states}"


def values(gpu: Gpu) -> dict[tuple[str, ...], float]:
    """The values of a GPU by metric and the values of its own labels."""
    return {
        (column.metric, *(value for _, value in column.labels)): value
        for column, value in zip(gpu.columns or (), gpu.values, strict=True)
    }


def samples(reading: Reading) -> dict[tuple[str, str, str], float]:
    """The values of a collector's reading by metric, UUID and the other label that tells series apart."""
    found = {}
    for series, value in zip(reading.series, reading.values, strict=True):
        labels = dict(series.labels)
        own = [
            labels.get(name, "") for name in ("reason", "kind", "state", "call", "against", "GPU_I_ID", "pid", "xid")
        ]
        found[series.metric, labels.get("UUID", ""), "".join(own)] = value
    return found
