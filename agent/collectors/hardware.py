"""Whether the clock is in step, and what hardware tells of itself, as node_exporter names it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import sys

from agent.fs import sensors
from agent.model import Reading, Sample, make_labels

DEADLINE_S = 10.0
"""How long all sensors may take together; a drive that answers nothing is given up by its driver after a minute."""

_TIME_ERROR, _STA_NANO = 5, 0x2000


class _Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("pps_and_tai", ctypes.c_byte * 128),
    )


def clock_samples(state: int, status: int, offset: int, maxerror_us: int, at: float) -> list[Sample]:
    """What the kernel says of its clock (adjtimex(2)).

    Parameters
    ----------
    state
        What the call returned: 5 where the clock is not kept in step.
    status, offset, maxerror_us
        Its fields; a bit of ``status`` says whether ``offset`` is in nanoseconds or in microseconds.
    """
    unit = 1e-9 if status & _STA_NANO else 1e-6
    return [
        Sample("node_timex_sync_status", float(state != _TIME_ERROR), at),
        Sample("node_timex_offset_seconds", offset * unit, at),
        Sample("node_timex_maxerror_seconds", maxerror_us * 1e-6, at),
    ]


def read_clock(at: float) -> list[Sample]:
    """The clock as it is now; empty where the call is not allowed."""
    timex = _Timex()
    state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    return clock_samples(state, timex.status, timex.offset, timex.maxerror, at) if state >= 0 else []


def parse(output: bytes, at: float) -> list[Sample]:
    """The samples in what the sensors' program printed; a line that it had no time to end is left out."""
    found = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return [Sample(metric, value, at, make_labels(labels)) for metric, labels, value in found]


class HardwareCollector:
    """The kernel's clock, and in a child what is asked of hardware.

    Where there is nothing to ask there is no child. One that the kernel holds back is left behind, and there is no
    other until it has ended.

    Parameters
    ----------
    proc, sys_folder
        Where /proc and /sys are mounted.
    deadline_s
        How long the sensors may take together; what came until then counts.
    """

    name = "hardware"

    def __init__(self, proc: str = "/proc", sys_folder: str = "/sys", deadline_s: float = DEADLINE_S) -> None:
        self._proc, self._sys = proc, sys_folder
        self._deadline_s = deadline_s
        self._child: asyncio.subprocess.Process | None = None
        self._last = Reading(0.0, (), ())

    async def collect(self, at: float) -> Reading:
        samples = read_clock(at)
        if self._worth_asking():
            samples += parse(await self._ask(), at)
        reading = Reading.of(at, samples)
        if reading.series == self._last.series:
            reading = Reading(at, self._last.series, reading.values)
        self._last = reading
        return reading

    def _worth_asking(self) -> bool:
        if self._child is not None and self._child.returncode is None:
            return False
        places = (f"{self._sys}/class/hwmon", f"{self._sys}/devices/system/cpu/cpu0/cpufreq", f"{self._proc}/mdstat")
        return any(map(os.path.exists, places))

    async def _ask(self) -> bytes:
        self._child = child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", sensors.__file__, self._proc, self._sys, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        output = b""
        try:
            async with asyncio.timeout(self._deadline_s):
                while chunk := await child.stdout.read(65536):
                    output += chunk
                await child.wait()
        except TimeoutError:
            pass
        finally:
            await self.close()
        return output

    async def close(self) -> None:
        """End the child; one that hangs in the kernel is left behind."""
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._child.wait(), 1.0)
