"""What every benchmark needs: results beside a goal, a real agent, the cost of processes, peers on loopback.

A benchmark is a module with ``def measure() -> Iterable[Result]``. Compare only figures of one run: the same code
varies by a third from minute to minute on a shared host.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on our own figure, or on its ratio to the peer's."""

    bound: float
    of: Literal["ratio", "ours"] = "ratio"
    sense: Literal["<=", ">="] = "<="

    def met_by(self, figure: float) -> bool:
        return figure <= self.bound if self.sense == "<=" else figure >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """One promise, measured; without a goal, a figure that only informs.

    ``theirs`` is None where there is no peer, or ``peer`` says that it could not be had.
    """

    benchmark: str
    metric: str
    unit: str
    ours: float
    goal: Goal | None = None
    peer: str = ""
    theirs: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal, or where the peer that it is measured by could not be had."""
        if self.goal is None:
            return None
        figure = self.ratio if self.goal.of == "ratio" else self.ours
        return None if figure is None else self.goal.met_by(figure)

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
            "goal": str(self.goal) if self.goal else None,
            "met": self.met,
        }
        return json.dumps(facts)


def table(results: Iterable[Result]) -> str:
    """Results as a Markdown table, as the README shows them."""
    rows = ["| benchmark | promise | ours | peer | theirs | ratio | goal | met |", "|---|---|---|---|---|---|---|---|"]
    for result in results:
        cells = (
            result.benchmark,
            result.metric,
            _figure(result.ours, result.unit),
            result.peer,
            _figure(result.theirs, result.unit),
            "" if result.ratio is None else f"{result.ratio:.2f}",
            _goal(result.goal),
            _verdict(result),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_rounded(value):g} {unit}".rstrip()


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return ""
    return f"ratio {goal}" if goal.of == "ratio" else str(goal)


def _verdict(result: Result) -> str:
    if result.goal is None:
        return ""
    return {True: "yes", False: "**no**", None: "not compared"}[result.met]


def as_installed() -> dict[str, str]:
    """An environment in which Python keeps what it compiled, as an installed agent finds it; else each start compiles.

    The first start fills it: measure from the second on.
    """
    compiled = os.path.join(tempfile.gettempdir(), f"upkeep-bench-{os.getuid()}")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": compiled}


class Agent:
    """A real ``upkeep run`` on a folder of its own, without rules for directories and without a socket.

    Parameters
    ----------
    folder
        Where its configuration, its state, its logs (``log/``) and its own output go.
    config, rules
        YAML that is added to the configuration; the text of a rule file.
    collect
        What is added to the key ``collect``, in YAML's flow style.
    """

    def __init__(self, folder: Path, config: str = "", rules: str = "", collect: str = "") -> None:
        self.folder, self.state = folder, folder / "state"
        self.config = folder / "upkeep.yaml"
        (folder / "log").mkdir()
        self.config.write_text(
            f"state_dir: {self.state}\nrule_files: [rules.yaml]\n"
            f"collect: {{interval: 1s, directories: false{collect and ', ' + collect}}}\n"
            f"logs: [{{paths: [{folder}/log/*.log]}}]\n{config}"
        )
        (folder / "rules.yaml").write_text(rules or "groups: []\n")
        for path in (self.config, folder / "rules.yaml"):
            path.chmod(0o644)  # files that others may write are refused

    def command(self, *words: str) -> list[str]:
        """The command line of one of upkeep's commands on this agent."""
        return [sys.executable, "-P", "-m", "agent", *words, "--config", str(self.config)]

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The agent, from when it says that it has started; it is stopped at the end.

        Raises
        ------
        RuntimeError
            It ended, with its output.
        """
        output = self.folder / "agent.log"
        with output.open("wb") as file, started(self.command("run", "-v"), stderr=file) as process:
            while "agent_started" not in output.read_text():
                if process.poll() is not None:
                    raise RuntimeError(f"cannot start the agent:\n{output.read_text()}")
                time.sleep(0.02)
            yield process


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
def started(command: Sequence[str], stderr: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end; what it has to complain about is seen."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=as_installed())
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


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that at least ``percent`` of a hundred do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
