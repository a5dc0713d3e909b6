"""Kernel lines that mean something: Xids of GPUs, SXids of NVSwitches, and a table of other troubles.

Pure: lines in, findings out. A line is at most a kilobyte (printk), and the expressions have one wildcard at most where
they could go back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.model import Severity

MOST_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Xid:
    """A GPU's error. ``device`` is its PCI address as ``dddd:bb:dd``; ``pid`` and ``process`` are who was hit."""

    device: str
    code: int
    text: str
    pid: str = ""
    process: str = ""


@dataclass(frozen=True, slots=True)
class SXid:
    """An NVSwitch's error."""

    switch: str
    device: str
    code: int
    fatal: bool
    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """Another trouble, by its name in :data:`PATTERNS`; ``labels`` are the named groups of its expression."""

    name: str
    severity: Severity
    text: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """Which GPU has this PCI address: the driver says so before its first Xid."""

    device: str
    uuid: str


Finding = Xid | SXid | Named | Identity


@dataclass(frozen=True, slots=True)
class Pattern:
    severity: Severity
    regex: re.Pattern[str]


def _patterns(severity: Severity, **expressions: str) -> dict[str, Pattern]:
    return {name: Pattern(severity, re.compile(expression)) for name, expression in expressions.items()}


PATTERNS: Mapping[str, Pattern] = {
    **_patterns(
        Severity.CRITICAL,
        raid_failure=r"md/raid[^ ]*: Disk failure on (?P<device>\S+) detected, failing array",
        filesystem_read_only=r"Remounting filesystem read-only",
        nvme_no_path=r"block (?P<device>nvme\w+): no available path - failing I/O",
        nvme_disabled=r"nvme (?P<device>nvme\d+): Disabling device after reset failure",
        superblock_write_error=r"I/O error while writing superblock",
        machine_check=r"mce: \[Hardware Error\]: Machine check events? logged|mce: .*Uncorrected",
        soft_lockup=r"BUG: soft lockup - CPU#\d+ stuck for ",
        hard_lockup=r"Watchdog detected hard LOCKUP on cpu",
        kernel_bug=r"^(?:\[[^\]]*\] )?(?:kernel BUG at |BUG: unable to handle |Oops: )",
    ),
    **_patterns(
        Severity.ERROR,
        oom_kill=r"(?:Out of memory|Memory cgroup out of memory): Killed process (?P<pid>\d+) \((?P<process>[^)]*)\)",
        task_blocked=r"INFO: task (?P<process>[^ ]+):\d+ blocked for more than \d+ seconds",
        nvme_timeout=r"nvme (?P<device>nvme\d+): I/O .*timeout, reset controller",
        beyond_end_of_device=r"attempt to access beyond end of device",
        buffer_io_error=r"Buffer I/O error on dev(?:ice)? (?P<device>[^ ,]+), logical block ",
        nfs_not_responding=r"nfs: server (?P<server>\S+) not responding",
        nfs_lock_lost=r"nfs4_reclaim_open_state: Lock reclaim failed!",
        nfs_writeback_hang=r"^\s*(?:nfs_lock_and_join_requests|nfs_page_async_flush)\+0x",
        file_max=r"VFS: file-max limit \d+ reached",
        cable_too_hot=r"mlx5_port_module_event.*Port module event\[error\].*High Temperature",
        slot_power_low=r"mlx5_pcie_event.*Detected insufficient power on the PCIe slot",
        pcie_error=r"AER: .*(?:Uncorrected|Fatal)\b.*error",
    ),
    **_patterns(
        Severity.WARNING,
        nccl_crash=r"segfault at .* in libnccl\.so",
        peermem_invalid_context=r"nvidia-peermem .*ERROR detected invalid context",
    ),
    **_patterns(Severity.INFO, nfs_responding=r"nfs: server (?P<server>\S+) OK"),
}
"""Other lines worth an event, each at the start of its own rule. A later pattern is not asked where an earlier one
matched."""

_ANY = re.compile("|".join(f"(?:{re.sub(r'[(][?]P<[a-z]+>', '(?:', p.regex.pattern)})" for p in PATTERNS.values()))

_ADDRESS = r"(?P<device>(?:[0-9a-fA-F]{1,8}:){1,2}[0-9a-fA-F]{1,2}(?:\.[0-9a-fA-F])?)"
_XID = re.compile(rf"NVRM: Xid \((?:PCI:)?{_ADDRESS}\): (?P<code>\d{{1,6}})\b(?:, *(?P<text>.*))?")
_WHO = re.compile(r"pid='?(?P<pid>\d+)'?(?:, name=(?P<name>[^,]+))?")
_SXID = re.compile(rf"(?P<switch>nvidia-nvswitch\d+): SXid \(PCI:{_ADDRESS}\): (?P<code>\d{{1,9}}), (?P<text>.*)")
_IDENTITY = re.compile(rf"NVRM: GPU at PCI:{_ADDRESS}: (?P<uuid>GPU-[0-9a-fA-F-]+)")
_NAMED_GPU = re.compile(rf"NVRM: (?:The NVIDIA )?GPU {_ADDRESS}")
_FALLEN = "fallen off the bus"
FALLEN_OFF_THE_BUS = 79


def pci_address(text: str) -> str:
    """``dddd:bb:dd`` of any way to write a PCI address: the domain may be missing, or have eight digits."""
    parts = text.lower().partition(".")[0].split(":")
    if len(parts) == 2:
        parts.insert(0, "0")
    domain, bus, device = (int(part, 16) for part in parts[:3])
    return f"{domain:04x}:{bus:02x}:{device:02x}"


class Parser:
    """Turns messages into findings. It remembers the GPU that was named last: "fallen off the bus" is told in three
    lines, of which the first has the address."""

    def __init__(self) -> None:
        self._named = ""

    def parse(self, message: str) -> Iterator[Finding]:
        """The findings of one message, which may have several lines."""
        for line in message[:MOST_CHARS].split("\n"):
            finding = self._line(line)
            if finding is not None:
                yield finding

    def _line(self, line: str) -> Finding | None:
        if "NVRM: " in line:
            return self._driver(line)
        if "SXid" in line:
            return _switch(line)
        return _other(line)

    def _driver(self, line: str) -> Finding | None:
        if found := _XID.search(line):
            return _xid(found)
        if found := _IDENTITY.search(line):
            return Identity(pci_address(found["device"]), found["uuid"])
        if found := _NAMED_GPU.search(line):
            self._named = pci_address(found["device"])
        if _FALLEN in line and self._named:
            return Xid(self._named, FALLEN_OFF_THE_BUS, "GPU has fallen off the bus")
        return None


def _xid(found: re.Match[str]) -> Xid:
    text = (found["text"] or "").strip()
    who = _WHO.match(text)
    name = (who["name"] or "").strip("'") if who else ""
    return Xid(pci_address(found["device"]), int(found["code"]), text, who["pid"] if who else "", name)


def _switch(line: str) -> SXid | None:
    found = _SXID.search(line)
    if found is None or found["text"].startswith("Data "):  # more of the line before
        return None
    text = found["text"]
    fatal = text.startswith("Fatal")
    return SXid(found["switch"], pci_address(found["device"]), int(found["code"]), fatal, text)


def _other(line: str) -> Named | None:
    if not _ANY.search(line):
        return None
    for name, pattern in PATTERNS.items():
        if found := pattern.regex.search(line):
            labels = tuple((key, value) for key, value in sorted(found.groupdict().items()) if value)
            return Named(name, pattern.severity, line.strip(), labels)
    return None
