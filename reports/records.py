"""Alerts and actions as the ledger's views tell them, for every section that speaks of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.model import ActionStatus, Alert, AlertState, Severity, Verdict
from agent.store.read import Reader
from reports.words import clean, sql_time

OPEN = (ActionStatus.REQUESTED, ActionStatus.AWAITING_APPROVAL, ActionStatus.RUNNING, ActionStatus.VERIFYING)

_RANK = {Severity.CRITICAL: 0, Severity.ERROR: 1, Severity.WARNING: 2, Severity.INFO: 3}


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """One alert from its beginning to its end; ``fired_at`` is None for one that stayed pending."""

    id: int
    rule: str
    labels: Mapping[str, str]
    firing: bool
    severity: Severity
    value: float
    active_since: float
    fired_at: float | None
    ended_at: float | None
    missing: bool

    @property
    def rank(self) -> tuple[int, float, str, int]:
        """Worst first, then longest."""
        return _RANK[self.severity], self.fired_at or self.active_since, self.rule, self.id

    @property
    def told_labels(self) -> tuple[tuple[str, str], ...]:
        """The labels that tell this alert from its siblings."""
        return tuple(
            (name, value) for name, value in sorted(self.labels.items()) if name not in ("severity", "alertname")
        )


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """One action as the view ``actions`` tells it: without its items, which may be many."""

    id: int
    cause: str
    rule: str
    labels: Mapping[str, str]
    step: int
    attempt: int
    handler: str
    params: Mapping[str, object]
    resource: str
    mode: str
    status: ActionStatus
    verdict: Verdict | None
    reason: str
    plan: str
    planned_items: int
    planned_bytes: int
    bytes_freed: int
    error: str
    requested_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def carried_out(self) -> bool:
        """Whether something was tried on the host: begun, or judged because there was nothing it could begin."""
        return self.handler != "notify" and (self.started_at is not None or self.verdict is not None)

    @property
    def failed(self) -> bool:
        """Carried out, and it did not help."""
        return self.verdict is not None and self.verdict is not Verdict.FIXED

    @property
    def touched(self) -> str:
        """The path or unit it worked on, for people."""
        path = self.params.get("path") or self.params.get("directory")
        return str(path) if path else self.resource


def alerts(read: Reader, start: float, end: float) -> list[AlertRecord]:
    """Every alert that was pending or firing between ``start`` and ``end``, worst first."""
    found = [_alert(record.id, record.alert, record.ended_at) for record in read.alerts(since=start, until=end)]
    return sorted(found, key=lambda alert: alert.rank)


def actions(read: Reader, start: float, end: float) -> list[ActionRecord]:
    """Every action asked for from ``start`` until before ``end``, in order."""
    _, rows = read.sql(
        "SELECT id, cause, rule, labels, step, attempt, handler, params, resource, mode, status, outcome, reason, plan,"
        " planned_items, planned_bytes, bytes_freed, error, time, started, finished"
        " FROM actions WHERE time >= ? AND time < ? ORDER BY time, id",
        (sql_time(start), sql_time(end)),
    )
    return [_action(row) for row in rows]


def _alert(number: int, alert: Alert, ended_at: float | None) -> AlertRecord:
    labels = dict(alert.labels)
    return AlertRecord(
        number, alert.rule, labels, alert.state is AlertState.FIRING and ended_at is None,
        _severity(labels.get("severity")), alert.value, alert.active_since, alert.fired_at, ended_at, alert.missing,
    )  # fmt: skip


def _action(row: Sequence[object]) -> ActionRecord:
    (number, cause, rule, labels, step, attempt, handler, params, resource, mode, status, outcome, reason, plan,
     items, planned, freed, error, requested, started, finished) = row  # fmt: skip
    return ActionRecord(
        _int(number), str(cause), str(rule), _object(labels), _int(step), _int(attempt), str(handler),
        json.loads(str(params)), str(resource), str(mode), ActionStatus(str(status)),
        Verdict(str(outcome)) if outcome else None, str(reason or ""), str(plan or ""),
        _int(items), _int(planned), _int(freed), str(error or ""),
        _at(requested), _at_or_none(started), _at_or_none(finished),
    )  # fmt: skip


def _int(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _object(text: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in json.loads(str(text)).items()}


def _severity(text: object) -> Severity:
    """Rules may carry any word, or none: what nobody graded counts as a warning."""
    try:
        return Severity(str(text))
    except ValueError:
        return Severity.WARNING


def _at(text: object) -> float:
    return datetime.fromisoformat(str(text)).timestamp()


def _at_or_none(text: object) -> float | None:
    return None if text is None else _at(text)


def matchers(rule: str, labels: Mapping[str, str]) -> str:
    """What ``upkeep silence add`` takes to name exactly this alert."""
    pairs = {"alertname": rule, **labels}
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in pairs.items())


def command(*words: str) -> str:
    """A command to copy, every word quoted for the shell; nothing where a word holds what a page must not show."""
    line = " ".join(shlex.quote(word) for word in words)
    return line if clean(line) == line else ""
