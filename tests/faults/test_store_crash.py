"""kill -9 at any instant, and readers beside a live, a stopped and a killed writer.

Run as a program, this file is the writer: it says what was acknowledged, line by line.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.model import Action, ActionStatus, Event, Reading, Series, Severity
from agent.store import Reader, Retention, Store

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("UPKEEP_STORE_KILLS", "60"))
QUERIES = int(os.environ.get("UPKEEP_STORE_QUERIES", "300"))
SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(100)))
OFFSET = "SELECT coalesce((SELECT json_extract(state, '$.offset') FROM tail), -1)"
VIEWS = {
    "metrics.db": ("samples", "latest", "minutes", "hours", "series", "events", "performance_metrics"),
    "ledger.db": ("alerts", "actions", "action_items", "job_runs", "silences", "reports"),
}


async def write_for_ever(state_dir: Path, pause_s: float) -> None:
    clock = SystemClock()
    store = await Store.open(state_dir, clock=clock, limits=Retention())
    offset = (await store.metrics.offsets()).get("/log", {}).get("offset", -1)
    assert isinstance(offset, int)
    n, stopping = offset + 1, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    while not stopping.is_set():
        await store.metrics.append([Reading(clock.wall(), SERIES, [float(n), *(n / (i + 1) for i in range(100))])])
        if store.metrics.waiting_rows == 0:
            print("tick", n, flush=True)
        action = Action(0, "job", "", (), float(n), 0, 0, "clean_logs", {}, "r", ActionStatus.REQUESTED)
        await store.ledger.request(action)
        print("action", n, flush=True)
        event = Event("log_match", Severity.ERROR, f"line {n}", "logs", clock.wall())
        await store.metrics.commit_log([event], [], {"/log": {"offset": n}})
        print("log", n, flush=True)
        if n % 20 == 0:
            await store.maintain(clock.wall())
        n += 1
        await asyncio.sleep(pause_s)
    await store.close()


@contextmanager
def writer(state_dir: Path, pause_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__)), str(state_dir), str(pause_s)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as run:
        assert run.stdout is not None
        try:
            assert run.stdout.readline().startswith("tick")
            yield run
        finally:
            run.kill()


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    state_dir, chance, acked = tmp_path / "state", random.Random(1), {"tick": -1, "action": -1, "log": -1}
    for _ in range(KILLS):
        with writer(state_dir) as run:
            time.sleep(chance.uniform(0, 0.05))
            run.kill()
            assert run.stdout is not None
            for line in run.stdout.read().splitlines(keepends=True):
                if line.endswith("\n"):
                    kind, n = line.split()
                    acked[kind] = max(acked[kind], int(n))

        for name in ("metrics.db", "ledger.db"):
            with closing(sqlite3.connect(f"file:{state_dir / name}?mode=ro", uri=True)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with Reader.open(state_dir) as reader:
            ticks = {int(n) for (n,) in reader.sql("SELECT value FROM samples WHERE metric = 'n'")[1]}
            assert ticks >= set(range(acked["tick"] + 1))
            actions = [int(n) for (n,) in reader.sql("SELECT fired_at FROM action ORDER BY id")[1]]
            assert actions == list(range(len(actions)))
            assert len(actions) > acked["action"]
            # Events and the offset behind them are one transaction: neither is ever ahead.
            lines = [message for (message,) in reader.sql("SELECT message FROM events ORDER BY time, message")[1]]
            assert sorted(lines, key=lambda line: int(line[5:])) == [f"line {n}" for n in range(len(lines))]
            assert reader.sql(OFFSET)[1] == [(len(lines) - 1,)]
            assert len(lines) > acked["log"]
    assert acked["tick"] > KILLS


def shell(path: Path, query: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, "sqlite3", "-batch", "-bail", str(path), query]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


needs_shell = pytest.mark.skipif(
    shutil.which("sqlite3") is None and "CI" not in os.environ, reason="the sqlite3 shell is not installed"
)


@needs_shell
@pytest.mark.slow
def test_the_stock_shell_is_never_locked_out(tmp_path: Path) -> None:
    with writer(tmp_path / "state", pause_s=0.002) as run:
        queries = [(name, view) for name, views in VIEWS.items() for view in views]
        for n in range(QUERIES):
            name, view = queries[n % len(queries)]
            result = shell(tmp_path / "state" / name, f"SELECT count(*) FROM (SELECT * FROM {view} LIMIT 500)")
            assert (result.returncode, result.stderr) == (0, ""), view
            assert result.stdout.strip().isdigit()
        assert run.poll() is None


@needs_shell
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may only read")
def test_a_group_member_who_may_not_write_reads_in_every_state() -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65533", "--groups=60000")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    state_dir = base / "state"

    def check() -> None:
        for name, views in VIEWS.items():
            for view in views:
                result = shell(state_dir / name, f"SELECT count(*) FROM (SELECT * FROM {view} LIMIT 9)", *nobody)
                assert (result.returncode, result.stderr) == (0, ""), view
        counted = shell(state_dir / "metrics.db", "SELECT count(*) > 0 FROM samples", *nobody)
        assert counted.stdout.strip() == "1"
        refused = shell(state_dir / "metrics.db", "DELETE FROM event", *nobody)
        assert "readonly" in refused.stderr
        # A child of this process and not a new interpreter, which may lie where nobody else may read.
        reader = os.fork()
        if reader == 0:
            status = 1
            try:
                os.setgroups([60000])
                os.setresgid(65533, 65533, 65533)
                os.setresuid(65534, 65534, 65534)
                with Reader.open(state_dir) as opened:
                    counts = opened.sql("SELECT (SELECT count(*) FROM samples), (SELECT count(*) FROM actions)")[1][0]
                status = 0 if all(counts) else 1
            finally:
                os._exit(status)
        assert os.waitpid(reader, 0)[1] == 0

    try:
        state_dir.mkdir()
        os.chown(state_dir, 0, 60000)
        state_dir.chmod(0o2750)
        with writer(state_dir, pause_s=0.01) as run:
            check()  # live
            run.terminate()
            assert run.wait(10) == 0
        assert not (state_dir / "metrics.db-wal").exists()
        check()  # cleanly stopped
        with writer(state_dir) as run:
            run.kill()
            run.wait()
        assert (state_dir / "metrics.db-wal").exists()
        check()  # killed
    finally:
        shutil.rmtree(base)


@pytest.mark.slow
def test_fifty_agents_start_and_one_runs(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from agent.clock import SystemClock\n"
        "from agent.store import Retention, Store, StoreBusyError\n"
        "async def main():\n"
        "    try:\n"
        "        store = await Store.open(Path(sys.argv[1]), clock=SystemClock(), limits=Retention())\n"
        "    except StoreBusyError as error:\n"
        "        print(error, flush=True)\n"
        "        return 75\n"
        "    print('running', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    await store.close()\n"
        "    return 0\n"
        "sys.exit(asyncio.run(main()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runs = [
        subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)  # type: ignore[call-overload]
        for _ in range(50)
    ]
    try:
        said = [run.stdout.readline().strip() for run in runs]
        [winner] = [run for run, line in zip(runs, said, strict=True) if line == "running"]
        for line in said:
            assert line == "running" or "another agent runs there" in line
        for run in runs:
            run.communicate()
        assert sorted(run.returncode for run in runs) == [0] + [75] * 49
        assert winner.returncode == 0
    finally:
        for run in runs:
            run.kill()
            run.communicate()


if __name__ == "__main__":
    asyncio.run(write_for_ever(Path(sys.argv[1]), float(sys.argv[2])))
