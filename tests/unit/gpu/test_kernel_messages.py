"""Which lines of the kernel's log mean something, and what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.messages import PATTERNS, Identity, Named, Parser, SXid, Xid, pci_address
from agent.model import Severity


def parse(text: str) -> list[object]:
    return list(Parser().parse(text))


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (
            "NVRM: Xid (PCI:0000:5e:00): 31, pid=41, name=python3, Ch 00000008, MMU Fault: ENGINE GRAPHICS",
            Xid("0000:5e:00", 31, "pid=41, name=python3, Ch 00000008, MMU Fault: ENGINE GRAPHICS", "41", "python3"),
        ),
        (
            "[ 12.3] NVRM: Xid (0000:03:00): 14, Channel 00000001",
            Xid("0000:03:00", 14, "Channel 00000001"),
        ),
        (
            "NVRM: Xid (PCI:0000:5e:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            Xid("0000:5e:00", 79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        ),
        ("NVRM: Xid (PCI:00000000:5E:00): 43", Xid("0000:5e:00", 43, "")),
        (
            "NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6)",
            Xid("0008:01:00", 149, "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6)"),
        ),
        (
            "NVRM: GPU at PCI:0000:5e:00: GPU-01234567-89ab-cdef-0123-456789abcdef",
            Identity("0000:5e:00", "GPU-01234567-89ab-cdef-0123-456789abcdef"),
        ),
        (
            "NVRM: GPU 5e:00.0: GPU has fallen off the bus.",
            Xid("0000:5e:00", 79, "GPU has fallen off the bus"),
        ),
        (
            "nvidia-nvswitch2: SXid (PCI:0000:c4:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            SXid("nvidia-nvswitch2", "0000:c4:00", 20034, True, "Fatal, Link 30 LTSSM Fault Up"),
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 22013, Non-fatal, Link 7 minion Link DLREQ interrupt",
            SXid("nvidia-nvswitch0", "0000:c1:00", 22013, False, "Non-fatal, Link 7 minion Link DLREQ interrupt"),
        ),
    ],
)  # fmt: skip
def test_a_drivers_line(line: str, finding: object) -> None:
    assert parse(line) == [finding]


LINES = {
    "raid_failure": [
        "md/raid1:md0: Disk failure on sdb1 detected, failing array",
        "md/raid10md2: Disk failure on nvme0n1p2 detected, failing array.",
    ],
    "filesystem_read_only": ["EXT4-fs (dm-1): Remounting filesystem read-only"],
    "nvme_no_path": ["block nvme3n1: no available path - failing I/O"],
    "nvme_disabled": ["nvme nvme2: Disabling device after reset failure: -19"],
    "superblock_write_error": ["EXT4-fs (sdc1): I/O error while writing superblock"],
    "machine_check": ["mce: [Hardware Error]: Machine check events logged"],
    "soft_lockup": ["watchdog: BUG: soft lockup - CPU#7 stuck for 22s! [kworker/7:1:99]"],
    "hard_lockup": ["Watchdog detected hard LOCKUP on cpu 3"],
    "kernel_bug": ["BUG: unable to handle page fault for address: ffffffffc0a00000", "kernel BUG at mm/slub.c:305!"],
    "oom_kill": [
        "Out of memory: Killed process 4242 (python3) total-vm:99kB, anon-rss:9kB",
        "Memory cgroup out of memory: Killed process 77 (ray::Worker) total-vm:1kB",
    ],
    "task_blocked": ["INFO: task kworker/u64:3:812 blocked for more than 120 seconds."],
    "nvme_timeout": ["nvme nvme1: I/O tag 41 (a029) opcode 0x2 (Write) QID 9 timeout, reset controller"],
    "beyond_end_of_device": ["attempt to access beyond end of device"],
    "buffer_io_error": ["Buffer I/O error on dev sdb, logical block 17, async page read"],
    "nfs_not_responding": ["nfs: server filer.lan not responding, timed out"],
    "nfs_lock_lost": ["nfs4_reclaim_open_state: Lock reclaim failed!"],
    "nfs_writeback_hang": [" nfs_page_async_flush+0x24/0x290 [nfs]"],
    "file_max": ["VFS: file-max limit 1048576 reached"],
    "cable_too_hot": [
        "mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 1, Cable error, High Temperature"
    ],
    "slot_power_low": ["mlx5_core: mlx5_pcie_event: Detected insufficient power on the PCIe slot (27W)."],
    "pcie_error": ["pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error message received from 0000:01:00.0"],
    "nccl_crash": ["python3[88]: segfault at 7f00 ip 00007f sp 00007f error 4 in libnccl.so.2[7f00+100]"],
    "peermem_invalid_context": ["nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping"],
    "nfs_responding": ["nfs: server filer.lan OK"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_a_line_of_trouble(name: str, line: str) -> None:
    [finding] = parse(line)
    assert isinstance(finding, Named)
    assert (finding.name, finding.severity) == (name, PATTERNS[name].severity)
    assert parse(f"kernel: message repeated 3 times: [{line}]") or name in ("kernel_bug", "nfs_writeback_hang")


def test_every_pattern_has_a_line() -> None:
    assert set(LINES) == set(PATTERNS)


def test_what_a_line_names_becomes_its_labels() -> None:
    [found] = parse(LINES["oom_kill"][1])
    assert isinstance(found, Named)
    assert found.labels == (("pid", "77"), ("process", "ray::Worker"))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  590.48.01",
        "NVRM: Xid error: xyz, invalid data",
        "NVRM: Xid (PCI::::): 5, no address",
        "NVRM: Xid (PCI:0000:5e:00): 99999999999999999999, no code",
        "NVRM: GPU0 GSP RPC buffer contains function 103 (GSP_RM_ALLOC)",
        "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 22013, Data {0x50610002, 0x10100030}",
        "md/raid0: Disk failure detected",
        "EXT4-fs (sda1): mounted filesystem with ordered data mode",
        "block nvme0n1: no available path",
        "nvme nvme0: Disabling device",
        "INFO: task xyz blocked for more than 60 seconds.",
        "vfs: File-max Limit 5 Reached",
        " my_nfs_page_async_flush+0x24/0x290 [nfs]",
        "some error in libnccl.so",
    ],
)
def test_a_line_that_means_nothing(line: str) -> None:
    assert parse(line) == []


def test_fallen_off_the_bus_in_three_lines_whether_they_come_as_one_message_or_as_three() -> None:
    lines = [
        "NVRM: The NVIDIA GPU 0000:5e:00.0",
        "NVRM: (PCI ID: 10de:2330) installed in this system has",
        "NVRM: fallen off the bus and is not responding to commands.",
    ]
    expected = [Xid("0000:5e:00", 79, "GPU has fallen off the bus")]
    assert parse("\n".join(lines)) == expected
    parser = Parser()
    assert [finding for line in lines for finding in parser.parse(line)] == expected


@given(st.text(max_size=300), st.sampled_from(["", "NVRM: Xid (PCI:", "NVRM: GPU ", "SXid (PCI:", "NVRM: Xid (0:0): "]))
def test_no_text_breaks_the_parser(text: str, start: str) -> None:
    for finding in parse(start + text):
        assert finding is not None


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F))
def test_an_address_is_one_however_it_is_written(domain: int, bus: int, device: int) -> None:
    plain = f"{domain:04x}:{bus:02x}:{device:02x}"
    assert pci_address(plain) == pci_address(plain.upper() + ".0") == pci_address(f"0000{plain}") == plain
    assert pci_address(f"{bus:02x}:{device:02x}") == f"0000:{bus:02x}:{device:02x}"


def test_severities_are_those_of_the_model() -> None:
    assert {pattern.severity for pattern in PATTERNS.values()} <= set(Severity)
