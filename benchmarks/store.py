"""What the store costs: CPU of a committed tick, bytes written in a day, bytes kept, the last value of every series.

The CPU is that of the whole process, all threads, with a pause between ticks: caches are cold, as in an agent.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import uvloop

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.store import Reader, Retention, Store
from benchmarks.common import Goal, Result

COLLECTORS, WIDTH = 5, 40
PACED_TICKS, TICKS, PAUSE_S = 300, 10_000, 0.02
DAY_TICKS = 86_400


class Host:
    """Two hundred series as a host has them: a third constant, a third counters, the rest gauges."""

    def __init__(self) -> None:
        self._chance = random.Random(7)
        self.series = [
            tuple(Series(f"metric_{collector}", (("n", str(n)),)) for n in range(WIDTH))
            for collector in range(COLLECTORS)
        ]
        self._values = [[float(self._chance.randrange(10**10)) for _ in range(WIDTH)] for _ in range(COLLECTORS)]

    def readings(self, at: float) -> list[Reading]:
        for row in self._values:
            for n in range(WIDTH):
                if n % 3 == 1:
                    row[n] += self._chance.randrange(10_000)
                elif n % 3 == 2:
                    row[n] = round(self._chance.random() * 100, 2)
        return [Reading(at, series, list(row)) for series, row in zip(self.series, self._values, strict=True)]


def measure() -> Iterable[Result]:
    """All figures, from one run."""
    # Not the default folder, which may be memory: what is written there counts nothing.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        return uvloop.run(run(Path(folder) / "state"))


async def run(state_dir: Path) -> list[Result]:
    clock, host = ManualClock(), Host()
    store = await Store.open(state_dir, clock=clock, limits=Retention())
    paced = []
    for _ in range(PACED_TICKS):
        clock.advance(1)
        readings = host.readings(clock.wall())
        await asyncio.sleep(PAUSE_S)
        before = time.process_time()
        await store.metrics.append(readings)
        paced.append(time.process_time() - before)

    written = written_bytes()
    for n in range(TICKS):
        clock.advance(1)
        await store.metrics.append(host.readings(clock.wall()))
        if n % 60 == 0:
            await store.maintain(clock.wall())
    assert store.metrics.waiting_rows == 0
    content = await store.metrics.size_bytes()
    latest = last_values_ms(state_dir)
    await store.close()
    a_day = (written_bytes() - written) / TICKS * DAY_TICKS

    narrow = narrow_rows(state_dir.parent / "narrow.db", host)
    peer, samples = "narrow rows", (PACED_TICKS + TICKS) * COLLECTORS * WIDTH
    return [
        Result("store", "tick_cpu", "us", statistics.mean(paced) * 1e6, Goal(300, "ours"), peer, narrow[0]),
        Result("store", "written_a_day", "GB", a_day / 1e9, Goal(1, "ours"), peer, narrow[1] / 1e9),
        Result("store", "last_values", "ms", latest, Goal(2, "ours")),
        Result("store", "hot_bytes_per_sample", "B", content / samples, Goal(12, "ours")),
    ]


def last_values_ms(state_dir: Path) -> float:
    with Reader.open(state_dir) as reader:
        found = []
        for _ in range(20):
            before = time.perf_counter()
            rows = reader.sql("SELECT * FROM latest")[1]
            found.append((time.perf_counter() - before) * 1e3)
        assert len(rows) == COLLECTORS * WIDTH
    return statistics.median(found)


def narrow_rows(path: Path, host: Host) -> tuple[float, float]:
    """The peer: one row a sample, indexed by series, as most tools that use SQLite have it; CPU us, bytes a day."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            "CREATE TABLE sample (at INTEGER, series INTEGER, value REAL); CREATE INDEX by ON sample (series, at);"
        )
        spent, ticks, written = 0.0, 500, written_bytes()
        for n in range(ticks):
            values = [value for reading in host.readings(0) for value in reading.values]
            time.sleep(PAUSE_S / 10)
            before = time.process_time()
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO sample VALUES (?, ?, ?)", [(n, s, v) for s, v in enumerate(values)])
            connection.execute("COMMIT")
            spent += time.process_time() - before
    return spent / ticks * 1e6, (written_bytes() - written) / ticks * DAY_TICKS


def written_bytes() -> int:
    """What this process has caused to be written to a disk."""
    found = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(found["write_bytes"])
