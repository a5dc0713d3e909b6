"""What pages tell people to type exists: commands and their options, SQL, handlers, rules, files and tests."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
from pathlib import Path

import pytest

from agent import rulefile, ruletest
from agent.cli import make_parser
from agent.clock import SystemClock
from agent.specs import HANDLERS
from agent.store import Reader, Retention, Store
from tests.support.docs import ROOT, blocks, kind, name_of, pages, prose, rows, words
from tests.support.reference import _subcommands

OPTIONS = {name: set(command._option_string_actions) for name, command, _ in _subcommands(make_parser())}
COVERAGE = ROOT / "docs/reference/coverage.md"
HOW_TO = sorted((ROOT / "docs/how-to").glob("*.md"))


def typed(page: Path) -> list[str]:
    """Every command line of a page's shell blocks, continued lines joined, without ``./dev``."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "sh").replace("\\\n", " ")
    return [
        line.strip().removeprefix("./dev ") for line in text.splitlines() if re.match(r"\s*(\./dev )?upkeep ", line)
    ]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_line_can_be_parsed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in typed(page):
        try:
            make_parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_named_in_the_prose_exists_with_its_options(page: Path) -> None:
    named = re.findall(r"`(?:\./dev )?upkeep ([a-z]+)([^`]*)`", prose(page))
    wrong = [
        f"upkeep {name}{rest}"
        for name, rest in named
        if name not in OPTIONS or not set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= OPTIONS[name]
    ]
    assert wrong == []


def test_every_command_has_its_code() -> None:
    for name, command, _ in _subcommands(make_parser()):
        assert isinstance(command, argparse.ArgumentParser)
        module = command.get_default("run").partition(":")[0]
        assert (ROOT / "agent/commands" / f"{module}.py").exists(), f"upkeep {name}"


def test_every_statement_of_the_how_tos_runs(tmp_path: Path) -> None:
    async def make() -> None:
        await (await Store.open(tmp_path, clock=SystemClock(), limits=Retention())).close()

    asyncio.run(make())
    statements = [block for page in HOW_TO for block in blocks(page) if block.language == "sql"]
    assert len(statements) > 3
    with Reader.open(tmp_path) as reader:
        for block in statements:
            columns, _ = reader.sql(block.text)
            assert columns, block
        for page in HOW_TO:
            for line in typed(page):
                if line.startswith("upkeep sql "):
                    reader.sql(shlex.split(line)[-1])


def test_the_unit_test_of_the_how_to_passes_on_its_rule(tmp_path: Path) -> None:
    examples = [block for block in blocks(ROOT / "docs/how-to/write-a-rule.md") if block.language == "yaml"]
    for block in examples:
        path = tmp_path / ("test.yaml" if kind(block) == "tests" else "site.yaml")
        path.write_text(block.text)
        path.chmod(0o644)
    result = ruletest.run_file(str(tmp_path / "test.yaml"))
    assert (result.failures, result.tests) == ((), 3)


# -- coverage --------------------------------------------------------------------------------------------------------


def known_names() -> set[str]:
    """Handlers, shipped rules, patterns and jobs, and commands."""
    shipped = rulefile.load(rulefile.shipped())
    names = {*HANDLERS, *(rule.name for rule in shipped.alert_rules)}
    names |= {pattern.name for pattern in shipped.patterns} | {job.name for job in shipped.jobs}
    return names | set(OPTIONS)


def test_the_coverage_page_names_what_exists_and_what_does_not() -> None:
    known = known_names()
    table = rows(COVERAGE.read_text(encoding="utf-8"), "part")
    assert {row[1] for row in table} <= {"done", "partly", "not yet"}
    for part, state, by, tests in table:
        named = {name.removeprefix("upkeep ") for name in re.findall(r"`([^`]+)`", by)}
        if state == "not yet":
            assert not named & known, f"{part} is there now"
            assert tests == ""
        else:
            assert named, part
            assert named <= known, part
            assert words(tests), f"{part} has no test"
        for path in words(tests):
            assert (ROOT / path).exists(), path


def test_every_shipped_job_is_on_the_coverage_page() -> None:
    named = words(COVERAGE.read_text(encoding="utf-8"))
    shipped = rulefile.load(rulefile.shipped())
    assert {job.name for job in shipped.jobs} <= named
    assert shipped.jobs or "No job is shipped" in COVERAGE.read_text(encoding="utf-8")
