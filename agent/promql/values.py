"""What goes into an evaluation and what comes out, and the few operations on labels that every part needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from agent.model import Labels
from agent.promql.nodes import LOOKBACK_S, NAME, Matcher

Sample = tuple[Labels, float]
"""One element of an instant vector; its labels hold ``__name__`` unless an operation dropped it."""


class Points(NamedTuple):
    """A stretch of one series: labels with ``__name__``; times in seconds, strictly rising; stale markers included.

    ``times`` and ``values`` may be live views of a longer history: they are bisected and sliced, never copied whole,
    and never changed. Series that were sampled together may share one object of times.
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
