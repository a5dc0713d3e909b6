"""Aggregation operators: many elements of a vector become one for each group, or the best few of each.

https://prometheus.io/docs/prometheus/2.42/querying/operators/#aggregation-operators
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from agent.errors import ExpressionError
from agent.model import Labels
from agent.promql.arithmetic import format_float, largest, mean, quantile, smallest, total, variance
from agent.promql.functions import with_label
from agent.promql.nodes import NAME, Aggregate
from agent.promql.values import Sample


def aggregate(node: Aggregate, vector: list[Sample], param: float | str | None) -> list[Sample]:
    """Apply one aggregation.

    Parameters
    ----------
    node
        Operator and grouping.
    vector
        What is aggregated.
    param
        The number of ``topk``, ``bottomk``, ``limitk`` and ``quantile``, the label name of ``count_values``.
    """
    groups = _group(node, vector)
    if (reduce := REDUCE.get(node.op)) is not None:
        return [(labels, reduce([value for _, value in members])) for labels, members in groups.items()]
    if node.op == "quantile":
        assert isinstance(param, float)
        return [(labels, quantile(param, [value for _, value in members])) for labels, members in groups.items()]
    if node.op == "count_values":
        assert isinstance(param, str)
        return _count_values(groups, param)
    assert isinstance(param, float)
    count, choose = _count(param), CHOOSE[node.op]
    return [sample for members in groups.values() for sample in choose(members)[:count]]


def _group(node: Aggregate, vector: list[Sample]) -> dict[Labels, list[Sample]]:
    if not node.labels and not node.without:
        return {(): vector} if vector else {}
    groups: dict[Labels, list[Sample]] = {}
    if node.without:
        dropped = frozenset((*node.labels, NAME))
        for sample in vector:
            groups.setdefault(tuple([pair for pair in sample[0] if pair[0] not in dropped]), []).append(sample)
    else:
        kept = frozenset(node.labels)
        for sample in vector:
            groups.setdefault(tuple([pair for pair in sample[0] if pair[0] in kept]), []).append(sample)
    return groups


def _count(param: float) -> int:
    if math.isnan(param) or math.isinf(param):
        raise ExpressionError(f"cannot take the first {format_float(param)} elements")
    return max(0, int(param))


def _count_values(groups: dict[Labels, list[Sample]], label: str) -> list[Sample]:
    counts: dict[Labels, int] = {}
    for labels, members in groups.items():
        for _, value in members:
            identity = with_label(labels, label, format_float(value))
            counts[identity] = counts.get(identity, 0) + 1
    return [(labels, float(count)) for labels, count in counts.items()]


REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "avg": mean,
    "count": lambda values: float(len(values)),
    "group": lambda values: 1.0,
    "max": largest,
    "min": smallest,
    "stddev": lambda values: math.sqrt(variance(values)),
    "stdvar": variance,
    "sum": total,
}

CHOOSE: dict[str, Callable[[list[Sample]], list[Sample]]] = {
    # NaN comes last in both orders.
    "bottomk": lambda samples: sorted(samples, key=lambda s: (s[1] != s[1], s[1])),
    "limitk": lambda samples: samples,
    "topk": lambda samples: sorted(samples, key=lambda s: (s[1] != s[1], -s[1])),
}

NAMES = frozenset({*REDUCE, *CHOOSE, "count_values", "quantile"})
"""Every aggregation operator there is."""
