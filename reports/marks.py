"""Alerts and actions as marks on the time axis of a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agent.store.read import Reader
from reports.charts import Mark
from reports.period import Period
from reports.records import ActionRecord, AlertRecord, actions, alerts
from reports.words import size

Concerns = Callable[[Mapping[str, str]], bool]


def labelled(name: str, value: str) -> Concerns:
    """What carries this label concerns the curve."""
    return lambda labels: labels.get(name) == value


def named(*words: str) -> Concerns:
    """What has one of these words in the name of its rule concerns the curve."""
    return lambda labels: any(word in labels["alertname"].lower() for word in words)


@dataclass(frozen=True, slots=True)
class Happenings:
    """What happened in a period, to be drawn over the curves it concerns."""

    alerts: Sequence[AlertRecord]
    actions: Sequence[ActionRecord]
    end: float

    @classmethod
    def of(cls, read: Reader, period: Period) -> Happenings:
        between = period.start, period.end
        return cls(alerts(read, *between), actions(read, *between), period.end)

    def marks(self, concerns: Concerns) -> tuple[Mark, ...]:
        """The marks of all alerts whose labels concern a curve, and of the actions that answered them."""
        firing = [alert for alert in self.alerts if alert.fired_at is not None and concerns(_told(alert))]
        acted = [action for action in self.actions if action.carried_out and concerns(_of_action(action))]
        return tuple(
            [Mark("alert", a.fired_at or a.active_since, a.ended_at or self.end, f"alert {a.rule}") for a in firing]
            + [_action_mark(action) for action in acted]
        )


def _told(alert: AlertRecord) -> Mapping[str, str]:
    return {**alert.labels, "alertname": alert.rule}


def _of_action(action: ActionRecord) -> Mapping[str, str]:
    """What an action worked on: its own path above the labels of the alert behind it."""
    return {**action.labels, "alertname": action.rule, "path": action.touched}


def _action_mark(action: ActionRecord) -> Mark:
    at = action.started_at or action.requested_at
    ended = (action.verdict or action.status).replace("_", " ")
    freed = f", freed {size(action.bytes_freed)}" if action.bytes_freed else ""
    return Mark("failed" if action.failed else "action", at, at, f"{action.handler}: {ended}{freed}")
