"""The schemas for editors take what the loader takes, and refuse what an editor can see is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from agent import rulefile
from tests.support.docs import ROOT, Block, blocks, faults, kind, pages

SCHEMAS = {
    "config": json.loads((ROOT / "docs/reference/upkeep.schema.json").read_text(encoding="utf-8")),
    "rules": json.loads((ROOT / "docs/reference/rules.schema.json").read_text(encoding="utf-8")),
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def fits(value: Any, schema: Any) -> bool:
    """Draft-07, as far as our schemas use it (a keyword that is not known here fails the test)."""
    return all(_KEYWORDS[keyword](value, schema, rule) for keyword, rule in schema.items())


def _type(value: Any, _: Any, names: str | list[str]) -> bool:
    wanted = [names] if isinstance(names, str) else names
    if isinstance(value, bool):
        return "boolean" in wanted
    return any(isinstance(value, _TYPES[name]) for name in wanted)


def _no_others(value: Any, schema: Any, rule: Any) -> bool:
    others = (
        [each for key, each in value.items() if key not in schema.get("properties", {})] if is_object(value) else []
    )
    return not others if rule is False else all(fits(each, rule) for each in others)


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


_KEYWORDS: dict[str, Any] = {
    "$schema": lambda value, schema, rule: True,
    "title": lambda value, schema, rule: True,
    "description": lambda value, schema, rule: True,
    "type": _type,
    "const": lambda value, schema, rule: value == rule and isinstance(value, bool) == isinstance(rule, bool),
    "enum": lambda value, schema, rule: value in rule,
    "pattern": lambda value, schema, rule: not isinstance(value, str) or re.search(rule, value) is not None,
    "anyOf": lambda value, schema, rule: any(fits(value, each) for each in rule),
    "oneOf": lambda value, schema, rule: sum(fits(value, each) for each in rule) == 1,
    "required": lambda value, schema, rule: not is_object(value) or all(key in value for key in rule),
    "items": lambda value, schema, rule: not isinstance(value, list) or all(fits(each, rule) for each in value),
    "properties": lambda value, schema, rule: (
        not is_object(value) or all(fits(value[key], rule[key]) for key in rule if key in value)
    ),
    "additionalProperties": _no_others,
}

GOOD = [
    *(block for page in pages() for block in blocks(page) if block.language == "yaml"),
    *(Block(path, 1, "yaml", (ROOT / path).read_text(encoding="utf-8")) for path in rulefile.shipped()),
    *(
        Block(str(path), 1, "yaml", path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "examples").glob("*.yaml"))
    ),
    Block("empty", 1, "yaml", ""),
    Block("off", 1, "yaml", "collect:\n  system: false\n  disk: {}\n  network:\nremediation: {boot_grace: 0}\n"),
]


@pytest.mark.parametrize("block", [block for block in GOOD if kind(block) in SCHEMAS], ids=str)
def test_what_the_loader_takes_fits(block: Block) -> None:
    assert [fault for fault in faults(block) if not fault.warning] == []
    assert fits(yaml.safe_load(block.text), SCHEMAS[kind(block)])


@pytest.mark.parametrize(
    "text",
    [
        "mode: atc",
        "mdoe: act",
        "collect: {interval: 5}",
        "collect: {interval: five seconds}",
        "collect: {directories: {paths: [tmp/cache]}}",
        "collect: {directories: {paths: /tmp/cache}}",
        "retention: {max_size: 10G}",
        "remediation: {limits: {percent_per_action: 0.5}}",
        "remediation: {limits: {actions_per_hour: many}}",
        "shipped_rules: maybe",
        "groups: [{rules: []}]",
        "groups: [{name: a, rules: [{alert: A, exp: up}]}]",
        "groups: [{name: a, rules: [{alert: A, expr: up, for: 5}]}]",
        "groups: [{name: a, rules: [{alert: A, expr: up, on_missing: forget}]}]",
        "groups: [{name: a, rules: [{alert: A, expr: up, remediation: {steps: [{clean_cash: {}}]}}]}]",
        "groups: [{name: a, rules: [{alert: A, expr: up, remediation: {steps: [{verify_within: 5m}]}}]}]",
        "groups: [{name: a, rules: [{alert: A, expr: up, remediation: {limit: six a day, steps: []}}]}]",
        "jobs: [{name: a, schedule: '0 3 * * *', steps: [{report: {period: yearly}}]}]",
        "patterns: [{name: a, regex: b, severity: bad}]",
    ],
)
def test_what_an_editor_can_see_is_refused_by_both(text: str) -> None:
    block = Block("bad", 1, "yaml", text)
    assert faults(block) != []
    assert not fits(yaml.safe_load(text), SCHEMAS[kind(block)])
