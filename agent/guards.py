"""The brakes: small ordered questions asked before anything is changed, each answering with a named reason or nothing.

All are pure. A reason is stored on the action and shown in status and report, so "why did nothing happen?" has an
answer in data. A *waiting* reason leaves the action open and it is asked again; any other one is final.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.model import Mode, Plan
from agent.rulefile import Limit

WAITING = frozenset(
    {
        "paused",
        "boot_grace",
        "silenced",
        "inhibited",
        "host_busy",
        "cooldown",
        "hourly_limit",
        "rule_limit",
        "resource_locked",
        "awaiting_approval",
    }
)
"""Reasons that pass by themselves, or by a person's word, while the alert stands."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the brakes look at, gathered at one instant.

    ``harmless`` handlers change nothing on the host (they tell a person): only silences, inhibitions, cooldowns and the
    rule's own limit hold them back.
    ``by_person`` is an action somebody asked for by hand: it overrides the mode, the grace and the counts, never the
    pause, the lock or a cap.
    """

    paused: bool = False
    mode: Mode = Mode.OBSERVE
    approved: bool = False
    by_person: bool = False
    harmless: bool = False
    handler_disabled: bool = False
    since_boot_s: float = 1e9
    boot_grace_s: float = 0.0
    silenced: bool = False
    inhibited: bool = False
    host_busy: bool = False
    since_last_s: float | None = None
    cooldown_s: float = 0.0
    in_last_hour: int = 0
    actions_per_hour: int = 1_000_000
    in_limit_period: int = 0
    limit: Limit | None = None
    circuit_open: bool = False
    locked: bool = False


Brake = Callable[[Situation], str]


def paused(now: Situation) -> str:
    return "paused" if now.paused and not now.harmless else ""


def observe_mode(now: Situation) -> str:
    return "observe_mode" if now.mode is Mode.OBSERVE and not (now.by_person or now.harmless) else ""


def approval(now: Situation) -> str:
    asks = now.mode is Mode.ASK and not (now.by_person or now.harmless or now.approved)
    return "awaiting_approval" if asks else ""


def handler_disabled(now: Situation) -> str:
    return "handler_disabled" if now.handler_disabled else ""


def boot_grace(now: Situation) -> str:
    early = now.since_boot_s < now.boot_grace_s and not (now.by_person or now.harmless)
    return "boot_grace" if early else ""


def silenced(now: Situation) -> str:
    return "silenced" if now.silenced and not now.by_person else ""


def inhibited(now: Situation) -> str:
    return "inhibited" if now.inhibited and not now.by_person else ""


def host_busy(now: Situation) -> str:
    return "host_busy" if now.host_busy and not (now.by_person or now.harmless) else ""


def cooldown(now: Situation) -> str:
    recent = now.since_last_s is not None and now.since_last_s < now.cooldown_s
    return "cooldown" if recent and not now.by_person else ""


def hourly_limit(now: Situation) -> str:
    used_up = now.in_last_hour >= now.actions_per_hour and not (now.by_person or now.harmless)
    return "hourly_limit" if used_up else ""


def rule_limit(now: Situation) -> str:
    reached = now.limit is not None and now.in_limit_period >= now.limit.count
    return "rule_limit" if reached and not now.by_person else ""


def circuit_open(now: Situation) -> str:
    return "circuit_open" if now.circuit_open and not now.by_person else ""


def resource_locked(now: Situation) -> str:
    return "resource_locked" if now.locked else ""


BRAKES: tuple[Brake, ...] = (
    paused,
    observe_mode,
    handler_disabled,
    boot_grace,
    silenced,
    inhibited,
    host_busy,
    cooldown,
    hourly_limit,
    rule_limit,
    circuit_open,
    resource_locked,
    approval,
)


def first_reason(now: Situation) -> str:
    """The first brake that holds, by name; empty when none does."""
    return next((reason for brake in BRAKES if (reason := brake(now))), "")


def plan_reason(plan: Plan, percent_cap: float) -> str:
    """Why a plan may not be carried out, by name: its own refusal, or a share of its tree over the cap."""
    if plan.refused:
        return plan.refused
    if not plan.items:
        return "nothing_to_do"
    share = plan.bytes / plan.considered_bytes if plan.considered_bytes else 0.0
    return "over_percent_cap" if share > percent_cap else ""
