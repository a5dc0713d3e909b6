"""Test files in Prometheus' own format: ours, and Prometheus' where a checkout of them lies at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.promql.values import DEFAULTS
from tests.support.promqltest import Tally, run

ROOT = Path(__file__).parents[3]
OURS = sorted((ROOT / "tests/testdata/promql").glob("*.test"))
THEIRS = Path(os.environ.get("UPKEEP_PROMQLTEST", ROOT / "../shared/acceptance/promqltest"))
GOAL = 0.98


def _report(tallies: dict[str, Tally]) -> str:
    lines = [
        f"{name:28} {t.passed:4} passed {len(t.failures):3} failed {t.native:4} native" for name, t in tallies.items()
    ]
    for name, tally in tallies.items():
        lines += [f"{name}:{failure.line}: {failure.expr}: {failure.reason[:200]}" for failure in tally.failures]
    return "\n".join(lines)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_own_files(path: Path) -> None:
    tally = run(path, DEFAULTS)
    assert tally.passed >= 20
    assert not tally.failures, _report({path.name: tally})


@pytest.mark.skipif(not THEIRS.is_dir(), reason="no folder of Prometheus' test files (UPKEEP_PROMQLTEST)")
def test_files_of_prometheus() -> None:
    tallies = {path.name: run(path) for path in sorted(THEIRS.glob("*.test"))}
    passed = sum(tally.passed for tally in tallies.values())
    failed = sum(len(tally.failures) for tally in tallies.values())
    print(_report(tallies))
    assert passed > 500
    assert passed / (passed + failed) >= GOAL, _report(tallies)


def test_runner_sees_a_wrong_answer(tmp_path: Path) -> None:
    path = tmp_path / "wrong.test"
    path.write_text(
        "load 1m\n  a{x=\"1\"} 1 2\n"
        "eval instant at 0 a\n  a{x=\"1\"} 2\n"
        "eval instant at 0 a\n"
        "eval instant at 0 a\n  a{x=\"1\"} 1\n  a{x=\"2\"} 1\n"
        "eval instant at 0 a\n  expect fail\n"
        "eval range from 0 to 1m step 1m a\n  a{x=\"1\"} 1 _\n"
        "eval instant at 0 a +\n  {} 1\n"
        "eval instant at 0 a\n  a{x=\"1\"} 1\n"
    )  # fmt: skip
    tally = run(path)
    assert tally.passed == 1
    assert [failure.line for failure in tally.failures] == [3, 5, 6, 9, 11, 13]
