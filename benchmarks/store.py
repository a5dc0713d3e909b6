"""What the store costs while it takes in a tick a second: CPU, bytes written in a day, the last value of every series.

The CPU is that of the whole process, all threads, with a pause between ticks: caches are cold, as in an agent. Ticks a
second apart share a commit as they do there (docs/decisions/080); one that is committed alone is shown beside.
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
PACED_TICKS, TICKS, PAUSE_S = 300, 20_000, 0.02
HOT_S = 1800.0
"""Rows are packed at the pace at which they come, as they are on any host that has run for a day."""
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
    store = await Store.open(state_dir, clock=clock, limits=Retention(hot_s=HOT_S))

    async def tick() -> None:
        clock.advance(1)
        await store.metrics.append_tick(host.readings(clock.wall()), clock.boot())

    shared = await paced_us(store, clock, host, alone=False)
    alone = await paced_us(store, clock, host, alone=True)
    for _ in range(int(HOT_S)):
        await tick()
    written = written_bytes()
    for n in range(TICKS):
        await tick()
        if n % 60 == 0:
            await store.maintain(clock.wall())
    await store.metrics.append(())
    a_day = (written_bytes() - written) / TICKS * DAY_TICKS
    assert store.metrics.waiting_rows == 0
    latest = last_values_ms(state_dir)
    await store.close()

    narrow = narrow_rows(state_dir.parent / "narrow.db", host)
    peer = "narrow rows"
    return [
        Result("store", "CPU of a tick of 200 values, one a second", "us", shared, Goal(300, "ours"), peer, narrow[0]),
        Result("store", "the same, each committed alone", "us", alone, None, peer, narrow[0]),
        Result("store", "written a day", "GB", a_day / 1e9, Goal(1, "ours"), peer, narrow[1] / 1e9),
        Result("store", "last value of every series", "ms", latest, Goal(2, "ours")),
    ]


async def paced_us(store: Store, clock: ManualClock, host: Host, *, alone: bool) -> float:
    """Mean CPU of a tick."""
    spent = 0.0
    for _ in range(PACED_TICKS):
        clock.advance(1)
        readings = host.readings(clock.wall())
        await asyncio.sleep(PAUSE_S)
        before = time.process_time()
        if alone:
            await store.metrics.append(readings)
        else:
            await store.metrics.append_tick(readings, clock.boot())
        spent += time.process_time() - before
    return spent / PACED_TICKS * 1e6


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
