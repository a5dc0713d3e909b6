"""What one GPU says: a table of questions, each of which a card, a driver or a mode may leave unanswered.

Names and units are dcgm-exporter's where it has them. What is not answered is absent, never 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from agent.gpu.host import Processes
from agent.gpu.nvml import Calls
from agent.gpu.protocol import Column, Orphan
from agent.ops.protocol import quote

MIB = float(1 << 20)
SLOWLY_S = 60.0
"""How often what hardly changes is asked again: limits, what a link could do, which links are up."""

MOST_PROCESSES = 64
"""Processes of one GPU that get a series of their own, the largest first."""

UNOWNED_BYTES = 512 << 20
"""Memory in use without any process, above which it is told as nobody's: the driver keeps some itself."""

_PREFIX = "DCGM_FI_DEV_"

FIELDS = {
    "NVML_FI_DEV_ECC_SBE_VOL_TOTAL": "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
    "NVML_FI_DEV_ECC_DBE_VOL_TOTAL": "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    "NVML_FI_DEV_ECC_SBE_AGG_TOTAL": "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",
    "NVML_FI_DEV_ECC_DBE_AGG_TOTAL": "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
    "NVML_FI_DEV_RETIRED_SBE": "DCGM_FI_DEV_RETIRED_SBE",
    "NVML_FI_DEV_RETIRED_DBE": "DCGM_FI_DEV_RETIRED_DBE",
    "NVML_FI_DEV_RETIRED_PENDING": "DCGM_FI_DEV_RETIRED_PENDING",
    "NVML_FI_DEV_REMAPPED_COR": "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "NVML_FI_DEV_REMAPPED_UNC": "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "NVML_FI_DEV_REMAPPED_PENDING": "DCGM_FI_DEV_ROW_REMAP_PENDING",
    "NVML_FI_DEV_REMAPPED_FAILURE": "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "NVML_FI_DEV_MEMORY_TEMP": "DCGM_FI_DEV_MEMORY_TEMP",
    "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    "NVML_FI_DEV_PCIE_REPLAY_COUNTER": "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
    "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION": "gpu_recovery_action",
}
"""What one batched call brings."""

_NO_ZERO = {"DCGM_FI_DEV_MEMORY_TEMP"}
"""Cards without such a sensor answer 0."""

THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""Bits of the clock event reasons that hold a clock down against its user's wish."""

_LIMITS = {"shutdown": 0, "slowdown": 1, "memory": 2, "operating": 3}
"""Kinds of temperature limit, as nvmlTemperatureThresholds_t numbers them."""


@dataclass(frozen=True, slots=True)
class Value:
    column: Column
    value: float


@dataclass(frozen=True, slots=True)
class Reading:
    values: tuple[Value, ...]
    orphans: tuple[Orphan, ...]


@dataclass(frozen=True, slots=True)
class Used:
    """GPU memory of one process; None where the driver does not tell how much."""

    pid: int
    bytes: int | None


def _value(metric: str, value: float, **labels: str) -> Value:
    return Value(Column(metric, tuple(labels.items())), float(value))


class Device:
    """Reads one GPU, in one thread.

    Parameters
    ----------
    handle
        NVML's.
    calls
        The thread's.
    """

    def __init__(self, handle: object, calls: Calls, processes: Processes) -> None:
        self._handle = handle
        self._calls = calls
        self._processes = processes
        self._slow: tuple[Value, ...] = ()
        self._slow_due = 0.0

    def read(self) -> Reading:
        """Everything that it answers now.

        Raises
        ------
        GoneError, NeedsResetError, BrokenError
            As :meth:`Calls.ask`.
        """
        now = time.monotonic()
        if now >= self._slow_due:
            self._calls.forget()
            self._slow = tuple(self._slowly())
            self._slow_due = now + SLOWLY_S
        values = [*self._fields(), *self._scalars(), *self._clock_reasons(), *self._slow]
        memory = self._memory()
        mig = list(self._mig_devices())
        values += memory
        values += [value for device, labels in mig for value in self._mig_memory(device, labels)]
        owners, orphans = self._owners([device for device, _ in mig], memory)
        return Reading((*values, *owners), orphans)

    def _one(self, metric: str, function: str, *arguments: object, scale: float = 1.0) -> Iterator[Value]:
        answer = self._calls.ask(function, self._handle, *arguments, key=arguments)
        if isinstance(answer, list | tuple):
            answer = answer[0]
        if answer is not None:
            yield _value(metric, answer * scale)

    def _fields(self) -> Iterator[Value]:
        for name, value in self._calls.fields(self._handle, FIELDS).items():
            metric = FIELDS[name]
            if value or metric not in _NO_ZERO:
                yield _value(metric, value)

    def _scalars(self) -> Iterator[Value]:
        rates = self._calls.ask("nvmlDeviceGetUtilizationRates", self._handle)
        if rates is not None:
            yield _value(_PREFIX + "GPU_UTIL", rates.gpu)
            yield _value(_PREFIX + "MEM_COPY_UTIL", rates.memory)
        yield from self._one(_PREFIX + "ENC_UTIL", "nvmlDeviceGetEncoderUtilization")
        yield from self._one(_PREFIX + "DEC_UTIL", "nvmlDeviceGetDecoderUtilization")
        yield from self._one(_PREFIX + "GPU_TEMP", "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
        yield from self._one(_PREFIX + "POWER_USAGE", "nvmlDeviceGetPowerUsage", scale=1e-3)
        yield from self._one(_PREFIX + "SM_CLOCK", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM)
        yield from self._one(_PREFIX + "MEM_CLOCK", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM)
        state = self._calls.ask("nvmlDeviceGetPerformanceState", self._handle)
        if state is not None and state != pynvml.NVML_PSTATE_UNKNOWN:
            yield _value(_PREFIX + "PSTATE", state)
        for metric, policy in (("POWER", pynvml.NVML_PERF_POLICY_POWER), ("THERMAL", pynvml.NVML_PERF_POLICY_THERMAL)):
            times = self._calls.ask("nvmlDeviceGetViolationStatus", self._handle, policy, key=(policy,))
            if times is not None:
                yield _value(f"{_PREFIX}{metric}_VIOLATION", times.violationTime)
        yield from self._one("gpu_pcie_link_generation", "nvmlDeviceGetCurrPcieLinkGeneration")
        yield from self._one("gpu_pcie_link_width", "nvmlDeviceGetCurrPcieLinkWidth")

    def _clock_reasons(self) -> Iterator[Value]:
        mask = self._calls.ask("nvmlDeviceGetCurrentClocksEventReasons", self._handle)
        if mask is None:  # its name before driver 535
            mask = self._calls.ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle)
        if mask is None:
            return
        yield _value(_PREFIX + "CLOCK_THROTTLE_REASONS", mask)
        for bit, reason in THROTTLE_REASONS.items():
            yield _value("gpu_throttled", bool(mask & bit), reason=reason)

    def _slowly(self) -> Iterator[Value]:
        for kind, threshold in _LIMITS.items():
            limit = self._calls.ask("nvmlDeviceGetTemperatureThreshold", self._handle, threshold, key=(kind,))
            if limit:
                yield _value("gpu_temperature_limit_celsius", limit, kind=kind)
        yield from self._one("gpu_power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", scale=1e-3)
        yield from self._one("gpu_pcie_link_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration")
        yield from self._one("gpu_pcie_link_width_max", "nvmlDeviceGetMaxPcieLinkWidth")
        yield from self._links()

    def _links(self) -> Iterator[Value]:
        states = []
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            up = self._calls.ask("nvmlDeviceGetNvLinkState", self._handle, link, key=(link,))
            if up is None:
                break
            states.append(bool(up))
        if states:
            yield _value("gpu_nvlink_links", states.count(True), state="up")
            yield _value("gpu_nvlink_links", states.count(False), state="down")

    def _memory(self) -> list[Value]:
        info = self._calls.ask("nvmlDeviceGetMemoryInfo", self._handle, pynvml.nvmlMemory_v2, key=(2,))
        if info is None:  # before driver 510: what the driver keeps counts as used
            info = self._calls.ask("nvmlDeviceGetMemoryInfo", self._handle, key=(1,))
        if info is None:
            return []
        values = [_value(_PREFIX + "FB_USED", info.used / MIB), _value(_PREFIX + "FB_FREE", info.free / MIB)]
        if hasattr(info, "reserved"):
            values.append(_value(_PREFIX + "FB_RESERVED", info.reserved / MIB))
        return values

    # -- MIG --

    def _mig_devices(self) -> Iterator[tuple[object, dict[str, str]]]:
        mode = self._calls.ask("nvmlDeviceGetMigMode", self._handle)
        if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return
        for index in range(self._calls.ask("nvmlDeviceGetMaxMigDeviceCount", self._handle) or 0):
            device = self._calls.ask("nvmlDeviceGetMigDeviceHandleByIndex", self._handle, index)
            number = None if device is None else self._calls.ask("nvmlDeviceGetGpuInstanceId", device)
            if number is None:
                continue
            name = self._calls.ask("nvmlDeviceGetName", device) or ""
            profile = quote(name.rpartition("MIG ")[2].encode())
            yield device, {"GPU_I_ID": str(number), "GPU_I_PROFILE": profile}

    def _mig_memory(self, device: object, labels: dict[str, str]) -> Iterator[Value]:
        info = self._calls.ask("nvmlDeviceGetMemoryInfo", device, key=("mig",))
        if info is not None:
            yield _value(_PREFIX + "FB_USED", info.used / MIB, **labels)
            yield _value(_PREFIX + "FB_FREE", info.free / MIB, **labels)

    # -- processes --

    def _owners(
        self, mig_devices: Sequence[object], memory: Sequence[Value]
    ) -> tuple[tuple[Value, ...], tuple[Orphan, ...]]:
        listed = self._listed(mig_devices)
        if listed is None:
            return (), ()
        values = tuple(self._owner_values(listed))
        if not self._processes.all_visible():
            return values, ()
        used_bytes = round(memory[0].value * MIB) if memory else 0
        orphans = tuple(find_orphans(listed, used_bytes, self._state_of))
        return (*values, _value("gpu_orphaned_memory_bytes", sum(orphan.bytes for orphan in orphans))), orphans

    def _listed(self, mig_devices: Sequence[object]) -> list[Used] | None:
        """Who uses memory, the largest first; None where the driver does not say."""
        found: dict[int, int | None] = {}
        answered = False
        for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3"):
            for device in (self._handle, *mig_devices):
                entries = self._calls.ask(function, device, key=(device is self._handle,))
                answered = answered or entries is not None
                for entry in entries or ():
                    found[entry.pid] = max(found.get(entry.pid) or 0, entry.usedGpuMemory or 0) or None
        ordered = sorted(found.items(), key=lambda item: (-(item[1] or 0), item[0]))
        return [Used(pid, used) for pid, used in ordered] if answered else None

    def _owner_values(self, listed: Sequence[Used]) -> Iterator[Value]:
        for used in listed[:MOST_PROCESSES]:
            if used.bytes is None:
                continue
            process = self._processes.find(used.pid)
            name, user = (process.name, process.user) if process else ("", "")
            metric = "gpu_process_memory_bytes"
            yield _value(metric, used.bytes, pid=str(used.pid), name=quote(name.encode()), user=quote(user.encode()))

    def _state_of(self, pid: int) -> tuple[str, str]:
        process = self._processes.find(pid)
        return (process.name, process.state) if process else ("", "")


_HOLDING = {"": "dead", "X": "dead", "Z": "zombie", "D": "uninterruptible"}


def find_orphans(
    listed: Sequence[Used], used_bytes: int, state_of: Callable[[int], tuple[str, str]]
) -> Iterator[Orphan]:
    """GPU memory that no living process owns.

    Parameters
    ----------
    listed
        The processes that the driver lists.
    used_bytes
        Memory in use in all.
    state_of
        Name and state letter of a process; both empty where it is gone. A process in uninterruptible sleep for an
        instant is an ordinary thing: rules ask for how long.
    """
    if not listed and used_bytes >= UNOWNED_BYTES:
        yield Orphan(0, "", "nobody", used_bytes)
    for used in listed:
        name, state = state_of(used.pid)
        if used.bytes and state in _HOLDING:
            yield Orphan(used.pid, quote(name.encode()), _HOLDING[state], used.bytes)


def describe(calls: Calls, handle: object) -> dict[str, Any]:
    """Name, PCI address and device number of a GPU; empty or -1 where unknown."""
    name = calls.ask("nvmlDeviceGetName", handle) or ""
    pci = calls.ask("nvmlDeviceGetPciInfo_v3", handle)
    minor = calls.ask("nvmlDeviceGetMinorNumber", handle)
    bus = "" if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
    return {"name": quote(name.encode()), "pci": bus, "minor": -1 if minor is None else minor}
