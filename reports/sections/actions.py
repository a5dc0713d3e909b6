"""What the agent did, what that achieved, what it left alone and why, and what observe mode would have done."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agent.model import ActionStatus, Verdict
from agent.store.read import Reader
from reports.parameters import apply_command
from reports.period import Period
from reports.records import ActionRecord, actions, command

MOST_FAILED_STORIES = 8
MOST_OTHER_STORIES = 2
"""What helped is told whole only for the newest; the table counts the rest, so that a green week is a short page."""

MOST_ROWS = 20

_LEFT_ALONE = """
SELECT reason, count(*), coalesce(sum(bytes), 0), min(target) FROM (
    SELECT target, bytes, CASE part WHEN 'skipped' THEN change ELSE result END AS reason
    FROM action_items WHERE action_id = ? AND (part = 'skipped' OR coalesce(result, 'done') <> 'done')
) GROUP BY reason ORDER BY count(*) DESC, reason
"""
_REMOVED = "SELECT count(*) FROM action_items WHERE action_id = ? AND result = 'done'"


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Things an action looked at and did not touch, by the named reason, with one of them as the example."""

    reason: str
    items: int
    bytes: int
    example: str


@dataclass(frozen=True, slots=True)
class Story:
    """One action from cause to proof. Instants in seconds since the epoch, ``took_s`` from start to end."""

    id: int
    handler: str
    touched: str
    cause: str
    status: ActionStatus
    verdict: Verdict | None
    reason: str
    plan: str
    items_done: int
    bytes_freed: int
    left_alone: tuple[LeftAlone, ...]
    error: str
    requested_at: float
    started_at: float | None
    finished_at: float | None
    command: str

    @property
    def took_s(self) -> float | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


@dataclass(frozen=True, slots=True)
class Group:
    """All actions of one handler on one thing; ``repair_s`` is the median time from the request to the proof."""

    handler: str
    touched: str
    times: int
    by_hand: int
    fixed: int
    without_effect: int
    bytes_freed: int
    repair_s: float | None


@dataclass(frozen=True, slots=True)
class WouldHave:
    """What observe mode planned for one thing, by its newest plan: plans of one thing repeat and do not add up."""

    handler: str
    touched: str
    times: int
    plan: str
    bytes: int
    at: float
    command: str


@dataclass(frozen=True, slots=True)
class Held:
    """Actions that a brake refused, by its name."""

    reason: str
    times: int
    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Actions:
    """``stories`` are told whole: those that did not help first, then the newest; ``groups`` count all of them."""

    carried_out: int
    fixed: int
    without_effect: int
    by_hand: int
    bytes_freed: int
    repair_s: float | None
    stories: tuple[Story, ...]
    groups: tuple[Group, ...]
    groups_left_out: int
    would_have: tuple[WouldHave, ...]
    would_free_bytes: int
    held: tuple[Held, ...]
    told: int
    """People told (``notify``) as the last rung of a ladder."""


class ActionsSection:
    name = "actions"

    def build(self, read: Reader, period: Period) -> Actions:
        past = actions(read, period.start, period.end)
        acted = [action for action in past if action.carried_out]
        failed = [action for action in acted if action.failed]
        others = [action for action in acted if not action.failed]
        chosen = failed[::-1][:MOST_FAILED_STORIES] + others[::-1][:MOST_OTHER_STORIES]
        groups = _groups(acted)
        would = _would_have(past)
        return Actions(
            carried_out=len(acted),
            fixed=sum(action.verdict is Verdict.FIXED for action in acted),
            without_effect=len(failed),
            by_hand=sum(_by_hand(action) for action in acted),
            bytes_freed=sum(action.bytes_freed for action in acted),
            repair_s=_median_repair(acted),
            stories=tuple(_story(read, action) for action in chosen),
            groups=tuple(groups[:MOST_ROWS]),
            groups_left_out=len(groups) - len(groups[:MOST_ROWS]),
            would_have=tuple(would[:MOST_ROWS]),
            would_free_bytes=sum(each.bytes for each in would),
            held=_held(past),
            told=sum(action.handler == "notify" and action.status is ActionStatus.DONE for action in past),
        )


def _by_hand(action: ActionRecord) -> bool:
    return action.cause.startswith("person")


def _median_repair(acted: Sequence[ActionRecord]) -> float | None:
    times = [a.finished_at - a.requested_at for a in acted if a.verdict is Verdict.FIXED and a.finished_at is not None]
    return statistics.median(times) if times else None


def _story(read: Reader, action: ActionRecord) -> Story:
    _, left = read.sql(_LEFT_ALONE, (action.id,))
    _, done = read.sql(_REMOVED, (action.id,))
    return Story(
        action.id, action.handler, action.touched, action.cause, action.status, action.verdict, action.reason,
        action.plan, int(str(done[0][0])), action.bytes_freed,
        tuple(LeftAlone(str(reason), int(str(items)), int(str(size)), str(one)) for reason, items, size, one in left),
        action.error, action.requested_at, action.started_at, action.finished_at,
        command("upkeep", "actions", str(action.id)),
    )  # fmt: skip


def _groups(acted: Sequence[ActionRecord]) -> list[Group]:
    gathered: dict[tuple[str, str], list[ActionRecord]] = defaultdict(list)
    for action in acted:
        gathered[action.handler, action.touched].append(action)
    groups = [
        Group(
            handler, touched, len(members), sum(map(_by_hand, members)),
            sum(action.verdict is Verdict.FIXED for action in members),
            sum(action.failed for action in members),
            sum(action.bytes_freed for action in members),
            _median_repair(members),
        )
        for (handler, touched), members in gathered.items()
    ]  # fmt: skip
    return sorted(groups, key=lambda group: (-group.without_effect, -group.bytes_freed, -group.times))


def _would_have(past: Sequence[ActionRecord]) -> list[WouldHave]:
    gathered: dict[tuple[str, str], list[ActionRecord]] = defaultdict(list)
    for action in past:
        if action.status is ActionStatus.OBSERVED:
            gathered[action.handler, action.touched].append(action)
    would = [
        WouldHave(
            handler, touched, len(members), members[-1].plan, members[-1].planned_bytes, members[-1].requested_at,
            apply_command(handler, members[-1].params),
        )
        for (handler, touched), members in gathered.items()
    ]  # fmt: skip
    return sorted(would, key=lambda each: (-each.bytes, each.touched))


def _held(past: Sequence[ActionRecord]) -> tuple[Held, ...]:
    gathered: dict[str, list[ActionRecord]] = defaultdict(list)
    for action in past:
        if action.status is ActionStatus.REFUSED and action.reason != "alert_cleared":
            gathered[action.reason].append(action)
    held = [
        Held(reason, len(members), tuple(sorted({action.handler for action in members})))
        for reason, members in gathered.items()
    ]
    return tuple(sorted(held, key=lambda each: -each.times))
