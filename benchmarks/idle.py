"""The idle agent beside node_exporter with the same collectors, once a second, in the same minute.

Ours is the real ``upkeep run`` with its shipped rules, a log that nobody writes, and nothing to do: it samples, commits
and judges; node_exporter formats text and serves it. It is asked for plain text over one kept connection, which is the
cheapest for it. Ours measures more: paging, pressure, TCP, link states and itself come on top.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

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
PEER_COLLECTORS = ("cpu", "meminfo", "loadavg", "filesystem", "diskstats", "netdev", "stat")
MIB = 2**20


def measure() -> Iterable[Result]:
    """Processor time and memory, ours and node_exporter's; the memory of the hands, which an idle agent has not."""
    version = version_of(PEER)
    peer = "node_exporter " + version.split("version ")[1].split()[0] if version else f"{PEER}: not installed"
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder))
        (agent.folder / "log" / "quiet.log").touch()
        with agent.running() as process:
            ours_s, ours_bytes, theirs_s, theirs_bytes = (
                _beside_peer(process.pid) if version else (*_alone(process.pid), None, None)
            )
        hands_bytes = asyncio.run(_hands(agent.folder / "log"))
    milliseconds = 1000 / SECONDS
    theirs_ms = None if theirs_s is None else theirs_s * milliseconds
    theirs_mib = None if theirs_bytes is None else theirs_bytes / MIB
    yield Result("idle", "CPU a second, idle", "ms", ours_s * milliseconds, Goal(0.35), peer, theirs_ms)
    yield Result("idle", "memory (PSS), idle", "MiB", ours_bytes / MIB, Goal(36.0, "ours"), peer, theirs_mib)
    yield Result("idle", "memory (PSS) of the hands, once there was something to do", "MiB", hands_bytes / MIB)


def _beside_peer(pid: int) -> tuple[float, int, float, int]:
    port = free_port()
    flags = [
        "--log.level=error",
        "--collector.disable-defaults",
        *(f"--collector.{name}" for name in PEER_COLLECTORS),
        f"--collector.filesystem.mount-points-exclude={MOUNT_POINTS_LEFT_OUT}",  # both measure the same mounts
    ]
    with started([PEER, f"--web.listen-address=127.0.0.1:{port}", *flags]) as peer:
        connection = connect(port)

        def scrape_for(seconds: float) -> None:
            for _ in paced(seconds):
                connection.request("GET", "/metrics")
                connection.getresponse().read()

        scrape_for(WARM_UP_S)
        before = cpu_s(pid), cpu_s(peer.pid)
        scrape_for(SECONDS)
        after = cpu_s(pid), cpu_s(peer.pid)
        connection.close()
        return after[0] - before[0], pss_bytes(pid), after[1] - before[1], pss_bytes(peer.pid)


def _alone(pid: int) -> tuple[float, int]:
    time.sleep(WARM_UP_S)
    before = cpu_s(pid)
    time.sleep(SECONDS)
    return cpu_s(pid) - before, pss_bytes(pid)


async def _hands(root: Path) -> int:
    """The hands as the agent starts them, after their first answer."""
    before = set(children(os.getpid()))
    hands = OpsClient.spawn(Policy((str(root),)), SystemClock())
    await hands.measure(str(root))
    [pid] = set(children(os.getpid())) - before
    held = pss_bytes(pid)
    await hands.close()
    return held
