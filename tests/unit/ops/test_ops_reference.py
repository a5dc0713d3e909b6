"""docs/reference/ops.md names every verb, field, reason, limit and protected name that the code has."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from agent.ops import protocol, tree, verbs
from agent.ops.policy import Limits, Policy, parse

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/reference/ops.md").read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "agent/ops").glob("*.py"))
WORDS = set(re.findall(r"`([^`\s]+?)`", PAGE))


@pytest.mark.parametrize("cls", [*typing.get_args(protocol.Request), *typing.get_args(protocol.Reply), protocol.Item])
def test_every_message_and_field_is_on_the_page(cls: type) -> None:
    name = cls.__name__.lower()
    assert name in WORDS or cls is protocol.Item
    missing = {field.name for field in dataclasses.fields(cls)} - WORDS - {"results"}
    assert not missing


def test_every_reason_is_on_the_page() -> None:
    raised = set(re.findall(r'Refused(?:Error)?\(\s*"([a-z_]+)"', SOURCES))
    returned = set(re.findall(r'return "([a-z_]+)"', SOURCES)) | set(tree._REASONS.values()) | set(tree.UNSEEN)
    assert len(raised) > 10
    assert not (raised | returned) - WORDS - {"exact", "relatime", "right"}


def test_every_limit_and_protected_name_is_on_the_page() -> None:
    for field in dataclasses.fields(Limits):
        assert f"limits.{field.name}" in WORDS
    assert {name.decode() for name in tree.PROTECTED} <= WORDS
    assert f"{protocol.MAX_LINE_BYTES} bytes" in PAGE
    assert f"over {protocol.MAX_DEPTH} folders" in PAGE
    assert f"at most {verbs.EXAMPLES_PER_REASON} for each reason" in PAGE


def test_the_policy_on_the_page_is_one() -> None:
    example = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert example
    policy = parse(example[1].encode(), "the example")
    assert policy == Policy(("/tmp/evaluation_cache", "/tmp/benchmark_*"), Limits(), (998,))
