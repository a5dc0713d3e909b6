"""The real probe on a driver of our own: what it reads, under which names, and in which state it finds the driver."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.gpu.client import Probe, SocketLink
from agent.gpu.host import Processes
from agent.gpu.protocol import Gpu, Seen
from agent.gpu.release import release
from tests.support import gpus
from tests.support.nvml import H100, L40S, MIB, RTX_4080, Stub, hosts, uuid_of
from tests.support.running import REPOSITORY

# In a container the probe cannot tell a dead process from one that it may not see.
ALL_VISIBLE = Processes().all_visible()


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path)


def look(stub: Stub, folder: Path) -> Seen:
    async def story() -> Seen:
        async with gpus.probe(stub, folder) as probe:
            return await probe.read()

    return asyncio.run(story())


def one(stub: Stub, folder: Path, card: object, **changed: object) -> tuple[Gpu, dict[tuple[str, ...], float]]:
    stub.write(hosts(card), **changed)  # type: ignore[arg-type]
    seen = look(stub, folder)
    assert seen.state == "ready", gpus.shown(seen)
    return seen.gpus[0], gpus.values(seen.gpus[0])


def test_a_data_centre_card_under_load(stub: Stub, tmp_path: Path) -> None:
    gpu, found = one(stub, tmp_path, H100)
    assert (gpu.uuid, gpu.index, gpu.minor, gpu.pci) == (uuid_of(0), 0, 0, "0000:1b:00.0")
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    expected = {
        "GPU_UTIL": 97, "MEM_COPY_UTIL": 41, "ENC_UTIL": 0, "DEC_UTIL": 0, "FB_USED": 60000, "FB_FREE": 20000,
        "FB_RESERVED": 559, "GPU_TEMP": 61, "MEMORY_TEMP": 68, "POWER_USAGE": 655, "SM_CLOCK": 1755, "MEM_CLOCK": 2619,
        "PSTATE": 0, "TOTAL_ENERGY_CONSUMPTION": 123_456_789, "PCIE_REPLAY_COUNTER": 2, "ECC_SBE_VOL_TOTAL": 0,
        "ECC_DBE_VOL_TOTAL": 0, "ECC_SBE_AGG_TOTAL": 0, "ECC_DBE_AGG_TOTAL": 0, "CORRECTABLE_REMAPPED_ROWS": 0,
        "UNCORRECTABLE_REMAPPED_ROWS": 0, "ROW_REMAP_FAILURE": 0, "ROW_REMAP_PENDING": 0, "CLOCK_THROTTLE_REASONS": 4,
        "POWER_VIOLATION": 88_000_000, "THERMAL_VIOLATION": 0, "NVLINK_REPLAY_ERROR_COUNT_TOTAL": 0,
    }  # fmt: skip
    assert {name: found["DCGM_FI_DEV_" + name,] for name in expected} == expected
    assert found["gpu_throttled", "sw_power_cap"] == 1
    assert found["gpu_throttled", "hw_thermal_slowdown"] == 0
    assert found["gpu_temperature_limit_celsius", "slowdown"] == 92
    assert found["gpu_power_limit_watts",] == 700
    assert (found["gpu_pcie_link_width",], found["gpu_pcie_link_width_max",]) == (16, 16)
    assert (found["gpu_nvlink_links", "up"], found["gpu_nvlink_links", "down"]) == (18, 0)
    assert not any(metric.startswith("DCGM_FI_DEV_RETIRED") for metric, *_ in found)


def test_a_consumer_card_has_no_ecc_metric_at_all(stub: Stub, tmp_path: Path) -> None:
    _, found = one(stub, tmp_path, RTX_4080)
    names = {metric for metric, *_ in found}
    for part in ("ECC", "REMAP", "NVLINK", "nvlink", "MEMORY_TEMP", "recovery", "RETIRED"):
        assert not [name for name in names if part in name], part
    assert found["DCGM_FI_DEV_GPU_UTIL",] == 2
    assert found["gpu_pcie_link_generation",] == 1
    assert found["gpu_pcie_link_generation_max",] == 4


def test_mig_has_no_utilization_and_memory_for_each_instance(stub: Stub, tmp_path: Path) -> None:
    mig = {
        **H100, "mig": 1, "gpu_util": None, "mem_util": None,
        "mig.0.id": 7, "mig.0.name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "mig.0.memory_used": 100 * MIB,
        "mig.0.memory_free": 9900 * MIB,
        "mig.3.id": 2, "mig.3.name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "mig.3.memory_used": 30000 * MIB,
        "mig.3.memory_free": 10000 * MIB,
    }  # fmt: skip
    _, found = one(stub, tmp_path, mig)
    assert ("DCGM_FI_DEV_GPU_UTIL",) not in found
    assert ("DCGM_FI_DEV_MEM_COPY_UTIL",) not in found
    assert found["DCGM_FI_DEV_FB_USED",] == 60000
    assert found["DCGM_FI_DEV_FB_USED", "7", "1g.10gb"] == 100
    assert found["DCGM_FI_DEV_FB_FREE", "2", "3g.40gb"] == 10000


def test_uncorrected_errors_ask_for_a_reset_on_the_gpu_that_has_them(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100, H100))
    stub.change({"0.field.4": 4, "0.field.6": 12, "0.field.144": 1, "0.field.230": 4, "0.gpu_util": 0})
    bad, good = (gpus.values(gpu) for gpu in look(stub, tmp_path).gpus)
    for found, expected in ((bad, (4, 12, 1, 4)), (good, (0, 0, 0, 0))):
        names = ("ECC_DBE_VOL_TOTAL", "ECC_DBE_AGG_TOTAL", "ROW_REMAP_PENDING")
        assert (*(found["DCGM_FI_DEV_" + n,] for n in names), found["gpu_recovery_action",]) == expected


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x48, {"hw_slowdown", "hw_thermal_slowdown"}),
        (0x80, {"hw_power_brake_slowdown"}),
        (0x01, set()),
    ],
)
@pytest.mark.parametrize("old_driver", [False, True])
def test_why_a_clock_is_held_down(stub: Stub, tmp_path: Path, mask: int, reasons: set[str], old_driver: bool) -> None:
    old = {"return.nvmlDeviceGetCurrentClocksEventReasons": 13} if old_driver else {}
    stub.write({**hosts({**L40S, "reasons": mask, "temperature": 93, "sm_clock": 540}), **old})
    found = gpus.values(look(stub, tmp_path).gpus[0])
    assert {key[1] for key, value in found.items() if key[0] == "gpu_throttled" and value} == reasons
    assert found["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",] == mask


def test_an_old_driver_counts_what_it_keeps_as_used(stub: Stub, tmp_path: Path) -> None:
    _, found = one(stub, tmp_path, H100, return__nvmlDeviceGetMemoryInfo_v2=13)
    assert found["DCGM_FI_DEV_FB_USED",] == 60000
    assert ("DCGM_FI_DEV_FB_RESERVED",) not in found


def test_a_host_without_gpus_is_ready_and_quiet(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts())
    seen = look(stub, tmp_path)
    assert (seen.state, seen.gpus, seen.faults) == ("ready", (), ())


@pytest.mark.parametrize(
    ("code", "state"),
    [(9, "no_driver"), (12, "no_library"), (4, "no_permission"), (18, "mismatch"), (999, "failed"), (15, "failed")],
)
def test_a_driver_that_does_not_begin(stub: Stub, tmp_path: Path, code: int, state: str) -> None:
    stub.write(hosts(H100), return__nvmlInitWithFlags=code)
    seen = look(stub, tmp_path)
    assert (seen.state, seen.code) == (state, code)
    assert seen.message


def test_a_library_that_is_not_installed(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))
    environment = stub.environment() | {"LD_LIBRARY_PATH": str(tmp_path)}
    stub.environment = lambda: environment  # type: ignore[method-assign]
    assert look(stub, tmp_path).state == "no_library"


def test_without_a_driver_no_process_is_started(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))
    stub.loaded(None)
    assert look(stub, tmp_path).state == "no_driver"
    assert gpus.pid_of(tmp_path) == 0
    assert stub.calls() == []


def test_processes_have_memory_name_and_user(stub: Stub, tmp_path: Path) -> None:
    own = os.getpid()
    _, found = one(stub, tmp_path, {**H100, "processes": f"{own}:{3 * MIB}", "graphics": f"{own}:{5 * MIB},1:?"})
    entries = {key[1:]: value for key, value in found.items() if key[0] == "gpu_process_memory_bytes"}
    [(labels, value)] = entries.items()
    assert labels[0] == str(own)
    assert labels[1] == Path(f"/proc/{own}/comm").read_text().strip()
    assert labels[2] in ("root", os.environ.get("USER", ""), str(os.getuid()))
    assert value == 5 * MIB


@pytest.mark.skipif(not ALL_VISIBLE, reason="needs the host's own process numbers")
def test_memory_that_a_zombie_a_dead_process_or_nobody_holds(stub: Stub, tmp_path: Path) -> None:
    zombie = subprocess.Popen(["true"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    try:
        while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        processes = f"{zombie.pid}:{3 * MIB},{dead.pid}:{4 * MIB},{os.getpid()}:{5 * MIB}"
        gpu, found = one(stub, tmp_path, {**H100, "processes": processes})
        assert {(orphan.pid, orphan.state) for orphan in gpu.orphans} == {(zombie.pid, "zombie"), (dead.pid, "dead")}
        assert found["gpu_orphaned_memory_bytes",] == 7 * MIB
    finally:
        zombie.wait()
    gpu, found = one(stub, tmp_path, {**H100, "processes": ""})
    assert [(orphan.pid, orphan.state) for orphan in gpu.orphans] == [(0, "nobody")]
    assert found["gpu_orphaned_memory_bytes",] == 60000 * MIB
    gpu, found = one(stub, tmp_path, RTX_4080)
    assert found["gpu_orphaned_memory_bytes",] == 700 * MIB
    _, found = one(stub, tmp_path, {**RTX_4080, "memory_used": 300 * MIB})
    assert found["gpu_orphaned_memory_bytes",] == 0


def test_what_is_not_supported_is_asked_once_a_minute_and_no_more(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(RTX_4080))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            for _ in range(5):
                await probe.read()

    asyncio.run(story())
    assert stub.calls().count("nvmlDeviceGetMigMode") == 1
    assert stub.calls().count("nvmlDeviceGetUtilizationRates") == 5
    assert stub.calls().count("nvmlDeviceGetFieldValues") == 5
    assert stub.calls().count("nvmlDeviceGetTemperatureThreshold") == 4


def test_columns_travel_once_and_values_each_time(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            first = (await probe.read()).gpus[0]
            stub.change({"0.temperature": 99})
            second = (await probe.read()).gpus[0]
            assert second.columns is first.columns
            assert gpus.values(second)["DCGM_FI_DEV_GPU_TEMP",] == 99
            stub.change({"0.temperature": None})
            third = (await probe.read()).gpus[0]
            assert ("DCGM_FI_DEV_GPU_TEMP",) not in gpus.values(third)
            assert third.layout != second.layout

    asyncio.run(story())


def test_an_xid_that_nvml_tells_of(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100, H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            await probe.read()
            stub.change({"event": "1:79:1"})
            seen = await gpus.until(probe, lambda seen: seen.xids)
            assert [(xid.uuid, xid.code) for xid in seen.xids] == [(uuid_of(1), 79)]
            assert (await probe.read()).xids == ()

    asyncio.run(story())


def test_a_driver_that_was_replaced_under_the_session_is_asked_by_a_new_probe(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            assert (await probe.read()).state == "ready"
            first = gpus.pid_of(tmp_path)
            stub.change({"return.nvmlDeviceGetFieldValues": 1})
            assert (await probe.read()).state == "failed"
            await gpus.gone(tmp_path)
            stub.change({"return.nvmlDeviceGetFieldValues": None, "driver": "595.1.2"})
            assert (await probe.read()).driver_version == "595.1.2"
            assert gpus.pid_of(tmp_path) != first

    asyncio.run(story())


def test_gpus_are_known_by_uuid_when_one_is_lost_and_others_move_up(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(*[H100] * 8))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            assert [gpu.index for gpu in (await probe.read()).gpus] == list(range(8))
            stub.change({"return.nvmlDeviceGetFieldValues@3": 15, "return.nvmlDeviceGetUtilizationRates@3": 15})
            seen = await probe.read()
            assert [gpu.uuid for gpu in seen.gpus if gpu.state == "lost"] == [uuid_of(3)]
            assert all(gpu.values for gpu in seen.gpus if gpu.state == "up")
            moved = [0, 1, 2, 4, 5, 6, 7]
            changes = {f"{index}.uuid": uuid_of(number) for index, number in enumerate(moved)}
            stub.change({"count": 7, "return.nvmlDeviceGetFieldValues@3": None,
                         "return.nvmlDeviceGetUtilizationRates@3": None, **changes})  # fmt: skip
            await probe.close()
            await gpus.gone(tmp_path)
            probe._look_at = 0.0
            seen = await probe.read()
            assert {gpu.uuid: gpu.index for gpu in seen.gpus} == {uuid_of(n): i for i, n in enumerate(moved)}

    asyncio.run(story())


def test_a_gpu_that_waits_for_a_reset(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100, H100), return__nvmlDeviceGetFieldValues=None)
    stub.change({"return.nvmlDeviceGetFieldValues@1": 16})
    assert [gpu.state for gpu in look(stub, tmp_path).gpus] == ["up", "needs_reset"]


def test_released_the_driver_is_let_go_of_and_taken_again(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            assert (await probe.read()).state == "ready"
            pid = gpus.pid_of(tmp_path)
            release(tmp_path, 4e9, "a test")
            assert (await probe.read()).state == "released"
            await gpus.gone(tmp_path)
            assert not gpus.alive(pid)
            assert stub.calls()[-1] == "nvmlShutdown"
            count = len(stub.calls())
            assert (await probe.read()).state == "released"
            assert len(stub.calls()) == count
            release(tmp_path, 0.0, "a test")
            assert (await probe.read()).state == "ready"

    asyncio.run(story())


def test_a_probe_that_dies_is_started_again_after_a_while(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            await probe.read()
            os.kill(gpus.pid_of(tmp_path), signal.SIGABRT)
            seen = await probe.read()
            assert (seen.state, seen.message) == ("no_probe", "cannot hear the probe: it has ended")
            await gpus.gone(tmp_path)
            probe._look_at = 0.0
            assert (await probe.read()).state == "ready"

    asyncio.run(story())


def test_told_to_terminate_it_lets_go_of_the_driver(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        async with gpus.probe(stub, tmp_path) as probe:
            await probe.read()
            os.kill(gpus.pid_of(tmp_path), signal.SIGTERM)
            await gpus.gone(tmp_path)
            assert stub.calls()[-1] == "nvmlShutdown"

    asyncio.run(story())


def test_it_is_small(stub: Stub, tmp_path: Path) -> None:
    stub.write(hosts(*[H100] * 8))

    async def story() -> float:
        async with gpus.probe(stub, tmp_path) as probe:
            for _ in range(5):
                await probe.read()
            rollup = Path(f"/proc/{gpus.pid_of(tmp_path)}/smaps_rollup").read_text()
            return next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))

    assert asyncio.run(story()) <= 20


def test_the_agent_never_loads_nvml() -> None:
    code = "import sys, agent.app, agent.commands.gpu; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


# -- as a unit of systemd's, which passes a listening socket --

ACTIVATE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, sys.argv[2:])
"""


def start_unit(stub: Stub, folder: Path) -> subprocess.Popen[bytes]:
    """The probe as its unit starts it: with the socket as descriptor 3 and a folder of its own."""
    path = folder / "gpu.sock"
    path.unlink(missing_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        number = listening.fileno()
        probe = [sys.executable, "-I", str(REPOSITORY / "agent/gpu/__main__.py")]
        environment = {**stub.environment(), "LISTEN_FDS": "1", "RUNTIME_DIRECTORY": str(folder / "run")}
        command = [sys.executable, "-c", ACTIVATE, str(number), *probe]
        return subprocess.Popen(command, env=environment, pass_fds=(number,))


def test_under_systemd_it_lives_for_one_connection_and_no_second_one_calls_the_driver(
    stub: Stub, tmp_path: Path
) -> None:
    stub.write(hosts(H100))

    async def story() -> None:
        first = start_unit(stub, tmp_path)
        probe = Probe(SocketLink(str(tmp_path / "gpu.sock")), SystemClock(), tmp_path, root=str(stub.root))
        assert (await probe.read()).state == "ready"
        stub.change({"hang.nvmlDeviceGetPowerUsage": "-"})
        assert (await probe.read()).gpus[0].state == "hung"
        await probe.close()

        second = start_unit(stub, tmp_path)
        later = Probe(SocketLink(str(tmp_path / "gpu.sock")), SystemClock(), tmp_path, root=str(stub.root))
        count = len(stub.calls())
        assert (await later.read()).state == "stuck"
        await later.close()
        assert second.wait(10) == 0
        assert len([call for call in stub.calls()[count:] if call != "nvmlEventSetWait_v2"]) == 0
        stub.change({"hang.nvmlDeviceGetPowerUsage": None})
        assert await asyncio.to_thread(first.wait, 10) == 0
        assert stub.calls()[-1] == "nvmlShutdown"

    asyncio.run(story())


def test_without_its_socket_there_is_nobody_to_ask(stub: Stub, tmp_path: Path) -> None:
    async def story() -> None:
        probe = Probe(SocketLink(str(tmp_path / "none.sock")), SystemClock(), tmp_path, root=str(stub.root))
        seen = await probe.read()
        assert seen.state == "no_probe"
        assert seen.message == "cannot start the probe: no such file or directory"

    asyncio.run(story())
