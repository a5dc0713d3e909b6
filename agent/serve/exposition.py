"""Samples as Prometheus reads them: the text format 0.0.4 and OpenMetrics 1.0.0.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats and the OpenMetrics specification 1.0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from agent.metrics import METRICS
from agent.model import Series
from agent.store.openmetrics import RECORDED, head, labels_text, number_text

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

NOT_OURS = frozenset({"up"})
"""The scraper makes ``up`` itself, from whether it could scrape; ours is for the rules judged here."""

_HELP = {92: "\\\\", 10: "\\n"}


def wants_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header prefers OpenMetrics over the text format."""
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in quality:
            quality[kind] = max(quality[kind], _quality(parameters))
    return quality["application/openmetrics-text"] > 0 and (
        quality["application/openmetrics-text"] >= quality["text/plain"]
    )


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def expose(samples: Iterable[tuple[Series, float]], *, openmetrics: bool = False) -> bytes:
    """The page of ``/metrics``.

    Parameters
    ----------
    samples
        The newest value of each series, those of one metric one after the other.
    openmetrics
        Which of the two formats.
    """
    families = [(name, list(each)) for name, each in groupby(samples, key=lambda one: one[0].metric)]
    names = {name for name, _ in families}
    lines: list[str] = []
    for name, family in families:
        if name in NOT_OURS:
            continue
        lines += head(name, names) if openmetrics else _head(name)
        lines += [f"{name}{labels_text(series.labels)} {number_text(value)}" for series, value in family]
    lines.append("# EOF\n" if openmetrics else "")
    return "\n".join(lines).encode()


def _head(name: str) -> Iterator[str]:
    metric = METRICS.get(name, RECORDED)
    yield f"# HELP {name} {metric.help.translate(_HELP)}"
    yield f"# TYPE {name} {'gauge' if metric.type == 'info' else metric.type}"
