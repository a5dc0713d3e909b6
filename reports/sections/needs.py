"""What needs a person, worst first, each with the command to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.model import ActionStatus, Mode, Severity
from agent.store.read import Reader
from reports.history import sampling
from reports.parameters import apply_command
from reports.period import Period
from reports.records import OPEN, ActionRecord, AlertRecord, actions, alerts, command, matchers
from reports.words import count, duration, size

SILENT_AFTER_S = 600.0
"""An agent without a sample for so long before the end of the period is itself something to look at."""

LEAST_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Need:
    """One thing a person should do or decide: its name, what is known of it, the commands to begin with."""

    severity: Severity
    title: str
    labels: tuple[tuple[str, str], ...]
    why: str
    since: float | None
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Needs:
    """``repairing`` counts alerts that fire and are being worked on: they need nobody yet."""

    items: tuple[Need, ...]
    repairing: int
    sampled: bool


class NeedsSection:
    name = "needs"

    def build(self, read: Reader, period: Period) -> Needs:
        firing = [alert for alert in alerts(read, period.end, period.end) if alert.firing]
        oldest = min((alert.fired_at or alert.active_since for alert in firing), default=period.start)
        past = actions(read, min(oldest, period.start), period.end)
        items: list[Need] = []
        repairing = 0
        for alert in firing:
            mine = _of_alert(past, alert)
            if mine and mine[-1].status in OPEN and mine[-1].status is not ActionStatus.AWAITING_APPROVAL:
                repairing += 1
            elif alert.severity is not Severity.INFO:
                items.append(_alert_need(alert, mine))
        items += [_approval_need(action) for action in past if _asks_alone(action, firing)]
        items += _failed_jobs(past, period)
        items += _open_circuits(read)
        silent, sampled = _silent(read, period)
        items += silent
        return Needs(tuple(items), repairing, sampled)


def _of_alert(past: Sequence[ActionRecord], alert: AlertRecord) -> list[ActionRecord]:
    since = alert.fired_at or alert.active_since
    return [a for a in past if a.rule == alert.rule and a.labels == alert.labels and a.requested_at >= since]


def _alert_need(alert: AlertRecord, mine: Sequence[ActionRecord]) -> Need:
    explain = command("upkeep", "explain", alert.rule)
    silence = command("upkeep", "silence", "add", matchers(alert.rule, alert.labels), "--for", "4h", "--why", "TEXT")
    why, first = _why(mine)
    told = [action.plan for action in mine if action.handler == "notify" and action.status is ActionStatus.DONE]
    if told and told[-1]:
        # The last rung's message holds the alert's own summary: the best words there are.
        message = told[-1].removeprefix("tell a person: ")
        why = f"{message}. {why}" if first else f"{message}."
    if alert.missing:
        why += " Its data has gone missing meanwhile."
    commands = tuple(dict.fromkeys(line for line in (first, explain, silence) if line))
    return Need(alert.severity, alert.rule, alert.told_labels, why, alert.fired_at, commands)


def _why(mine: Sequence[ActionRecord]) -> tuple[str, str]:
    """What was tried for an alert and why that was not enough, with the command that follows from it."""
    tried = [action for action in mine if action.handler != "notify"]
    if not tried:
        return "No repair is defined for it.", ""
    last = tried[-1]
    if last.status is ActionStatus.AWAITING_APPROVAL:
        return f"{last.handler} waits for your word: {last.plan or last.touched}.", _approve(last)
    if last.status is ActionStatus.OBSERVED:
        would = f"would free {size(last.planned_bytes)} ({count(last.planned_items, 'item')})"
        would = would if last.planned_bytes else f"would act: {last.plan}"
        return f"Observe mode: {last.handler} {would}.", apply_command(last.handler, last.params)
    if last.status is ActionStatus.REFUSED:
        return f"{last.handler} was refused: {_spoken(last.reason)}.", _remedy(last)
    tail = ", ".join(dict.fromkeys(_outcome(action) for action in tried))
    return f"Repair did not clear it: {tail}.", command("upkeep", "actions", str(last.id))


def _outcome(action: ActionRecord) -> str:
    if action.reason == "nothing_to_do":
        return f"{action.handler} found nothing it may change"
    if action.verdict is None:
        return f"{action.handler} {_spoken(action.status)}"
    told = {
        "no_effect": "had no effect",
        "worse": "made it worse",
        "failed": "failed",
        "fixed": "helped only for a while",
    }
    return f"{action.handler} {told[action.verdict]}" + (f" ({action.error})" if action.error else "")


def _remedy(action: ActionRecord) -> str:
    """The command that lifts the brake that held an action back."""
    if action.reason == "paused":
        return command("upkeep", "resume")
    if action.reason == "circuit_open":
        return command("upkeep", "circuit", "close", f"{action.handler}:{action.resource}")
    return command("upkeep", "actions", str(action.id))


def _approve(action: ActionRecord) -> str:
    return command("upkeep", "approve", str(action.id))


def _asks_alone(action: ActionRecord, firing: Sequence[AlertRecord]) -> bool:
    """Whether an action waits for a person without a firing alert that already says so."""
    said = any(alert.rule == action.rule and alert.labels == action.labels for alert in firing)
    return action.status is ActionStatus.AWAITING_APPROVAL and not said


def _approval_need(action: ActionRecord) -> Need:
    title = f"{action.handler} waits for your word"
    return Need(Severity.WARNING, title, (), action.plan or action.touched, action.requested_at, (_approve(action),))


def _failed_jobs(past: Sequence[ActionRecord], period: Period) -> list[Need]:
    """Actions of jobs and of people that did not succeed last time."""
    latest = {
        (action.handler, action.resource): action
        for action in past
        if not action.rule and action.status not in OPEN and action.requested_at >= period.start
    }
    return [
        Need(
            Severity.ERROR,
            f"{action.handler} did not succeed",
            (),
            f"{_outcome(action)}, asked for by {action.cause}",
            action.requested_at,
            (command("upkeep", "actions", str(action.id)),),
        )
        for action in latest.values()
        if action.failed and action.mode != Mode.OBSERVE and action.reason != "nothing_to_do"
    ]


def _open_circuits(read: Reader) -> list[Need]:
    _, rows = read.sql("SELECT handler, resource, opened_at FROM circuit ORDER BY opened_at")
    return [
        Need(
            Severity.ERROR,
            f"{handler} is held back",
            (),
            f"It did not help {resource} twice in a row, so it is not tried again until you close its circuit.",
            float(str(opened)),
            (command("upkeep", "circuit", "close", f"{handler}:{resource}"),),
        )
        for handler, resource, opened in rows
    ]


def _silent(read: Reader, period: Period) -> tuple[list[Need], bool]:
    """The agent itself: not sampling, or blind for a good part of the period."""
    found = sampling(read, period.start, period.end)
    instants = found.instants
    look = (command("systemctl", "status", "upkeep"), command("upkeep", "status"))
    if not instants.times:
        return [], False
    last, first = instants.times[-1], instants.times[0]
    if period.end - last > SILENT_AFTER_S + instants.step_s:
        title = "The agent stopped sampling"
        why = f"No sample in the last {duration(period.end - last)} of this report: what happened since is unknown."
        return [Need(Severity.ERROR, title, (), why, last, look)], True
    missing = sum(end - start for start, end in found.gaps if end > first)
    if missing > (1 - LEAST_COVERAGE) * (period.end - first):
        why = f"No samples for {duration(missing)} of {duration(period.end - first)}: nothing is known of that time."
        return [Need(Severity.WARNING, "The agent was blind for a while", (), why, None, look)], True
    return [], True


def _spoken(name: str) -> str:
    return name.replace("_", " ")
