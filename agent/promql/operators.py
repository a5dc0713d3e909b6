"""Binary operators: arithmetic, comparison and sets, with the matching of vector elements.

https://prometheus.io/docs/prometheus/2.42/querying/operators/
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from agent.errors import ExpressionError
from agent.model import Labels
from agent.promql.arithmetic import divide, modulo, power
from agent.promql.nodes import NAME, SET_OPERATORS, Binary, Matching
from agent.promql.values import Sample, drop_name

Operand = float | list[Sample]

ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": divide,
    "%": modulo,
    "^": power,
    "atan2": math.atan2,
}

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def combine(node: Binary, left: Operand, right: Operand) -> Operand:
    """Apply one binary operator to two scalars, a vector and a scalar, or two vectors.

    Raises
    ------
    ExpressionError
        If elements of two vectors cannot be matched one to one, or as ``group_left`` and ``group_right`` say.
    """
    if isinstance(left, list) and isinstance(right, list):
        if node.op in SET_OPERATORS:
            return _sets(node, left, right)
        return _vectors(node, left, right)
    if isinstance(left, list):
        return _with_scalar(node, left, right, swapped=False)  # type: ignore[arg-type]
    if isinstance(right, list):
        return _with_scalar(node, right, left, swapped=True)
    if (arithmetic := ARITHMETIC.get(node.op)) is not None:
        return arithmetic(left, right)
    return float(COMPARE[node.op](left, right))


def _with_scalar(node: Binary, vector: list[Sample], scalar: float, *, swapped: bool) -> list[Sample]:
    if (arithmetic := ARITHMETIC.get(node.op)) is not None:
        if swapped:
            return [(drop_name(labels), arithmetic(scalar, value)) for labels, value in vector]
        return [(drop_name(labels), arithmetic(value, scalar)) for labels, value in vector]
    compare = COMPARE[_MIRRORED.get(node.op, node.op) if swapped else node.op]
    if node.bool_:
        return [(drop_name(labels), float(compare(value, scalar))) for labels, value in vector]
    return [sample for sample in vector if compare(sample[1], scalar)]


_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}


def signature(matching: Matching) -> Callable[[Labels], Labels]:
    """What two elements must have in common to match, as a function of their labels."""
    if matching.on:
        kept = frozenset(matching.labels)
        return lambda labels: tuple([pair for pair in labels if pair[0] in kept])
    if not matching.labels:
        return drop_name
    dropped = frozenset((*matching.labels, NAME))
    return lambda labels: tuple([pair for pair in labels if pair[0] not in dropped])


def _sets(node: Binary, left: list[Sample], right: list[Sample]) -> list[Sample]:
    sign = signature(node.matching)
    if node.op == "or":
        present = {sign(labels) for labels, _ in left}
        return left + [sample for sample in right if sign(sample[0]) not in present]
    present = {sign(labels) for labels, _ in right}
    wanted = node.op == "and"
    return [sample for sample in left if (sign(sample[0]) in present) is wanted]


def _vectors(node: Binary, left: list[Sample], right: list[Sample]) -> list[Sample]:
    if not left or not right:
        return []
    sign, swapped = signature(node.matching), node.matching.group == "right"
    many, one = (right, left) if swapped else (left, right)
    ones = _unique(one, sign, "left" if swapped else "right")
    calculate = ARITHMETIC.get(node.op)
    compare = COMPARE.get(node.op)
    result: list[Sample] = []
    seen: set[tuple[Labels, Labels]] = set()
    for labels, value in many:
        match = sign(labels)
        if (partner := ones.get(match)) is None:
            continue
        first, second = (partner[1], value) if swapped else (value, partner[1])
        if calculate is not None:
            outcome = calculate(first, second)
        else:
            assert compare is not None
            holds = compare(first, second)
            if not holds and not node.bool_:
                continue
            outcome = float(holds) if node.bool_ else first
        named = _result_labels(node, labels, partner[0])
        identity = (match, named if node.matching.group else ())
        if identity in seen:
            raise ExpressionError(_AMBIGUOUS[bool(node.matching.group)])
        seen.add(identity)
        result.append((named, outcome))
    return result


_AMBIGUOUS = {
    False: "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
    True: "multiple matches for labels: grouping labels must ensure unique matches",
}


def _unique(one: list[Sample], sign: Callable[[Labels], Labels], side: str) -> dict[Labels, Sample]:
    ones: dict[Labels, Sample] = {}
    for sample in one:
        match = sign(sample[0])
        if match in ones:
            pair = ", ".join(sorted([_text(ones[match][0]), _text(sample[0])]))
            raise ExpressionError(
                f"found duplicate series for the match group {_text(match)} on the {side} hand-side of the operation: "
                f"[{pair}];many-to-many matching not allowed: matching labels must be unique on one side"
            )
        ones[match] = sample
    return ones


def _text(labels: Labels) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels) + "}"


def _result_labels(node: Binary, many: Labels, one: Labels) -> Labels:
    matching = node.matching
    labels = drop_name(many) if node.bool_ or node.op in ARITHMETIC else many
    if matching.group is None:
        listed = frozenset(matching.labels)
        if matching.on:
            return tuple([pair for pair in labels if pair[0] in listed])
        return tuple([pair for pair in labels if pair[0] not in listed]) if listed else labels
    if not matching.include:
        return labels
    included = frozenset(matching.include)
    kept = [pair for pair in labels if pair[0] not in included]
    return tuple(sorted([*kept, *(pair for pair in one if pair[0] in included)]))
