"""When the absence of a result is knowledge, and when it is only absence.

``disk_free < 10`` gives nothing when the disk has room, and nothing when nobody measures it. Prometheus takes both for
"not true". For ``on_missing: hold`` the engine must tell them apart: it also evaluates the expression made here, whose
result is the label sets for which the condition is *known* to be false.
"""

from __future__ import annotations

from dataclasses import replace

from agent.promql.nodes import COMPARISONS, SET_OPERATORS, Aggregate, Binary, Call, Expr, Matching, Paren, walk

_INVERSE = {"!=": "==", ">": "<=", "<": ">=", ">=": "<", "<=": ">"}
_CHOOSING = frozenset({"topk", "bottomk", "limitk", "count_values"})
_ABSENCE = frozenset({"absent", "absent_over_time"})


def false_when(expr: Expr) -> Expr | None:
    """An expression that is true for the label sets for which ``expr`` is known to be false.

    ========================  =================================================================================
    ``expr``                  known to be false where
    ========================  =================================================================================
    ``a > b`` and the like    ``a <= b``; NaN is neither: unknown
    ``a == b``                ``a < b or a > b``: ``!=`` would hold for NaN
    ``l and r``               l is, or l holds and r is known to be false for its match
    ``l or r``                l is and r does not hold, or r is and l does not hold
    ``l unless r``            l is, or both hold
    ``(e)``                   e is
    ========================  =================================================================================

    The modifiers of a matching are kept. A label set may also hold: with several matches on the right of ``and``, one
    true and one false. A breach wins over what is said here.

    Returns
    -------
    Expr or None
        None where absence of a result is all the knowledge there is, which are Prometheus' own semantics: for plain
        selectors, functions (``absent`` above all), aggregations, ``bool``, and any comparison in whose operands
        elements come and go with their values (an inner comparison or set operator, ``topk``, ``absent`` …).
    """
    match expr:
        case Paren(inner):
            inverse = false_when(inner)
            return None if inverse is None else Paren(inverse)
        case Binary("and"):
            return _of_and(expr)
        case Binary("or"):
            return _of_or(expr)
        case Binary("unless"):
            left = false_when(expr.left)
            return None if left is None else _or(left, replace(expr, op="and"))
        case Binary(op) if op in COMPARISONS and not expr.bool_:
            return _of_comparison(expr)
        case _:
            return None


def _of_comparison(expr: Binary) -> Expr | None:
    if _comes_and_goes(expr.left) or _comes_and_goes(expr.right):
        return None
    if expr.op == "==":
        return _or(replace(expr, op="<"), replace(expr, op=">"))
    return replace(expr, op=_INVERSE[expr.op])


def _of_and(expr: Binary) -> Expr | None:
    left, right = false_when(expr.left), false_when(expr.right)
    if left is None:
        return None
    if right is None:
        return _or(left, replace(expr, op="unless"))
    return _or(left, replace(expr, left=_grouped(expr.left), right=_grouped(right)))


def _of_or(expr: Binary) -> Expr | None:
    left, right = false_when(expr.left), false_when(expr.right)
    if left is None or right is None:
        return None
    neither = _or(_binary(left, "unless", expr.right), _binary(right, "unless", expr.left))
    if expr.matching == Matching():
        return neither
    # With on() or ignoring(), an element of the left also keeps others than its own label set on the right out.
    kept_out = Binary("and", _grouped(expr.right), _grouped(expr.left), matching=expr.matching)
    return _or(neither, _binary(kept_out, "unless", expr.left))


def _comes_and_goes(operand: Expr) -> bool:
    for part in walk(operand):
        match part:
            case Binary(op) if op in SET_OPERATORS or (op in COMPARISONS and not part.bool_):
                return True
            case Aggregate(op) if op in _CHOOSING:
                return True
            case Call(name) if name in _ABSENCE:
                return True
    return False


def _or(left: Expr, right: Expr) -> Expr:
    return _binary(left, "or", right)


def _binary(left: Expr, op: str, right: Expr) -> Expr:
    return Binary(op, _grouped(left), _grouped(right))


def _grouped(expr: Expr) -> Expr:
    """In brackets where an operator around it could take it apart."""
    return Paren(expr) if isinstance(expr, Binary) else expr
