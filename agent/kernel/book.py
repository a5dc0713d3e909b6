"""What the kernel and NVML told, as events and counters: folded, told apart from echoes, and kept across restarts.

Pure but for its memory: instants come in as arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.gpu import xid
from agent.gpu.xid import FOLLOWS_WITHIN_S, Override
from agent.kernel.messages import FALLEN_OFF_THE_BUS, Finding, Identity, Named, SXid, Xid
from agent.model import Event, Labels, Series, Severity, make_labels

FOLD_S = 3600.0
"""A message that comes again within this time is counted, and told once more at its end."""

MOST_TEXTS = 20
"""Different texts of one Xid of one GPU that are told apart; what comes on top is folded together."""

MOST_FOLDS = 2000
MOST_LABEL_SETS = 100
ECHO_S = 5.0
"""NVML and the kernel's log tell of one Xid within this time of each other."""

_SOURCE = "kernel"
_PREEMPTIVE_CLEANUP = 45


@dataclass(slots=True)
class _Fold:
    event: Event
    more: int = 0
    last_at: float = 0.0


class Book:
    """Every finding goes in, events come out, counters stay.

    Parameters
    ----------
    overrides
        What a site says of single Xids.
    """

    def __init__(self, overrides: Mapping[int, Override] | None = None) -> None:
        self._overrides = overrides or {}
        self._uuids: dict[str, str] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._xids: dict[tuple[str, int], int] = {}
        self._last_code: dict[str, int] = {}
        self._announced: set[tuple[object, object]] = set()
        self._changed = True
        self._named: dict[tuple[str, Labels], int] = {}
        self._folds: dict[tuple[str, ...], _Fold] = {}
        self._last_cause: dict[str, tuple[int, float]] = {}
        self._fallen_at: dict[str, float] = {}
        self._echoes: list[tuple[str, int, float]] = []
        self._unconfirmed: list[tuple[str, int, float]] = []
        self._series: tuple[Series, ...] = ()
        self._values: list[float] = []

    # -- what comes in --

    def take(self, finding: Finding, at: float) -> Event | None:
        """The event of a finding of the kernel's log; None where it is folded, an echo, or no event at all."""
        if isinstance(finding, Identity):
            self._uuids[finding.device] = finding.uuid
            return None
        if isinstance(finding, Xid):
            return self._take_xid(finding, at)
        return self._take_switch(finding, at) if isinstance(finding, SXid) else self._take_named(finding, at)

    def identify(self, device: str, labels: Mapping[str, str]) -> None:
        """NVML's word for which GPU has a PCI address (``dddd:bb:dd``): the labels of its series."""
        if self._labels.get(device) != labels:
            self._uuids[device] = labels["UUID"]
            self._labels[device] = labels
            self._changed = True

    def take_nvml(self, device: str, code: int, at: float) -> None:
        """An Xid that NVML told. It counts when the kernel's log does not tell of it too: see :meth:`due`."""
        if not _remove(self._echoes, device, code, at):
            self._unconfirmed.append((device, code, at))

    def due(self, now: float) -> list[Event]:
        """Events of Xids that NVML alone told, and of what was folded for an hour."""
        self._echoes = [echo for echo in self._echoes if now - echo[2] <= ECHO_S]
        late = [entry for entry in self._unconfirmed if now - entry[2] > ECHO_S]
        self._unconfirmed = [entry for entry in self._unconfirmed if now - entry[2] <= ECHO_S]
        events = [self._count_xid(Xid(device, code, ""), at) for device, code, at in late]
        return [*(event for event in events if event is not None), *self._unfold(now)]

    # -- what comes out --

    def readings(self) -> tuple[tuple[Series, ...], list[float]]:
        """All counters and the last Xid of each GPU; the same tuple while no series begins or changes its labels.

        A counter that is new is 0 the first time it is read: ``increase()`` sees only a rise from something.
        """
        if self._changed:
            self._changed = False
            rows = [*self._counters(), *self._last_codes()]
            series = tuple(row[0] for row in rows)
            self._series = self._series if series == self._series else series
            self._values = [row[1] for row in rows]
        return self._series, self._values

    def _counters(self) -> Iterator[tuple[Series, float]]:
        for (name, labels), count in self._named.items():
            series = Series("kernel_messages_total", make_labels(dict(labels), pattern=name))
            yield series, self._announced_value((name, labels), count)
        for (device, code), count in self._xids.items():
            series = Series("gpu_xid_errors_total", make_labels(self._labels_of(device), xid=str(code)))
            yield series, self._announced_value((device, code), count)

    def _announced_value(self, key: tuple[object, object], count: int) -> float:
        if key in self._announced:
            return float(count)
        self._announced.add(key)
        self._changed = True  # the next reading tells the count
        return 0.0

    def _last_codes(self) -> Iterator[tuple[Series, float]]:
        for device in {**self._labels, **self._last_code}:
            series = Series("DCGM_FI_DEV_XID_ERRORS", make_labels(self._labels_of(device)))
            yield series, float(self._last_code.get(device, 0))

    def _labels_of(self, device: str) -> Mapping[str, str]:
        return self._labels.get(device) or {"pci_bus_id": device, "UUID": self.uuid(device)}

    def uuid(self, device: str) -> str:
        return self._uuids.get(device, "")

    def to_json(self) -> dict[str, Any]:
        """The counters, for the next start in this boot."""
        return {
            "xids": [[device, code, count] for (device, code), count in self._xids.items()],
            "last": self._last_code,
            "named": [[name, labels, count] for (name, labels), count in self._named.items()],
            "uuids": self._uuids,
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Count on from what :meth:`to_json` gave at the last commit of this boot; nothing was taken before."""
        self._xids = {(device, code): count for device, code, count in stored.get("xids", ())}
        self._last_code = dict(stored.get("last", {}))
        self._uuids = {**stored.get("uuids", {}), **self._uuids}
        self._named = {
            (name, tuple((key, value) for key, value in labels)): count
            for name, labels, count in stored.get("named", ())
        }
        self._announced = {*self._xids, *self._named}
        self._changed = True

    # -- kinds of findings --

    def _take_xid(self, found: Xid, at: float) -> Event | None:
        if found.code == FALLEN_OFF_THE_BUS:
            # The driver tells it as an Xid and in plain words: one loss is one event.
            if at - self._fallen_at.get(found.device, float("-inf")) < FOLLOWS_WITHIN_S:
                return None
            self._fallen_at[found.device] = at
        if not _remove(self._unconfirmed, found.device, found.code, at):
            self._echoes.append((found.device, found.code, at))
        return self._count_xid(found, at)

    def _count_xid(self, found: Xid, at: float) -> Event | None:
        key = (found.device, found.code)
        self._changed = True
        self._xids[key] = self._xids.get(key, 0) + 1
        self._last_code[found.device] = found.code
        cause = self._cause(found, at)
        judged = xid.judge(found.code, found.text, self._overrides, cause=cause)
        if judged.ignore:
            return None
        who = f", hit {found.process or 'process'} ({found.pid})" if found.pid else ""
        because = f", follows Xid {cause}" if cause else ""
        labels = make_labels(
            xid=str(found.code), name=judged.name, action=judged.advice, device=found.device,
            UUID=self.uuid(found.device), pid=found.pid, process=found.process, cause=str(cause or ""),
        )  # fmt: skip
        message = f"Xid {found.code} on GPU {found.device}: {judged.name}{who}{because}; {xid.ADVICE[judged.advice]}"
        if found.text:
            message += f" [{found.text}]"
        event = Event("gpu_xid", judged.severity, message, _SOURCE, at, labels)
        texts = sum(1 for kind, *rest in self._folds if kind == "xid" and rest[:2] == [found.device, str(found.code)])
        text = found.text if texts < MOST_TEXTS else "*"
        return self._fold(("xid", found.device, str(found.code), text), event)

    def _cause(self, found: Xid, at: float) -> int | None:
        """What a preemptive cleanup follows; any other Xid may be the next one's cause."""
        if found.code != _PREEMPTIVE_CLEANUP:
            self._last_cause[found.device] = (found.code, at)
            return None
        code, then = self._last_cause.get(found.device, (0, float("-inf")))
        return code if at - then <= FOLLOWS_WITHIN_S else None

    def _take_switch(self, found: SXid, at: float) -> Event | None:
        self._count("nvswitch_sxid", (("code", str(found.code)), ("switch", found.switch)))
        severity = Severity.CRITICAL if found.fatal else Severity.WARNING
        labels = make_labels(sxid=str(found.code), switch=found.switch, device=found.device)
        message = f"SXid {found.code} on {found.switch}: {found.text}"
        key = ("sxid", found.switch, str(found.code), found.text)
        return self._fold(key, Event("nvswitch_sxid", severity, message, _SOURCE, at, labels))

    def _take_named(self, found: Named, at: float) -> Event | None:
        # Process numbers and names are for the event; as labels of a counter they would never end.
        self._count(found.name, tuple(pair for pair in found.labels if pair[0] in ("device", "server")))
        labels = make_labels(dict(found.labels), pattern=found.name)
        event = Event("kernel_message", found.severity, found.text, _SOURCE, at, labels)
        return self._fold(("named", found.name, found.text), event)

    def _count(self, name: str, labels: Labels) -> None:
        if (name, labels) not in self._named and len(self._named) >= MOST_LABEL_SETS:
            labels = ()
        self._changed = True
        self._named[name, labels] = self._named.get((name, labels), 0) + 1

    # -- folding --

    def _fold(self, key: tuple[str, ...], event: Event) -> Event | None:
        fold = self._folds.get(key)
        if fold is not None and event.at - fold.event.at < FOLD_S:
            fold.more += 1
            fold.last_at = event.at
            return None
        if len(self._folds) >= MOST_FOLDS:
            self._folds.pop(next(iter(self._folds)))
        self._folds[key] = _Fold(event)
        return event

    def _unfold(self, now: float) -> list[Event]:
        events = []
        for key, fold in list(self._folds.items()):
            if now - fold.event.at < FOLD_S:
                continue
            del self._folds[key]
            if fold.more:
                told = fold.event
                message = f"{fold.more} more within the hour: {told.message}"
                events.append(Event(told.kind, told.severity, message, told.source, fold.last_at, told.labels))
        return events


def _remove(entries: list[tuple[str, int, float]], device: str, code: int, at: float) -> bool:
    """Take away the entry that tells of the same Xid; whether there was one."""
    for entry in entries:
        if entry[:2] == (device, code) and abs(at - entry[2]) <= ECHO_S:
            entries.remove(entry)
            return True
    return False
