"""Evaluation of a parsed expression at one instant, or at every step of a range.

Instants are whole milliseconds inside, as in Prometheus, so that windows, steps and rates agree with it; a sample
belongs to the millisecond nearest to its time. A range is evaluated step by step, but every selector asks the source
once for all the steps it serves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from agent.errors import ExpressionError
from agent.model import Labels, is_stale
from agent.promql import aggregation, operators
from agent.promql.functions import KEEP_NAME, OVER_TIME, PER_SAMPLE, WHOLE, Moment
from agent.promql.nodes import (
    NAME,
    Aggregate,
    Binary,
    Call,
    Expr,
    Kind,
    MatchOp,
    MatrixSelector,
    Negation,
    NumberLiteral,
    Paren,
    StringLiteral,
    Subquery,
    VectorSelector,
    kind,
    unwrap,
)
from agent.promql.values import (
    DEFAULTS,
    Dialect,
    Matrix,
    Options,
    Points,
    Sample,
    Scalar,
    Source,
    String,
    Value,
    Vector,
    drop_name,
)
from agent.promql.windows import CarriedWindow, Memory, Window

__all__ = ["Memory", "Source", "evaluate", "evaluate_range"]

MAX_STEPS = 200_000
"""How often subqueries and ranges may evaluate in one call: ``x[10y:1ms]`` must not stop the agent."""

Raw = float | str | list[Sample]

_MATRICES = (MatrixSelector, Subquery)


def evaluate(expr: Expr, source: Source, at: float, options: Options = DEFAULTS, memory: Memory | None = None) -> Value:
    """The value of an expression at one instant.

    Parameters
    ----------
    expr
        What :func:`agent.promql.parse.parse` returned.
    source
        Where its selectors read.
    at
        Seconds since the epoch.
    options
        Lookback, default subquery step and dialect.
    memory
        What the last evaluation on this source left behind, to make this one cheaper; always with the same options.

    Raises
    ------
    ExpressionError
        Where Prometheus' evaluation would fail: elements that do not match as they must, two with the same labels.
    """
    at_ms = round(at * 1000)
    query = _Query(source, options, at_ms, at_ms, 0)
    frame = _Frame(query, at_ms, at_ms, memory)
    if isinstance(matrix := unwrap(expr), _MATRICES):
        windows = _windows(matrix, frame, at_ms)
        return Matrix(tuple(Points(labels, window.times, window.values) for labels, window in windows))
    match _evaluate(expr, frame, at_ms):
        case float(value):
            return Scalar(value)
        case str(value):
            return String(value)
        case samples:
            return Vector(tuple(samples))


def evaluate_range(
    expr: Expr, source: Source, start: float, end: float, step: float, options: Options = DEFAULTS
) -> Matrix:
    """The values of an expression at ``start``, ``start + step`` … up to ``end``, all in seconds.

    A scalar is a series without labels, as in Prometheus' range queries.
    """
    start_ms, end_ms, step_ms = round(start * 1000), round(end * 1000), round(step * 1000)
    if step_ms <= 0:
        raise ExpressionError(f"cannot evaluate a range with the step {step:g}: it must be above 0")
    if kind(expr) not in (Kind.SCALAR, Kind.VECTOR):
        raise ExpressionError(f"cannot evaluate a {kind(expr)} over a range: it must be a scalar or an instant vector")
    query = _Query(source, options, start_ms, end_ms, step_ms)
    return Matrix(tuple(_steps(expr, _Frame(query, start_ms, end_ms, Memory()), start_ms, end_ms, step_ms)))


@dataclass(slots=True)
class _Query:
    """What stays the same in all parts of one evaluation."""

    source: Source
    options: Options
    start_ms: int
    end_ms: int
    step_ms: int
    steps_left: int = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise ExpressionError(f"cannot evaluate: more than {MAX_STEPS} steps of subqueries and ranges")


@dataclass(slots=True)
class _Frame:
    """The steps from ``first_ms`` to ``last_ms`` that an expression is evaluated at: those of the query, or of one
    subquery for all the steps around it."""

    query: _Query
    first_ms: int
    last_ms: int
    memory: Memory | None = None
    selected: dict[tuple[int, int], list[Points]] = field(default_factory=dict)
    inner: dict[int, _Frame] = field(default_factory=dict)

    def moved(self, part: VectorSelector | Subquery, at_ms: int) -> int:
        """The instant that ``part`` reads at when evaluated at ``at_ms``."""
        match part.at:
            case None:
                pass
            case "start":
                at_ms = self.query.start_ms
            case "end":
                at_ms = self.query.end_ms
            case fixed:
                at_ms = fixed
        return at_ms - part.offset_ms

    def series(self, selector: VectorSelector, reach_ms: int, matrix: MatrixSelector | None = None) -> list[Points]:
        """What the selector finds for all the steps of this frame, asked for once; for the windows of ``matrix`` also
        what leaves them."""
        found = self.selected.get((id(selector), reach_ms))
        if found is None:
            start_ms = self.moved(selector, self.first_ms) - reach_ms
            if matrix is not None and self.memory is not None:
                start_ms = self.memory.since_ms(matrix, start_ms, reach_ms)
            end_ms = self.moved(selector, self.last_ms)
            found = list(self.query.source.select(selector.matchers, _before(start_ms), _after(end_ms)))
            self.selected[id(selector), reach_ms] = found
        return found

    def within(self, subquery: Subquery) -> _Frame:
        """The frame of what is inside ``subquery``."""
        frame = self.inner.get(id(subquery))
        if frame is None:
            first_ms = self.moved(subquery, self.first_ms) - subquery.range_ms
            frame = _Frame(self.query, first_ms, self.moved(subquery, self.last_ms), Memory())
            self.inner[id(subquery)] = frame
        return frame

    def oldest_ms(self, end_ms: int, range_ms: int) -> int:
        """The first millisecond that still belongs to the window of ``range_ms`` up to ``end_ms``."""
        return end_ms - range_ms + (self.query.options.dialect is Dialect.PROMETHEUS_3)


def _after(milliseconds: int) -> float:
    """The last instant, in seconds, that rounds to no later millisecond."""
    return (milliseconds + 0.5) / 1000


def _before(milliseconds: int) -> float:
    return (milliseconds - 0.5) / 1000


# --- the kinds of expression -------------------------------------------------------------------------------------


def _evaluate(expr: Expr, frame: _Frame, at_ms: int) -> Raw:
    return _EVALUATE[type(expr)](expr, frame, at_ms)


def _literal(expr: NumberLiteral | StringLiteral, frame: _Frame, at_ms: int) -> Raw:
    return expr.value


def _paren(expr: Paren, frame: _Frame, at_ms: int) -> Raw:
    return _evaluate(expr.expr, frame, at_ms)


def _negation(expr: Negation, frame: _Frame, at_ms: int) -> Raw:
    value = _evaluate(expr.expr, frame, at_ms)
    if isinstance(value, list):
        return _distinct([(drop_name(labels), -number) for labels, number in value])
    return -cast(float, value)


def _binary(expr: Binary, frame: _Frame, at_ms: int) -> Raw:
    left, right = _evaluate(expr.left, frame, at_ms), _evaluate(expr.right, frame, at_ms)
    result = operators.combine(expr, cast(operators.Operand, left), cast(operators.Operand, right))
    return _distinct(result) if isinstance(result, list) else result


def _aggregate(expr: Aggregate, frame: _Frame, at_ms: int) -> Raw:
    param = None if expr.param is None else _evaluate(expr.param, frame, at_ms)
    vector = cast(list[Sample], _evaluate(expr.expr, frame, at_ms))
    return aggregation.aggregate(expr, vector, cast(float | str | None, param))


def _selector(expr: VectorSelector, frame: _Frame, at_ms: int) -> Raw:
    return [(points.labels, points.values[index]) for points, index in _current(expr, frame, at_ms)]


def _current(selector: VectorSelector, frame: _Frame, at_ms: int) -> Iterator[tuple[Points, int]]:
    """Each series' newest sample that is neither too old nor a stale marker, as an index into its points."""
    lookback_ms = round(frame.query.options.lookback_s * 1000)
    end_ms = frame.moved(selector, at_ms)
    newest, oldest = _after(end_ms), _before(frame.oldest_ms(end_ms, lookback_ms))
    times: Sequence[float] | None = None
    index = -1
    for points in frame.series(selector, lookback_ms):
        if points.times is not times:
            times = points.times
            index = bisect_right(times, newest) - 1
            if index >= 0 and times[index] < oldest:
                index = -1
        if index >= 0:
            value = points.values[index]
            if value == value or not is_stale(value):
                yield points, index


def _call(expr: Call, frame: _Frame, at_ms: int) -> Raw:
    name = expr.name
    if (special := _ON_SELECTORS.get(name)) is not None:
        return special(expr, frame, at_ms)
    if (over_time := OVER_TIME.get(name)) is not None:
        return _over_time(expr, over_time, frame, at_ms)
    args = [_evaluate(arg, frame, at_ms) for arg in expr.args]
    if (per_sample := PER_SAMPLE.get(name)) is not None:
        return _per_sample(per_sample, args, at_ms)
    query = frame.query
    result = WHOLE[name](Moment(at_ms, query.start_ms, query.end_ms, query.step_ms), *args)
    return _distinct(result) if isinstance(result, list) else result


def _per_sample(function: Callable[..., float | None], args: list[Raw], at_ms: int) -> Raw:
    # hour() is hour(vector(time())).
    vector = cast(list[Sample], args[0]) if args else [((), at_ms / 1000)]
    result = [(drop_name(labels), function(value, *args[1:])) for labels, value in vector]
    return _distinct([sample for sample in result if sample[1] is not None])  # type: ignore[misc]


def _over_time(expr: Call, function: Callable[..., float | None], frame: _Frame, at_ms: int) -> Raw:
    args = [unwrap(arg) for arg in expr.args]
    matrix = next(arg for arg in args if isinstance(arg, _MATRICES))
    params = [_evaluate(arg, frame, at_ms) for arg in args if arg is not matrix]
    keep = expr.name in KEEP_NAME
    result: list[Sample] = []
    for labels, window in _windows(matrix, frame, at_ms, carrying=True):
        value = function(window, *params)
        if value is not None:
            result.append((labels if keep else drop_name(labels), value))
    return _distinct(result)


def _distinct(vector: list[Sample]) -> list[Sample]:
    if len(vector) > 1 and len(dict(vector)) != len(vector):
        raise ExpressionError("vector cannot contain metrics with the same labelset")
    return vector


# --- windows -----------------------------------------------------------------------------------------------------


def _windows(matrix: Expr, frame: _Frame, at_ms: int, *, carrying: bool = False) -> Iterator[tuple[Labels, Window]]:
    """The window of every series that has samples in the range, by labels."""
    match matrix:
        case MatrixSelector(selector, range_ms):
            end_ms = frame.moved(selector, at_ms)
            found = frame.series(selector, range_ms, matrix)
        case Subquery(_, range_ms):
            end_ms = frame.moved(matrix, at_ms)
            found = _subquery_points(matrix, frame, end_ms)
        case _:
            raise AssertionError(matrix)
    start_ms = end_ms - range_ms
    oldest, newest = _before(frame.oldest_ms(end_ms, range_ms)), _after(end_ms)
    cut_early = frame.query.options.dialect is Dialect.PROMETHEUS_3
    turn = None
    if carrying and frame.memory is not None and isinstance(matrix, MatrixSelector):
        turn = frame.memory.turn(matrix, start_ms, range_ms)
    shared: Sequence[float] | None = None
    first = last = 0
    inside: Sequence[float] = ()
    for points in found:
        if points.times is not shared:
            shared = points.times
            first = bisect_left(shared, oldest)
            last = bisect_right(shared, newest, first)
            inside = shared[first:last]
        if first == last:
            continue
        times, values = inside, points.values[first:last]
        if turn is not None and (carry := turn.carry(points, first, last)) is not None:
            carried = CarriedWindow(times, values, start_ms, end_ms, at_ms, cut_early)
            carried.carry = carry
            yield points.labels, carried
            continue
        values = list(values)  # of a list, every further pass is twice as fast as of an array
        if (checksum := sum(values)) != checksum:
            times, values = _without_stale(times, values)
        if values:
            yield points.labels, Window(times, values, start_ms, end_ms, at_ms, cut_early)


def _without_stale(times: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    kept = [(time, value) for time, value in zip(times, values, strict=True) if value == value or not is_stale(value)]
    return [time for time, _ in kept], [value for _, value in kept]


def _subquery_points(subquery: Subquery, frame: _Frame, end_ms: int) -> list[Points]:
    """The inner expression at the multiples of the step within the range.

    The steps do not depend on the instant of evaluation, so that the same samples are seen from one to the next.
    """
    step_ms = subquery.step_ms or round(frame.query.options.subquery_step_s * 1000)
    first_ms = -(-frame.oldest_ms(end_ms, subquery.range_ms) // step_ms) * step_ms
    return _steps(subquery.expr, frame.within(subquery), first_ms, end_ms, step_ms)


def _steps(expr: Expr, frame: _Frame, first_ms: int, last_ms: int, step_ms: int) -> list[Points]:
    """``expr`` at some steps of a frame, as series."""
    series: dict[Labels, tuple[list[float], list[float]]] = {}
    frame.query.spend(max(0, last_ms - first_ms) // step_ms + 1)
    for at_ms in range(first_ms, last_ms + 1, step_ms):
        value = _evaluate(expr, frame, at_ms)
        for labels, number in value if isinstance(value, list) else [((), cast(float, value))]:
            points = series.get(labels)
            if points is None:
                points = series[labels] = ([], [])
            points[0].append(at_ms / 1000)
            points[1].append(number)
    return [Points(labels, times, values) for labels, (times, values) in series.items()]


# --- functions of what is selected, not of its values alone ------------------------------------------------------


def _timestamp(expr: Call, frame: _Frame, at_ms: int) -> Raw:
    argument = unwrap(expr.args[0])
    if isinstance(argument, VectorSelector):
        found = _current(argument, frame, at_ms)
        return _distinct([(drop_name(p.labels), round(p.times[index] * 1000) / 1000) for p, index in found])
    vector = cast(list[Sample], _evaluate(argument, frame, at_ms))
    return _distinct([(drop_name(labels), at_ms / 1000) for labels, _ in vector])


def _absent(expr: Call, frame: _Frame, at_ms: int) -> Raw:
    return [] if _evaluate(expr.args[0], frame, at_ms) else [(_labels_of_absent(expr.args[0]), 1.0)]


def _absent_over_time(expr: Call, frame: _Frame, at_ms: int) -> Raw:
    present = any(True for _ in _windows(unwrap(expr.args[0]), frame, at_ms))
    return [] if present else [(_labels_of_absent(expr.args[0]), 1.0)]


def _labels_of_absent(expr: Expr) -> Labels:
    """The labels that the absent series would have had: those that the selector names once, and by equality."""
    expr = unwrap(expr)
    selector = expr.selector if isinstance(expr, MatrixSelector) else expr
    if not isinstance(selector, VectorSelector):
        return ()
    named: dict[str, str] = {}
    for matcher in selector.matchers:
        if matcher.name == NAME:
            continue
        known = matcher.op is MatchOp.EQUAL and matcher.name not in named
        named[matcher.name] = matcher.value if known else ""
    return tuple(sorted((name, value) for name, value in named.items() if value))


_ON_SELECTORS: dict[str, Callable[[Call, _Frame, int], Raw]] = {
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "timestamp": _timestamp,
}

_EVALUATE: dict[type, Callable[[Any, _Frame, int], Raw]] = {
    NumberLiteral: _literal,
    StringLiteral: _literal,
    Paren: _paren,
    Negation: _negation,
    Binary: _binary,
    Aggregate: _aggregate,
    VectorSelector: _selector,
    Call: _call,
}
