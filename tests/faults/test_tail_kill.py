"""C2, F4: a real agent process that tails into the real store is killed at any instant; no match is lost or doubled.

Every line carries a serial number and becomes an event; the log is rotated in each lossless way meanwhile.
``UPKEEP_TAIL_KILLS`` sets how often (12).
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KILLS = int(os.environ.get("UPKEEP_TAIL_KILLS", "12"))
LINES_A_TURN = 200
PATIENCE_S = 60.0

READER = """
import asyncio, sys
from pathlib import Path
from agent.clock import SystemClock
from agent.logwatch.patterns import Pattern, compile_patterns
from agent.logwatch.runner import LogWatch
from agent.store import Retention, Store

async def main(state: Path, glob: str) -> None:
    clock = SystemClock()
    store = await Store.open(state, clock=clock, limits=Retention())
    watch = LogWatch([glob], compile_patterns([Pattern("serial", "n=[0-9]+;")]), store.metrics.commit_log, clock,
                     stored=await store.metrics.offsets(), events_per_s=1_000_000, sweep_s=0.5)
    await watch.run()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


class Writer:
    """Writes serial numbers and rotates; a deletion waits until the agent had a look, as the promise says."""

    def __init__(self, log: Path) -> None:
        self.log, self.serial, self.rotations = log, 0, 0

    def write(self, count: int, path: Path | None = None) -> None:
        with (path or self.log).open("a", buffering=1) as file:
            for _ in range(count):
                self.serial += 1
                file.write(f"ERROR n={self.serial};\n")

    def rename(self) -> Path:
        self.rotations += 1
        old = self.log.with_name(f"app.log-{self.rotations}")
        self.log.rename(old)
        self.log.touch()
        return old

    def rename_late_writer(self) -> None:
        self.write(10, self.rename())

    def plain(self) -> None:
        pass


def test_killed_at_any_instant_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    state, log = tmp_path / "state", tmp_path / "app.log"
    state.mkdir()
    log.touch()
    writer = Writer(log)
    turns: list[Callable[[], object]] = [writer.rename, writer.rename_late_writer, writer.plain]
    chance = random.Random(1)
    reader = _start(state, log)
    _until(lambda: _offsets(state) >= 1)
    for turn in range(KILLS):
        # Seen before it is rotated away: a file made and rotated between two looks was never at a watched path.
        _until(lambda: _knows(state, log))
        writer.write(LINES_A_TURN)
        turns[turn % len(turns)]()
        writer.write(LINES_A_TURN)
        time.sleep(chance.uniform(0, 0.2))
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        reader = _start(state, log)
    try:
        _until(lambda: len(_serials(state)) >= writer.serial)
        _until(lambda: _counted(state) >= writer.serial)
    finally:
        reader.kill()
        reader.wait()
    found = _serials(state)
    assert len(found) == len(set(found)), "doubled"
    assert sorted(found) == list(range(1, writer.serial + 1)), "lost"
    assert _counted(state) == writer.serial


def _start(state: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", READER, str(state), str(log)], cwd=Path(__file__).parents[2])


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "not reached"
        time.sleep(0.02)


def _query(state: Path, sql: str) -> list[tuple[object, ...]]:
    try:
        connection = sqlite3.connect(f"file:{state}/metrics.db?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return []  # not there yet


def _offsets(state: Path) -> int:
    return len(_query(state, "SELECT path FROM tail"))


def _knows(state: Path, log: Path) -> bool:
    """Whether the committed state names the inode that is at the path now."""
    inode = log.stat().st_ino
    return any(f" {inode}," in str(row[0]) for row in _query(state, "SELECT state FROM tail"))


def _serials(state: Path) -> list[int]:
    rows = _query(state, "SELECT message FROM events WHERE kind = 'log_match'")
    return [int(str(row[0]).split("n=")[1].rstrip(";")) for row in rows]


def _counted(state: Path) -> float:
    rows = _query(
        state,
        "SELECT value FROM samples WHERE metric = 'log_matches_total' ORDER BY time DESC LIMIT 1",
    )
    return float(str(rows[0][0])) if rows else 0.0
