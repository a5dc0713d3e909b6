"""What goes into an evaluation and what comes out, and the few operations on labels that every part needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from agent.model import Labels
from agent.promql.nodes import LOOKBACK_S, NAME, Matcher

Sample = tuple[Labels, float]
"""One element of an instant vector; its labels hold ``__name__`` unless an operation dropped it."""


@dataclass(frozen=True, slots=True)
class Points:
    """A stretch of one series: labels with ``__name__``; times in seconds, strictly rising; stale markers included.

    ``times`` and ``values`` may be live views of a longer history: they are bisected and sliced, never copied whole.
    """

    labels: Labels
    times: Sequence[float]
    values: Sequence[float]


class Source(Protocol):
    """Where samples come from."""

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> Iterable[Points]:
        """Every series that meets all matchers, with at least its points in the closed interval, in seconds."""


@dataclass(frozen=True, slots=True)
class Scalar:
    value: float


@dataclass(frozen=True, slots=True)
class String:
    value: str


@dataclass(frozen=True, slots=True)
class Vector:
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    series: tuple[Points, ...]


Value = Scalar | Vector | Matrix | String


class Dialect(StrEnum):
    """The two Prometheus generations differ in what a window holds.

    ``PROMETHEUS_2`` closes a window on both sides, and lets a counter that starts near zero be extrapolated further
    than half a sampling interval. ``PROMETHEUS_3`` leaves the older end open and does not.
    """

    PROMETHEUS_2 = "prometheus 2"
    PROMETHEUS_3 = "prometheus 3"


@dataclass(frozen=True, slots=True)
class Options:
    """What Prometheus takes from its flags: how long a sample stays current, and the step of ``[5m:]``."""

    lookback_s: float = LOOKBACK_S
    subquery_step_s: float = 60.0
    dialect: Dialect = Dialect.PROMETHEUS_2


DEFAULTS = Options()


def drop_name(labels: Labels) -> Labels:
    """``labels`` without ``__name__``."""
    # "_" sorts before every lower-case letter, so the name is nearly always first.
    if labels and labels[0][0] == NAME:
        return labels[1:]
    return tuple([pair for pair in labels if pair[0] != NAME])


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


def total(values: Iterable[float]) -> float:
    """The sum, rounded once.

    Prometheus adds with Neumaier's compensation; an exactly rounded sum agrees to the last digit wherever that one is
    right, at the speed of C.
    """
    numbers = values if isinstance(values, list) else list(values)
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # the first: out of range; the second: +Inf and -Inf
        return sum(numbers)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, also where the sum is out of range."""
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return total(value / len(values) for value in values)


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
    ordered = sorted(values, key=lambda value: (value == value, value))
    rank = q * (len(ordered) - 1)
    lower = math.floor(rank)
    weight = rank - lower
    return ordered[lower] * (1 - weight) + ordered[min(lower + 1, len(ordered) - 1)] * weight
