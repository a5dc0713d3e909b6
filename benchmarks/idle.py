"""The idle agent beside node_exporter with the same collectors at the same paces, in the same minute.

Ours is the real ``upkeep run`` with its shipped rules, a log that nobody writes, and nothing to do: it samples, judges
and commits, once with the same collectors and once with all that run by default; node_exporter formats text and serves
it. What ours reads once a second is asked of one node_exporter once a second, what it reads every ten seconds
(docs/decisions/051) of a second one every ten: of both for plain text over a kept connection, which is the cheapest for
them. A third has its default set, and is asked for all of it once a second, as a scrape at that pace would.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from agent.clock import SystemClock
from agent.collectors.filesystem import MOUNT_POINTS_LEFT_OUT
from agent.ops.client import OpsClient
from agent.ops.policy import Policy
from benchmarks.common import (
    Agent,
    Goal,
    Result,
    children,
    connect,
    cpu_s,
    free_port,
    paced,
    pss_bytes,
    started,
    version_of,
)

WARM_UP_S = 5
SECONDS = 60
PEER = "prometheus-node-exporter"
OFTEN = ("cpu", "meminfo", "loadavg", "filesystem", "diskstats", "netdev", "stat")
SELDOM = ("vmstat", "pressure", "filefd", "netstat", "sockstat", "conntrack", "netclass")
SELDOM_S = 10
NOT_THEIRS = "gpu: false, kernel: false, hardware: false, cgroups: false, processes: false, updates: false"
"""What node_exporter has no collector for in these two sets."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds over :data:`SECONDS`, and memory."""

    cpu_s: float
    pss_bytes: int


def measure() -> Iterable[Result]:
    """Processor time and memory, ours and node_exporter's; the memory of the hands, which an idle agent has not."""
    version = version_of(PEER)
    peer = "node_exporter " + version.split("version ")[1].split()[0] if version else f"{PEER}: not installed"
    with tempfile.TemporaryDirectory() as same_folder, tempfile.TemporaryDirectory() as folder:
        same, agent = Agent(Path(same_folder), collect=NOT_THEIRS), Agent(Path(folder))
        for each in (same, agent):
            (each.folder / "log" / "quiet.log").touch()
        with same.running() as process_of_same, agent.running() as process:
            pids = [process_of_same.pid, process.pid]
            ours, whole, *theirs = _beside_peers(pids) if version else _costs(pids, _wait)
        hands_bytes = asyncio.run(_hands(agent.folder / "log"))
    often, seldom, default = theirs or (None, None, None)
    their_s = often.cpu_s + seldom.cpu_s if often and seldom else None
    yield Result(
        "idle", "CPU a second, same collectors and paces", "ms", _ms(ours.cpu_s), Goal(0.35), peer, _ms(their_s)
    )
    if often:
        only = f"{peer}, seven cheapest"
        yield Result(
            "idle",
            "CPU a second, beside those once a second alone",
            "ms",
            _ms(ours.cpu_s),
            None,
            only,
            _ms(often.cpu_s),
        )
    their_default_s = default.cpu_s if default else None
    metric, only = "CPU a second, beside its default set", f"{peer}, defaults"
    yield Result("idle", metric, "ms", _ms(ours.cpu_s), Goal(0.1), only, _ms(their_default_s))
    yield Result("idle", "share of a core, all collectors", "%", _ms(whole.cpu_s) / 10, Goal(0.25, "ours"))
    yield Result("idle", "share of a core, same collectors", "%", _ms(ours.cpu_s) / 10, Goal(0.12, "ours"))
    their_mib = often.pss_bytes / MIB if often else None
    yield Result("idle", "memory (PSS)", "MiB", whole.pss_bytes / MIB, Goal(36.0, "ours"), peer, their_mib)
    yield Result("idle", "memory (PSS) of the hands, once they had work", "MiB", hands_bytes / MIB)


@overload
def _ms(cpu_s: float) -> float: ...
@overload
def _ms(cpu_s: None) -> None: ...
def _ms(cpu_s: float | None) -> float | None:
    """Milliseconds a second."""
    return None if cpu_s is None else 1000 * cpu_s / SECONDS


def _beside_peers(pids: Sequence[int]) -> list[Cost]:
    """Ours, and those of the node_exporters that are asked often, seldom, and for all of their default set."""
    with (
        _exporter(OFTEN) as (often, ask_often),
        _exporter(SELDOM, "--web.disable-exporter-metrics") as (seldom, ask_seldom),
        _exporter(()) as (default, ask_default),
    ):

        def ask(seconds: int) -> None:
            for tick in paced(seconds):
                ask_often()
                ask_default()
                if tick % SELDOM_S == 0:
                    ask_seldom()

        return _costs([*pids, often, seldom, default], ask)


@contextmanager
def _exporter(collectors: Sequence[str], *flags: str) -> Iterator[tuple[int, Callable[[], object]]]:
    """A node_exporter with these collectors, or with its default set: its process, and how to ask it."""
    port = free_port()
    command = [
        PEER,
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        *(["--collector.disable-defaults"] if collectors else []),
        *(f"--collector.{name}" for name in collectors),
        f"--collector.filesystem.mount-points-exclude={MOUNT_POINTS_LEFT_OUT}",  # both measure the same mounts
        *flags,
    ]
    with started(command, stderr=subprocess.DEVNULL) as process, closing(connect(port)) as connection:

        def ask() -> None:
            connection.request("GET", "/metrics")
            connection.getresponse().read()

        yield process.pid, ask


def _wait(seconds: int) -> None:
    time.sleep(seconds)


def _costs(pids: Sequence[int], live: Callable[[int], None]) -> list[Cost]:
    """What each process costs while ``live`` lets some seconds pass."""
    live(WARM_UP_S)
    before = [cpu_s(pid) for pid in pids]
    live(SECONDS)
    return [Cost(cpu_s(pid) - was, pss_bytes(pid)) for pid, was in zip(pids, before, strict=True)]


async def _hands(root: Path) -> int:
    """The hands as the agent starts them, after their first answer."""
    before = set(children(os.getpid()))
    hands = OpsClient.spawn(Policy((str(root),)), SystemClock())
    await hands.measure(str(root))
    [pid] = set(children(os.getpid())) - before
    held = pss_bytes(pid)
    await hands.close()
    return held
