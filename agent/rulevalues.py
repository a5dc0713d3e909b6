"""What is known of an expression before it is evaluated: the bounds of its values, and the labels of its elements.

Both are read off the one table of metrics. What the table does not know stays unknown, so that a doubt about a rule is
never a guess: bounds then reach from minus to plus infinity, labels are None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agent.metrics import METRICS
from agent.promql.nodes import (
    COMPARISONS,
    NAME,
    Aggregate,
    Binary,
    Call,
    Expr,
    MatchOp,
    MatrixSelector,
    Negation,
    NumberLiteral,
    Paren,
    StringLiteral,
    Subquery,
    VectorSelector,
    unwrap,
)
from agent.rulefile import metric_of

MIG_LABELS = ("GPU_I_ID", "GPU_I_PROFILE")
"""What a part of a GPU has besides the labels of the whole."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Every value lies from ``low`` to ``high``, both included; ``unit`` is the table's, empty where it is lost."""

    low: float = -math.inf
    high: float = math.inf
    unit: str = ""


UNKNOWN = Bounds()
_POSITIVE = Bounds(0.0)
_SHARE = Bounds(0.0, 1.0)

_UNIT_BOUNDS: Mapping[str, Bounds] = {"celsius": Bounds(-273.15, 200.0, "celsius")}
"""No sensor of a machine that still runs shows more."""

_WHOLES: Mapping[str, tuple[str, ...]] = {
    "node_filesystem_size_bytes": ("node_filesystem_avail_bytes", "node_filesystem_free_bytes"),
    "node_filesystem_files": ("node_filesystem_files_free",),
    "node_memory_MemTotal_bytes": (
        "node_memory_MemAvailable_bytes",
        "node_memory_MemFree_bytes",
        "node_memory_Buffers_bytes",
        "node_memory_Cached_bytes",
    ),
    "node_memory_SwapTotal_bytes": ("node_memory_SwapFree_bytes",),
    "node_nf_conntrack_entries_limit": ("node_nf_conntrack_entries",),
    "node_filefd_maximum": ("node_filefd_allocated",),
    "gpu_pcie_link_width_max": ("gpu_pcie_link_width",),
    "gpu_pcie_link_generation_max": ("gpu_pcie_link_generation",),
}
"""Metrics that are never more than another: their quotient is a share."""

_SHARES_OF_TIME = frozenset({"node_cpu_seconds_total", "node_disk_io_time_seconds_total"}) | {
    name for name in METRICS if name.startswith("node_pressure_")
}
"""Counters of seconds that gain at most one second a second."""

_KEEPING = frozenset(
    {"avg_over_time", "first_over_time", "last_over_time", "max_over_time", "min_over_time", "sort", "sort_desc"}
    | {"sort_by_label", "sort_by_label_desc", "vector", "scalar", "label_join", "label_replace"}
)
_COUNTING = frozenset(
    {"changes", "count_over_time", "increase", "mad_over_time", "resets", "stddev_over_time", "stdvar_over_time"}
)
_ONE = frozenset({"absent", "absent_over_time", "present_over_time"})
_AVERAGING = frozenset({"avg", "min", "max", "quantile", "topk", "bottomk", "limitk"})
_CHOOSING = frozenset({"topk", "bottomk", "limitk"})


# -- bounds ----------------------------------------------------------------------------------------------------------


def bounds(expr: Expr) -> Bounds:
    """Between which bounds every value of an expression lies."""
    match expr:
        case NumberLiteral(value):
            return Bounds(value, value)
        case VectorSelector():
            return _of_metric(metric_of(expr))
        case MatrixSelector(selector):
            return bounds(selector)
        case Paren(inner) | Subquery(inner):
            return bounds(inner)
        case Negation(inner):
            found = bounds(inner)
            return Bounds(-found.high, -found.low, found.unit)
        case Aggregate():
            return _of_aggregate(expr)
        case Call():
            return _of_call(expr)
        case Binary():
            return _of_binary(expr)
        case _:
            return UNKNOWN


def _of_metric(name: str) -> Bounds:
    metric = METRICS.get(name)
    if metric is None:
        return UNKNOWN
    by_unit = _UNIT_BOUNDS.get(metric.unit, UNKNOWN)
    low = by_unit.low if metric.low is None else metric.low
    return Bounds(low, by_unit.high if metric.high is None else metric.high, metric.unit)


def _of_aggregate(expr: Aggregate) -> Bounds:
    inner = bounds(expr.expr)
    if expr.op in _AVERAGING:
        return inner
    if expr.op in ("count", "count_values"):
        return Bounds(1.0 if expr.op == "count" else -math.inf)
    if expr.op == "group":
        return Bounds(1.0, 1.0)
    if expr.op in ("stddev", "stdvar"):
        return _POSITIVE
    return _summed(inner)


def _summed(one: Bounds) -> Bounds:
    """The sum of one or more values."""
    return Bounds(one.low if one.low >= 0 else -math.inf, one.high if one.high <= 0 else math.inf, one.unit)


def _of_call(expr: Call) -> Bounds:
    if expr.name in ("time", "timestamp"):
        return Bounds(0.0, unit="seconds")
    if expr.name in _COUNTING:
        return _POSITIVE
    if expr.name in _ONE:
        return Bounds(1.0, 1.0)
    if expr.name == "quantile_over_time":
        return bounds(expr.args[1])
    inner = bounds(expr.args[0]) if expr.args else UNKNOWN
    if expr.name in ("rate", "irate"):
        of = unwrap(expr.args[0])
        timed = isinstance(of, MatrixSelector) and metric_of(of.selector) in _SHARES_OF_TIME
        return _SHARE if timed else _POSITIVE
    if expr.name in _KEEPING:
        return inner
    if expr.name == "sum_over_time":
        return _summed(inner)
    if expr.name in ("delta", "idelta", "predict_linear"):
        # They overshoot: the unit is all that is left of what is known.
        return Bounds(unit=inner.unit)
    return UNKNOWN


def _of_binary(expr: Binary) -> Bounds:
    left, right = bounds(expr.left), bounds(expr.right)
    if expr.op in COMPARISONS:
        return _SHARE if expr.bool_ else left
    match expr.op:
        case "and" | "unless":
            return left
        case "or":
            return Bounds(min(left.low, right.low), max(left.high, right.high), _common(left, right))
        case "+":
            return Bounds(left.low + right.low, left.high + right.high, _common(left, right))
        case "-":
            return Bounds(left.low - right.high, left.high - right.low, _common(left, right))
        case "*":
            return _product(left, right)
        case "/":
            return _quotient(expr, left, right)
        case _:
            return UNKNOWN


def _common(left: Bounds, right: Bounds) -> str:
    return left.unit if left.unit == right.unit else ""


def _product(left: Bounds, right: Bounds) -> Bounds:
    corners = [_times(one, other) for one in (left.low, left.high) for other in (right.low, right.high)]
    return Bounds(min(corners), max(corners))


def _times(one: float, other: float) -> float:
    return 0.0 if 0.0 in (one, other) else one * other


def _quotient(expr: Binary, left: Bounds, right: Bounds) -> Bounds:
    """A part of a whole is a share, also a hundredfold one; a divisor that may be 0 bounds nothing."""
    above, factor = _without_factor(expr.left)
    if _is_part(above, expr.right):
        return Bounds(0.0, factor)
    if right.low > 0 and right.low == right.high:
        return _product(left, Bounds(1 / right.low, 1 / right.low))
    return _POSITIVE if left.low >= 0 and right.low >= 0 else UNKNOWN


def _without_factor(expr: Expr) -> tuple[Expr, float]:
    """``x * 100`` as ``x`` and 100."""
    inner = unwrap(expr)
    if isinstance(inner, Binary) and inner.op == "*":
        for one, other in ((inner.left, inner.right), (inner.right, inner.left)):
            factor = unwrap(one)
            if isinstance(factor, NumberLiteral) and factor.value > 0:
                return unwrap(other), factor.value
    return inner, 1.0


def _is_part(part: Expr, whole: Expr) -> bool:
    part, whole = unwrap(part), unwrap(whole)
    if isinstance(part, VectorSelector) and isinstance(whole, VectorSelector):
        return metric_of(part) in _WHOLES.get(metric_of(whole), ())
    if isinstance(part, Aggregate) and isinstance(whole, Aggregate):
        return part.op == whole.op == "sum" and _is_part(part.expr, whole.expr)
    terms = _terms(whole)
    return len(terms) > 1 and part in terms and all(bounds(term).low >= 0 for term in terms)


def _terms(expr: Expr) -> list[Expr]:
    expr = unwrap(expr)
    if isinstance(expr, Binary) and expr.op == "+":
        return [*_terms(expr.left), *_terms(expr.right)]
    return [expr]


# -- labels ----------------------------------------------------------------------------------------------------------

LabelNames = frozenset[str] | None
"""The names of the labels that an expression's elements can have; None: not known."""


def labels(expr: Expr) -> LabelNames:
    """The labels that the elements of an expression can have, without the metric's name."""
    match expr:
        case NumberLiteral() | StringLiteral():
            return frozenset()
        case VectorSelector():
            return labels_of_metric(metric_of(expr))
        case MatrixSelector(selector):
            return labels(selector)
        case Paren(inner) | Negation(inner) | Subquery(inner):
            return labels(inner)
        case Aggregate():
            return _labels_of_aggregate(expr)
        case Call():
            return _labels_of_call(expr)
        case Binary():
            return _labels_of_binary(expr)


def labels_of_metric(name: str) -> LabelNames:
    """The labels of a metric's series; None where it is not in the table, or where patterns add their own."""
    metric = METRICS.get(name)
    if metric is None or metric.source == "logs":
        return None
    return frozenset((*metric.labels, *MIG_LABELS) if "UUID" in metric.labels else metric.labels)


def _labels_of_aggregate(expr: Aggregate) -> LabelNames:
    inner = labels(expr.expr)
    if expr.op in _CHOOSING:
        return inner
    if expr.without:
        kept = None if inner is None else inner - set(expr.labels)
    else:
        kept = frozenset(expr.labels) if inner is None else inner & set(expr.labels)
    if expr.op != "count_values" or kept is None:
        return kept
    return kept | {expr.param.value} if isinstance(expr.param, StringLiteral) else None


def _labels_of_call(expr: Call) -> LabelNames:
    if expr.name in ("absent", "absent_over_time"):
        of = unwrap(expr.args[0])
        selector = of.selector if isinstance(of, MatrixSelector) else of
        if not isinstance(selector, VectorSelector):
            return frozenset()
        return frozenset(each.name for each in selector.matchers if each.op is MatchOp.EQUAL and each.name != NAME)
    if expr.name in ("vector", "time", "scalar", "pi"):
        return frozenset()
    inner = next((labels(arg) for arg in expr.args if not isinstance(arg, NumberLiteral | StringLiteral)), frozenset())
    if expr.name in ("label_replace", "label_join"):
        target = expr.args[1]
        return inner | {target.value} if inner is not None and isinstance(target, StringLiteral) else None
    return inner - {"le"} if inner is not None and expr.name.startswith("histogram_") else inner


def _labels_of_binary(expr: Binary) -> LabelNames:
    left, right = labels(expr.left), labels(expr.right)
    if expr.op in ("and", "unless"):
        return left
    if expr.op == "or":
        return left if left == right else None
    if _is_scalar(expr.left) or _is_scalar(expr.right):
        return right if _is_scalar(expr.left) else left
    many = right if expr.matching.group == "right" else left
    if expr.matching.group is not None:
        return None if many is None else many | set(expr.matching.include)
    if expr.matching.on:
        return frozenset(expr.matching.labels) if many is None else many & set(expr.matching.labels)
    return None if many is None else many - set(expr.matching.labels)


def _is_scalar(expr: Expr) -> bool:
    expr = unwrap(expr)
    match expr:
        case NumberLiteral() | StringLiteral():
            return True
        case Call(name):
            return name in ("time", "scalar", "pi")
        case Binary(_, left, right):
            return _is_scalar(left) and _is_scalar(right)
        case Negation(inner):
            return _is_scalar(inner)
        case _:
            return False
