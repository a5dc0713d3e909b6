"""Readers beside a live, a stopped and a killed writer, and agents that want the same files.

``UPKEEP_STORE_QUERIES`` sets how many queries the stock shell runs against a live writer (300).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.model import Action, ActionStatus, Event, Reading, Series, Severity
from agent.store import Reader, Retention, Store
from tests.support.docs import sql_examples
from tests.support.forked import Forked, Say, forked

ROOT = Path(__file__).parents[2]
QUERIES = int(os.environ.get("UPKEEP_STORE_QUERIES", "300"))
SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(100)))
EXAMPLES = sql_examples()


async def write_for_ever(state_dir: Path, pause_s: float, say: Say) -> None:
    clock, stopping, n = SystemClock(), asyncio.Event(), 0
    store = await Store.open(state_dir, clock=clock, limits=Retention())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    while not stopping.is_set():
        await store.metrics.append([Reading(clock.wall(), SERIES, [float(n), *(n / (i + 1) for i in range(100))])])
        await store.ledger.request(
            Action(0, "job", "", (), clock.wall(), 0, 0, "clean_logs", {}, "r", ActionStatus.REQUESTED)
        )
        event = Event("log_match", Severity.ERROR, f"line {n}", "logs", clock.wall())
        await store.metrics.commit_log([event], [], {"/log": {"offset": n}})
        if n == 0:
            say("writing")
        if n % 20 == 0:
            await store.maintain(clock.wall())
        n += 1
        await asyncio.sleep(pause_s)
    await store.close()


@contextmanager
def writer(state_dir: Path, pause_s: float = 0.0) -> Iterator[Forked]:
    with forked(lambda say: write_for_ever(state_dir, pause_s, say)) as run:
        assert run.hear() == "writing"
        yield run


def shell(path: Path, query: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, "sqlite3", "-batch", "-bail", str(path), query]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


needs_shell = pytest.mark.skipif(
    shutil.which("sqlite3") is None and "CI" not in os.environ, reason="the sqlite3 shell is not installed"
)


@needs_shell
@pytest.mark.slow
def test_the_stock_shell_is_never_locked_out(tmp_path: Path) -> None:
    """The documented queries, one after the other, beside a writer that commits some hundred times a second."""
    with writer(tmp_path / "state", pause_s=0.005) as run:
        began = time.monotonic()
        for n in range(QUERIES):
            name, query = EXAMPLES[n % len(EXAMPLES)]
            result = shell(tmp_path / "state" / name, query)
            assert (result.returncode, result.stderr) == (0, ""), query
        print(f"{QUERIES} queries in {time.monotonic() - began:.0f} s")
        assert run.alive()


@needs_shell
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may only read")
def test_a_group_member_who_may_not_write_reads_in_every_state() -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65533", "--groups=60000")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    state_dir = base / "state"

    def check() -> None:
        for name, query in EXAMPLES:
            result = shell(state_dir / name, query, *nobody)
            assert (result.returncode, result.stderr) == (0, ""), query
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
            assert run.end(signal.SIGTERM) == 0
        assert not (state_dir / "metrics.db-wal").exists()
        check()  # cleanly stopped
        with writer(state_dir) as run:
            run.kill()
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
