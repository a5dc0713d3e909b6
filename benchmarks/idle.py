"""The idle agent beside node_exporter with the same collectors, once a second, in the same half minute.

Ours reads and commits to the store; node_exporter formats text and serves it. It is asked for plain text over one kept
connection, which is the cheapest for it. Ours measures more: paging, pressure, TCP, link states and itself come on top.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from agent.collectors.filesystem import MOUNT_POINTS_LEFT_OUT
from benchmarks.common import Goal, Result, connect, cpu_s, free_port, paced, pss_bytes, started, version_of

WARM_UP_S = 3
SECONDS = 30
PEER = "prometheus-node-exporter"
PEER_COLLECTORS = ("cpu", "meminfo", "loadavg", "filesystem", "diskstats", "netdev", "stat")


async def agent(state_dir: Path) -> None:
    """The parts of the agent that run when nothing happens: sampler, collectors of the host, store."""
    from agent.clock import SystemClock
    from agent.collectors import SelfCollector, build
    from agent.config import Collect
    from agent.model import Event
    from agent.sampler import Sampler
    from agent.store import Store
    from agent.store.retention import Retention

    async def tell(event: Event) -> None:
        raise RuntimeError(event.message)

    clock = SystemClock()
    store = await Store.open(state_dir, clock=clock, limits=Retention())
    sources = build(Collect(interval=1.0, directories=None))
    sampler = Sampler(sources, store.metrics.append, clock, tell)
    for source in sources:
        if isinstance(source.collector, SelfCollector):
            source.collector.add(sampler.figures)
    gc.collect()
    gc.freeze()
    await sampler.run()


def measure() -> Iterable[Result]:
    """Processor time and memory, ours and node_exporter's."""
    version = version_of(PEER)
    peer = "node_exporter " + version.split("version ")[1].split()[0] if version else f"{PEER}: not installed"
    with tempfile.TemporaryDirectory() as state_dir:
        Path(state_dir).chmod(0o700)
        with started([sys.executable, "-m", "benchmarks.idle", state_dir]) as ours:
            ours_s, ours_bytes, theirs_s, theirs_bytes = (
                _beside_peer(ours.pid) if version else (*_alone(ours.pid), None, None)
            )
    milliseconds = 1000 / SECONDS
    yield Result(
        "idle",
        "CPU per second, sampled and committed",
        "ms",
        ours_s * milliseconds,
        Goal(0.35),
        peer,
        None if theirs_s is None else theirs_s * milliseconds,
    )
    theirs_mib = None if theirs_bytes is None else theirs_bytes / 2**20
    yield Result("idle", "memory (PSS)", "MiB", ours_bytes / 2**20, Goal(36.0, "ours"), peer, theirs_mib)


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


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(agent(Path(sys.argv[1])))
