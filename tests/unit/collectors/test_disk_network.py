"""Devices and interfaces from captured text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.collectors.disk import COLUMNS, DiskCollector, DiskParser
from agent.collectors.network import (
    LinkParser,
    LinksCollector,
    NetworkCollector,
    SocketsParser,
    TcpParser,
    TrafficParser,
)
from agent.model import Series
from agent.procfs import Parser, PinnedFile

PROC = Path(__file__).parents[2] / "testdata" / "proc"
VM = PROC / "vm"


def named(parser: Parser, raw: bytes) -> dict[str, float]:
    values = parser.parse(raw)
    return {str(series): value for series, value in zip(parser.series, values, strict=True)}


def test_whole_devices_are_measured_and_partitions_and_loops_are_not() -> None:
    values = named(DiskParser(), (PROC / "diskstats.host").read_bytes())
    devices = {name.split('"')[1] for name in values}
    assert devices == {"nvme0n1", "sda", "dm-0", "md127"}
    assert values['node_disk_read_bytes_total{device="nvme0n1"}'] == 98233411 * 512
    assert values['node_disk_write_time_seconds_total{device="nvme0n1"}'] == 882.231
    assert values['node_disk_io_now{device="dm-0"}'] == 3
    assert values['node_disk_io_time_weighted_seconds_total{device="sda"}'] == 0.015
    assert len(values) == 4 * len(COLUMNS)


def test_an_old_kernel_has_fewer_columns_and_the_same_values() -> None:
    values = named(DiskParser(), (PROC / "diskstats.kernel_2_6").read_bytes())
    assert values['node_disk_writes_completed_total{device="sda"}'] == 21560616
    assert len(values) == len(COLUMNS)


def test_a_device_that_comes_and_goes() -> None:
    lines = (PROC / "diskstats.host").read_bytes().splitlines(keepends=True)
    parser = DiskParser()
    whole = named(parser, b"".join(lines))
    without = named(parser, b"".join(line for line in lines if b" sda" not in line))
    assert {name for name in whole if '"sda"' in name}
    assert without == {name: value for name, value in whole.items() if '"sda"' not in name}
    assert named(parser, b"".join(lines)) == whole
    assert named(parser, b"") == {}


def test_lines_of_two_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="not of one kind"):
        DiskParser().parse(b"   8       0 sda 1 2 3 4\n   8       1 sda1 1 2\n")


def test_traffic_without_a_blank_after_the_colon() -> None:
    values = named(TrafficParser(), (PROC / "net_dev.old").read_bytes())
    assert values == {
        'node_network_receive_bytes_total{device="eth0"}': 98765432109876,
        'node_network_receive_packets_total{device="eth0"}': 6466,
        'node_network_receive_errs_total{device="eth0"}': 1,
        'node_network_receive_drop_total{device="eth0"}': 2,
        'node_network_transmit_bytes_total{device="eth0"}': 256073,
        'node_network_transmit_packets_total{device="eth0"}': 2503,
        'node_network_transmit_errs_total{device="eth0"}': 7,
        'node_network_transmit_drop_total{device="eth0"}': 8,
    }


def test_tcp_lines_are_found_by_name() -> None:
    raw = (VM / "net" / "snmp").read_bytes()
    values = named(TcpParser(), raw)
    names, numbers = (line.split() for line in raw.decode().splitlines() if line.startswith("Tcp:"))
    assert values["node_netstat_Tcp_RetransSegs"] == int(numbers[names.index("RetransSegs")])
    assert len(values) == 8
    assert named(TcpParser(), b"Ip: a\nIp: 1\n") == {}


def test_sockets_memory_is_also_in_bytes() -> None:
    values = named(
        SocketsParser(), b"sockets: used 14\nTCP: inuse 1 orphan 0 tw 3 alloc 1 mem 151\nUDP: inuse 2 mem 9\n"
    )
    assert values["node_sockstat_TCP_tw"] == 3
    assert values["node_sockstat_TCP_mem_bytes"] == 151 * 4096
    assert named(SocketsParser(), b"sockets: used 14\n") == {}


def test_a_speed_is_read_again_only_when_the_link_was_down(tmp_path: Path) -> None:
    speed = tmp_path / "speed"
    speed.write_text("1000\n")
    link = LinkParser("eth0", PinnedFile(str(speed)))
    assert link.parse(b"up\n") == [1, 125_000_000]
    speed.write_text("10000\n")
    assert link.parse(b"up\n") == [1, 125_000_000]
    speed.write_text("-1\n")
    assert link.parse(b"down\n") == [0]
    assert link.series == (Series("node_network_up", (("device", "eth0"),)),)
    speed.write_text("10000\n")
    assert link.parse(b"up\n") == [1, 1_250_000_000]


def sys_folder(root: Path, states: dict[str, str]) -> str:
    for device, state in states.items():
        folder = root / "class" / "net" / device
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "operstate").write_text(state + "\n")
    return str(root)


def test_traffic_follows_interfaces_that_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    text = (VM / "net" / "dev").read_text()
    (tmp_path / "net" / "dev").write_text(text)
    collector = NetworkCollector(str(tmp_path))
    before = asyncio.run(collector.collect(1.0))
    assert asyncio.run(collector.collect(2.0)).series is before.series
    assert len(before.series) == len(before.values) == 3 * 8
    (tmp_path / "net" / "dev").write_text("".join(line for line in text.splitlines(True) if "ifb1" not in line))
    after = asyncio.run(collector.collect(3.0))
    assert {dict(series.labels)["device"] for series in after.series} == {"eth0", "ifb0"}
    assert len(after.series) == len(after.values) == 2 * 8


def test_links_follow_interfaces_that_come_and_go(tmp_path: Path) -> None:
    sys = sys_folder(tmp_path, {"eth0": "up", "eth1": "down", "lo": "unknown"})
    collector = LinksCollector(str(tmp_path / "no_proc"), sys)
    before = asyncio.run(collector.collect(1.0))
    assert [
        (dict(series.labels)["device"], value) for series, value in zip(before.series, before.values, strict=True)
    ] == [
        ("eth0", 1),
        ("eth1", 0),
    ]
    sys_folder(tmp_path, {"eth2": "up"})
    after = asyncio.run(collector.collect(2.0))
    assert [dict(series.labels)["device"] for series in after.series] == ["eth0", "eth1", "eth2"]


def test_the_captured_host(tmp_path: Path) -> None:
    reading = asyncio.run(LinksCollector(str(VM), str(tmp_path)).collect(1.0))
    assert len(reading.series) == len(reading.values) == len(set(reading.series)) == 8 + 6 + 2
    assert Series("node_nf_conntrack_entries_limit") in reading.series
    disks = asyncio.run(DiskCollector(str(VM)).collect(1.0))
    assert {dict(series.labels)["device"] for series in disks.series} == {"vda", "zram0"}
