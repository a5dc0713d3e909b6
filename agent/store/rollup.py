"""Minutes and hours from samples: folded in memory, kept as one row for all series."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from agent.store.series import decode_value, encode_value, seal, unseal

MINUTE_S = 60
HOUR_S = 3600


class Summary(NamedTuple):
    """What one series did in one stretch of time; ``size`` samples, NaN and stale markers not counted."""

    low: float
    high: float
    mean: float
    last: float
    size: int


def summarize(values: Sequence[float]) -> Summary | None:
    """The summary of samples in the order of time; None when none of them is a number."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return None
    low, high, size = min(numbers), max(numbers), len(numbers)
    mean = low if low == high else sum(numbers) / size
    return Summary(low, high, mean, numbers[-1], size)


def combine(parts: Sequence[Summary]) -> Summary:
    """The summary of consecutive stretches: the mean is weighed by their sizes."""
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    size = sum(part.size for part in parts)
    mean = low if low == high else sum(part.mean * part.size for part in parts) / size
    return Summary(low, high, mean, parts[-1].last, size)


def encode_row(summaries: Iterable[Summary | None]) -> tuple[str, str]:
    """A row's ``vals`` and ``counts``, by position (the schema describes them)."""
    parts = list(summaries)
    counts = [0 if part is None else part.size for part in parts]
    present = {count for count in counts if count}
    packed = str(present.pop()) if len(present) == 1 else json.dumps(counts, separators=(",", ":"))
    return seal("[" + ",".join("null" if part is None else _encode(part) for part in parts) + "]"), packed


def decode_row(vals: str, counts: str) -> list[Summary | None]:
    """What :func:`encode_row` packed; means hold twelve digits. ValueError: the row is damaged."""
    values, numbers = json.loads(unseal(vals)), json.loads(counts)
    each = [numbers] * len(values) if isinstance(numbers, int) else numbers
    return [_decode(value, count) for value, count in zip(values, each, strict=True)]


def decode_last(vals: str) -> list[float]:
    """The last value of each series in a row, the stale marker where it was absent. ValueError: the row is damaged."""
    return [decode_value(value[3] if isinstance(value, list) else value) for value in json.loads(unseal(vals))]


def combine_rows(rows: Iterable[tuple[Sequence[int], Sequence[Summary | None]]]) -> Mapping[int, Summary]:
    """One summary for each series id over rows in the order of time, each given as (series ids, summaries)."""
    parts: dict[int, list[Summary]] = {}
    for series_ids, summaries in rows:
        for number, summary in zip(series_ids, summaries, strict=True):
            if summary is not None:
                parts.setdefault(number, []).append(summary)
    return {number: combine(found) for number, found in parts.items()}


def _encode(part: Summary) -> str:
    if part.low == part.high:
        return encode_value(part.last)
    mean = float(f"{part.mean:.12g}")  # the last digits of a mean are noise, and would be a third of the row
    return "[" + ",".join(map(encode_value, (part.low, part.high, mean, part.last))) + "]"


def _decode(value: float | str | list[float | str] | None, count: int) -> Summary | None:
    if value is None:
        return None
    if isinstance(value, list):
        low, high, mean, last = map(decode_value, value)
        return Summary(low, high, mean, last, count)
    only = decode_value(value)
    return Summary(only, only, only, only, count)
