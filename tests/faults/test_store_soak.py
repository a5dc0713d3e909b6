"""F23: days of ticks in virtual time: memory and descriptors flat, the log bounded, the size at its cap and not over.

Run as a program, this file is the agent's store under load: it prints one line of figures for each simulated hour.
``UPKEEP_SOAK_DAYS`` sets how long (a third of a day, a tick every ten seconds); from one day on it is a tick a second.
``UPKEEP_SOAK_LOG`` names a file that takes the lines as they come.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.model import (
    STALE,
    Action,
    ActionStatus,
    Event,
    ItemResult,
    Outcome,
    Plan,
    PlanItem,
    Reading,
    Series,
    Severity,
    Verdict,
)
from agent.store import Retention, Store

ROOT = Path(__file__).parents[2]
DAYS = float(os.environ.get("UPKEEP_SOAK_DAYS", "0.33"))
STEP_S = 1 if DAYS >= 1 else 10
MAX_SIZE_BYTES = (256 if DAYS >= 1 else 12) << 20
WAL_BYTES = 64 << 20
STEADY, PROCESSES = 950, 50
START = 1_700_006_400.0
WARM_HOURS = 9
"""Rules look back over eight hours of minutes: until then memory must grow."""


class Host:
    """A thousand series: constants, counters, percentages, and processes of which some end every five minutes."""

    def __init__(self) -> None:
        self.chance = random.Random(1)
        self.steady = tuple(Series("steady", (("i", str(i)),)) for i in range(STEADY))
        self.rates = [round(self.chance.uniform(0, 1e6)) for _ in range(250)]
        self.constants = [round(self.chance.uniform(0, 1e9), 2) for _ in range(450)]
        self.gauges = [[round(self.chance.gauss(50, 9), 2) for _ in range(250)] for _ in range(97)]
        self.pid = 1000
        self.processes = tuple(self.born() for _ in range(PROCESSES))

    def born(self) -> Series:
        self.pid += 1
        return Series("process_cpu_seconds_total", (("pid", str(self.pid)),))

    def readings(self, n: int, at: float) -> Iterator[Reading]:
        values = [*(float(n * rate) for rate in self.rates), *self.constants, *self.gauges[n % 97]]
        yield Reading(at, self.steady, values)
        if n * STEP_S % 300 == 0:
            gone, self.processes = self.processes[:5], (*self.processes[5:], *(self.born() for _ in range(5)))
            yield Reading(at, gone, [STALE] * len(gone))
        yield Reading(at, self.processes, [n / (i + 7) for i in range(PROCESSES)])


async def act(store: Store, at: float) -> None:
    """An alert's repair of twenty files, as the ledger keeps it."""
    request = Action(0, "job", "", (), at, 0, 0, "clean_cache", {}, "r", ActionStatus.REQUESTED, requested_at=at)
    asked = await store.ledger.request(request)
    assert asked is not None
    items = tuple(PlanItem("unlink", f"sub/{at:.0f}-{n}.bin", n * 4096) for n in range(20))
    done = tuple(ItemResult(item.target, "done", item.bytes) for item in items)
    await store.ledger.save_action(
        replace(
            asked,
            status=ActionStatus.DONE,
            verdict=Verdict.FIXED,
            plan=Plan("clean_cache", "r", "remove 20 files", items),
            outcome=Outcome(done, bytes_freed=1 << 20),
            finished_at=at + 1,
        )
    )


def figures(state_dir: Path) -> dict[str, int]:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir("/proc/self/fd")),
        "files_bytes": sum((state_dir / name).stat().st_size for name in ("metrics.db", "ledger.db")),
    }


async def soak(state_dir: Path) -> None:
    clock = ManualClock(wall=START)
    store = await Store.open(state_dir, clock=clock, limits=Retention(max_size_bytes=MAX_SIZE_BYTES))
    try:
        await live(store, clock, state_dir)
    finally:
        await store.close()


async def live(store: Store, clock: ManualClock, state_dir: Path) -> None:
    host, began, most_wal_bytes, worst_tick_s = Host(), time.monotonic(), 0, 0.0
    for n in range(1, int(DAYS * 86400 / STEP_S) + 1):
        clock.advance(STEP_S)
        at, passed_s = clock.wall(), n * STEP_S
        tick = time.perf_counter()
        await store.metrics.append_tick(list(host.readings(n, at)), clock.boot())
        worst_tick_s = max(worst_tick_s, time.perf_counter() - tick)
        if passed_s % 60 == 0:
            await store.metrics.add_events([Event("log_match", Severity.ERROR, f"line {n}", "logs", at)])
            if passed_s % 600 == 0:
                await act(store, at)
            await store.maintain(at)
            most_wal_bytes = max(most_wal_bytes, *(log.stat().st_size for log in state_dir.glob("*-wal")))
        if passed_s % 3600 == 0:
            assert not store.metrics.fault, store.metrics.fault
            found = {
                "hour": passed_s // 3600,
                **figures(state_dir),
                "most_wal_bytes": most_wal_bytes,
                "worst_tick_us": int(worst_tick_s * 1e6),
                "dropped_rows": store.metrics.dropped_rows,
                "elapsed_s": int(time.monotonic() - began),
            }
            worst_tick_s = 0.0
            print(json.dumps(found), flush=True)


@pytest.mark.slow
def test_days_of_ticks_leave_memory_descriptors_and_size_where_they_were(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__)), str(tmp_path / "state")]
    hours: list[dict[str, int]] = []
    log = Path(os.environ.get("UPKEEP_SOAK_LOG", os.devnull))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as run:
        assert run.stdout is not None
        with log.open("a", encoding="utf-8") as kept:
            for line in run.stdout:
                hours.append(json.loads(line))
                kept.write(line)
                kept.flush()
    assert run.returncode == 0
    assert len(hours) == int(DAYS * 24)

    assert max(hour["files_bytes"] for hour in hours) <= MAX_SIZE_BYTES
    assert hours[-1]["files_bytes"] >= MAX_SIZE_BYTES * 3 // 4, "the cap was never reached: nothing was shown"
    assert max(hour["most_wal_bytes"] for hour in hours) <= WAL_BYTES
    assert max(hour["dropped_rows"] for hour in hours) == 0
    assert len({hour["fds"] for hour in hours}) == 1
    if DAYS >= 2:
        warm = hours[24:]
        slope, _ = statistics.linear_regression([h["hour"] for h in warm], [h["rss_bytes"] for h in warm])
        assert slope * 24 * 7 <= 1e6


if __name__ == "__main__":
    asyncio.run(soak(Path(sys.argv[1])))
