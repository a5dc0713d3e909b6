"""Prometheus' own ``promtool`` as the judge of expressions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.model import Labels

_EXPRESSION = re.compile(
    r'^    expr: (?P<expr>"(?:\\.|[^"\\])*"), time: (?P<time>\S+?),'
    r"(?: err: (?P<error>.*)|\n +exp: ?.*\n +got: ?(?P<got>.*))$",
    re.M,
)
_SAMPLE = re.compile(r"\{(?P<labels>[^}]*)\} (?P<value>\S+?)(?:, (?=\{)|$)")


def needed() -> str:
    """The path of promtool. Without it a test skips, but fails in CI, where it must be there."""
    path = shutil.which("promtool")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("promtool is not installed (Debian package prometheus)")
    return path


@dataclass(frozen=True, slots=True)
class Question:
    expr: str
    at: str


# promtool loads samples up to the last whole evaluation interval before the latest question only.
_LATE = Question("vector(0)", "4h")

Answer = dict[Labels, float] | str
"""Values by labels, or the text of the error."""


def ask(
    series: dict[str, str], interval: str, questions: Sequence[Question], folder: Path, rules: Sequence[object] = ()
) -> list[Answer]:
    """What Prometheus answers, in the order of the questions, with these rules loaded.

    Every expected result is given as empty: promtool then prints what it got in full precision.
    """
    groups = [{"name": "test", "interval": interval, "rules": list(rules)}]
    (folder / "rules.yml").write_text(json.dumps({"groups": groups}))
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": q.expr, "eval_time": q.at} for q in (*questions, _LATE)],
    }
    path = folder / "test.yml"
    path.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(
        [needed(), "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    answers: dict[tuple[str, str], Answer] = {}
    for found in _EXPRESSION.finditer(done.stdout + done.stderr):
        key = (json.loads(found["expr"]), found["time"])
        answers[key] = found["error"] if found["error"] is not None else _samples(found["got"])
    if done.returncode and not answers:
        raise AssertionError(done.stdout + done.stderr)
    return [answers.get((q.expr, q.at), {}) for q in questions]


def _samples(text: str) -> dict[Labels, float]:
    samples = {}
    for found in _SAMPLE.finditer(text):
        labels = re.findall(r'(\w+)="((?:\\.|[^"\\])*)"', found["labels"])
        samples[tuple(sorted(labels))] = float(found["value"])
    return samples
