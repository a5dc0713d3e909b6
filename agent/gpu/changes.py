"""What changed between two looks at the GPUs, as events: a state is told once, when it begins and when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.gpu.protocol import DRIVER_WORDS, DriverState, Gpu, Seen
from agent.model import Event, Severity, make_labels

_DRIVER: Mapping[DriverState, Severity] = {
    "ready": Severity.INFO,
    "released": Severity.INFO,
    "no_driver": Severity.ERROR,
    "no_library": Severity.WARNING,
    "no_permission": Severity.WARNING,
    "mismatch": Severity.ERROR,
    "failed": Severity.ERROR,
    "no_probe": Severity.ERROR,
    "hung": Severity.CRITICAL,
    "stuck": Severity.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class _Change:
    kind: str
    severity: Severity
    message: str
    gpu: Gpu | None = None


class Changes:
    """Remembers what was told.

    A host that never had a driver is quiet. GPUs of a session that went away for another reason than their own are not
    told one by one.
    """

    def __init__(self) -> None:
        self._state: DriverState = "no_driver"
        self._driver_version = ""
        self._mismatch = False
        self._gpus: dict[str, Gpu] = {}
        self._orphaned: dict[tuple[str, int], bool] = {}
        self._faults: tuple[str, ...] = ()

    def take(self, seen: Seen, mismatch: bool | None, at: float) -> list[Event]:
        """The events that this look brings.

        Parameters
        ----------
        mismatch
            Whether the host's files show another library than the loaded driver's; None where they do not tell.
        """
        return [_event(change, at) for change in self._changes(seen, mismatch)]

    def _changes(self, seen: Seen, mismatch: bool | None) -> Iterator[_Change]:
        yield from self._driver(seen)
        if mismatch and not self._mismatch:
            yield _Change(
                "gpu_driver_replaced",
                Severity.WARNING,
                "another version of the driver is installed than is loaded: programs that start from now on may fail; "
                "load it anew or reboot",
            )
        self._mismatch = bool(mismatch)
        for fault in seen.faults:
            if fault not in self._faults:
                yield _Change("gpu_unreadable", Severity.ERROR, fault)
        self._faults = seen.faults
        if seen.state == "ready" or seen.gpus:
            yield from self._each(seen)

    def _driver(self, seen: Seen) -> Iterator[_Change]:
        if seen.state != self._state:
            began = self._state == "no_driver" and seen.state == "ready" and not self._driver_version
            words = DRIVER_WORDS[seen.state] + (f" ({seen.message})" if seen.message else "")
            if not began:
                yield _Change("gpu_driver", _DRIVER[seen.state], f"GPU driver: {words}")
            self._state = seen.state
        if seen.driver_version and seen.driver_version != self._driver_version:
            if self._driver_version:
                words = f"the driver was loaded anew: {self._driver_version} before, {seen.driver_version} now"
                yield _Change("gpu_driver_reloaded", Severity.INFO, words)
            self._driver_version = seen.driver_version

    def _each(self, seen: Seen) -> Iterator[_Change]:
        listed = {gpu.uuid: gpu for gpu in seen.gpus}
        first = not self._gpus
        for gpu in seen.gpus:
            before = self._gpus.get(gpu.uuid)
            if before is None:
                if not first:
                    yield _Change("gpu_added", Severity.INFO, f"{_name(gpu)} was added", gpu)
            elif before.index != gpu.index:
                words = f"{_name(gpu)} has index {gpu.index} now, {before.index} before: settings by index mean another"
                yield _Change("gpu_renumbered", Severity.WARNING, words, gpu)
            if gpu.state != (before.state if before else "up"):
                yield _state_change(gpu)
            yield from self._orphans(gpu)
        for uuid, gpu in self._gpus.items():
            if uuid not in listed and gpu.state != "lost" and seen.state == "ready":
                yield _Change("gpu_lost", Severity.CRITICAL, f"{_name(gpu)} is no longer listed by the driver", gpu)
        self._gpus |= listed
        if seen.state == "ready":
            for uuid in self._gpus.keys() - listed.keys():
                self._gpus[uuid] = _lost(self._gpus[uuid])

    def _orphans(self, gpu: Gpu) -> Iterator[_Change]:
        """Told at the second look that finds it: a process that ends is dead for an instant before the driver knows."""
        present = {(gpu.uuid, orphan.pid): orphan for orphan in gpu.orphans}
        for key, orphan in present.items():
            if self._orphaned.get(key) is False:
                who = f"{orphan.name or 'process'} ({orphan.pid}), {orphan.state}" if orphan.pid else "no process"
                words = f"{_name(gpu)}: {orphan.bytes / 2**20:.0f} MiB are held by {who}"
                yield _Change("gpu_memory_orphaned", Severity.WARNING, words, gpu)
            self._orphaned[key] = key in self._orphaned
        for key in [key for key in self._orphaned if key[0] == gpu.uuid and key not in present]:
            del self._orphaned[key]


def _lost(gpu: Gpu) -> Gpu:
    return Gpu(gpu.uuid, gpu.index, gpu.minor, gpu.name, gpu.pci, "lost", "", 0.0, 0, (), (), ())


def _state_change(gpu: Gpu) -> _Change:
    if gpu.state == "up":
        return _Change("gpu_back", Severity.INFO, f"{_name(gpu)} answers again", gpu)
    if gpu.state == "hung":
        words = f"{_name(gpu)} hangs in {gpu.call or 'the driver'}, for {gpu.call_s:.0f} s so far"
        return _Change("gpu_hung", Severity.CRITICAL, words, gpu)
    if gpu.state == "lost":
        return _Change("gpu_lost", Severity.CRITICAL, f"{_name(gpu)} is lost: it does not answer on the bus", gpu)
    return _Change("gpu_needs_reset", Severity.CRITICAL, f"{_name(gpu)} answers nothing before it is reset", gpu)


def _name(gpu: Gpu) -> str:
    return f"GPU {gpu.index} ({gpu.name or 'unknown'}, {gpu.uuid})"


def _event(change: _Change, at: float) -> Event:
    gpu = change.gpu
    labels = make_labels(gpu=str(gpu.index), UUID=gpu.uuid, device=gpu.pci) if gpu else ()
    return Event(change.kind, change.severity, change.message, "gpu", at, labels)
