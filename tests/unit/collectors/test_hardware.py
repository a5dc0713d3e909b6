"""Clock, sensors and arrays: from recorded trees, beside node_exporter on the same tree, and on this host."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from agent.collectors.hardware import HardwareCollector, clock_samples, parse, read_clock
from agent.fs import sensors
from agent.metrics import METRICS
from agent.model import Reading, Series
from tests.support import node_exporter

TESTDATA = Path(__file__).parents[2] / "testdata"


@pytest.fixture
def rack(tmp_path: Path) -> tuple[str, str]:
    """The recorded server laid out; where its /proc and its /sys are."""
    for line in (TESTDATA / "sys" / "rack.txt").read_text().splitlines():
        known = re.fullmatch(r"(\S+) (=|->) (.*)", line)
        if known:
            path = tmp_path / known[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(known[3]) if known[2] == "->" else path.write_text(known[3] + "\n")
    (tmp_path / "proc").mkdir()
    shutil.copy(TESTDATA / "proc" / "mdstat.rack", tmp_path / "proc" / "mdstat")
    return str(tmp_path / "proc"), str(tmp_path / "sys")


def values(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def collected(proc: str, sys_folder: str, deadline_s: float = 10.0) -> Reading:
    async def once() -> Reading:
        collector = HardwareCollector(proc, sys_folder, deadline_s)
        try:
            return await collector.collect(1.0)
        finally:
            await collector.close()

    return asyncio.run(once())


def test_the_recorded_server(rack: tuple[str, str]) -> None:
    found = values(collected(*rack))
    assert found['node_hwmon_temp_celsius{chip="platform_coretemp_0",sensor="temp1"}'] == 55
    assert found['node_hwmon_temp_celsius{chip="platform_coretemp_0",sensor="temp12"}'] == -4.5
    assert found['node_hwmon_temp_crit_celsius{chip="platform_coretemp_0",sensor="temp1"}'] == 105
    assert found['node_hwmon_temp_celsius{chip="nvme_nvme0",sensor="temp1"}'] == 38.85
    assert found['node_hwmon_temp_celsius{chip="acpi_zone",sensor="temp1"}'] == 27.8
    assert not [name for name in found if 'chip="acpi_zone",sensor="temp2"' in name]
    assert found['node_cpu_scaling_frequency_hertz{cpu="0"}'] == 2_401_000_000
    assert found['node_md_disks{device="md1",state="failed"}'] == 1
    assert found['node_md_disks{device="md1",state="active"}'] == 1
    assert found['node_md_disks_required{device="md1"}'] == 2
    states = {
        name.split('"')[1]: name.split('"')[3] for name in found if name.startswith("node_md_state") and found[name]
    }
    assert states == {
        "md0": "active",
        "md1": "active",
        "md2": "recovering",
        "md3": "resync",
        "md4": "check",
        "md5": "active",
        "md6": "inactive",
    }


@pytest.mark.skipif(node_exporter.PROGRAM is None, reason="prometheus-node-exporter is not installed")
def test_node_exporter_says_the_same_of_the_same_tree(rack: tuple[str, str]) -> None:
    proc, sys_folder = rack
    arguments = [
        "--collector.disable-defaults",
        *(f"--collector.{name}" for name in ("hwmon", "mdadm", "cpufreq")),
        f"--path.procfs={proc}",
        f"--path.sysfs={sys_folder}",
    ]
    with node_exporter.running(arguments) as (address, _):
        theirs, types = node_exporter.parse(node_exporter.scrape(address))
    reading = collected(*rack)
    ours = {
        series: value
        for series, value in zip(reading.series, reading.values, strict=True)
        if not series.metric.startswith("node_timex_")
    }
    names = {series.metric for series in ours}
    assert len(names) == 7
    assert ours == {series: pytest.approx(value) for series, value in theirs.items() if series.metric in names}
    assert {name: METRICS[name].type for name in names} == {name: types[name] for name in names}


def test_an_offset_is_in_nanoseconds_where_the_status_says_so() -> None:
    def found(state: int, status: int) -> dict[str, float]:
        return {sample.metric: sample.value for sample in clock_samples(state, status, -1500, 16000, 1.0)}

    assert found(0, 0x2001)["node_timex_offset_seconds"] == pytest.approx(-1.5e-6)
    assert found(0, 0x0001)["node_timex_offset_seconds"] == pytest.approx(-1.5e-3)
    assert found(0, 1)["node_timex_sync_status"] == 1
    assert found(5, 64)["node_timex_sync_status"] == 0
    assert found(5, 64)["node_timex_maxerror_seconds"] == pytest.approx(0.016)


def test_a_clock_that_may_not_be_asked_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied:
        @staticmethod
        def adjtimex(_: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Denied)
    assert read_clock(1.0) == []


def test_a_host_without_sensors_has_its_clock_and_no_child(tmp_path: Path) -> None:
    before = time.monotonic()
    reading = collected(str(tmp_path), str(tmp_path))
    assert {series.metric.partition("_timex_")[0] for series in reading.series} <= {"node"}
    assert time.monotonic() - before < 5


def test_a_sensor_that_hangs_costs_its_own_values_only(rack: tuple[str, str]) -> None:
    """The board's sensor is a pipe that nobody writes to: opening it waits for ever."""
    hanging = Path(rack[1], "devices/virtual/hwmon/hwmon2/temp1_input")
    hanging.unlink()
    os.mkfifo(hanging)
    found = values(collected(*rack, deadline_s=1.0))
    assert found['node_hwmon_temp_celsius{chip="nvme_nvme0",sensor="temp1"}'] == 38.85
    assert not [name for name in found if "acpi_zone" in name]


def test_a_line_that_was_cut_is_left_out() -> None:
    output = b'["node_md_disks_required", {"device": "md0"}, 2]\n["node_md_disks_required", {"dev'
    assert [sample.value for sample in parse(output, 1.0)] == [2]
    assert parse(b"", 1.0) == []


def test_labels_are_those_of_the_table(rack: tuple[str, str]) -> None:
    for series in collected(*rack).series:
        assert tuple(name for name, _ in series.labels) == tuple(sorted(METRICS[series.metric].labels)), series
        assert METRICS[series.metric].source == "hardware"


def test_text_that_is_none_of_mdstat_makes_nothing() -> None:
    assert list(sensors.raids("")) == []
    assert list(sensors.raids("Personalities : \nunused devices: <none>\n")) == []


def test_the_series_are_the_same_object_while_they_hold(rack: tuple[str, str]) -> None:
    async def twice() -> tuple[tuple[Series, ...], tuple[Series, ...]]:
        collector = HardwareCollector(*rack)
        return (await collector.collect(1.0)).series, (await collector.collect(2.0)).series

    first, second = asyncio.run(twice())
    assert first is second
