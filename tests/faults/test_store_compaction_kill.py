"""kill -9 while hot rows become chunks: each sample is afterwards in one place, once.

Run as a program, this file is the writer: it says which samples were acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.store import Reader, Retention, Store

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("UPKEEP_STORE_KILLS", "30"))
SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(40)))
START, STEP_S = 1_700_000_400, 20


async def write_for_ever(state_dir: Path, first: int) -> None:
    clock = ManualClock(START + STEP_S * float(first))
    store = await Store.open(state_dir, clock=clock, limits=Retention(hot_s=7200))
    n = first
    while True:
        values = [float(n), *(n / (i + 1) for i in range(40))]
        await store.metrics.append([Reading(START + STEP_S * n, SERIES, values)])
        assert store.metrics.waiting_rows == 0
        print(n, flush=True)
        n += 1
        if n % 30 == 0:
            await store.maintain(START + STEP_S * n)


@pytest.mark.slow
def test_kill_9_while_packing_neither_loses_nor_doubles(tmp_path: Path) -> None:
    state_dir, chance, packed = tmp_path / "state", random.Random(1), set()
    found: list[int] = []
    for _ in range(KILLS):
        command = [sys.executable, str(Path(__file__)), str(state_dir), str(len(found))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == f"{len(found)}\n"
            time.sleep(chance.uniform(0.05, 0.5))
            run.kill()
            said = [line for line in run.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        with closing(sqlite3.connect(f"file:{state_dir / 'metrics.db'}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        acknowledged = int(said[-1]) if said else len(found)
        with Reader.open(state_dir) as reader:
            found = [int(n) for (n,) in reader.sql("SELECT value FROM samples WHERE metric = 'n' ORDER BY time")[1]]
            packed.add(reader.sql("SELECT count(*) FROM chunk")[1][0][0])
        assert found == list(range(len(found)))
        assert len(found) > acknowledged
    assert len(packed) > KILLS // 3


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1]), int(sys.argv[2])))
