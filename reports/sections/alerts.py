"""Every alert of the period: when, how long, what was done about it and how that ended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agent.model import Severity
from agent.store.read import Reader
from reports.period import Period
from reports.records import ActionRecord, AlertRecord, actions, alerts

MOST_ROWS = 25


@dataclass(frozen=True, slots=True)
class AlertRow:
    """All times one rule fired for one label set: ``times`` of them, ``firing_s`` seconds within the period in all."""

    rule: str
    labels: tuple[tuple[str, str], ...]
    severity: Severity
    times: int
    first: float
    last: float
    firing_s: float
    still: bool
    answer: str


@dataclass(frozen=True, slots=True)
class Alerts:
    """``rows`` worst first; ``left_out`` further label sets; ``pending`` alerts never reached their ``for``."""

    rows: tuple[AlertRow, ...]
    left_out: int
    fired: int
    firing_now: int
    pending: int


class AlertsSection:
    name = "alerts"

    def build(self, read: Reader, period: Period) -> Alerts:
        known = alerts(read, period.start, period.end)
        fired = [alert for alert in known if alert.fired_at is not None]
        oldest = min((alert.fired_at or math.inf for alert in fired), default=period.start)
        answers = _answers(actions(read, oldest, period.end))
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[AlertRecord]] = defaultdict(list)
        for alert in fired:
            groups[alert.rule, tuple(sorted(alert.labels.items()))].append(alert)
        rows = [_row(group, answers.get(key, []), period) for key, group in groups.items()]
        rows.sort(key=lambda row: (not row.still, list(Severity)[::-1].index(row.severity), -row.firing_s))
        return Alerts(
            tuple(rows[:MOST_ROWS]),
            len(rows) - len(rows[:MOST_ROWS]),
            len(fired),
            sum(alert.firing for alert in fired),
            len(known) - len(fired),
        )


def _answers(past: Sequence[ActionRecord]) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[ActionRecord]]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[ActionRecord]] = defaultdict(list)
    for action in past:
        found[action.rule, tuple(sorted(action.labels.items()))].append(action)
    return found


def _row(group: Sequence[AlertRecord], answers: Sequence[ActionRecord], period: Period) -> AlertRow:
    starts = [alert.fired_at or alert.active_since for alert in group]
    lengths = [
        max(min(alert.ended_at or period.end, period.end) - max(start, period.start), 0.0)
        for alert, start in zip(group, starts, strict=True)
    ]
    return AlertRow(
        group[0].rule,
        group[0].told_labels,
        group[0].severity,
        len(group),
        min(starts),
        max(starts),
        math.fsum(lengths),
        any(alert.firing for alert in group),
        _answer(answers),
    )


def _answer(answers: Sequence[ActionRecord]) -> str:
    """What became of the actions: ``clean_cache fixed 3, no effect 1``."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for action in answers:
        ended = action.verdict or action.status
        counts[action.handler][ended.replace("_", " ")] += 1
    return "; ".join(
        f"{handler} " + ", ".join(f"{ended} {number}" if number > 1 else ended for ended, number in outcomes.items())
        for handler, outcomes in counts.items()
    )
