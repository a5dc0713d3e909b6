"""Numbers as Go and Prometheus calculate with them and write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal


def divide(left: float, right: float) -> float:
    """IEEE division: Go divides by zero, Python raises."""
    if right:
        return left / right
    return (
        math.nan
        if left != left or not left or right != right
        else math.copysign(math.inf, left) * math.copysign(1, right)
    )


def power(base: float, exponent: float) -> float:
    """``math.Pow`` of Go: C's ``pow`` with infinities in place of errors."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:
        if base:
            return math.nan
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf


def modulo(left: float, right: float) -> float:
    """The remainder with the sign of ``left``, as C's ``fmod``."""
    try:
        return math.fmod(left, right)
    except ValueError:
        return math.nan


def maximum(left: float, right: float) -> float:
    """The larger of two numbers; NaN unless the other is +Inf, as Go's ``math.Max``."""
    if left == math.inf or right == math.inf:
        return math.inf
    return math.nan if left != left or right != right else max(left, right)


def minimum(left: float, right: float) -> float:
    """The smaller of two numbers; NaN unless the other is -Inf, as Go's ``math.Min``."""
    return -maximum(-left, -right)


def format_float(value: float) -> str:
    """``value`` as Go's ``strconv.FormatFloat(value, 'f', -1, 64)`` writes it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = format(Decimal(repr(value)), "f")
    return text[:-2] if text.endswith(".0") else text


def parse_float(text: str) -> float:
    """What Go's ``strconv.ParseFloat`` makes of ``text``; NaN where it would fail."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def total(values: Sequence[float]) -> float:
    """The sum, rounded once.

    Prometheus adds with Neumaier's compensation; an exactly rounded sum agrees to the last digit wherever that one is
    right, at the speed of C.
    """
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # the first: out of range; the second: +Inf and -Inf
        return sum(values)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, also where the sum is out of range."""
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return total([value / len(values) for value in values])


def largest(values: Sequence[float]) -> float:
    """The largest that is a number; NaN where none is."""
    best = max(values)  # NaN only where the first is: no comparison with NaN holds
    return best if best == best else max([value for value in values if value == value], default=math.nan)


def smallest(values: Sequence[float]) -> float:
    """The smallest that is a number; NaN where none is."""
    best = min(values)
    return best if best == best else min([value for value in values if value == value], default=math.nan)


def variance(values: Sequence[float]) -> float:
    """The population variance (Welford, as in Prometheus' ``stdvar``)."""
    count, average, squares = 0, 0.0, 0.0
    for value in values:
        count += 1
        delta = value - average
        average += delta / count
        squares += delta * (value - average)
    return squares / count


def quantile(q: float, values: Sequence[float]) -> float:
    """The ``q``-quantile by linear interpolation between the two nearest ranks; NaN counts as smallest."""
    if not values or math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    checksum = sum(values)
    ordered = sorted(values) if checksum == checksum else sorted(values, key=lambda value: (value == value, value))
    rank = q * (len(ordered) - 1)
    lower = math.floor(rank)
    weight = rank - lower
    return ordered[lower] * (1 - weight) + ordered[min(lower + 1, len(ordered) - 1)] * weight
