"""Driver calls that do not come back: who hangs is named, everything else goes on, nobody is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.collectors.gpu import GpuCollector
from agent.gpu.client import ChildLink, Probe
from agent.kernel.book import Book
from agent.model import Event
from tests.support import gpus
from tests.support.nvml import H100, Stub, hosts, uuid_of
from tests.support.running import REPOSITORY, Host, scratch_host, until

FROZEN_S = 600.0 if os.environ.get("UPKEEP_SOAK") else 20.0


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    made = Stub(tmp_path)
    made.write(hosts(H100, H100, H100))
    return made


@pytest.mark.parametrize("call", ["nvmlDeviceGetFieldValues", "nvmlDeviceGetUtilizationRates"])
def test_one_gpu_that_hangs_costs_its_own_samples_alone(stub: Stub, tmp_path: Path, call: str) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            await probe.read()
            stub.change({f"hang.{call}@1": "-"})
            began = time.monotonic()
            seen = await probe.read()
            assert time.monotonic() - began < 4.5
            assert [gpu.state for gpu in seen.gpus] == ["up", "hung", "up"]
            assert seen.gpus[1].call == call
            assert seen.gpus[0].values
            assert seen.gpus[1].values == ()

            began = time.monotonic()
            assert [gpu.state for gpu in (await probe.read()).gpus] == ["up", "hung", "up"]
            assert time.monotonic() - began < 1.0, "the hung GPU was waited for again"

            stub.change({f"hang.{call}@1": None})
            await gpus.until(probe, lambda seen: all(gpu.state == "up" for gpu in seen.gpus))

    asyncio.run(story())


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID"])
def test_a_session_that_hangs_is_named(stub: Stub, tmp_path: Path, call: str) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            stub.change({f"hang.{call}": "-"})
            seen = await probe.read()
            assert seen.state == "hung"
            assert seen.message.startswith(call.removesuffix("_v2"))
            stub.change({f"hang.{call}": None})
            await gpus.until(probe, lambda seen: seen.state == "ready" and seen.gpus)

    asyncio.run(story())


def test_a_slow_driver_is_no_hung_one(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            stub.change({"slow.nvmlDeviceGetPowerUsage": 400})
            seen = await probe.read()
            assert [gpu.state for gpu in seen.gpus] == ["up"] * 3
            times = {call.call: call.seconds for call in seen.calls}
            assert 0.4 <= times["nvmlDeviceGetPowerUsage"] < 1.5

    asyncio.run(story())


def test_a_probe_that_says_nothing_is_told_within_its_deadline(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path, deadline_s=0.5) as probe:
            await gpus.until(probe, lambda seen: seen.state == "ready")
            pid = gpus.pid_of(tmp_path)
            os.kill(pid, signal.SIGSTOP)
            try:
                assert (await probe.read()).state == "hung"
                assert (await probe.read()).state == "hung"
            finally:
                os.kill(pid, signal.SIGCONT)
            await gpus.until(probe, lambda seen: seen.state == "ready")
            assert gpus.pid_of(tmp_path) == pid

    asyncio.run(story())


def test_no_second_probe_is_started_beside_one_that_hangs(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            stub.change({"hang.nvmlDeviceGetFieldValues": "-"})
            await probe.read()
            first = gpus.pid_of(tmp_path)
            await probe.close()  # as an agent that is stopped
            for _ in range(3):
                async with contextlib.AsyncExitStack() as stack:  # and started again
                    link = ChildLink(tmp_path / "gpu.lock", stub.environment())
                    later = Probe(link, SystemClock(), tmp_path, root=str(stub.root))
                    stack.push_async_callback(later.close)
                    seen = await later.read()
                    assert seen.state == "stuck"
                    assert str(first) in seen.message
            assert gpus.alive(first)
            stub.change({"hang.nvmlDeviceGetFieldValues": None})
            await gpus.gone(tmp_path)
            assert stub.calls()[-1] == "nvmlShutdown", "it was cut off inside a call"

    asyncio.run(story())


def test_told_to_terminate_inside_a_call_it_waits_for_the_call(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            stub.change({"hang.nvmlDeviceGetPowerUsage@0": "-"})
            await probe.read()
            pid = gpus.pid_of(tmp_path)
            for _ in range(3):
                os.kill(pid, signal.SIGTERM)
                await asyncio.sleep(0.2)
            assert gpus.alive(pid)
            stub.change({"hang.nvmlDeviceGetPowerUsage@0": None})
            await gpus.gone(tmp_path)
            assert stub.calls()[-1] == "nvmlShutdown"

    asyncio.run(story())


def test_each_state_is_told_once_and_gpus_that_do_not_answer_are_down(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        events: list[Event] = []

        async def tell(event: Event) -> None:
            events.append(event)

        async with gpus.probe(stub, tmp_path) as probe:
            collector = GpuCollector(probe, Book(), tell)
            found = gpus.samples(await collector.collect(1.0))
            assert [found["gpu_up", uuid_of(n), ""] for n in range(3)] == [1, 1, 1]
            assert events == []

            stub.change({"hang.nvmlDeviceGetFieldValues@2": "-"})
            for at in (2.0, 3.0):
                found = gpus.samples(await collector.collect(at))
            assert [found["gpu_up", uuid_of(n), ""] for n in range(3)] == [1, 1, 0]
            assert ("DCGM_FI_DEV_GPU_TEMP", uuid_of(2), "") not in found
            assert found["gpu_call_seconds", "", "nvmlDeviceGetFieldValues"] > 2.9
            assert [event.kind for event in events] == ["gpu_hung"]

            stub.change({"hang.nvmlDeviceGetFieldValues@2": None})
            await gpus.until(probe, lambda seen: all(gpu.state == "up" for gpu in seen.gpus))
            await collector.collect(4.0)
            assert [event.kind for event in events] == ["gpu_hung", "gpu_back"]

    asyncio.run(story())


# -- the whole agent on a call that the kernel itself holds --------------------------------------------------------


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A file on a file system that can be frozen; thawed and unmounted when the test ends."""
    if os.geteuid() != 0 or not shutil.which("fsfreeze"):
        pytest.skip("needs root and fsfreeze")
    image, point = tmp_path / "image", tmp_path / "frozen"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a loop device here")
    try:
        (point / "file").write_bytes(b"")
        yield point
    finally:
        subprocess.run(["fsfreeze", "-u", str(point)], capture_output=True, check=False)
        time.sleep(0.2)
        subprocess.run(["umount", "--lazy", str(point)], check=True)


RULES = """\
      - alert: GpuDown
        expr: gpu_up == 0
        labels: {severity: critical}
"""


SIGNALS = "trace=kill,tgkill,pidfd_send_signal"

LAUNCHER = """\
import sys
from agent.gpu import host
from agent.cli import main

root, look = sys.argv.pop(1), host.driver_files
host.driver_files = lambda _: look(root)
sys.exit(main())
"""
"""The real agent, but for the root under which it looks for a driver's files."""


def start(stub: Stub, host: Host) -> subprocess.Popen[bytes]:
    marker = len(host.log())
    with (host.folder / "agent.log").open("ab") as log:
        host.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(stub.root), "run", "--verbose", "--config", str(host.config)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=REPOSITORY,
            env=stub.environment(),
        )  # fmt: skip
    until(lambda: "agent_started" in host.log()[marker:], "the agent to start")
    return host.process


def probes(stub: Stub) -> list[int]:
    """Every probe on this stub, by its environment."""
    mark = f"NVML_STUB_STATE={stub.environment()['NVML_STUB_STATE']}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                b"agent/gpu/__main__.py" in (entry / "cmdline").read_bytes()
                and mark in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
    return found


def sql(host: Host, query: str) -> list[dict[str, object]]:
    return list(host.json("sql", query))


@pytest.mark.root
@pytest.mark.slow
def test_a_driver_that_the_kernel_holds_costs_nobody_else_anything(stub: Stub, tmp_path: Path, frozen: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    with scratch_host(folder) as host:
        host.write(rules=RULES, mode="observe")
        start(stub, host)
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs in the store")
        [pid] = probes(stub)
        assert pid == gpus.pid_of(host.state)

        subprocess.run(["fsfreeze", "-f", str(frozen)], check=True)
        began = time.time()
        stub.change({"hang.nvmlDeviceGetFieldValues": str(frozen / "file")})
        until(lambda: any(alert["rule"] == "GpuDown" for alert in host.alerts()), "the alert")
        assert time.time() - began <= 15
        threads = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        assert "D" in threads, f"no thread hangs in the kernel: {threads}"

        time.sleep(max(0.0, FROZEN_S - (time.time() - began)))
        rows = sql(host, f"SELECT time FROM samples WHERE metric = 'node_load1' AND unixepoch(time) > {began:.0f}")
        times = sorted(_epoch(str(row["time"])) for row in rows)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(times) >= FROZEN_S / 0.5 * 0.8
        assert max(gaps) <= 0.5 + 1.0, f"a sample was {max(gaps) - 0.5:.2f} s late"

        assert host.stop() < 4.0
        assert gpus.alive(pid), "the kernel let the probe go: it did not really hang"
        start(stub, host)
        until(lambda: sql(host, "SELECT 1 FROM events WHERE message LIKE '%earlier probe still hangs%'"), "the word")
        assert probes(stub) == [pid], "a second probe"

        subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
        stub.change({"hang.nvmlDeviceGetFieldValues": None})
        until(lambda: not gpus.alive(pid), "the old probe to end")
        assert stub.calls()[-1] == "nvmlShutdown" or stub.calls().count("nvmlShutdown") >= 1
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs again", 40)
        host.stop()
        until(lambda: not gpus.alive(gpus.pid_of(host.state)), "the new probe to end")


@pytest.mark.slow
def test_with_defaults_and_the_shipped_rules_a_hang_is_told_within_15_seconds(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    with scratch_host(folder) as host:
        host.config.write_text(f"state_dir: {host.state}\nlogs: []\ncollect: {{directories: false}}\n")
        start(stub, host)
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs in the store")
        began = time.time()
        stub.change({"hang.nvmlDeviceGetUtilizationRates@1": "-"})
        until(lambda: [alert for alert in host.alerts() if alert["rule"] == "GpuLost"], "the alert")
        told_s = time.time() - began
        stub.change({"hang.nvmlDeviceGetUtilizationRates@1": None})
        host.stop()
        until(lambda: probes(stub) == [], "the probe to end")
        assert told_s <= 15
        [alert] = [alert for alert in host.alerts() if alert["rule"] == "GpuLost"]
        assert alert["labels"]["UUID"] == uuid_of(1)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_kill_is_ever_sent_to_a_probe(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    trace = tmp_path / "trace"
    with scratch_host(folder) as host:
        host.write(mode="observe")
        start(stub, host)
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs in the store")
        assert host.process is not None
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", SIGNALS, "-o", str(trace), "-p", str(host.process.pid)],
            stderr=subprocess.DEVNULL,
        )
        try:
            stub.change({"hang.nvmlDeviceGetFieldValues": "-"})
            pid = gpus.pid_of(host.state)
            until(lambda: host.json("query", "gpu_up == 0"), "the hang in the store")
            host.stop()
        finally:
            tracer.terminate()
            tracer.wait(10)
        assert gpus.alive(pid)
        sent = [line for line in trace.read_text().splitlines() if f"({pid}," in line or f"(-{pid}," in line]
        assert sent == []
        stub.change({"hang.nvmlDeviceGetFieldValues": None})
        until(lambda: not gpus.alive(pid), "the probe to end")


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
