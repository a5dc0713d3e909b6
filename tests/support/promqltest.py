"""Runs test files in the format of Prometheus' own ``promqltest`` package against our evaluator.

https://github.com/prometheus/prometheus/blob/main/promql/promqltest/README.md describes the format. Annotations
(``expect warn``, ``expect info`` …) are not part of a value and are passed over. An evaluation that reads native
histograms, or expects one, is counted apart: they are outside our scope.

``python -m tests.support.promqltest FOLDER`` prints one line for each file.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import ExpressionError
from agent.model import STALE, Labels
from agent.promql.evaluate import evaluate, evaluate_range
from agent.promql.nodes import NAME, Call, Expr, Matcher, MatchOp, selectors, walk
from agent.promql.parse import parse
from agent.promql.values import Dialect, Matrix, Options, Points, Scalar, String, Value, Vector

UPSTREAM = Options(dialect=Dialect.PROMETHEUS_3)
_TOLERANCE = 1e-6  # of the upstream runner
_NATIVE_FUNCTIONS = {
    "histogram_avg",
    "histogram_count",
    "histogram_stddev",
    "histogram_stdvar",
    "histogram_sum",
    "info",
}


class MemorySource:
    """Series held in memory, as the evaluator asks for them."""

    def __init__(self, series: Iterable[Points] = ()) -> None:
        self._series: dict[Labels, Points] = {}
        for points in series:
            self.add(points.labels, dict(zip(points.times, points.values, strict=True)))

    def add(self, labels: Labels, samples: dict[float, float]) -> None:
        """Add samples to a series; the same instant twice keeps the later value."""
        old = self._series.get(labels)
        merged = (dict(zip(old.times, old.values, strict=True)) if old else {}) | samples
        times = sorted(merged)
        self._series[labels] = Points(labels, times, [merged[time] for time in times])

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> Iterator[Points]:
        for labels, points in sorted(self._series.items()):
            inside = bisect_left(points.times, start - 1) < len(points.times) and points.times[0] <= end + 1
            if inside and _matches(labels, matchers):
                yield points


def _matches(labels: Labels, matchers: Sequence[Matcher]) -> bool:
    values = dict(labels)
    return all(matcher.matches(values.get(matcher.name, "")) for matcher in matchers)


# --- values ------------------------------------------------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_SEQUENCE = re.compile(
    r"(?P<start>_|stale|[-+]?(?:inf|nan|[\d.]+(?:e[-+]?\d+)?))(?P<step>[-+][\d.]+(?:e[-+]?\d+)?)?(?:x(?P<times>\d+))?",
    re.I,
)


def seconds(text: str) -> float:
    """``1h30m``, ``250ms`` or a bare number of seconds."""
    if re.fullmatch(r"-?[\d.]+", text):
        return float(text)
    return sum(float(count) * _UNITS[unit] for count, unit in re.findall(r"([\d.]+)(ms|[smhdwy])", text))


def sequence(text: str) -> list[float | None]:
    """``1+2x3 _ stale`` → the values it stands for; None for a gap."""
    values: list[float | None] = []
    for word in text.split():
        found = _SEQUENCE.fullmatch(word)
        if found is None:
            raise ValueError(f'not a value: "{word}"')
        times = int(found["times"] or 0)
        if found["start"] == "_":
            values += [None] * max(times, 1)
            continue
        start = STALE if found["start"] == "stale" else float(found["start"])
        step = float(found["step"] or 0)
        values += [start + index * step if index else start for index in range(times + 1)]
    return values


def split_metric(line: str) -> tuple[str, str]:
    """A line of a test file as the series it names and the rest."""
    depth, quote = 0, ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote and line[index - 1] != "\\" else quote
        elif char in "\"'":
            quote = char
        elif char in "{}":
            depth += 1 if char == "{" else -1
        elif char.isspace() and not depth:
            return line[:index], line[index:].strip()
    return line, ""


def metric_labels(text: str) -> Labels:
    """``name{a="b"}`` → labels with ``__name__``."""
    if text == "{}":
        return ()
    (selector,) = selectors(parse(text))
    assert all(matcher.op is MatchOp.EQUAL for matcher in selector.matchers)
    return tuple(sorted((matcher.name, matcher.value) for matcher in selector.matchers if matcher.value))


# --- the file ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Evaluation:
    line: int
    expr: str
    at: float = 0.0
    range: tuple[float, float, float] | None = None
    fails: bool = False
    ordered: bool = False
    string: str | None = None
    window: tuple[float, float, float] | None = None
    expected: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failure:
    line: int
    expr: str
    reason: str


@dataclass(slots=True)
class Tally:
    passed: int = 0
    native: int = 0
    failures: list[Failure] = field(default_factory=list)


def run(path: Path, options: Options = UPSTREAM) -> Tally:
    """Run one file; every evaluation is judged, whatever became of those before it."""
    tally, source, native = Tally(), MemorySource(), set[Labels]()
    lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    index = 0
    while index < len(lines):
        number, head = lines[index]
        index += 1
        body = []
        while index < len(lines) and not re.match(r"(load|load_with_nhcb|eval\w*|clear)\b", lines[index][1]):
            body.append(lines[index][1])
            index += 1
        if head == "clear":
            source, native = MemorySource(), set()
        elif head.startswith("load"):
            _load(head, body, source, native)
        else:
            _judge(_evaluation(number, head, body), source, native, options, tally)
    return tally


def _load(head: str, body: list[str], source: MemorySource, native: set[Labels]) -> None:
    command, step = head.split()
    for line in body:
        name, values = split_metric(line)
        labels = metric_labels(name)
        if "{{" in values:
            native.add(labels)
            continue
        if command == "load_with_nhcb":
            native.add(_native_twin(labels))
        samples = {i * seconds(step): value for i, value in enumerate(sequence(values)) if value is not None}
        source.add(labels, {round(time, 3): value for time, value in samples.items()})


def _native_twin(labels: Labels) -> Labels:
    """The native histogram that ``load_with_nhcb`` makes of a classic one."""
    pairs = {name: value for name, value in labels if name != "le"}
    pairs[NAME] = re.sub(r"_(bucket|sum|count)$", "", pairs[NAME])
    return tuple(sorted(pairs.items()))


def _evaluation(number: int, head: str, body: list[str]) -> Evaluation:
    command, rest = head.split(None, 1)
    if found := re.match(r"instant\s+at\s+(\S+)\s+(.*)", rest):
        test = Evaluation(number, found[2], seconds(found[1]))
    elif found := re.match(r"range\s+from\s+(\S+)\s+to\s+(\S+)\s+step\s+(\S+)\s+(.*)", rest):
        start, end, step = map(seconds, found.groups()[:3])
        test = Evaluation(number, found[4], range=(start, end, step))
    else:
        raise ValueError(f"line {number}: {head}")
    test.fails, test.ordered = command == "eval_fail", command == "eval_ordered"
    for line in body:
        if line.startswith(("expect fail", "expected_fail")):
            test.fails = True
        elif line == "expect ordered":
            test.ordered = True
        elif found := re.match(r"expect string (.*)", line):
            test.string = parse_string(found[1])
        elif found := re.match(r"expect range vector from (\S+) to (\S+) step (\S+)", line):
            test.window = (seconds(found[1]), seconds(found[2]), seconds(found[3]))
        elif not line.startswith("expect"):
            test.expected.append(line)
    return test


def parse_string(text: str) -> str:
    value = parse(text)
    assert hasattr(value, "value")
    return str(value.value)


def _judge(test: Evaluation, source: MemorySource, native: set[Labels], options: Options, tally: Tally) -> None:
    try:
        expr = parse(test.expr)
    except ExpressionError as error:
        if test.fails:
            tally.passed += 1
        elif any("{{" in line for line in test.expected) or any(dict(labels)[NAME] in test.expr for labels in native):
            tally.native += 1
        else:
            tally.failures.append(Failure(test.line, test.expr, str(error)))
        return
    if _is_native(expr, test, native):
        tally.native += 1
        return
    reason = _difference(expr, test, source, options)
    if reason:
        tally.failures.append(Failure(test.line, test.expr, reason))
    else:
        tally.passed += 1


def _is_native(expr: Expr, test: Evaluation, native: set[Labels]) -> bool:
    if any("{{" in line for line in test.expected):
        return True
    if any(isinstance(part, Call) and part.name in _NATIVE_FUNCTIONS for part in walk(expr)):
        return True
    return any(_matches(labels, selector.matchers) for selector in selectors(expr) for labels in native)


def _difference(expr: Expr, test: Evaluation, source: MemorySource, options: Options) -> str:
    """What is wrong with our answer; empty when nothing is."""
    try:
        value: Value
        if test.range is None:
            value = evaluate(expr, source, test.at, options)
        else:
            value = evaluate_range(expr, source, *test.range, options)
    except ExpressionError as error:
        return "" if test.fails else str(error)
    if test.fails:
        return f"does not fail: {value}"
    match value:
        case Scalar(number):
            wanted = sequence(test.expected[0])[0]
            return "" if wanted is not None and close(number, wanted) else f"{number} is not {wanted}"
        case String(text):
            wanted_text = test.string if test.string is not None else parse_string(test.expected[0])
            return "" if text == wanted_text else f"{text!r} is not {wanted_text!r}"
        case Vector(samples):
            return _compare_vector(samples, test)
        case Matrix(series):
            return _compare_matrix(series, test)


def _compare_vector(samples: Sequence[tuple[Labels, float]], test: Evaluation) -> str:
    wanted = [(metric_labels(name), sequence(rest)[0]) for name, rest in map(split_metric, test.expected)]
    if test.ordered and [labels for labels, _ in samples] != [labels for labels, _ in wanted]:
        return f"the order is {samples}"
    left = dict(samples)
    for labels, value in wanted:
        if labels not in left:
            return f"{labels} is missing from {samples}"
        if value is None or not close(left[labels], value):
            return f"{labels} is {left[labels]}, not {value}"
        del left[labels]
    return f"{left} is too much" if left else ""


def _compare_matrix(series: Sequence[Points], test: Evaluation) -> str:
    steps = test.range or test.window
    assert steps is not None
    start, _, step = steps
    left = {points.labels: dict(zip(points.times, points.values, strict=True)) for points in series}
    for name, rest in map(split_metric, test.expected):
        wanted = {
            round(start + index * step, 3): value for index, value in enumerate(sequence(rest)) if value is not None
        }
        labels = metric_labels(name)
        got = {round(time, 3): value for time, value in left.pop(labels, {}).items()}
        if wanted.keys() != got.keys() or not all(close(got[time], value) for time, value in wanted.items()):
            return f"{labels} is {got}, not {wanted}"
    return f"{left} is too much" if left else ""


def close(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right or math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=1e-300 if left and right else 1e-12)


def main() -> None:
    total = Tally()
    print(f"{'file':30} {'passed':>7} {'failed':>7} {'native':>7}")
    for path in sorted(Path(sys.argv[1]).glob("*.test")):
        tally = run(path)
        print(f"{path.name:30} {tally.passed:7} {len(tally.failures):7} {tally.native:7}")
        for failure in tally.failures:
            print(f"    line {failure.line}: {failure.expr}\n        {failure.reason[:300]}")
        total.passed += tally.passed
        total.native += tally.native
        total.failures += tally.failures
    judged = total.passed + len(total.failures)
    print(f"{'all':30} {total.passed:7} {len(total.failures):7} {total.native:7}   {total.passed / judged:.2%}")


if __name__ == "__main__":
    main()
