"""Xid codes: what NVIDIA's catalogue (of October 2025) says of them, and what a site says otherwise.

Where the catalogue and other tools disagree, the least destructive advice is taken. An Xid advises; it repairs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from agent import yamlfile
from agent.errors import FaultyFilesError
from agent.located import Faults, build
from agent.model import Severity

Advice = Literal[
    "none",
    "follow_other",
    "restart_app",
    "restart_fabric_manager",
    "check_hardware",
    "check_memory",
    "check_nvlink",
    "drain",
    "drain_and_reset",
    "reset_gpu",
    "restart_vm",
    "reboot",
    "support",
]
"""What is to be done, from nothing to a person at NVIDIA. ``follow_other``: another Xid of this GPU says it."""

ADVICE: Mapping[str, str] = {
    "none": "nothing has to be done",
    "follow_other": "do what the other Xid of this GPU asks for",
    "restart_app": "restart the application that was hit",
    "restart_fabric_manager": "restart the fabric manager",
    "check_hardware": "check power, cables and slot",
    "check_memory": "look at the ECC and row remapping counters: reset the GPU where a remap waits",
    "check_nvlink": "look at the NVLink counters of both ends",
    "drain": "let what runs finish, take no new work",
    "drain_and_reset": "let what runs finish, then reset the GPU",
    "reset_gpu": "reset the GPU when nothing uses it",
    "restart_vm": "restart the virtual machine",
    "reboot": "restart the whole machine",
    "support": "ask NVIDIA's support",
}
assert set(ADVICE) == set(get_args(Advice))


@dataclass(frozen=True, slots=True)
class Entry:
    """A code: its name, how grave it is, and what to do."""

    name: str
    severity: Severity
    advice: Advice


_INFO, _WARNING, _ERROR, _CRITICAL = Severity.INFO, Severity.WARNING, Severity.ERROR, Severity.CRITICAL

CATALOGUE: Mapping[int, Entry] = {
    8: Entry("GPU stopped processing", _WARNING, "restart_app"),
    13: Entry("graphics engine exception", _WARNING, "restart_app"),
    31: Entry("memory page fault", _WARNING, "restart_app"),
    32: Entry("invalid push buffer stream", _WARNING, "restart_app"),
    38: Entry("driver firmware error", _WARNING, "none"),
    43: Entry("GPU stopped processing for an application", _WARNING, "none"),
    44: Entry("fault in a context switch", _WARNING, "none"),
    45: Entry("preemptive cleanup", _WARNING, "restart_fabric_manager"),
    46: Entry("GPU timeout", _CRITICAL, "reset_gpu"),
    48: Entry("double-bit ECC error", _CRITICAL, "check_memory"),
    54: Entry("auxiliary power not connected", _ERROR, "check_hardware"),
    62: Entry("internal micro-controller halt", _CRITICAL, "reset_gpu"),
    63: Entry("row remap or page retirement recorded", _INFO, "none"),
    64: Entry("row remap or page retirement failed", _CRITICAL, "reset_gpu"),
    68: Entry("video decoder exception", _WARNING, "restart_app"),
    69: Entry("graphics engine class error", _WARNING, "restart_app"),
    74: Entry("NVLink error", _ERROR, "check_nvlink"),
    79: Entry("GPU has fallen off the bus", _CRITICAL, "reboot"),
    92: Entry("high rate of single-bit ECC errors", _WARNING, "none"),
    93: Entry("InfoROM wear limit", _WARNING, "none"),
    94: Entry("contained memory error", _WARNING, "restart_app"),
    95: Entry("uncontained memory error", _CRITICAL, "reset_gpu"),
    109: Entry("context switch timeout", _CRITICAL, "reset_gpu"),
    110: Entry("security fault", _CRITICAL, "reset_gpu"),
    119: Entry("GSP does not answer", _CRITICAL, "reset_gpu"),
    120: Entry("GSP error", _CRITICAL, "reset_gpu"),
    121: Entry("C2C link error", _WARNING, "none"),
    136: Entry("link training failed", _CRITICAL, "reset_gpu"),
    137: Entry("NVLink privilege error", _WARNING, "none"),
    140: Entry("unrecovered ECC error", _CRITICAL, "reset_gpu"),
    143: Entry("GPU initialisation error", _CRITICAL, "reset_gpu"),
    144: Entry("NVLink error (SAW)", _ERROR, "check_nvlink"),
    145: Entry("NVLink error (RLW)", _ERROR, "check_nvlink"),
    146: Entry("NVLink error (TLW)", _ERROR, "check_nvlink"),
    147: Entry("NVLink error (TREX)", _ERROR, "check_nvlink"),
    148: Entry("NVLink error (NVLPW)", _ERROR, "check_nvlink"),
    149: Entry("NVLink error (NETIR)", _ERROR, "check_nvlink"),
    150: Entry("NVLink error (MSE)", _ERROR, "check_nvlink"),
    151: Entry("key rotation error", _CRITICAL, "restart_vm"),
    154: Entry("recovery action changed", _INFO, "follow_other"),
    155: Entry("NVLink error defined by software", _CRITICAL, "reset_gpu"),
    156: Entry("resource retirement", _CRITICAL, "reset_gpu"),
    157: Entry("resource retirement failed", _WARNING, "support"),
    158: Entry("GPU fatal timeout", _CRITICAL, "reset_gpu"),
    167: Entry("PCIe fatal timeout", _ERROR, "check_hardware"),
    171: Entry("uncorrectable DRAM error", _WARNING, "follow_other"),
    172: Entry("uncorrectable SRAM error", _WARNING, "follow_other"),
}

_NVLINK5 = range(144, 151)
_PREEMPTIVE_CLEANUP, _RECOVERY_ACTION = 45, 154

FOLLOWS_WITHIN_S = 60.0
"""How long after another Xid of the same GPU a preemptive cleanup is its consequence."""

_RECOVERY = re.compile(r"recovery action changed from 0x[0-9a-f]+ \([^)]*\) to 0x[0-9a-f]+ \((?P<action>[^)]*)\)", re.I)
_RECOVERIES: Mapping[str, tuple[Severity, Advice]] = {
    "none": (_INFO, "none"),
    "gpu reset required": (_CRITICAL, "reset_gpu"),
    "node reboot required": (_CRITICAL, "reboot"),
    "drain p2p": (_ERROR, "drain"),
    "drain and reset": (_CRITICAL, "drain_and_reset"),
}
"""The driver's own advice in an Xid 154."""


@dataclass(frozen=True, slots=True)
class Override:
    """What a site says of one code."""

    severity: Severity | None = field(default=None, metadata={"help": "how grave it is here"})
    advice: Advice | None = field(default=None, metadata={"help": "what to do about it here"})
    ignore: bool = field(default=False, metadata={"help": "counted, but no event"})


@dataclass(frozen=True, slots=True)
class Overrides:
    """The file of a site: codes, and what is different there."""

    xids: Mapping[str, Override] = field(default_factory=dict, metadata={"help": "code → what is different here"})


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one Xid means, here and now."""

    name: str
    severity: Severity
    advice: Advice
    ignore: bool = False


def load_overrides(path: str | None, *, apart: bool = True) -> Mapping[int, Override]:
    """A site's overrides by code; none without a file.

    Raises
    ------
    FaultyFilesError
        With everything that is wrong with it.
    """
    if path is None:
        return {}
    parsed = yamlfile.read([path], apart=apart)[path]
    faults = Faults(path)
    faults.found.extend(parsed.faults)
    overrides = build(Overrides, parsed.root, faults)
    if overrides is not None:
        for code in overrides.xids:
            if not code.isdecimal():
                faults.add(parsed.root, f'unknown Xid "{code}": a code is a whole number')
    if overrides is None or faults.errors:
        raise FaultyFilesError(faults.found)
    return {int(code): override for code, override in overrides.xids.items()}


def judge(code: int, text: str, overrides: Mapping[int, Override], *, cause: int | None = None) -> Judgement:
    """What an Xid means.

    Parameters
    ----------
    code, text
        As the driver wrote them; the text may be empty.
    overrides
        A site's own.
    cause
        Another Xid of the same GPU within :data:`FOLLOWS_WITHIN_S` before it.
    """
    entry = CATALOGUE.get(code, Entry("unknown Xid", _WARNING, "support"))
    severity, advice = entry.severity, entry.advice
    if code == _PREEMPTIVE_CLEANUP and cause is not None:
        severity, advice = _INFO, "follow_other"
    elif code == _RECOVERY_ACTION and (changed := _RECOVERY.search(text)):
        severity, advice = _RECOVERIES.get(changed["action"].lower(), (_ERROR, "support"))
    elif code in _NVLINK5 and "Nonfatal" in text:
        severity = _WARNING
    elif code in _NVLINK5 and re.search(r"\bFatal\b", text):
        severity = _CRITICAL
    found = Judgement(entry.name, severity, advice)
    override = overrides.get(code)
    if override is None:
        return found
    return replace(
        found,
        severity=override.severity or severity,
        advice=override.advice or advice,
        ignore=override.ignore,
    )


def reference() -> str:
    """``docs/reference/xids.md``, made from the catalogue."""
    lines = [
        "# Xids",
        "",
        "Made from the catalogue in `agent/gpu/xid.py`; a test compares. An Xid advises and repairs nothing. Xid 45",
        "after another Xid of the same GPU is its consequence; Xid 154 carries the driver's own advice; an NVLink",
        "error (144 to 150) says itself whether it is fatal. [Say otherwise for a site](../how-to/watch-gpus.md).",
        "",
        "| Xid | name | severity | advice |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code} | {entry.name} | {entry.severity} | `{entry.advice}` |" for code, entry in CATALOGUE.items()]
    lines += ["", "| advice | what to do |", "|---|---|"]
    lines += [f"| `{name}` | {words} |" for name, words in ADVICE.items()]
    return "\n".join([*lines, ""])
