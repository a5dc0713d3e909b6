"""The probe on a real card, beside nvidia-smi. Skipped where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.gpu.client import ChildLink, Probe
from agent.gpu.protocol import Seen
from tests.support import gpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is None, reason="needs a real NVIDIA GPU"
    ),
]

EXACT = {
    "pcie.link.width.max": "gpu_pcie_link_width_max",
    "ecc.errors.corrected.volatile.total": "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
    "ecc.errors.uncorrected.volatile.total": "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    "ecc.errors.uncorrected.aggregate.total": "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
    "power.limit": "gpu_power_limit_watts",
    "memory.reserved": "DCGM_FI_DEV_FB_RESERVED",
}
NEAR = {
    "temperature.gpu": ("DCGM_FI_DEV_GPU_TEMP", 4),
    "temperature.memory": ("DCGM_FI_DEV_MEMORY_TEMP", 4),
    "power.draw": ("DCGM_FI_DEV_POWER_USAGE", 60),
    "memory.used": ("DCGM_FI_DEV_FB_USED", 600),
    "memory.free": ("DCGM_FI_DEV_FB_FREE", 600),
    "utilization.gpu": ("DCGM_FI_DEV_GPU_UTIL", 60),
    "clocks.mem": ("DCGM_FI_DEV_MEM_CLOCK", 3000),
    "pcie.link.width.current": ("gpu_pcie_link_width", 16),
}
"""What may move between two looks, and how far."""


def smi() -> dict[str, dict[str, str]]:
    """nvidia-smi's own table, by UUID; a field that a card does not have says so in brackets."""
    fields = ["uuid", "name", "driver_version", *EXACT, *NEAR]
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return {row[0]: dict(zip(fields, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("gpu")

    async def story() -> Seen:
        probe = Probe(ChildLink(folder / "gpu.lock"), SystemClock(), folder)
        try:
            return await gpus.until(probe, lambda seen: seen.state == "ready" and all(g.values for g in seen.gpus))
        finally:
            await probe.close()
            await gpus.gone(folder)

    return asyncio.run(story())


def test_the_same_cards_and_driver(seen: Seen) -> None:
    table = smi()
    assert {gpu.uuid: gpu.name for gpu in seen.gpus} == {uuid: row["name"] for uuid, row in table.items()}
    assert {seen.driver_version} == {row["driver_version"] for row in table.values()}


def test_the_same_values_and_the_same_ones_missing(seen: Seen) -> None:
    table = smi()
    for gpu in seen.gpus:
        found = gpus.values(gpu)
        for field, metric in EXACT.items():
            compare(field, table[gpu.uuid][field], found.get((metric,)), 1)
        for field, (metric, off) in NEAR.items():
            compare(field, table[gpu.uuid][field], found.get((metric,)), off)


def compare(field: str, theirs: str, ours: float | None, off: float) -> None:
    if theirs.startswith("["):
        assert ours is None, f"{field}: nvidia-smi has none, we say {ours}"
    else:
        assert ours is not None, f"{field}: nvidia-smi says {theirs}, we have none"
        assert abs(float(theirs) - ours) <= off, f"{field}: nvidia-smi says {theirs}, we say {ours}"


def test_energy_grows_and_calls_take_milliseconds(tmp_path: Path) -> None:
    async def story() -> tuple[Seen, Seen]:
        probe = Probe(ChildLink(tmp_path / "gpu.lock"), SystemClock(), tmp_path)
        try:
            first = await gpus.until(probe, lambda seen: seen.state == "ready")
            await asyncio.sleep(2)
            return first, await probe.read()
        finally:
            await probe.close()
            await gpus.gone(tmp_path)

    first, second = asyncio.run(story())
    name = ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",)
    for before, after in zip(first.gpus, second.gpus, strict=True):
        if name in gpus.values(before):
            assert gpus.values(after)[name] > gpus.values(before)[name]
    print({call.call: f"{call.seconds * 1000:.2f} ms" for call in second.calls})
    assert all(call.seconds < 0.5 for call in second.calls if call.call != "nvmlEventSetWait_v2")
