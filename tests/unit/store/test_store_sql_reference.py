"""docs/reference/sql.md says what the files have, and its examples run in the stock shell and in ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    Event,
    Outcome,
    Plan,
    PlanItem,
    Reading,
    Sample,
    Severity,
    Skipped,
    Verdict,
)
from agent.store import JobRun, Reader, ReportRecord, Silence, Store
from tests.support.docs import sql_examples

PAGE = (Path(__file__).parents[3] / "docs/reference/sql.md").read_text(encoding="utf-8")
WithStore = Callable[..., None]


def sections() -> list[tuple[str, str, str]]:
    """Each view as (file, name, text)."""
    found = []
    for file, part in re.findall(r"^## (\w+\.db)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S):
        found += [(file, name, text) for name, text in re.findall(r"^### (\w+)$(.*?)(?=^### |\Z)", part, re.M | re.S)]
    return found


EXAMPLES = sql_examples()


@pytest.fixture
def filled(with_store: WithStore, state_dir: Path, clock: ManualClock) -> Path:
    """A store with something in every view, taken just now so that examples about the last hour find it."""
    clock.step_wall(time.time() // 60 * 60 - 171 * 60 - clock.wall())

    async def body(store: Store) -> None:
        gone = Sample("node_load1", 0.5, clock.wall(), (("host", "before"),))
        await store.metrics.append([Reading.of(clock.wall(), [gone])])
        for n in range(160):
            clock.advance(60)
            if n == 80:
                clock.advance(600)  # the agent was off
            at = clock.wall()
            await store.metrics.append(
                [
                    Reading.of(
                        at,
                        [
                            Sample("node_load1", 1.5, at),
                            Sample("node_memory_MemAvailable_bytes", 8e9, at),
                            Sample("node_filesystem_size_bytes", 1e11, at, (("mountpoint", "/"),)),
                            Sample("node_filesystem_avail_bytes", 2e10, at, (("mountpoint", "/"),)),
                            Sample("node_network_receive_bytes_total", n * 1e6, at, (("device", "eth0"),)),
                            Sample("DCGM_FI_DEV_GPU_UTIL", 0.0, at, (("gpu", "0"),)),
                            Sample("DCGM_FI_DEV_FB_USED", 40_000.0, at, (("gpu", "0"),)),
                            Sample("directory_size_bytes", at, at, (("path", "/tmp/evaluation_cache"),)),
                            Sample("eval_latency_seconds", 0.5, at, (("domain", "math"),)),
                            Sample("eval_throughput", 12.0, at, (("domain", "math"),)),
                            Sample("eval_error_ratio", 0.01, at, (("domain", "math"),)),
                        ],
                    )
                ]
            )
            await store.maintain(at)
        labels = (("file", "/a.log"), ("line", "7"), ("pattern", "oom"))
        await store.metrics.add_events([Event("log_match", Severity.ERROR, "boom", "logs", clock.wall(), labels)])
        alert = Alert("A", (("severity", "warning"),), AlertState.FIRING, 2.0, at, at)
        request = Action(0, "alert", "A", alert.labels, at, 0, 0, "clean_cache", {}, "r", ActionStatus.REQUESTED)
        [asked] = await store.ledger.commit_alerts([alert], [request])
        plan = Plan("clean_cache", "r", "remove 1", (PlanItem("unlink", "a", 9),), (Skipped("b", "in_use"),))
        done = replace(
            asked,
            status=ActionStatus.DONE,
            verdict=Verdict.FIXED,
            plan=plan,
            outcome=Outcome(bytes_freed=9),
            started_at=at,
            finished_at=at + 1,
        )
        await store.ledger.save_action(done)
        refused = Action(
            0, "job", "", (), at, 0, 0, "clean_logs", {}, "l", ActionStatus.REFUSED, "outside_window", requested_at=at
        )
        assert await store.ledger.request(refused) is not None
        await store.ledger.save_run(JobRun("logs", at, at))
        await store.ledger.add_silence(Silence("{}", "w", "me", at, 60))
        await store.ledger.add_report(ReportRecord("weekly", 0, at, at, "/r.html", "calm"))
        await store.ledger.keep_rules("a1b2", "groups: []\n")
        assert await store.ledger.mark_alert(1, useful=True, why="", by="me")

    with_store(body)
    return state_dir


def test_every_view_and_column_is_described(filled: Path) -> None:
    with Reader.open(filled) as reader:
        for schema, file in (("main", "metrics.db"), ("ledger", "ledger.db")):
            views = {name for (name,) in reader.sql(f"SELECT name FROM {schema}.sqlite_master WHERE type = 'view'")[1]}
            described = {name for where, name, _ in sections() if where == file}
            assert described == views | ({"series"} if schema == "main" else set())
        for _, name, text in sections():
            columns, rows = reader.sql(f"SELECT * FROM {name}")
            assert re.findall(r"^\| (\w+) \|", text, re.M)[1:] == columns, name
            assert rows, name


def test_every_view_has_an_example() -> None:
    assert {name for _, name, text in sections() if "```sql" not in text} == set()


def test_twenty_questions_are_answered() -> None:
    [questions] = re.findall(r"^## Questions$(.*?)^## ", PAGE, re.M | re.S)
    assert questions.count("```sql") == 20


@pytest.mark.skipif(shutil.which("sqlite3") is None and "CI" not in os.environ, reason="no sqlite3 shell here")
def test_the_examples_find_something_in_both_shells(filled: Path) -> None:
    for file, query in EXAMPLES:
        command = ["sqlite3", "-batch", "-bail", "-readonly", str(filled / file), query]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (result.returncode, result.stderr) == (0, ""), query
        with Reader.open(filled) as reader:
            rows = reader.sql(query)[1]
        assert len(rows) == len(result.stdout.splitlines()) > 0, query
