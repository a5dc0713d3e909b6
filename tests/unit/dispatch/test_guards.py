from __future__ import annotations

from dataclasses import replace

import pytest

from agent import guards
from agent.guards import Situation
from agent.model import Mode, Plan, PlanItem
from agent.rulefile import Limit

FREE = Situation(mode=Mode.ACT)

HELD: dict[str, Situation] = {
    "paused": replace(FREE, paused=True),
    "observe_mode": replace(FREE, mode=Mode.OBSERVE),
    "handler_disabled": replace(FREE, handler_disabled=True),
    "boot_grace": replace(FREE, since_boot_s=10, boot_grace_s=300),
    "silenced": replace(FREE, silenced=True),
    "host_busy": replace(FREE, host_busy=True),
    "cooldown": replace(FREE, since_last_s=10, cooldown_s=60),
    "hourly_limit": replace(FREE, in_last_hour=6, actions_per_hour=6),
    "rule_limit": replace(FREE, in_limit_period=2, limit=Limit(2, 86400)),
    "circuit_open": replace(FREE, circuit_open=True),
    "resource_locked": replace(FREE, locked=True),
    "awaiting_approval": replace(FREE, mode=Mode.ASK),
}


def test_nothing_holds_a_free_situation() -> None:
    assert guards.first_reason(FREE) == ""


@pytest.mark.parametrize("reason", list(HELD))
def test_each_brake_holds_alone_and_says_its_name(reason: str) -> None:
    assert guards.first_reason(HELD[reason]) == reason


def test_the_brakes_are_asked_in_the_order_of_the_design() -> None:
    everything = FREE
    for situation in HELD.values():
        changed = {
            name: getattr(situation, name)
            for name in Situation.__dataclass_fields__
            if getattr(situation, name) != getattr(FREE, name)
        }
        everything = replace(everything, **changed)
    everything = replace(everything, mode=Mode.OBSERVE)
    order = [brake(everything) for brake in guards.BRAKES if brake(everything)]
    assert order == [name for name in HELD if name != "awaiting_approval"]


NEVER_OVERRIDDEN = ("paused", "handler_disabled", "resource_locked")


@pytest.mark.parametrize("reason", [reason for reason in HELD if reason not in NEVER_OVERRIDDEN])
def test_a_person_overrides_what_holds_the_agent_back(reason: str) -> None:
    assert guards.first_reason(replace(HELD[reason], by_person=True)) == ""


@pytest.mark.parametrize("reason", NEVER_OVERRIDDEN)
def test_a_person_does_not_override_the_pause_the_lock_or_a_disabled_handler(reason: str) -> None:
    assert guards.first_reason(replace(HELD[reason], by_person=True)) == reason


@pytest.mark.parametrize(
    "reason", ["paused", "observe_mode", "boot_grace", "host_busy", "hourly_limit", "awaiting_approval"]
)
def test_telling_a_person_is_held_back_by_no_brake_on_changes(reason: str) -> None:
    assert guards.first_reason(replace(HELD[reason], harmless=True)) == ""


def test_an_approved_action_goes_on() -> None:
    assert guards.first_reason(replace(HELD["awaiting_approval"], approved=True)) == ""


def test_a_cooldown_ends_at_its_length() -> None:
    assert guards.first_reason(replace(FREE, since_last_s=60, cooldown_s=60)) == ""


def plan(removed: int, of: int, refused: str = "") -> Plan:
    items = (PlanItem("remove", "x", removed),) if removed else ()
    return Plan("clean_cache", "path:/x", "", items, considered_bytes=of, refused=refused)


@pytest.mark.parametrize(
    ("made", "cap", "reason"),
    [
        (plan(50, 100), 0.5, ""),
        (plan(51, 100), 0.5, "over_percent_cap"),
        (plan(0, 100), 0.5, "nothing_to_do"),
        (plan(0, 0), 1.0, "nothing_to_do"),
        (plan(10, 100, "use_unknown"), 1.0, "use_unknown"),
        (plan(10, 0), 0.1, ""),
    ],
)
def test_a_plan_is_held_by_its_own_refusal_its_emptiness_and_the_cap(made: Plan, cap: float, reason: str) -> None:
    assert guards.plan_reason(made, cap) == reason
