"""What a look sees, as values; folders are :class:`agent.fs.survey.FolderLook`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.fs.survey import DAY_S, FolderLook


@dataclass(frozen=True, slots=True)
class MountLook:
    """A file system; the figures are 0 where it did not answer."""

    path: str
    kind: str
    answered: bool = True
    size_bytes: int = 0
    free_bytes: int = 0
    avail_bytes: int = 0
    files: int = 0
    files_free: int = 0

    @property
    def fill(self) -> float:
        """The part in use of what ordinary users may use, as df counts it; 0..1."""
        used = self.size_bytes - self.free_bytes
        return used / (used + self.avail_bytes) if used + self.avail_bytes else 0.0

    @property
    def inode_fill(self) -> float:
        return 1 - self.files_free / self.files if self.files else 0.0


@dataclass(frozen=True, slots=True)
class GpuLook:
    """One line of nvidia-smi; what the device does not tell is None."""

    index: int
    name: str
    busy_percent: float | None
    used_bytes: float | None
    total_bytes: float | None
    celsius: float | None


@dataclass(frozen=True, slots=True)
class RedisLook:
    """What Redis said: ``state`` in words for people, ``info`` where it answered."""

    address: str
    state: str
    info: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UnitLook:
    name: str
    state: str
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing, and what the agent would do about it.

    ``urgency`` is 3 for what fails now or soon, 2 for what is over a limit, 1 for what can be had back, 0 for calm
    facts; ``bytes`` orders those of one urgency.
    """

    text: str
    would: str
    urgency: int = 0
    bytes: float = 0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a host. ``gpus`` and ``units`` are a sentence where there is nothing to list."""

    host: str
    mounts: tuple[MountLook, ...]
    gpus: tuple[GpuLook, ...] | str
    folders: tuple[FolderLook, ...]
    redis: RedisLook
    units: tuple[UnitLook, ...] | str
    findings: tuple[Finding, ...]
    at: float


def percent(part: float) -> str:
    """A part, 0..1, for people."""
    return f"{part * 100:.0f} %"


def age(seconds: float) -> str:
    """A length of time for people: one unit says enough of an age."""
    for unit, length in (("d", DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
