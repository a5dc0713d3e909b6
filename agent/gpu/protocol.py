"""What the agent and the probe say to each other: one JSON object a line, read as strictly as what the hands hear.

The agent asks ``read``; the probe answers ``seen`` with the same id, always, within its patience: what hangs is named
instead of waited for. The columns of a GPU travel when they are new on this connection, the values each time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from agent.errors import UpkeepError
from agent.ops.protocol import construct, parse_json

VERSION = 1
MAX_LINE_BYTES = 4 << 20
"""Sixteen GPUs of seven MIG devices and 64 processes each, with all their labels, are about one MiB."""

DriverState = Literal[
    "ready", "no_driver", "no_library", "no_permission", "mismatch", "failed", "hung", "stuck", "no_probe", "released"
]
"""What can be said of the driver as a whole.

``hung``: a call that concerns no single GPU, or the probe itself, does not come back. ``stuck``: an earlier probe is
still inside such a call, and no second one is started. ``no_probe``: systemd has no socket for it, or it would not
start.
"""

GpuState = Literal["up", "hung", "lost", "needs_reset"]


class GpuError(UpkeepError):
    """The probe could not be reached, or answered out of protocol."""


@dataclass(frozen=True, slots=True)
class Column:
    """A series of a GPU: its metric, and the labels that come on top of the GPU's own, as pairs."""

    metric: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Orphan:
    """GPU memory whose process is no more, or no longer does anything: ``dead``, ``zombie``, ``uninterruptible``, or
    ``nobody`` where memory is in use and no process at all is listed (pid 0)."""

    pid: int
    name: str
    state: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one reading. ``call`` is what it hangs in, since ``call_s`` seconds. ``columns`` are None where they
    are those of the last answer with the same ``layout``."""

    uuid: str
    index: int
    minor: int
    name: str
    pci: str
    state: GpuState
    call: str
    call_s: float
    layout: int
    columns: tuple[Column, ...] | None
    values: tuple[float, ...]
    orphans: tuple[Orphan, ...]


@dataclass(frozen=True, slots=True)
class CallTime:
    """The longest time of one NVML function since the last answer."""

    call: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Xid:
    """An Xid that NVML reported as an event, at ``at`` seconds since the epoch."""

    uuid: str
    code: int
    at: float


@dataclass(frozen=True, slots=True)
class Read:
    """The one question."""

    version: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer. ``code`` is NVML's return where the state is a failure, ``faults`` what single GPUs refused."""

    pid: int
    state: DriverState
    code: int
    message: str
    driver_version: str
    nvml_version: str
    cuda_version: str
    gpus: tuple[Gpu, ...]
    calls: tuple[CallTime, ...]
    xids: tuple[Xid, ...]
    faults: tuple[str, ...]


def without_driver(state: DriverState, message: str) -> Seen:
    """What there is to say when nothing could be asked."""
    return Seen(0, state, 0, message, "", "", "", (), (), (), ())


M = TypeVar("M", Read, Seen)


def encode(number: int, message: Read | Seen) -> bytes:
    """One line, newline included."""
    body = {"id": number, **dataclasses.asdict(message)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes, cls: type[M]) -> tuple[int, M]:
    """The id and the message of one line.

    Raises
    ------
    GpuError
        With the first thing that is wrong.
    """
    try:
        body = parse_json(line)
    except ValueError as error:
        raise GpuError(f"cannot read a line of the probe's: {error}") from None
    number = body.pop("id", None) if isinstance(body, dict) else None
    if type(number) is not int or number < 0:
        raise GpuError('cannot read a line of the probe\'s: it needs an "id", a whole number')
    faults: list[str] = []
    message = construct(cls, body, "", faults)
    if message is None:
        raise GpuError(f"cannot read a line of the probe's: {faults[0]}")
    return number, message


DRIVER_WORDS: Mapping[DriverState, str] = {
    "ready": "the driver answers",
    "no_driver": "no NVIDIA driver is loaded",
    "no_library": "the driver is loaded, its library libnvidia-ml.so.1 is not installed",
    "no_permission": "this user may not open the devices",
    "mismatch": "the loaded driver and its library are of different versions: load the driver again, or reboot",
    "failed": "the driver refuses to begin",
    "hung": "the driver does not come back from a call",
    "stuck": "an earlier probe still hangs in the driver; no second one is started",
    "no_probe": "there is nobody to ask the driver",
    "released": "the driver was let go of on request",
}
"""Each state of the driver, for people."""
