"""A PromQL expression as frozen values: what the parser makes, what the evaluator and the rule checks read.

Durations and instants inside a tree are whole milliseconds, as in Prometheus. Parentheses are nodes of their own, so
that an expression can be written back as it was meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Literal

from agent.errors import ExpressionError

NAME = "__name__"
LOOKBACK_S = 300.0
"""How old the newest sample of a series may be and still count (Prometheus' ``--query.lookback-delta``)."""

COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})
SET_OPERATORS = frozenset({"and", "or", "unless"})

At = int | Literal["start", "end"]
"""The ``@`` modifier: milliseconds since the epoch, or an edge of the query."""


class Kind(StrEnum):
    """The four types of PromQL."""

    SCALAR = "scalar"
    VECTOR = "instant vector"
    MATRIX = "range vector"
    STRING = "string"


class MatchOp(StrEnum):
    EQUAL = "="
    NOT_EQUAL = "!="
    REGEX = "=~"
    NOT_REGEX = "!~"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label; a label that is absent has the value ``""``."""

    name: str
    op: MatchOp
    value: str
    matches: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    """Whether a label value meets the condition."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matches", _test(self.op, self.value))

    def __reduce__(self) -> tuple[type[Matcher], tuple[str, MatchOp, str]]:
        # Rules are read in a child process; the test itself cannot travel.
        return Matcher, (self.name, self.op, self.value)


def _test(op: MatchOp, value: str) -> Callable[[str], bool]:
    match op:
        case MatchOp.EQUAL:
            return value.__eq__
        case MatchOp.NOT_EQUAL:
            return value.__ne__
        case MatchOp.REGEX:
            return full_match(value)
        case MatchOp.NOT_REGEX:
            accepted = full_match(value)
            return lambda text: not accepted(text)


@lru_cache(maxsize=1024)
def full_match(pattern: str) -> Callable[[str], bool]:
    """A test whether a text as a whole matches an RE2 pattern, as label matchers are anchored.

    Most patterns of real rules are ``.*``, ``.+`` or words between bars: those need no engine.
    """
    if pattern == ".*":
        return lambda text: True
    if pattern == ".+":
        return bool
    if not re.search(r"[\\^$.*+?()\[\]{}]", pattern):
        return frozenset(pattern.split("|")).__contains__
    compiled = compile_regex(pattern)
    return lambda text: compiled.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def compile_regex(pattern: str) -> re.Pattern[str]:
    """An RE2 pattern: linear time whatever the pattern and the text, and Go's own syntax.

    Raises
    ------
    ExpressionError
        If RE2 refuses the pattern.
    """
    import re2  # only rules that need an engine pay for it

    options = re2.Options()
    options.log_errors = False
    try:
        compiled: re.Pattern[str] = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ExpressionError(f'cannot compile the regular expression "{pattern}": {reason}') from None
    return compiled


@dataclass(frozen=True, slots=True)
class NumberLiteral:
    value: float


@dataclass(frozen=True, slots=True)
class StringLiteral:
    value: str


@dataclass(frozen=True, slots=True)
class VectorSelector:
    """``name{matchers} @ at offset o``. ``matchers`` holds the name too, as a condition on ``__name__``."""

    matchers: tuple[Matcher, ...]
    offset_ms: int = 0
    at: At | None = None


@dataclass(frozen=True, slots=True)
class MatrixSelector:
    """``selector[range]``; offset and ``@`` are the selector's."""

    selector: VectorSelector
    range_ms: int


@dataclass(frozen=True, slots=True)
class Subquery:
    """``expr[range:step] @ at offset o``; without a step, the evaluation's default step."""

    expr: Expr
    range_ms: int
    step_ms: int | None = None
    offset_ms: int = 0
    at: At | None = None


@dataclass(frozen=True, slots=True)
class Paren:
    expr: Expr


@dataclass(frozen=True, slots=True)
class Negation:
    """``-expr``; a unary plus means nothing and leaves no node."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Matching:
    """How the elements of two vectors find each other.

    ``on``: ``labels`` are those compared, else those left out. ``group`` names the side that may hold several
    elements for one of the other; ``include`` are labels copied to it.
    """

    labels: tuple[str, ...] = ()
    on: bool = False
    group: Literal["left", "right"] | None = None
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binary:
    op: str
    left: Expr
    right: Expr
    bool_: bool = False
    matching: Matching = Matching()


@dataclass(frozen=True, slots=True)
class Aggregate:
    """``op by (labels) (param, expr)``; ``without`` turns ``labels`` into those left out."""

    op: str
    expr: Expr
    param: Expr | None = None
    labels: tuple[str, ...] = ()
    without: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    args: tuple[Expr, ...] = ()
    returns: Kind = Kind.VECTOR


Expr = (
    NumberLiteral
    | StringLiteral
    | VectorSelector
    | MatrixSelector
    | Subquery
    | Paren
    | Negation
    | Binary
    | Aggregate
    | Call
)


def kind(expr: Expr) -> Kind:
    """The type an expression evaluates to."""
    match expr:
        case NumberLiteral():
            return Kind.SCALAR
        case StringLiteral():
            return Kind.STRING
        case VectorSelector() | Aggregate():
            return Kind.VECTOR
        case MatrixSelector() | Subquery():
            return Kind.MATRIX
        case Paren(inner) | Negation(inner):
            return kind(inner)
        case Binary(_, left, right):
            return Kind.SCALAR if kind(left) is kind(right) is Kind.SCALAR else Kind.VECTOR
        case Call():
            return expr.returns


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct parts of an expression, in the order they are written."""
    match expr:
        case MatrixSelector(selector):
            return (selector,)
        case Subquery(inner) | Paren(inner) | Negation(inner):
            return (inner,)
        case Binary(_, left, right):
            return (left, right)
        case Aggregate(_, inner, param):
            return (inner,) if param is None else (param, inner)
        case Call(_, args):
            return args
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and all its parts, outermost first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def unwrap(expr: Expr) -> Expr:
    """The expression inside any parentheses."""
    while isinstance(expr, Paren):
        expr = expr.expr
    return expr


def selectors(expr: Expr) -> tuple[VectorSelector, ...]:
    """Every selector of an expression: what it reads, for the engine to know which commits concern it."""
    return tuple(part for part in walk(expr) if isinstance(part, VectorSelector))


def lookback(expr: Expr) -> float:
    """Seconds of history that an instant evaluation of ``expr`` may read.

    Offsets, ranges, subqueries and the five minutes a sample stays current all add up; a fixed ``@`` instant needs
    all history there is, which is ``inf``.
    """
    match expr:
        case VectorSelector():
            return _reach(expr, LOOKBACK_S)
        case MatrixSelector(selector, range_ms):
            return _reach(selector, range_ms / 1000)
        case Subquery():
            return _reach(expr, expr.range_ms / 1000 + lookback(expr.expr))
        case _:
            return max(map(lookback, children(expr)), default=0.0)


def _reach(part: VectorSelector | Subquery, seconds: float) -> float:
    if isinstance(part.at, int):
        return math.inf
    return max(0.0, seconds + part.offset_ms / 1000)
