"""GPUs, as the probe sees them, under dcgm-exporter's names. Nothing here calls NVML or waits for it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator

from agent.gpu.changes import Changes
from agent.gpu.client import Probe
from agent.gpu.pace import Loaded, Pace
from agent.gpu.protocol import Column, Gpu, Seen
from agent.kernel.book import Book
from agent.model import Event, Labels, Reading, Series, make_labels

Tell = Callable[[Event], Awaitable[None]]

_UP, _USE, _CLOCK = Column("gpu_up", ()), Column("DCGM_FI_DEV_GPU_UTIL", ()), Column("DCGM_FI_DEV_SM_CLOCK", ())


class GpuCollector:
    """All GPUs of the host.

    Parameters
    ----------
    probe
        Who asks the driver.
    book
        Where Xids go that NVML tells of.
    tell
        Records an event.
    """

    name = "gpu"

    def __init__(self, probe: Probe, book: Book, tell: Tell) -> None:
        self._probe = probe
        self._book = book
        self._tell = tell
        self._changes = Changes()
        self._pace = Pace()
        self._hostname = socket.gethostname()
        self._known: dict[str, Gpu] = {}
        self._call_seconds: dict[str, float] = {}
        self._places: dict[str, tuple[tuple[Column, ...], tuple[int, int] | None]] = {}
        self._key: tuple[object, ...] = ()
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        seen = await self._probe.read()
        mismatch = self._probe.files.mismatch if self._probe.files.loaded else None
        for event in self._changes.take(seen, mismatch, at):
            await self._tell(event)
        if seen.state == "released":
            self._known.clear()
        self._known |= {gpu.uuid: gpu for gpu in seen.gpus}
        self._pass_on(seen)
        parts = [*self._host_parts(seen, mismatch), *self._gpu_parts(seen, at)]
        key = tuple(part[0] for part in parts)
        if key != self._key:
            self._key = key
            self._series = tuple(series for part in parts for series in self._names(*part[0]))
        return Reading(at, self._series, [value for part in parts for value in part[1]])

    async def close(self) -> None:
        """Let the probe go."""
        await self._probe.close()

    def _pass_on(self, seen: Seen) -> None:
        """Which GPU is at which address, and what NVML told of them."""
        devices = {gpu.uuid: gpu.pci.rpartition(".")[0] for gpu in seen.gpus if gpu.pci}
        for gpu in seen.gpus:
            if gpu.pci:
                self._book.identify(devices[gpu.uuid], dict(self._labels(gpu)))
        for xid in seen.xids:
            self._book.take_nvml(devices.get(xid.uuid, xid.uuid), xid.code, xid.at)

    # -- columns: a part is what names its series, and their values --

    _Part = tuple[tuple[Labels, tuple[Column, ...]], list[float]]

    def _host_parts(self, seen: Seen, mismatch: bool | None) -> Iterator[_Part]:
        if mismatch is not None:
            yield ((), (Column("gpu_driver_mismatch", ()),)), [float(mismatch)]
        if seen.state == "ready":
            versions = (
                ("cuda_version", seen.cuda_version),
                ("driver_version", seen.driver_version),
                ("nvml_version", seen.nvml_version),
            )
            yield ((), (Column("gpu_driver_info", versions),)), [1.0]
        self._call_seconds |= {call.call: call.seconds for call in seen.calls}
        self._call_seconds |= {gpu.call: gpu.call_s for gpu in seen.gpus if gpu.call}
        if seen.gpus:
            calls = tuple(Column("gpu_call_seconds", (("call", call),)) for call in self._call_seconds)
            yield ((), calls), list(self._call_seconds.values())

    def _gpu_parts(self, seen: Seen, at: float) -> Iterator[_Part]:
        present = {gpu.uuid: gpu for gpu in seen.gpus}
        speeds = self._pace.take(at, filter(None, map(self._load, seen.gpus)))
        for uuid, known in self._known.items():
            gpu = present.get(uuid)
            up = gpu is not None and gpu.state == "up" and seen.state in ("ready", "hung")
            columns: tuple[Column, ...] = (_UP,)
            values = [float(up)]
            if gpu is not None and gpu.columns:
                columns, values = columns + gpu.columns, values + list(gpu.values)
            for against, share in speeds.get(uuid, {}).items():
                columns += (Column("gpu_relative_speed_ratio", (("against", against),)),)
                values.append(share)
            yield (self._labels(known), columns), values

    def _names(self, labels: Labels, columns: tuple[Column, ...]) -> Iterator[Series]:
        for column in columns:
            yield Series(column.metric, make_labels(dict((*labels, *column.labels))))

    def _labels(self, gpu: Gpu) -> Labels:
        """dcgm-exporter's labels."""
        device = f"nvidia{gpu.minor}" if gpu.minor >= 0 else ""
        return make_labels(
            gpu=str(gpu.index), UUID=gpu.uuid, device=device, modelName=gpu.name, Hostname=self._hostname,
            pci_bus_id=gpu.pci,
        )  # fmt: skip

    def _load(self, gpu: Gpu) -> Loaded | None:
        """How hard it works, where it tells; the places of the two values are looked for once for each layout."""
        columns = gpu.columns or ()
        if (kept := self._places.get(gpu.uuid)) is None or kept[0] is not columns:
            places = (columns.index(_USE), columns.index(_CLOCK)) if {_USE, _CLOCK} <= set(columns) else None
            kept = self._places[gpu.uuid] = (columns, places)
        if kept[1] is None:
            return None
        use, clock = kept[1]
        return Loaded(gpu.uuid, gpu.name, gpu.values[use], gpu.values[clock])
