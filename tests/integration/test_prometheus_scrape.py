"""Debian's Prometheus scrapes what the real collectors read, and finds no fault with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.collectors import build
from agent.config import Collect
from agent.metrics import METRICS
from agent.model import Event
from agent.sampler import Sampler
from tests.support.site import Site, site

SCRAPES = 5
PATIENCE_S = 30.0


def needed() -> str:
    path = shutil.which("prometheus")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("prometheus is not installed (Debian package)")
    return path


@contextlib.asynccontextmanager
async def prometheus(folder: Path, port: int) -> AsyncIterator[str]:
    """It scrapes our port every second; gives the address of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{probe.getsockname()[1]}"
    jobs = [{"job_name": "upkeep", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    (folder / "prometheus.yml").write_text(json.dumps({"global": every, "scrape_configs": jobs}))
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            needed(),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={own}",
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        yield f"http://{own}"
    finally:
        process.terminate()
        await process.wait()


async def api(address: str, path: str) -> Any:
    """The data of one call; None while it does not answer yet."""

    def call() -> Any:
        try:
            with urllib.request.urlopen(f"{address}/api/v1/{path}", timeout=5) as answer:
                return json.load(answer)["data"]
        except (urllib.error.URLError, ConnectionError):
            return None

    return await asyncio.to_thread(call)


async def value_of(address: str, query: str) -> float | None:
    data = await api(address, f"query?query={urllib.parse.quote(query)}")
    return float(data["result"][0]["value"][1]) if data and data["result"] else None


async def scraped(address: str) -> None:
    """Wait until it has tried often enough."""
    for _ in range(round(4 * PATIENCE_S)):
        if await value_of(address, f'count_over_time(up{{job="upkeep"}}[1m]) >= {SCRAPES}'):
            return
        await asyncio.sleep(0.25)
    pytest.fail(f"Prometheus did not scrape {SCRAPES} times within {PATIENCE_S:g} s")


@contextlib.asynccontextmanager
async def sampling(running: Site) -> AsyncIterator[None]:
    """The real collectors, every half second."""

    async def tell(event: Event) -> None:
        pytest.fail(f"a collector failed: {event.message}")

    sources = build(Collect(interval=0.5), [])
    sampler = Sampler(sources, running.store.metrics.append, SystemClock(), tell)
    task = asyncio.create_task(sampler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await sampler.close()


def test_prometheus_scrapes_without_an_error(tmp_path: Path) -> None:
    needed()

    async def main() -> None:
        state = tmp_path / "state"
        async with (
            site(state, SystemClock()) as running,
            sampling(running),
            prometheus(tmp_path, running.port) as address,
        ):
            await scraped(address)
            assert await value_of(address, 'min_over_time(up{job="upkeep"}[1m])') == 1
            [target] = (await api(address, "targets"))["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")

            page = (await running.ask("/metrics")).text
            ours = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
            theirs = set(await api(address, "label/__name__/values"))
            assert ours <= theirs
            assert len(ours & METRICS.keys()) > 60
            total = await value_of(address, "node_memory_MemTotal_bytes")
            assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

            said = {name: entries[0] for name, entries in (await api(address, "metadata?limit=10000")).items()}
            for name in ours & METRICS.keys():
                # Asked as OpenMetrics, it knows a counter by its family; what has no such suffix is "unknown" to both.
                entry = said.get(name) or said[name.removesuffix("_total").removesuffix("_info")]
                assert entry["help"] == METRICS[name].help
                assert entry["type"] == METRICS[name].type.replace("untyped", "unknown")
            log = (tmp_path / "prometheus.log").read_text()
        faults = [line for line in log.splitlines() if "level=warn" in line or "level=error" in line]
        assert faults == []

    asyncio.run(main())
