"""When to tell whom of which alerts: one route's groups, as a pure state machine.

The meaning is Alertmanager's (``dispatch/dispatch.go`` and ``DedupStage.needsUpdate`` of ``notify/notify.go``): alerts
with the same values of ``group_by`` are one group. A new group waits ``group_wait`` for company, then it is looked at
every ``group_interval``, and told when an alert is new, when one is resolved, and again after ``repeat_interval``. Time
comes in as an argument and what was told goes out as data, so that a restart tells nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.model import Labels

ALL_LABELS = "..."
"""In ``group_by``, as in Alertmanager: every alert is a group of its own."""

MOST_NOTICES = 500
"""Of one notification; a receiver that was away for days is told of the latest."""

_FNV_OFFSET, _FNV_PRIME, _64_BITS = 14695981039346656037, 1099511628211, (1 << 64) - 1
_SEPARATOR = b"\xff"


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert as receivers know it. ``labels``, the rule's name as ``alertname`` among them, are its identity."""

    labels: Labels
    starts_at: float
    ends_at: float | None = None
    annotations: Labels = ()
    url: str = ""

    @property
    def firing(self) -> bool:
        return self.ends_at is None

    def label(self, name: str) -> str:
        return next((value for each, value in self.labels if each == name), "")

    def annotation(self, name: str) -> str:
        return next((text for each, text in self.annotations if each == name), "")

    def fingerprint(self) -> str:
        """What Alertmanager calls the alert: FNV-1a over its sorted labels (``model.LabelSet.Fingerprint``)."""
        total = _FNV_OFFSET
        for name, value in self.labels:
            for byte in name.encode() + _SEPARATOR + value.encode() + _SEPARATOR:
                total = (total ^ byte) * _FNV_PRIME & _64_BITS
        return f"{total:016x}"


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing to say on one route: a whole group as it is, what fires first."""

    route: str
    group: Labels
    notices: tuple[Notice, ...]
    at: float
    number: int = 0
    """Counts what was said of this group."""
    left_out: int = 0
    """Notices there was no room for."""

    @property
    def firing(self) -> tuple[Notice, ...]:
        return tuple(notice for notice in self.notices if notice.firing)

    @property
    def resolved(self) -> tuple[Notice, ...]:
        return tuple(notice for notice in self.notices if not notice.firing)

    @property
    def status(self) -> str:
        return "firing" if self.firing else "resolved"

    def over(self, older: Notification) -> Notification:
        """This one in place of an older one of its group that never left: whom the older named is named still."""
        own = {notice.labels for notice in self.notices}
        together = _in_order([*self.notices, *(notice for notice in older.notices if notice.labels not in own)])
        left_out = self.left_out + older.left_out + max(0, len(together) - MOST_NOTICES)
        return dataclasses.replace(self, notices=together[:MOST_NOTICES], left_out=left_out)


@dataclass(frozen=True, slots=True)
class Pace:
    """How one route groups and repeats; durations in seconds."""

    group_by: tuple[str, ...] = ("alertname",)
    wait_s: float = 30.0
    interval_s: float = 300.0
    repeat_s: float = 4 * 3600.0
    send_resolved: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts that are told together, and what was last told of them."""

    labels: Labels
    due_at: float
    notices: Mapping[Labels, Notice] = field(default_factory=dict)
    flushed: bool = False
    told_at: float | None = None
    told_firing: frozenset[Labels] = frozenset()
    told_resolved: frozenset[Labels] = frozenset()
    number: int = 0


Groups = Mapping[Labels, Group]


def step(
    route: str, groups: Groups, firing: Iterable[Notice], muted: Callable[[Notice], bool], pace: Pace, at: float
) -> tuple[Groups, list[Notification]]:
    """One route's groups after one look, and what is to be said now.

    Parameters
    ----------
    groups
        What the last step returned; empty at first.
    firing
        Every alert of the route that fires at ``at``. One that was here before and is no more is resolved.
    muted
        Whether a silence or an inhibition covers an alert: it is kept, and not told.
    pace
        The route's own.
    at
        Seconds since the epoch. After a wall clock that stepped back no group waits longer than its interval.
    """
    now = {notice.labels: notice for notice in firing}
    joined = {key: _with_members(group, now, at) for key, group in groups.items()}
    for notice in now.values():
        key = group_labels(notice.labels, pace.group_by)
        joined[key] = _join(joined.get(key), key, notice, pace, at)
    after: dict[Labels, Group] = {}
    said: list[Notification] = []
    for key, group in joined.items():
        due_at = min(group.due_at, at + max(pace.wait_s, pace.interval_s))
        if due_at > at:
            after[key] = dataclasses.replace(group, due_at=due_at)
            continue
        left, notification = _flush(route, group, muted, pace, at)
        if left.notices:
            after[key] = left
        if notification is not None:
            said.append(notification)
    return after, said


def group_labels(labels: Labels, group_by: Iterable[str]) -> Labels:
    """The labels by which an alert is grouped; one that it lacks counts as absent."""
    wanted = frozenset(group_by)
    return labels if ALL_LABELS in wanted else tuple(pair for pair in labels if pair[0] in wanted)


def next_due(groups: Groups) -> float | None:
    """When the next group is due; None without any."""
    return min((group.due_at for group in groups.values()), default=None)


def _with_members(group: Group, now: Mapping[Labels, Notice], at: float) -> Group:
    """The members as they are now: whoever does not fire any more is resolved, once."""
    notices = {
        labels: now.get(labels) or (dataclasses.replace(held, ends_at=at) if held.firing else held)
        for labels, held in group.notices.items()
    }
    return dataclasses.replace(group, notices=notices)


def _join(group: Group | None, key: Labels, notice: Notice, pace: Pace, at: float) -> Group:
    if group is None:
        group = Group(key, at + pace.wait_s)
    overdue = not group.flushed and notice.starts_at + pace.wait_s <= at
    notices = {**group.notices, notice.labels: notice}
    return dataclasses.replace(group, notices=notices, due_at=at if overdue else group.due_at)


def _flush(
    route: str, group: Group, muted: Callable[[Notice], bool], pace: Pace, at: float
) -> tuple[Group, Notification | None]:
    """What is left of a group that is due, and what to say of it."""
    heard = [notice for notice in group.notices.values() if not muted(notice)]
    firing = frozenset(notice.labels for notice in heard if notice.firing)
    resolved = frozenset(notice.labels for notice in heard if not notice.firing)
    standing = {labels: notice for labels, notice in group.notices.items() if notice.firing}
    left = dataclasses.replace(group, notices=standing, due_at=at + pace.interval_s, flushed=True)
    if not heard or not _needs_telling(group, firing, resolved, pace, at):
        return left, None
    left = dataclasses.replace(left, told_at=at, told_firing=firing, told_resolved=resolved, number=group.number + 1)
    told = _in_order(notice for notice in heard if notice.firing or pace.send_resolved)
    if not told:
        return left, None
    left_out = max(0, len(told) - MOST_NOTICES)
    return left, Notification(route, group.labels, told[:MOST_NOTICES], at, left.number, left_out)


def _needs_telling(group: Group, firing: frozenset[Labels], resolved: frozenset[Labels], pace: Pace, at: float) -> bool:
    if group.told_at is None:
        return bool(firing)
    if not firing <= group.told_firing:
        return True
    if not firing:
        return bool(group.told_firing)
    if pace.send_resolved and not resolved <= group.told_resolved:
        return True
    return group.told_at <= at - pace.repeat_s


def _in_order(notices: Iterable[Notice]) -> tuple[Notice, ...]:
    """What fires before what is resolved, the latest first."""
    return tuple(sorted(notices, key=lambda each: (not each.firing, -(each.ends_at or each.starts_at), each.labels)))


# -- as JSON, for the files that outlive a restart -------------------------------------------------------------------


def notice_json(notice: Notice) -> list[object]:
    return [dict(notice.labels), notice.starts_at, notice.ends_at, dict(notice.annotations), notice.url]


def notice_of(held: list[object]) -> Notice:
    labels, starts_at, ends_at, annotations, url = held
    return Notice(_pairs(labels), float(starts_at), _maybe(ends_at), _pairs(annotations), str(url))  # type: ignore[arg-type]


def notification_json(said: Notification) -> dict[str, object]:
    return {
        "route": said.route,
        "group": dict(said.group),
        "notices": [notice_json(notice) for notice in said.notices],
        "at": said.at,
        "number": said.number,
        "left_out": said.left_out,
    }


def notification_of(held: Mapping[str, object]) -> Notification:
    """The value of :func:`notification_json`.

    Raises
    ------
    KeyError, TypeError, ValueError
        Where it is no such value.
    """
    notices = tuple(notice_of(each) for each in held["notices"])  # type: ignore[attr-defined]
    return Notification(
        str(held["route"]), _pairs(held["group"]), notices, float(held["at"]),  # type: ignore[arg-type]
        int(held["number"]), int(held["left_out"]),  # type: ignore[call-overload]
    )  # fmt: skip


def groups_json(groups: Groups) -> list[object]:
    """Only what was told must outlive a restart: what was not yet is firing still, or is of no interest."""
    return [
        {
            "labels": dict(group.labels),
            "notices": [notice_json(notice) for notice in group.notices.values()],
            "told_at": group.told_at,
            "told_firing": [dict(labels) for labels in sorted(group.told_firing)],
            "told_resolved": [dict(labels) for labels in sorted(group.told_resolved)],
            "number": group.number,
        }
        for group in groups.values()
        if group.told_at is not None
    ]


def groups_of(held: Iterable[Mapping[str, object]]) -> Groups:
    """The value of :func:`groups_json`; raises as :func:`notification_of` does."""
    groups: dict[Labels, Group] = {}
    for each in held:
        notices = [notice_of(one) for one in each["notices"]]  # type: ignore[attr-defined]
        group = Group(
            labels=_pairs(each["labels"]),
            due_at=0.0,
            notices={notice.labels: notice for notice in notices},
            flushed=True,
            told_at=_maybe(each["told_at"]),
            told_firing=frozenset(map(_pairs, each["told_firing"])),  # type: ignore[call-overload]
            told_resolved=frozenset(map(_pairs, each["told_resolved"])),  # type: ignore[call-overload]
            number=int(each["number"]),  # type: ignore[call-overload]
        )
        groups[group.labels] = group
    return groups


def _pairs(held: object) -> Labels:
    return tuple(sorted((str(name), str(value)) for name, value in dict(held).items()))  # type: ignore[call-overload]


def _maybe(held: object) -> float | None:
    return None if held is None else float(held)  # type: ignore[arg-type]
