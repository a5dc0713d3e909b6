"""The main job with the real process: sample, watch, judge, repair, prove, report; and the same through kill -9."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.faultpoint import POINTS
from tests.support.running import Host, scratch_host, until, upkeep

MIB = 1024 * 1024
IN_LOG_CARE = frozenset({"pack_written", "pack_named", "rotate_made"})
"""Points that no job here passes: tests/faults/test_log_care.py kills there."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with scratch_host(tmp_path) as host:
        yield host


def sql(host: Host, statement: str) -> list[dict[str, object]]:
    return json.loads(upkeep("sql", statement, "--json", config=host.config).stdout)  # type: ignore[no-any-return]


def test_a_cache_over_its_limit_is_cleaned_proven_and_told(host: Host, tmp_path: Path) -> None:
    files = host.fill(12)
    held = os.open(files[0], os.O_RDONLY)
    os.link(files[1], tmp_path / "second-name")
    host.start()
    [action] = until(lambda: host.actions(handler="clean_cache", outcome="fixed"), "the cache to be cleaned")
    assert action["status"] == "done"
    assert action["bytes_freed"] >= 6 * MIB
    assert action["bytes_removed"] == 8 * MIB
    assert [path for path in files if path.exists()] == [files[0], files[1], *files[10:]], "open and linked files stay"
    os.close(held)
    until(lambda: all(alert["state"] == "inactive" for alert in host.alerts()), "the alert to clear")

    log = host.logs / "worker.log"
    log.write_text("starting\n")
    until(lambda: host.json("query", "log_lines_total"), "the log to be watched")
    with log.open("a") as file:
        file.write("2026-01-01 ERROR worker 3: CUDA out of memory. GPU 0\n")
    [told] = until(lambda: host.actions(rule="OutOfMemory", status="done"), "the log line's action")
    assert told["handler"] == "notify"
    assert told["labels"]["gpu"] == "0"
    [event] = host.json("events", "--kind", "log_match")
    assert event["labels"]["pattern"] == "cuda_out_of_memory"
    assert "CUDA out of memory" in event["message"]

    [row] = sql(host, "SELECT * FROM actions WHERE handler = 'clean_cache'")
    assert (row["outcome"], row["rule"]) == ("fixed", "CacheTooLarge")
    assert row["bytes_freed"] == action["bytes_freed"]
    assert len(sql(host, f"SELECT * FROM action_items WHERE action_id = {row['id']} AND result = 'done'")) == 8
    stock = subprocess.run(
        ["sqlite3", str(host.state / "ledger.db"), "SELECT outcome FROM actions WHERE handler = 'clean_cache'"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert stock.stdout.strip() == "fixed"

    upkeep("report", "weekly", "--out", str(tmp_path / "out"), config=host.config)
    [page] = (tmp_path / "out").glob("*.html")
    [twin] = (tmp_path / "out").glob("*.txt")
    for text in (page.read_text(), twin.read_text()):
        assert "clean_cache" in text
        assert "CacheTooLarge" in text
        assert "fixed" in text
    assert host.stop() < 2.0


@pytest.mark.parametrize("point", sorted(set(POINTS) - IN_LOG_CARE))
def test_killed_at_any_labelled_instant_nothing_is_lost_and_nothing_done_twice(host: Host, point: str) -> None:
    files = host.fill(12)
    process = host.start(wait=False, UPKEEP_FAULTPOINT=point)
    assert process.wait(timeout=40) == -signal.SIGKILL, f"{point} was never reached: {host.log()[-2000:]}"
    host.start()
    fixed = until(
        lambda: host.actions(handler="clean_cache", outcome="fixed") or cleared(host), f"recovery after {point}"
    )
    until(lambda: all(alert["state"] == "inactive" for alert in host.alerts()), "the alert to clear")
    host.stop()

    left = [path for path in files if path.exists()]
    assert left == files[8:], "the oldest went, and not one more than the plan said"
    actions = host.actions(handler="clean_cache")
    assert all(action["status"] in ("done", "interrupted", "refused") for action in actions)
    assert sum(action["outcome"] == "fixed" for action in actions) <= 1
    assert len(fixed) <= 1
    keys = [(a["rule"], str(a["labels"]), a["step"], a["attempt"], a["time"]) for a in actions]
    assert len(keys) == len(set(keys))
    assert not host.actions(handler="notify"), "the ladder never needed its next rung"
    for name in ("metrics.db", "ledger.db"):
        with sqlite3.connect(host.state / name) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    removed = {}
    for action in actions:
        for item in host.json("actions", str(action["id"]))["items"]:
            if item["result"] == "done":
                removed[item["target"]] = removed.get(item["target"], 0) + 1
    assert all(count == 1 for count in removed.values()), "no file is told removed twice"


def cleared(host: Host) -> list[dict[str, object]]:
    """The alert cleared because the files went before the crash: the second attempt had nothing left to do."""
    gone = not any(alert["state"] != "inactive" for alert in host.alerts())
    interrupted = host.actions(handler="clean_cache", status="interrupted")
    return interrupted if gone and interrupted else []


def test_a_second_agent_on_the_same_state_directory_says_so_and_ends(host: Host) -> None:
    host.start()
    second = upkeep("run", "--config", str(host.config), status=75)
    assert "another" in second.stderr
    assert host.process is not None
    assert host.process.poll() is None


def test_observe_mode_plans_and_changes_nothing(host: Host) -> None:
    host.write(mode="observe")
    files = host.fill(12)
    host.start()
    [action] = until(lambda: host.actions(handler="clean_cache", status="observed"), "the plan to be recorded")
    assert action["planned_bytes"] == 8 * MIB
    assert action["reason"] == "observe_mode"
    assert all(path.exists() for path in files)


def test_a_bad_rule_file_at_reload_changes_nothing_and_says_why(host: Host) -> None:
    host.start()
    good = host.rules.read_text()
    host.rules.write_text(good.replace("alert: OutOfMemory", "alrt: OutOfMemory"))
    assert host.process is not None
    host.process.send_signal(signal.SIGHUP)
    [event] = until(lambda: host.json("events", "--kind", "reload_refused"), "the refusal")
    assert 'unknown key "alrt" (did you mean "alert"?)' in event["message"]
    host.fill(12)
    until(lambda: host.actions(handler="clean_cache", outcome="fixed"), "the old rules to go on")
    host.rules.write_text(good.replace("8 * 1024^2", "900 * 1024^2"))
    host.process.send_signal(signal.SIGHUP)
    until(lambda: host.json("events", "--kind", "reloaded"), "the good file to be taken")


def test_pause_stops_acting_and_resume_lets_it_go_on(host: Host) -> None:
    host.start()
    upkeep("pause", config=host.config)
    files = host.fill(12)
    until(lambda: host.actions(handler="clean_cache", reason="paused"), "the brake to hold")
    assert all(path.exists() for path in files)
    upkeep("resume", config=host.config)
    until(lambda: host.actions(handler="clean_cache", outcome="fixed"), "the action to go on")


def test_once_makes_one_pass_of_everything(host: Host) -> None:
    host.fill(12)
    upkeep("run", "--once", config=host.config)
    [action] = host.actions(handler="clean_cache")
    assert action["outcome"] == "fixed"


def test_a_person_may_apply_a_handler_with_and_without_the_agent(host: Host) -> None:
    host.write(rules="", mode="observe")
    host.fill(6)
    done = upkeep(
        "apply", "clean_cache", f"path={host.cache}", "down_to=4MiB", "use=mtime", "--yes", config=host.config
    )
    assert "fixed" in done.stdout
    host.fill(6)
    host.start()
    done = upkeep(
        "apply", "clean_cache", f"path={host.cache}", "down_to=2MiB", "use=mtime", "--yes", config=host.config
    )
    assert "fixed" in done.stdout
    assert {action["cause"].split()[0] for action in host.actions()} == {"person"}


IDLE = """
import asyncio, json, sys
from agent import config
from agent.app import Agent

async def main():
    agent = Agent(config.load(sys.argv[1]))
    running = asyncio.create_task(agent.run())
    await agent.ready.wait()
    await asyncio.sleep(2.5)
    print(json.dumps(sorted(sys.modules)))
    agent.stop()
    await running

asyncio.run(main())
"""


def test_the_idle_agent_loads_nothing_heavy(host: Host) -> None:
    (host.logs / "worker.log").write_text("an ordinary line\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", IDLE, str(host.config)], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "agent" in loaded
    heavy = {
        "matplotlib",
        "aiobotocore",
        "botocore",
        "aiohttp",
        "redis",
        "pydantic",
        "jinja2",
        "numpy",
        "yaml",
        "rich",
        "pandas",
    }
    assert not loaded & heavy
