"""Our evaluator and Prometheus' on the same series and expressions.

``UPKEEP_DIFFERENTIAL=N`` compares N expressions that nobody has seen before; without it, the same 300 each time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent.errors import ExpressionError
from agent.promql.evaluate import evaluate
from agent.promql.parse import parse
from agent.promql.values import Scalar, Vector
from tests.support import expressions, promtool
from tests.support.promqltest import MemorySource, metric_labels, sequence

PER_FILE = 10
ASKED = os.environ.get("UPKEEP_DIFFERENTIAL")
INTERVAL_S = 15

# Not at 0s: there Prometheus 2.42 finds nothing of (a @ 0)[1m:] @ 41.5, and at 1s it does.
_at = expressions.pick("15s 1m 1m40s 2m 2m15s 3m7s 5m 7m30s 10m")
_question = st.builds(promtool.Question, expressions.close, _at)
_questions = st.lists(_question, min_size=PER_FILE, max_size=PER_FILE, unique=True)


# --- the comparison ----------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    minutes, _, rest = text.rpartition("m")
    return 60 * float(minutes or 0) + float(rest.rstrip("s") or 0)


def _ours(source: MemorySource, question: promtool.Question) -> promtool.Answer:
    try:
        value = evaluate(parse(question.expr), source, _seconds(question.at))
    except ExpressionError as error:
        return str(error)
    match value:
        case Scalar(number):
            return {(): number}
        case Vector(samples):
            return dict(samples)
    raise AssertionError(value)


def _agree(ours: promtool.Answer, theirs: promtool.Answer) -> bool:
    if isinstance(ours, str) or isinstance(theirs, str):
        return isinstance(ours, str) and isinstance(theirs, str)
    return ours.keys() == theirs.keys() and all(_close_to(value, theirs[labels]) for labels, value in ours.items())


def _close_to(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    # The differences of numbers up to 1e4 cancel to about 1e-12; what is left of them has no digits to compare.
    return left == right or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


def compare(series: dict[str, str], questions: list[promtool.Question], folder: Path) -> None:
    source = MemorySource()
    for name, values in series.items():
        samples = {index * float(INTERVAL_S): v for index, v in enumerate(sequence(values)) if v is not None}
        source.add(metric_labels(name), samples)
    for question, theirs in zip(questions, promtool.ask(series, f"{INTERVAL_S}s", questions, folder), strict=True):
        ours = _ours(source, question)
        assert _agree(ours, theirs), f"{question}\nours:     {ours}\npromtool: {theirs}\n{series}"


def _campaign(test: Callable[..., None]) -> Callable[..., None]:
    wanted = int(ASKED or 300)
    return settings(
        max_examples=max(1, wanted // PER_FILE),
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # the message names the one expression; to shrink it would cost a minute
        suppress_health_check=list(HealthCheck),
    )(test)


@_campaign
@given(series=expressions.series(), questions=_questions)
def test_agrees_with_promtool(
    series: dict[str, str], questions: list[promtool.Question], tmp_path_factory: pytest.TempPathFactory
) -> None:
    promtool.needed()
    compare(series, questions, tmp_path_factory.getbasetemp())
