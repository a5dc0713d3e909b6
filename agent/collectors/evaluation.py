"""The evaluation framework's own figures, from its ``performance_metrics`` table.

Each row is read once. A reading holds the mean of each domain's new rows, and goes on holding it for
:data:`HELD_S` after the newest of them: evaluations do not end once a minute.
"""

from __future__ import annotations

import json
import math
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from agent import process
from agent.fs import evaltable
from agent.model import Reading, Series, make_labels
from agent.told import States, Tell, nobody

PATIENCE_S = 10.0
HELD_S = 900.0
MOST_DOMAINS = 200
METRICS = ("eval_latency_seconds", "eval_throughput", "eval_error_ratio")

_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_MILLISECONDS_FROM = 1e11
"""An instant in seconds lies below until the year 5138, one in milliseconds above since 1973."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; a figure that is no number is None."""

    at: float
    domain: str
    figures: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    until: float
    figures: tuple[float | None, ...]


def instant(value: object) -> float | None:
    """Seconds since the epoch of ``YYYY-MM-DD[ T]HH:MM:SS[.f]`` (without a zone: local), seconds or milliseconds."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            try:
                return datetime.fromisoformat(value).timestamp()
            except (ValueError, OverflowError, OSError):
                return None
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value / 1000 if value >= _MILLISECONDS_FROM else float(value)


def parse(rows: Sequence[Sequence[object]], now: float) -> list[Row]:
    """Rows that are young enough to say something of now; what has no instant or no domain is passed over."""
    found: list[Row] = []
    for stamp, domain, *figures in rows:
        at = instant(stamp)
        if at is None or not now - HELD_S < at <= now + 60 or not isinstance(domain, str) or not domain:
            continue
        numbers = tuple(
            float(each) if isinstance(each, int | float) and math.isfinite(each) else None for each in figures
        )
        found.append(Row(at, domain[:200], numbers))
    return found


class EvaluationCollector:
    """One table.

    Parameters
    ----------
    database
        The framework's SQLite file; it is never written.
    tell
        Records an event when the table cannot be read, or can be again.
    """

    name = "evaluation"

    def __init__(self, database: str, tell: Tell = nobody) -> None:
        self._database = database
        self._states = States("evaluation", tell)
        self._cursor = 0
        self._held: dict[str, _Held] = {}
        self._layout: list[tuple[str, str]] = []
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        answer = await self._ask()
        if "reason" in answer:
            message = f'cannot read "{self._database}": {answer["words"]}'
            await self._states.wrong(self._database, answer["reason"], message, at)
        else:
            await self._states.right(self._database, f'"{self._database}" can be read again', at)
            self._cursor = answer["cursor"]
            self._take(parse(answer["rows"], at))
        self._held = {domain: held for domain, held in self._held.items() if at < held.until}
        return self._reading(at)

    def _take(self, rows: list[Row]) -> None:
        for domain in dict.fromkeys(row.domain for row in rows):
            if domain not in self._held and len(self._held) >= MOST_DOMAINS:
                continue
            own = [row for row in rows if row.domain == domain]
            columns = zip(*(row.figures for row in own), strict=True)
            self._held[domain] = _Held(max(row.at for row in own) + HELD_S, tuple(map(_mean, columns)))

    def _reading(self, at: float) -> Reading:
        found = [
            ((metric, domain), value)
            for domain, held in self._held.items()
            for metric, value in zip(METRICS, held.figures, strict=True)
            if value is not None
        ]
        layout = [key for key, _ in found]
        if layout != self._layout:
            self._layout = layout
            self._series = tuple(Series(metric, make_labels(domain=domain)) for metric, domain in layout)
        return Reading(at, self._series, [value for _, value in found])

    async def _ask(self) -> dict[str, typing.Any]:
        """The child's answer, or the state that its silence or its end is."""
        question = (sys.executable, "-I", "-S", evaltable.__file__, self._database, str(self._cursor))
        try:
            status, output, _ = await process.ask(question, deadline_s=PATIENCE_S)
        except TimeoutError:
            return {"reason": "silent", "words": f"no answer within {PATIENCE_S:g} s"}
        if status:
            return {"reason": "damaged", "words": "reading it took too much time or memory"}
        return typing.cast(dict[str, typing.Any], json.loads(output))


def _mean(column: Sequence[float | None]) -> float | None:
    numbers = [each for each in column if each is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None
