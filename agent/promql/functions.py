"""Every PromQL function, in three tables at the end of the file.

``PER_SAMPLE`` maps the value of each element of an instant vector; ``OVER_TIME`` reduces one series' window to one
value; ``WHOLE`` works on the vector as a whole. A function that returns ``None`` drops the element. What each function
means: https://prometheus.io/docs/prometheus/2.42/querying/functions/. Native histograms are outside our scope.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from agent.errors import ExpressionError
from agent.model import Labels
from agent.promql import histogram
from agent.promql.arithmetic import (
    divide,
    format_float,
    largest,
    maximum,
    minimum,
    quantile,
    smallest,
    variance,
)
from agent.promql.nodes import compile_regex
from agent.promql.values import Sample
from agent.promql.windows import Window


class Moment(NamedTuple):
    """The instant of evaluation within its query, in milliseconds; for an instant query all three are one."""

    at_ms: int
    start_ms: int
    end_ms: int
    step_ms: int


# --- counters and gauges over a window ---------------------------------------------------------------------------


def _rate(window: Window) -> float | None:
    increase = _increase(window)
    return None if increase is None else increase / ((window.end_ms - window.start_ms) / 1000)


def _increase(window: Window) -> float | None:
    values = window.values
    if len(values) < 2:
        return None
    # A counter that falls was reset to zero: what it had before is added back.
    grown = values[-1] - values[0] + window.lost()
    return _extrapolate(window, grown, counter=True)


def _delta(window: Window) -> float | None:
    if len(window.values) < 2:
        return None
    return _extrapolate(window, window.values[-1] - window.values[0], counter=False)


def _extrapolate(window: Window, change: float, *, counter: bool) -> float:
    """Stretch a change between two samples to the whole window (``extrapolatedRate`` in promql/functions.go).

    An end that lies further from the samples than 1.1 sampling intervals is taken to be a gap, and stretched over by
    half an interval only; a counter is never stretched to before it would have been zero.
    """
    first_ms, last_ms = window.milliseconds(0), window.milliseconds(-1)
    to_start = (first_ms - window.start_ms) / 1000
    to_end = (window.end_ms - last_ms) / 1000
    sampled = (last_ms - first_ms) / 1000
    interval = sampled / (len(window.values) - 1)
    gap = interval * 1.1
    if window.cut_early and to_start >= gap:
        to_start = interval / 2
    if counter and change > 0 and window.values[0] >= 0:
        to_start = min(to_start, sampled * (window.values[0] / change))
    if to_start >= gap:
        to_start = interval / 2
    if to_end >= gap:
        to_end = interval / 2
    return change * ((sampled + to_start + to_end) / sampled)


def _irate(window: Window) -> float | None:
    if len(window.values) < 2:
        return None
    before, last = window.values[-2], window.values[-1]
    change = last if last < before else last - before
    return change / ((window.milliseconds(-1) - window.milliseconds(-2)) / 1000)


def _idelta(window: Window) -> float | None:
    return window.values[-1] - window.values[-2] if len(window.values) > 1 else None


def _deriv(window: Window) -> float | None:
    return window.line(window.milliseconds(0))[0] if len(window.values) > 1 else None


def _predict_linear(window: Window, seconds: float) -> float | None:
    if len(window.values) < 2:
        return None
    slope, now = window.line(window.at_ms)
    return slope * seconds + now


def _holt_winters(window: Window, smoothing: float, trend: float) -> float | None:
    """Double exponential smoothing (https://en.wikipedia.org/wiki/Exponential_smoothing)."""
    for name, factor in (("smoothing", smoothing), ("trend", trend)):
        if not 0 < factor < 1:
            raise ExpressionError(f"invalid {name} factor {factor:g}: it must lie between 0 and 1")
    values = window.values
    if len(values) < 2:
        return None
    level, slope, before = values[0], values[1] - values[0], 0.0
    for index, value in enumerate(values[1:]):
        if index:
            slope = trend * (level - before) + (1 - trend) * slope
        before, level = level, smoothing * value + (1 - smoothing) * (level + slope)
    return level


# --- plain statistics over a window ------------------------------------------------------------------------------


def _median_deviation(window: Window) -> float:
    if any(value != value for value in window.values):
        return math.nan
    median = quantile(0.5, window.values)
    return quantile(0.5, [abs(value - median) for value in window.values])


def _last_time_of(best: Callable[[Sequence[float]], float]) -> Callable[[Window], float]:
    def find(window: Window) -> float:
        wanted = best(window.values)
        matches = [i for i, value in enumerate(window.values) if value == wanted]
        return window.milliseconds(matches[-1] if matches else 0) / 1000

    return find


# --- arithmetic on each value ------------------------------------------------------------------------------------


def _total_function(function: Callable[[float], float]) -> Callable[[float], float]:
    """A function of ``math`` that gives NaN or an infinity, as C does, where Python raises."""

    def guarded(value: float) -> float:
        try:
            return function(value)
        except ValueError:
            return math.nan
        except OverflowError:
            # exp, cosh and sinh; only the last goes below zero.
            return -math.inf if function is math.sinh and value < 0 else math.inf

    return guarded


def _logarithm(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda value: function(value) if value > 0 else -math.inf if value == 0 else math.nan


def _atanh(value: float) -> float:
    if abs(value) == 1:
        return math.copysign(math.inf, value)
    return math.atanh(value) if abs(value) < 1 else math.nan


def _whole(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda value: math.copysign(function(value), value) if math.isfinite(value) else value


def _round(value: float, to: float = 1.0) -> float:
    # In this order, with the inverse: what is rounded away is then what Prometheus rounds away.
    inverse = divide(1.0, to)
    scaled = value * inverse + 0.5
    return divide(float(math.floor(scaled)), inverse) if math.isfinite(scaled) else divide(scaled, inverse)


def _sign(value: float) -> float:
    return value if value != value or not value else math.copysign(1.0, value)


def _clamp(value: float, low: float, high: float) -> float | None:
    return None if high < low else maximum(low, minimum(high, value))


# --- calendar, always UTC ----------------------------------------------------------------------------------------

_EPOCH = date(1970, 1, 1).toordinal()
_DAYS_IN_CYCLE = 146_097  # of 400 years, after which the Gregorian calendar repeats


def _on_day(part: Callable[[date], int]) -> Callable[[float], float]:
    def of(value: float) -> float:
        if not math.isfinite(value):
            return math.nan
        return float(part(date.fromordinal(_EPOCH + int(value) // 86_400 % _DAYS_IN_CYCLE)))

    return of


def _year(value: float) -> float:
    if not math.isfinite(value):
        return math.nan
    cycles, days = divmod(int(value) // 86_400, _DAYS_IN_CYCLE)
    return float(date.fromordinal(_EPOCH + days).year + 400 * cycles)


def _hour(value: float) -> float:
    return float(int(value) % 86_400 // 3600) if math.isfinite(value) else math.nan


def _minute(value: float) -> float:
    return float(int(value) % 3600 // 60) if math.isfinite(value) else math.nan


# --- labels, order and histograms --------------------------------------------------------------------------------


def with_label(labels: Labels, name: str, value: str) -> Labels:
    """``labels`` with one label set, or taken away where ``value`` is empty."""
    others = [pair for pair in labels if pair[0] != name]
    return tuple(sorted([*others, (name, value)])) if value else tuple(others)


def _label_replace(
    _: Moment, vector: list[Sample], target: str, template: str, source: str, pattern: str
) -> list[Sample]:
    regex = compile_regex(pattern)
    result = []
    for labels, value in vector:
        found = regex.fullmatch(dict(labels).get(source, ""))
        result.append((labels if found is None else with_label(labels, target, _expand(template, found)), value))
    return result


@lru_cache(maxsize=256)
def _template_parts(template: str) -> tuple[str, ...]:
    return tuple(re.split(r"(\$\$|\$\{\w+\}|\$\w+)", template))


def _expand(template: str, found: re.Match[str]) -> str:
    """Go's ``Regexp.Expand``: ``$1``, ``${1}x``, ``$name``, ``$$``; a group that is not there is empty."""
    text = ""
    for part in _template_parts(template):
        if part == "$$":
            text += "$"
        elif len(part) > 1 and part[0] == "$":
            text += _group(found, part.strip("${}"))
        else:
            text += part
    return text


def _group(found: re.Match[str], name: str) -> str:
    try:
        return found.group(int(name) if name.isdecimal() else name) or ""
    except (IndexError, KeyError):
        return ""


def _label_join(_: Moment, vector: list[Sample], target: str, separator: str, *sources: str) -> list[Sample]:
    result = []
    for labels, value in vector:
        values = dict(labels)
        result.append((with_label(labels, target, separator.join(values.get(name, "") for name in sources)), value))
    return result


def _sort(_: Moment, vector: list[Sample]) -> list[Sample]:
    return sorted(vector, key=lambda sample: (sample[1] != sample[1], sample[1]))


def _sort_desc(_: Moment, vector: list[Sample]) -> list[Sample]:
    return sorted(vector, key=lambda sample: (sample[1] != sample[1], -sample[1]))


def _sort_by_label(_: Moment, vector: list[Sample], *names: str) -> list[Sample]:
    def key(sample: Sample) -> tuple[list[tuple[tuple[bool, int, str], ...]], Labels]:
        values = dict(sample[0])
        return [_natural(values.get(name, "")) for name in names], sample[0]

    return sorted(vector, key=key)


def _sort_by_label_desc(moment: Moment, vector: list[Sample], *names: str) -> list[Sample]:
    return _sort_by_label(moment, vector, *names)[::-1]


def _natural(text: str) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts ``node2`` before ``node10``."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def _scalar(_: Moment, vector: list[Sample]) -> float:
    return vector[0][1] if len(vector) == 1 else math.nan


def _vector(_: Moment, value: float) -> list[Sample]:
    return [((), value)]


def _histogram_quantile(_: Moment, q: float, vector: list[Sample]) -> list[Sample]:
    return [(labels, histogram.bucket_quantile(q, buckets)) for labels, buckets in histogram.by_series(vector)]


def _histogram_quantiles(_: Moment, vector: list[Sample], label: str, *quantiles: float) -> list[Sample]:
    return [
        (with_label(labels, label, _label_value(q)), histogram.bucket_quantile(q, buckets))
        for labels, buckets in histogram.by_series(vector)
        for q in quantiles
    ]


def _of_native_histogram(_: Moment, vector: list[Sample]) -> list[Sample]:
    """Prometheus passes over every sample that is not a native histogram, and here none is."""
    return []


def _label_value(q: float) -> str:
    """A number as the OpenMetrics text format writes it in a label: ``1.0``, not ``1``."""
    text = format_float(q)
    return text if not math.isfinite(q) or "." in text else f"{text}.0"


def _histogram_fraction(_: Moment, lower: float, upper: float, vector: list[Sample]) -> list[Sample]:
    return [
        (labels, histogram.bucket_fraction(lower, upper, buckets)) for labels, buckets in histogram.by_series(vector)
    ]


# --- the tables --------------------------------------------------------------------------------------------------

PER_SAMPLE: dict[str, Callable[..., float | None]] = {
    # rounding and limits
    "abs": abs,
    "ceil": _whole(math.ceil),
    "clamp": _clamp,
    "clamp_max": lambda value, high: minimum(high, value),
    "clamp_min": lambda value, low: maximum(low, value),
    "floor": _whole(math.floor),
    "round": _round,
    "sgn": _sign,
    # exponents and logarithms
    "exp": _total_function(math.exp),
    "ln": _logarithm(math.log),
    "log10": _logarithm(math.log10),
    "log2": _logarithm(math.log2),
    "sqrt": _total_function(math.sqrt),
    # trigonometry
    "acos": _total_function(math.acos),
    "acosh": _total_function(math.acosh),
    "asin": _total_function(math.asin),
    "asinh": _total_function(math.asinh),
    "atan": _total_function(math.atan),
    "atanh": _atanh,
    "cos": _total_function(math.cos),
    "cosh": _total_function(math.cosh),
    "deg": lambda value: value * 180 / math.pi,
    "rad": lambda value: value * math.pi / 180,
    "sin": _total_function(math.sin),
    "sinh": _total_function(math.sinh),
    "tan": _total_function(math.tan),
    "tanh": _total_function(math.tanh),
    # calendar
    "day_of_month": _on_day(lambda day: day.day),
    "day_of_week": _on_day(lambda day: day.isoweekday() % 7),
    "day_of_year": _on_day(lambda day: day.timetuple().tm_yday),
    "days_in_month": _on_day(lambda day: calendar.monthrange(day.year, day.month)[1]),
    "hour": _hour,
    "minute": _minute,
    "month": _on_day(lambda day: day.month),
    "year": _year,
}

OVER_TIME: dict[str, Callable[..., float | None]] = {
    # counters
    "increase": _increase,
    "irate": _irate,
    "rate": _rate,
    "resets": lambda window: float(window.falls()),
    # gauges
    "changes": lambda window: float(window.changes()),
    "delta": _delta,
    "deriv": _deriv,
    "holt_winters": _holt_winters,
    "idelta": _idelta,
    "predict_linear": _predict_linear,
    # statistics
    "avg_over_time": lambda window: window.mean(),
    "count_over_time": lambda window: float(len(window.values)),
    "first_over_time": lambda window: window.values[0],
    "last_over_time": lambda window: window.values[-1],
    "mad_over_time": _median_deviation,
    "max_over_time": lambda window: window.largest(),
    "min_over_time": lambda window: window.smallest(),
    "present_over_time": lambda window: 1.0,
    "quantile_over_time": lambda window, q: quantile(q, window.values),
    "stddev_over_time": lambda window: math.sqrt(variance(window.values)),
    "stdvar_over_time": lambda window: variance(window.values),
    "sum_over_time": lambda window: window.total(),
    "ts_of_first_over_time": lambda window: window.milliseconds(0) / 1000,
    "ts_of_last_over_time": lambda window: window.milliseconds(-1) / 1000,
    "ts_of_max_over_time": _last_time_of(largest),
    "ts_of_min_over_time": _last_time_of(smallest),
}

KEEP_NAME = frozenset({"first_over_time", "last_over_time"})
"""Functions of ``OVER_TIME`` whose result is a sample of the series itself, name included."""

WHOLE: dict[str, Callable[..., list[Sample] | float]] = {
    # time
    "end": lambda moment: moment.end_ms / 1000,
    "range": lambda moment: (moment.end_ms - moment.start_ms) / 1000,
    "start": lambda moment: moment.start_ms / 1000,
    "step": lambda moment: moment.step_ms / 1000,
    "time": lambda moment: moment.at_ms / 1000,
    # types
    "scalar": _scalar,
    "vector": _vector,
    # scalars
    "max_of": lambda _, left, right: maximum(left, right),
    "min_of": lambda _, left, right: minimum(left, right),
    "pi": lambda _: math.pi,
    # labels and order
    "label_join": _label_join,
    "label_replace": _label_replace,
    "sort": _sort,
    "sort_by_label": _sort_by_label,
    "sort_by_label_desc": _sort_by_label_desc,
    "sort_desc": _sort_desc,
    # classic histograms
    "histogram_fraction": _histogram_fraction,
    "histogram_quantile": _histogram_quantile,
    "histogram_quantiles": _histogram_quantiles,
    # native histograms
    "histogram_avg": _of_native_histogram,
    "histogram_count": _of_native_histogram,
    "histogram_stddev": _of_native_histogram,
    "histogram_stdvar": _of_native_histogram,
    "histogram_sum": _of_native_histogram,
}

ON_SELECTORS = frozenset({"absent", "absent_over_time", "timestamp"})
"""Functions that look at what is selected and not at its values alone; they are in :mod:`agent.promql.evaluate`."""

NAMES = frozenset({*PER_SAMPLE, *OVER_TIME, *WHOLE, *ON_SELECTORS})
"""Every function there is."""
