"""Samples as Prometheus reads them: the text format 0.0.4 and OpenMetrics 1.0.0.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats and the OpenMetrics specification 1.0.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from agent.metrics import METRICS, Metric
from agent.model import Series

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

NOT_OURS = frozenset({"up"})
"""The scraper makes ``up`` itself, from whether it could scrape; ours is for the rules judged here."""

_RECORDED = Metric("", "untyped", "", "Made by a rule.", "self")

# What no line of text should carry, as Python would write it: terminals act on it, and parsers cut lines at it.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code != 10}
_VALUE = {92: "\\\\", 34: '\\"', 10: "\\n"}
_HELP = {92: "\\\\", 10: "\\n"}
_NUMBERS = {math.inf: "+Inf", -math.inf: "-Inf"}


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
        lines += _head_openmetrics(name, names) if openmetrics else _head(name)
        lines += [f"{name}{_labels(series)} {_number(value)}" for series, value in family]
    lines.append("# EOF\n" if openmetrics else "")
    return "\n".join(lines).encode()


def _head(name: str) -> Iterator[str]:
    metric = METRICS.get(name, _RECORDED)
    yield f"# HELP {name} {metric.help.translate(_HELP)}"
    yield f"# TYPE {name} {'gauge' if metric.type == 'info' else metric.type}"


def _head_openmetrics(name: str, names: set[str]) -> Iterator[str]:
    """A family is named without the suffix of its samples; what does not follow the rules of its type is unknown."""
    metric = METRICS.get(name, _RECORDED)
    suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
    family = name.removesuffix(suffix)
    kind: str = metric.type
    if kind == "untyped" or (suffix and (family == name or family in names)):
        family, kind = name, "unknown"
    yield f"# TYPE {family} {kind}"
    if metric.unit and family.endswith(f"_{metric.unit}"):
        yield f"# UNIT {family} {metric.unit}"
    yield f"# HELP {family} {metric.help.translate(_VALUE)}"


def _labels(series: Series) -> str:
    if not series.labels:
        return ""
    return "{" + ",".join([f'{name}="{_value(value)}"' for name, value in series.labels]) + "}"


def _value(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    # File names hold any byte: what is not UTF-8 came as a lone surrogate, and is written as one.
    readable = text.encode("utf-8", "backslashreplace").decode()
    return readable.translate(_CONTROLS).translate(_VALUE)


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else _NUMBERS.get(value, "NaN")
