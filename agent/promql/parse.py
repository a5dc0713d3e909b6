"""PromQL text → :mod:`agent.promql.nodes`, and back.

The grammar is the package ``promql_parser``. Around it: caps that keep it from overflowing its stack, mends of what it
reads otherwise than Prometheus 2.42, and the checks that it leaves to the evaluator.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Literal

import promql_parser as package

from agent.errors import ExpressionError
from agent.promql import aggregation, functions
from agent.promql.nodes import (
    NAME,
    Aggregate,
    At,
    Binary,
    Call,
    Expr,
    Kind,
    Matcher,
    Matching,
    MatchOp,
    MatrixSelector,
    Negation,
    NumberLiteral,
    Paren,
    StringLiteral,
    Subquery,
    VectorSelector,
    lookback,
    selectors,
    unwrap,
)

__all__ = ["lookback", "parse", "selectors", "unparse"]

MAX_BYTES = 4096
MAX_LEVELS = 100

_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_STRING = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`"""
_STRING_OR_COMMENT = re.compile(rf"({_STRING})|#[^\n]*")
_MENDED = re.compile(
    rf"(?P<string>{_STRING})|@\s*(?P<sign>[-+]?)|(?P<name>\bholt_winters)(?=\s*\()|(?P<bracket>[(\[{{)\]}}])"
)

# By name: the package's own enumerations cannot be hashed.
_KINDS = {"Scalar": Kind.SCALAR, "Vector": Kind.VECTOR, "Matrix": Kind.MATRIX, "String": Kind.STRING}
_MATCH_OPS = {"Equal": MatchOp.EQUAL, "NotEqual": MatchOp.NOT_EQUAL, "Re": MatchOp.REGEX, "NotRe": MatchOp.NOT_REGEX}
_GROUPS: dict[str, Literal["left", "right"]] = {"ManyToOne": "left", "OneToMany": "right"}


def _name(member: object) -> str:
    return str(member).rpartition(".")[2]


def parse(text: str) -> Expr:
    """Parse one PromQL expression.

    Parameters
    ----------
    text
        At most 4 KiB with at most 100 levels of nesting.

    Returns
    -------
    Expr
        The tree, type-checked as Prometheus does it.

    Raises
    ------
    ExpressionError
        If ``text`` is over a cap, is not PromQL, or asks for something that Prometheus would refuse.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ExpressionError(f"cannot parse the expression: it is longer than {MAX_BYTES} bytes")
    mended, negative = _mend(_STRING_OR_COMMENT.sub(lambda found: found[1] or " ", text))
    try:
        return _Converter(negative).convert(package.parse(mended), 0)
    except (ValueError, ExpressionError) as error:
        raise ExpressionError(f'cannot parse "{text}": {_reason(error)}') from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic of the package's Rust code becomes
            raise
        raise ExpressionError(f'cannot parse "{text}": a number in it is out of range') from None


def _reason(error: Exception) -> str:
    reason = str(error).strip()
    return reason[:1].lower() + reason[1:]


def _mend(text: str) -> tuple[str, Iterator[bool]]:
    """Text that the package reads rightly, and for each ``@`` in turn whether its instant is negative.

    The package reads ``@ -1`` as ``@ 0``, sees escapes in raw strings, and knows ``holt_winters`` under its
    Prometheus 3 name only.
    """
    negative: list[bool] = []
    levels = 0

    def mend(found: re.Match[str]) -> str:
        nonlocal levels
        if found["string"]:
            return json.dumps(found[0][1:-1], ensure_ascii=False) if found[0][0] == "`" else found[0]
        if found["name"]:
            return "double_exponential_smoothing"
        if found["bracket"]:
            levels += 1 if found[0] in "([{" else -1
            if levels > MAX_LEVELS:
                raise ExpressionError(f"cannot parse the expression: more than {MAX_LEVELS} levels of brackets")
            return found[0]
        negative.append(found["sign"] == "-")
        return "@ "

    return _MENDED.sub(mend, text), iter(negative)


class _Converter:
    """One walk over the package's tree, in the order of the text."""

    def __init__(self, negative: Iterator[bool]) -> None:
        self._negative = negative

    def convert(self, node: object, level: int) -> Expr:
        if level > 2 * MAX_LEVELS:
            # Operators nest without brackets too: a + b + c … is a tree as deep as it is long.
            raise ExpressionError(f"more than {2 * MAX_LEVELS} levels of operators")
        match node:
            case package.NumberLiteral():
                return NumberLiteral(node.val)
            case package.StringLiteral():
                return StringLiteral(node.val)
            case package.ParenExpr():
                return Paren(self.convert(node.expr, level + 1))
            case package.UnaryExpr():
                return Negation(self.convert(node.expr, level + 1))
            case package.VectorSelector():
                return self._selector(node)
            case package.MatrixSelector():
                return MatrixSelector(self._selector(node.vector_selector), _milliseconds(node.range))
            case package.SubqueryExpr():
                return self._subquery(node, level)
            case package.BinaryExpr():
                return self._binary(node, level)
            case package.AggregateExpr():
                return self._aggregate(node, level)
            case package.Call():
                return self._call(node, level)
        raise ExpressionError(f"unknown construct {type(node).__name__}")

    def _at(self, at: package.AtModifier | None) -> At | None:
        if at is None:
            return None
        negative = next(self._negative)
        if at.type == package.AtModifierType.Start:
            return "start"
        if at.type == package.AtModifierType.End:
            return "end"
        assert at.at is not None
        instant = round(at.at.timestamp() * 1000)
        return -instant if negative else instant

    def _selector(self, node: package.VectorSelector) -> VectorSelector:
        if node.matchers.or_matchers:
            raise ExpressionError('"or" between label matchers is not PromQL')
        _check_label_names([m.name for m in node.matchers.matchers])
        matchers = tuple(Matcher(m.name, _MATCH_OPS[_name(m.op)], m.value) for m in node.matchers.matchers)
        if node.name is not None:
            matchers = (Matcher(NAME, MatchOp.EQUAL, node.name), *matchers)
        return VectorSelector(matchers, _milliseconds(node.offset), self._at(node.at))

    def _subquery(self, node: package.SubqueryExpr, level: int) -> Subquery:
        inner = self.convert(node.expr, level + 1)
        step_ms = None if node.step is None else _milliseconds(node.step)
        return Subquery(inner, _milliseconds(node.range), step_ms, _milliseconds(node.offset), self._at(node.at))

    def _binary(self, node: package.BinaryExpr, level: int) -> Binary:
        left, right = self.convert(node.lhs, level + 1), self.convert(node.rhs, level + 1)
        op, modifier = str(node.op), node.modifier
        if modifier is None:
            return Binary(op, left, right)
        on = modifier.matching is not None and modifier.matching.type == package.LabelModifierType.Include
        labels = tuple(modifier.matching.labels) if modifier.matching else ()
        include = tuple(modifier.group_labels or ())
        _check_label_names((*labels, *include))
        group = _GROUPS.get(_name(modifier.card))
        return Binary(op, left, right, modifier.return_bool, Matching(labels, on, group, include))

    def _aggregate(self, node: package.AggregateExpr, level: int) -> Aggregate:
        param = None if node.param is None else self.convert(node.param, level + 1)
        inner = self.convert(node.expr, level + 1)
        modifier = node.modifier
        labels = tuple(modifier.labels) if modifier else ()
        op = _known(str(node.op), aggregation.NAMES)
        _check_label_names(labels)
        without = modifier is not None and modifier.type == package.AggModifierType.Without
        if param is not None and op == "count_values":
            _check_label_names(_texts([param]))
        return Aggregate(op, inner, param, labels, without)

    def _call(self, node: package.Call, level: int) -> Call:
        args = tuple(self.convert(arg, level + 1) for arg in node.args)
        name = "holt_winters" if node.func.name == "double_exponential_smoothing" else node.func.name
        _known(name, functions.NAMES)
        if name == "label_replace":
            _check_label_names(_texts(args[1:2]))
        elif name == "label_join":
            _check_label_names(_texts((args[1], *args[3:])))
        return Call(name, args, _KINDS[_name(node.func.return_type)])


def _known(name: str, names: Collection[str]) -> str:
    if name not in names:
        raise ExpressionError(f'"{name}" is not part of this PromQL')
    return name


def _check_label_names(names: Iterable[str]) -> None:
    for name in names:
        if not _LABEL_NAME.fullmatch(name):
            raise ExpressionError(f'invalid label name "{name}"')


def _texts(args: Iterable[Expr]) -> list[str]:
    return [text.value for arg in args if isinstance(text := unwrap(arg), StringLiteral)]


def _milliseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // timedelta(milliseconds=1)


def unparse(expr: Expr) -> str:
    """The expression as PromQL text; ``parse(unparse(expr)) == expr`` for whatever :func:`parse` returned."""
    match expr:
        case NumberLiteral(value):
            return _number(value)
        case StringLiteral(value):
            return json.dumps(value, ensure_ascii=False)
        case Paren(inner):
            return f"({unparse(inner)})"
        case Negation(inner):
            return f"-{unparse(inner)}"
        case VectorSelector(matchers):
            return _matchers(matchers) + _modifiers(expr)
        case MatrixSelector(selector, range_ms):
            return f"{_matchers(selector.matchers)}[{duration(range_ms)}]{_modifiers(selector)}"
        case Subquery(inner, range_ms, step_ms):
            step = "" if step_ms is None else duration(step_ms)
            return f"{unparse(inner)}[{duration(range_ms)}:{step}]{_modifiers(expr)}"
        case Binary():
            return " ".join(filter(None, (unparse(expr.left), expr.op, _matching(expr), unparse(expr.right))))
        case Aggregate(op, inner, param, labels, without):
            grouping = f" {'without' if without else 'by'} ({', '.join(labels)}) " if labels or without else ""
            return f"{op}{grouping}({'' if param is None else unparse(param) + ', '}{unparse(inner)})"
        case Call(name, args):
            return f"{name}({', '.join(map(unparse, args))})"


def _number(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return "NaN" if value != value else "Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _matchers(matchers: Sequence[Matcher]) -> str:
    name = ""
    named = [m for m in matchers if m.name == NAME]
    if named == list(matchers[:1]) and named and named[0].op is MatchOp.EQUAL and _is_metric(named[0].value):
        name, matchers = named[0].value, matchers[1:]
    inner = ",".join(f"{m.name}{m.op}{json.dumps(m.value, ensure_ascii=False)}" for m in matchers)
    return f"{name}{{{inner}}}" if inner or not name else name


def _is_metric(name: str) -> bool:
    return re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name) is not None


def _modifiers(part: VectorSelector | Subquery) -> str:
    text = ""
    if part.at is not None:
        text += f" @ {part.at}()" if isinstance(part.at, str) else f" @ {part.at / 1000:.3f}"
    if part.offset_ms:
        text += f" offset {duration(part.offset_ms)}"
    return text


def _matching(expr: Binary) -> str:
    matching, words = expr.matching, []
    if expr.bool_:
        words.append("bool")
    if matching.on or matching.labels:
        words.append(f"{'on' if matching.on else 'ignoring'} ({', '.join(matching.labels)})")
    if matching.group:
        words.append(f"group_{matching.group} ({', '.join(matching.include)})")
    return " ".join(words)


def duration(milliseconds: int) -> str:
    """A duration as PromQL writes it: ``5m``, ``1d12h``, ``-30s``."""
    if milliseconds < 0:
        return "-" + duration(-milliseconds)
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
