"""How fast the real agent is: from a written line to its event, from an alert to its handler, start, stop, status."""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.common import Agent, Goal, Result, as_installed, percentile, started

LINES = 250
ACTIONS = 120
STARTS = 5
STATUS_RUNS = 15
POLL_S = 0.0003
PATIENCE_S = 30.0
SETTLED_S = 1.0

EVENTS = "event WHERE kind = 'log_match'"

CONFIG = "mode: act\nremediation: {boot_grace: 0}\n"
RULES = """
groups:
  - name: bench
    rules:
      - alert: Asked
        expr: increase(log_matches_total{pattern=~"ask_.", n!=""}[2s]) > 0
        on_missing: clear
        remediation: {cooldown: 0s, limit: 100000 per day, steps: [{notify: {message: asked}}]}
patterns:
  - {name: told, regex: 'told number (\\d+)'}
  - {name: ask_0, regex: 'asks number (?P<n>\\d*[02468]) '}
  - {name: ask_1, regex: 'asks number (?P<n>\\d*[13579]) '}
"""
"""Two patterns ask: one keeps at most a hundred sets of labels apart."""


def measure() -> Iterable[Result]:
    """All of it, on one machine as it is now."""
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder), CONFIG, RULES)
        log = agent.folder / "log" / "app.log"
        log.touch()
        with agent.running():
            told_ms = [1000 * seconds for seconds in _told(agent, log)]
            asked_ms = [1000 * seconds for seconds in _asked(agent, log)]
            status_ms = [1000 * seconds for seconds in _status(agent)]
    starts, stops = zip(*(_start_and_stop() for _ in range(STARTS)), strict=True)
    yield _result("appended line → event committed, p50", "ms", percentile(told_ms, 50), 5)
    yield _result("appended line → event committed, p99", "ms", percentile(told_ms, 99), 25)
    yield _result("alert + action → handler started, p99", "ms", percentile(asked_ms, 99), 20)
    yield _result("upkeep status, median", "ms", statistics.median(status_ms), 150)
    yield _result("start → first sample committed, median", "ms", 1000 * statistics.median(starts), 300)
    yield _result("SIGTERM → everything put away, the slowest", "s", max(stops), 2)


def _result(promise: str, unit: str, ours: float, at_most: float) -> Result:
    return Result("latency", promise, unit, ours, Goal(at_most, "ours"))


def _told(agent: Agent, log: Path) -> Iterator[float]:
    """Seconds from each write until another process can read its event."""
    with _reading(agent.state / "metrics.db") as reader, log.open("a", buffering=1) as file:
        for number in range(LINES):
            time.sleep(random.uniform(0.05, 0.2))
            began = time.perf_counter()
            file.write(f"told number {number}\n")
            wanted = number + 1
            _until(lambda wanted=wanted: _count(reader, EVENTS) == wanted, f"the event of line {number}")  # type: ignore[misc]
            yield time.perf_counter() - began


def _asked(agent: Agent, log: Path) -> list[float]:
    """Seconds from each commit of an alert with its action until the handler was called, by the agent's own log.

    Each line makes an alert of its own, which clears two seconds later.
    """
    with log.open("a", buffering=1) as file:
        for number in range(ACTIONS):
            time.sleep(random.uniform(0.27, 0.4))  # counters of a file are sampled four times a second
            file.write(f"asks number {number} \n")
    _until(lambda: len(_instants(agent, " action_started ")) >= ACTIONS, "the last action")
    committed, called = _instants(agent, " alert_firing rule=Asked "), _instants(agent, " action_started ")
    return [after - before for before, after in zip(committed, called, strict=True)]


def _instants(agent: Agent, word: str) -> list[float]:
    """When the agent logged this word, to the millisecond."""
    lines = (agent.folder / "agent.log").read_text().splitlines()
    return [datetime.fromisoformat(line[:23].replace(",", ".")).timestamp() for line in lines if word in line]


def _status(agent: Agent) -> Iterator[float]:
    """Seconds that ``upkeep status`` takes, as a process of its own, once it was compiled."""
    command = agent.command("status")
    for number in range(STATUS_RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=as_installed())
        if number > 0:
            yield time.perf_counter() - began


def _start_and_stop() -> tuple[float, float]:
    """Seconds from the start of the process to its first sample, and from SIGTERM to its end."""
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder))
        began = time.perf_counter()
        with started(agent.command("run")) as process:
            _until(lambda: _sampled(agent.state / "metrics.db"), "the first sample")
            first_sample_s = time.perf_counter() - began
            time.sleep(SETTLED_S)
            began = time.perf_counter()
            process.terminate()
            process.wait()
            return first_sample_s, time.perf_counter() - began


def _sampled(path: Path) -> bool:
    if not path.with_suffix(".db-wal").exists():
        return False  # it is being made: a reader would only stand in the way
    try:
        with _reading(path) as reader:
            return _count(reader, "tick") > 0
    except sqlite3.OperationalError:
        return False  # no tables yet


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        yield connection


def _count(reader: sqlite3.Connection, rows: str) -> int:
    [(found,)] = reader.execute(f"SELECT count(*) FROM {rows}")
    return int(found)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(POLL_S)
