"""docs/reference/rules.md names every key, reason, status, outcome and function, and its examples do what it says."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent import dispatch, guards, rulefile, ruletest
from agent.alerting import OnMissing
from agent.located import hints, key_of
from agent.matching import Inhibition
from agent.model import ActionStatus, Mode, Severity, Verdict
from agent.promql import aggregation, functions, template
from tests.support.docs import ROOT, blocks, kind, prose, rows, words
from tests.support.reference import written

PAGE = ROOT / "docs/reference/rules.md"
TEXT = PAGE.read_text(encoding="utf-8")
WORDS = words(prose(PAGE))


def first_words(heading: str) -> list[str]:
    """The first cell of each row of a table, without its code type."""
    return [row[0].strip("`") for row in rows(TEXT, heading)]


@pytest.mark.parametrize(
    ("heading", "cls"),
    [
        ("key of a group", rulefile._WrittenGroup),
        ("key of a rule", rulefile._WrittenRule),
        ("key of `remediation`", rulefile._WrittenRemediation),
        ("key of a pattern", rulefile._WrittenPattern),
        ("key of `multiline`", rulefile._WrittenMultiline),
        ("key of a job", rulefile._WrittenJob),
        ("key of an inhibition", Inhibition),
    ],
)
def test_every_key_stands_in_its_table_with_its_default(heading: str, cls: type) -> None:
    fields = {key_of(each): each for each in dataclasses.fields(cls)}
    assert set(first_words(heading)) == set(fields)
    for key, default, *_ in rows(TEXT, heading):
        field = fields[key.strip("`")]
        if default == "required":
            assert field.default is dataclasses.MISSING
            assert field.default_factory is dataclasses.MISSING
        elif default.startswith("`"):
            assert default.strip("`") == written(hints(cls)[field.name], field.default)


def test_the_brakes_stand_in_their_order_with_what_they_do() -> None:
    free = guards.Situation(mode=Mode.ACT)
    held = {
        "paused": replace(free, paused=True),
        "observe_mode": replace(free, mode=Mode.OBSERVE),
        "handler_disabled": replace(free, handler_disabled=True),
        "boot_grace": replace(free, since_boot_s=0.0, boot_grace_s=1.0),
        "silenced": replace(free, silenced=True),
        "inhibited": replace(free, inhibited=True),
        "host_busy": replace(free, host_busy=True),
        "cooldown": replace(free, since_last_s=0.0, cooldown_s=1.0),
        "hourly_limit": replace(free, in_last_hour=1, actions_per_hour=1),
        "rule_limit": replace(free, in_limit_period=1, limit=rulefile.Limit(1, 60.0)),
        "circuit_open": replace(free, circuit_open=True),
        "resource_locked": replace(free, locked=True),
        "awaiting_approval": replace(free, mode=Mode.ASK),
    }
    described = rows(TEXT, "reason")
    for brake, (reason, _, described_kind, by_person, harmless) in zip(guards.BRAKES, described, strict=True):
        name = reason.strip("`")
        assert brake(held[name]) == name
        assert described_kind == ("waiting" if name in guards.WAITING else "final")
        assert by_person == ("held" if brake(replace(held[name], by_person=True)) else "free"), name
        assert harmless == ("held" if brake(replace(held[name], harmless=True)) else "free"), name


def test_every_reason_is_described() -> None:
    reasons = set(re.findall(r'(?:return |else )"([a-z_]+)"', inspect.getsource(guards)))
    reasons |= set(re.findall(r'(?:ActionStatus|Verdict)\.\w+, "([a-z_]+)"', inspect.getsource(dispatch)))
    assert {"alert_cleared", "apply_failed", "nothing_to_do", "over_percent_cap"} <= reasons
    assert reasons - WORDS == set()


@pytest.mark.parametrize("enum", [ActionStatus, Verdict, OnMissing, Mode, Severity])
def test_every_status_outcome_and_mode_is_described(enum: type) -> None:
    assert {member.value for member in enum} - WORDS == set()  # type: ignore[attr-defined]


def test_every_function_is_named_and_no_other() -> None:
    listed = {name for row in rows(TEXT, "functions") for name in words(row[1])}
    assert listed == functions.NAMES | aggregation.NAMES
    assert set(template.FUNCTIONS) - WORDS == set()


def test_the_figures_are_those_of_the_code() -> None:
    for figure in (
        f"within {dispatch.CIRCUIT_MEMORY_S / 86400:.0f} days".replace("7", "seven"),
        f"every {dispatch.VERIFY_EVERY_S:.0f} seconds",
        f"after {dispatch.APPLY_DEADLINE_S / 60:.0f} minutes",
        f"({rulefile.DEFAULT_VERIFY_WITHIN_S / 60:.0f}m by default)",
        f"{dispatch.MAX_ATTEMPTS} attempts".replace("3", "three"),
    ):
        assert figure in TEXT
    assert dispatch.RETRY_S == 1.0
    assert dispatch.CIRCUIT_OPENS_AFTER == 2


def test_the_unit_test_on_the_page_passes_on_the_rules_on_the_page(tmp_path: Path) -> None:
    examples = [block for block in blocks(PAGE) if block.language == "yaml"]
    rules = next(block for block in examples if "EvaluationCacheTooLarge" in block.text)
    [test] = [block for block in examples if kind(block) == "tests"]
    for name, text in (("caches.yaml", rules.text), ("test.yaml", test.text)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    result = ruletest.run_file(str(tmp_path / "test.yaml"))
    assert (result.failures, result.tests) == ((), 4)
    (tmp_path / "test.yaml").write_text(test.text.replace("eval_time: 1m", "eval_time: 4m"))
    assert len(ruletest.run_file(str(tmp_path / "test.yaml")).failures) == 2
