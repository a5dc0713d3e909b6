"""What every benchmark needs: results beside a goal, the cost of a process and its children, peers on loopback.

A benchmark is a module with ``def measure() -> Iterable[Result]``. Compare only figures of one run: the same code
varies by a third from minute to minute on a shared host.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """An upper bound on our own figure, or on its ratio to the peer's."""

    at_most: float
    of: Literal["ratio", "ours"] = "ratio"


@dataclass(frozen=True, slots=True)
class Result:
    """One promise, measured. ``theirs`` is None where there is no peer, or ``peer`` says that it could not be had."""

    benchmark: str
    metric: str
    unit: str
    ours: float
    goal: Goal
    peer: str = ""
    theirs: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where the peer that it is measured by could not be had."""
        figure = self.ratio if self.goal.of == "ratio" else self.ours
        return None if figure is None else figure <= self.goal.at_most

    def line(self) -> str:
        """The result as one line of JSON."""
        facts = {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "peer": self.peer,
            "theirs": _rounded(self.theirs),
            "ratio": _rounded(self.ratio),
            "goal": f"<= {self.goal.at_most:g}",
            "met": self.met,
        }
        return json.dumps(facts)


def table(results: Iterable[Result]) -> str:
    """Results as a Markdown table, as the README shows them."""
    rows = ["| benchmark | metric | ours | peer | theirs | ratio | goal | met |", "|---|---|---|---|---|---|---|---|"]
    for result in results:
        goal = f"{'ratio ' if result.goal.of == 'ratio' else ''}<= {result.goal.at_most:g}"
        met = {True: "yes", False: "**no**", None: "not compared"}[result.met]
        unit = f" {result.unit}".rstrip()
        theirs = "" if result.theirs is None else f"{_rounded(result.theirs)}{unit}"
        cells = (
            result.benchmark,
            result.metric,
            f"{_rounded(result.ours)}{unit}",
            result.peer,
            theirs,
            "" if result.ratio is None else f"{result.ratio:.2f}",
            goal,
            met,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process, its threads, and its children, ended ones included.

    The process's own are its CPU clock, in nanoseconds (clock_getcpuclockid(3) makes its number from the pid): the
    ticks of /proc/PID/stat are ten milliseconds, half a minute of an idle agent. Ended children come from there.
    """
    cpu_clock = (~pid << 3) | 2
    with open(f"/proc/{pid}/stat", "rb") as file:
        words = file.read().rpartition(b")")[2].split()
    ended_s = (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(cpu_clock) + ended_s + sum(map(cpu_s, children(pid)))


def pss_bytes(pid: int) -> int:
    """Memory of a process and its children, shared pages counted in proportion."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        own = next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return own + sum(map(pss_bytes, children(pid)))


def children(pid: int) -> list[int]:
    """The living children of a process, of all its threads."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def version_of(program: str) -> str | None:
    """The first line in which an installed program names its version; None where it is not installed."""
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0]


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end; what it has to complain about is seen."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def connect(port: int, patience_s: float = 10.0) -> http.client.HTTPConnection:
    """A kept connection to a server of loopback, once it answers."""
    until = time.monotonic() + patience_s
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.connect()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return connection


def paced(seconds: float, interval_s: float = 1.0) -> Iterator[int]:
    """Counts the ticks of an interval for some seconds, sleeping in between.

    Costs must be measured at the pace of life: in a tight loop caches are warm and wake-ups free, and all is two to
    three times too cheap.
    """
    start = time.monotonic()
    for tick in range(int(seconds / interval_s)):
        time.sleep(max(0.0, start + tick * interval_s - time.monotonic()))
        yield tick
    time.sleep(max(0.0, start + seconds - time.monotonic()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
