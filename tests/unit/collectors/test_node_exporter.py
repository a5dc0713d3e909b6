"""What we export under node_exporter's names is what node_exporter exports, read at the same moment."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.collectors import Collector
from agent.collectors.disk import LEFT_OUT, DiskCollector
from agent.collectors.filesystem import KINDS_LEFT_OUT, MOUNT_POINTS_LEFT_OUT, LocalFilesystems
from agent.collectors.hardware import HardwareCollector
from agent.collectors.network import LinksCollector, NetworkCollector
from agent.collectors.system import PressureCollector, SystemCollector
from agent.metrics import METRICS
from agent.model import Reading, Series
from tests.support import node_exporter

NAMES = (
    "cpu stat loadavg meminfo vmstat pressure time filefd filesystem diskstats netdev netclass netstat sockstat timex"
)
KINDS = KINDS_LEFT_OUT.replace("|overlay", "") if " / overlay " in Path("/proc/mounts").read_text() else KINDS_LEFT_OUT
"""In a container ours measures its root, an overlay; theirs would leave it out."""

ARGUMENTS = [
    "--collector.disable-defaults",
    *(f"--collector.{name}" for name in (*NAMES.split(), "conntrack", "hwmon", "mdadm", "cpufreq")),
    f"--collector.filesystem.mount-points-exclude={MOUNT_POINTS_LEFT_OUT}",
    f"--collector.filesystem.fs-types-exclude={KINDS}",
    f"--collector.diskstats.device-exclude=^{LEFT_OUT.pattern}$",
    "--collector.netdev.device-exclude=^lo$",
]
MOMENTS = 20
"""A gauge may move between two readings: it must agree at one of so many moments. A wrong unit never does."""

OF_THE_SCRAPE = ("node_sockstat_TCP_", "node_netstat_Tcp_CurrEstab", "node_filefd_allocated", "node_procs_running")
"""What the scrape itself moves: its connection, its files, its threads; within a few of ours is agreement."""


@pytest.fixture
def _installed() -> None:
    if node_exporter.PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("prometheus-node-exporter is not installed")
        pytest.skip("prometheus-node-exporter is not installed")


def ours() -> dict[Series, float]:
    async def read() -> Sequence[Reading]:
        collectors: tuple[Collector, ...] = (
            SystemCollector(),
            PressureCollector(),
            LocalFilesystems(),
            DiskCollector(),
            NetworkCollector(),
            LinksCollector(),
            HardwareCollector(),
        )
        return [await collector.collect(0.0) for collector in collectors]

    return {
        series: value
        for reading in asyncio.run(read())
        for series, value in zip(reading.series, reading.values, strict=True)
    }


def slack(series: Series) -> float:
    if not series.metric.startswith(OF_THE_SCRAPE):
        return 1e-6
    return 64.0 * (4096 if METRICS[series.metric].unit == "bytes" else 1)


@pytest.mark.usefixtures("_installed")
def test_names_types_labels_and_values_agree() -> None:
    open_: dict[Series, str] = dict.fromkeys(ours(), "never read")
    del open_[Series("node_time_seconds")]  # the tick's own instant
    assert len(open_) > 100
    with node_exporter.running(ARGUMENTS) as (address, _):
        for _ in range(MOMENTS):
            before = ours()
            theirs, types = node_exporter.parse(node_exporter.scrape(address))
            after = ours()
            for series in list(open_):
                assert METRICS[series.metric].type == types[series.metric], series
                low, high = sorted((before[series], after[series]))
                open_[series] = f"ours {low} to {high}, theirs {theirs.get(series)}"
                if series in theirs and low - slack(series) <= theirs[series] <= high + slack(series):
                    del open_[series]
            if not open_:
                break
    assert not open_, "\n".join(f"{series}: {words}" for series, words in open_.items())


ELSEWHERE = re.compile(
    r"node_(timex|md|hwmon|cpu_scaling|nf_conntrack|network_speed|memory_(HugePages|HardwareCorrupted|Percpu))_?\w*"
    r"|node_(systemd|textfile|reboot)_\w+|node_vmstat_\w+|node_pressure_\w+"
)
"""What a host may lack, or what is compared on recorded trees, or is another program's than node_exporter's own."""


def test_no_name_of_theirs_in_the_table_is_left_uncompared() -> None:
    compared = {series.metric for series in ours()}
    missing = {name for name in METRICS if name.startswith("node_") and name not in compared}
    assert {name for name in missing if not ELSEWHERE.fullmatch(name)} == set()


def test_labels_are_those_of_the_table() -> None:
    for series in ours():
        assert tuple(name for name, _ in series.labels) == tuple(sorted(METRICS[series.metric].labels)), series


@pytest.mark.usefixtures("_installed")
def test_no_mount_device_or_interface_of_theirs_is_missing() -> None:
    with node_exporter.running(ARGUMENTS) as (address, _):
        theirs, _ = node_exporter.parse(node_exporter.scrape(address))
    mine = set(ours())
    for metric in (
        "node_filesystem_size_bytes",
        "node_disk_io_now",
        "node_network_receive_bytes_total",
        "node_cpu_seconds_total",
    ):
        assert {series for series in theirs if series.metric == metric} <= mine
