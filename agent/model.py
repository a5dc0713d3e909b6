"""The values that flow through the agent. All are frozen; none knows where it came from or where it goes.

Time is always seconds since the epoch, UTC, as a float. A missing value is absent, never 0; a series that ended is
marked with :data:`STALE`, as Prometheus marks it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by name, without empty values: the hashable half of a series' identity."""

STALE: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
"""Prometheus' stale marker (``value.StaleNaN`` in its source): the series ended before this instant."""

_STALE_BITS = struct.pack("<d", STALE)


def is_stale(value: float) -> bool:
    """Whether ``value`` is the stale marker and not an ordinary NaN."""
    return value != value and struct.pack("<d", value) == _STALE_BITS


def make_labels(pairs: Mapping[str, str] | None = None, /, **more: str) -> Labels:
    """Labels from a mapping and keywords: sorted, empty values dropped (Prometheus treats them as absent)."""
    merged = {**(pairs or {}), **more}
    return tuple(sorted((name, value) for name, value in merged.items() if value))


@dataclass(frozen=True, slots=True)
class Series:
    """A metric name and its labels: the identity of everything sampled."""

    metric: str
    labels: Labels = ()

    def __str__(self) -> str:
        if not self.labels:
            return self.metric
        inner = ",".join(f'{name}="{value}"' for name, value in self.labels)
        return f"{self.metric}{{{inner}}}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series at one instant."""

    metric: str
    value: float
    at: float
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What one collector read at one instant, column by column.

    ``series`` is the *same tuple object* from tick to tick while the layout does not change, so that the store finds
    its layout by identity and a tick of two hundred values costs no hashing. ``values`` has the same length.
    """

    at: float
    series: tuple[Series, ...]
    values: Sequence[float]

    @staticmethod
    def of(at: float, samples: Sequence[Sample]) -> Reading:
        """A reading from loose samples, for sources whose layout changes each time."""
        return Reading(at, tuple(Series(s.metric, s.labels) for s in samples), [s.value for s in samples])


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once: a log match, a crashed task, a job run, a refused reload."""

    kind: str
    severity: Severity
    message: str
    source: str
    at: float
    labels: Labels = ()


class Mode(StrEnum):
    """How far the agent may go: plan and record; ask a person; carry out."""

    OBSERVE = "observe"
    ASK = "ask"
    ACT = "act"


class AlertState(StrEnum):
    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


@dataclass(frozen=True, slots=True)
class Alert:
    """One label set of one rule and its state.

    ``active_since`` is when the expression became true, ``fired_at`` when ``for`` had passed, ``clear_since`` when it
    was first seen false again while ``keep_firing_for`` runs. ``missing`` says that the data behind it went away and
    ``on_missing: hold`` keeps it as it was.
    """

    rule: str
    labels: Labels
    state: AlertState
    value: float
    active_since: float
    fired_at: float | None = None
    clear_since: float | None = None
    missing: bool = False


class ActionStatus(StrEnum):
    """Where an action stands. ``REQUESTED`` and ``RUNNING`` are open; all others are final."""

    REQUESTED = "requested"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    VERIFYING = "verifying"
    DONE = "done"
    OBSERVED = "observed"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    """What an action achieved, as the alert's own expression judged it afterwards."""

    FIXED = "fixed"
    NO_EFFECT = "no_effect"
    WORSE = "worse"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One thing a plan would change. ``identity`` is what is compared again just before acting."""

    change: str
    target: str
    bytes: int = 0
    identity: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """One thing a plan looked at and left alone, with the named reason."""

    target: str
    reason: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole intent as data: what would change, what was left alone and why. Making it changes nothing."""

    handler: str
    resource: str
    summary: str
    items: tuple[PlanItem, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    considered_items: int = 0
    considered_bytes: int = 0
    refused: str = ""
    """A named reason why this plan may not be applied (``use_unknown``, ``over_percent_cap`` …); empty: it may."""

    @property
    def bytes(self) -> int:
        """What the plan would free, as blocks on disk."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item of a plan: ``done``, or the named reason why it was left alone at the last moment."""

    target: str
    result: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ``apply`` did. ``bytes_freed`` is the file system's own figure, ``bytes_removed`` the sum of the items."""

    items: tuple[ItemResult, ...] = ()
    bytes_freed: int = 0
    bytes_removed: int = 0
    error: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """The record of one step: cause, plan, outcome, verification; kept for good.

    ``(rule, labels, fired_at, step, attempt)`` is its unique key; a job or a person as the cause has an empty rule.
    """

    id: int
    cause: str
    rule: str
    labels: Labels
    fired_at: float
    step: int
    attempt: int
    handler: str
    params: Mapping[str, object]
    resource: str
    status: ActionStatus
    reason: str = ""
    verdict: Verdict | None = None
    plan: Plan | None = None
    outcome: Outcome | None = None
    requested_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    mode: Mode = Mode.OBSERVE
    extra: Mapping[str, object] = field(default_factory=dict)


def done_by_person(what: str, text: str, who: str, at: float) -> Action:
    """The record of something that a person did to the ledger itself, in place of a handler's name."""
    return Action(
        id=0, cause=f"person {who}", rule="", labels=(), fired_at=at, step=0, attempt=1, handler=what, params={},
        resource="ledger", status=ActionStatus.DONE, verdict=Verdict.FIXED, outcome=Outcome(text=text),
        requested_at=at, started_at=at, finished_at=at, mode=Mode.ACT,
    )  # fmt: skip
