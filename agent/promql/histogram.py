"""Classic histograms: series that differ in their ``le`` label only, each counting what lies at or below it.

The arithmetic is that of promql/quantile.go in Prometheus.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from agent.model import Labels
from agent.promql.arithmetic import divide
from agent.promql.nodes import NAME
from agent.promql.values import Sample

Bucket = tuple[float, float]
"""Upper bound and cumulative count."""


def by_series(vector: Iterable[Sample]) -> list[tuple[Labels, list[Bucket]]]:
    """Buckets grouped into histograms, each under its labels without ``le`` and name; other samples are left out."""
    groups: dict[Labels, list[Bucket]] = {}
    for labels, value in vector:
        try:
            bound = float(dict(labels)["le"])
        except (KeyError, ValueError):
            continue
        identity = tuple([pair for pair in labels if pair[0] not in ("le", NAME)])
        groups.setdefault(identity, []).append((bound, value))
    return list(groups.items())


def bucket_quantile(q: float, buckets: Sequence[Bucket]) -> float:
    """The ``q``-quantile of a histogram, linear within a bucket.

    NaN without a ``+Inf`` bucket, with fewer than two buckets or without observations. A quantile in the last bucket
    is the bound below it; one in a first bucket that does not reach above zero is that bucket's bound.
    """
    if math.isnan(q):
        return math.nan
    if q < 0 or q > 1:
        return math.copysign(math.inf, q)
    merged = _cumulative(buckets)
    if merged is None or len(merged[0]) < 2:
        return math.nan
    bounds, counts = merged
    if counts[-1] == 0 or counts[-1] != counts[-1]:
        return math.nan
    rank = q * counts[-1]
    index = bisect_left(counts, rank, 0, len(counts) - 1)
    if index == len(counts) - 1:
        return bounds[-2]
    if index == 0 and bounds[0] <= 0:
        return bounds[0]
    lower, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    return lower + (bounds[index] - lower) * divide(rank - below, counts[index] - below)


def bucket_fraction(lower: float, upper: float, buckets: Sequence[Bucket]) -> float:
    """The share of observations between two values, linear within a bucket."""
    merged = _cumulative(buckets)
    if merged is None or math.isnan(lower) or math.isnan(upper):
        return math.nan
    bounds, counts = merged
    if counts[-1] == 0 or counts[-1] != counts[-1]:
        return math.nan
    if lower >= upper:
        return 0.0
    return (_rank(upper, bounds, counts) - _rank(lower, bounds, counts)) / counts[-1]


def _rank(value: float, bounds: Sequence[float], counts: Sequence[float]) -> float:
    """How many observations lie below ``value``; those of a bucket of infinite width are all taken to lie at its
    finite bound."""
    index = bisect_left(bounds, value)
    low, high = counts[index - 1] if index else 0.0, counts[index]
    if bounds[index] == value:
        return high
    bottom = bounds[index - 1] if index else 0.0 if bounds[0] > 0 else -math.inf
    if value <= bottom or math.isinf(bounds[index]):
        return low
    return high if math.isinf(bottom) else low + (high - low) * (value - bottom) / (bounds[index] - bottom)


def _cumulative(buckets: Sequence[Bucket]) -> tuple[list[float], list[float]] | None:
    """Bounds and counts, equal bounds added up and counts never falling; None without a ``+Inf`` bucket.

    Counts scraped at slightly different instants, or rates of them, may fall from one bucket to the next, which a
    quantile could not be searched in.
    """
    merged: dict[float, float] = {}
    for bound, count in sorted(buckets):
        merged[bound] = merged.get(bound, 0.0) + count
    if math.inf not in merged:
        return None
    counts: list[float] = []
    highest = -math.inf
    for count in merged.values():
        highest = max(highest, count)
        counts.append(highest)
    return list(merged), counts
