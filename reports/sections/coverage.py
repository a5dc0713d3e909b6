"""What this report can and cannot speak for: samples, gaps, silences, the agent's own troubles and version."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import agent
from agent.model import Severity
from agent.store.read import Reader
from reports.history import sampling
from reports.period import Period
from reports.words import sql_time

MOST_GAPS = 8
MOST_TROUBLES = 8


@dataclass(frozen=True, slots=True)
class Silence:
    matchers: str
    why: str
    by: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """One kind of event of the agent itself, with its newest message."""

    kind: str
    severity: Severity
    times: int
    newest: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """``sampled`` is the percentage of the time since ``since`` without a gap; None where there is no sample.

    Time that the host slept through, ``asleep_s`` in all, is neither sampled nor missed.
    """

    sampled: float | None
    since: float
    gaps: tuple[tuple[float, float], ...]
    gaps_left_out: int
    asleep_s: float
    series: int
    events: int
    silences: tuple[Silence, ...]
    troubles: tuple[Trouble, ...]
    version: str


class CoverageSection:
    name = "coverage"

    def build(self, read: Reader, period: Period) -> Coverage:
        found = sampling(read, period.start, period.end)
        asleep_s = math.fsum(end - start for start, end in found.asleep)
        between = sql_time(period.start), sql_time(period.end)
        gaps = found.gaps if found.instants.times else ()
        missing = math.fsum(end - start for start, end in gaps)
        longest = sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:MOST_GAPS])
        return Coverage(
            100 * (1 - missing / (period.length_s - asleep_s)) if found.instants.times else None,
            period.start,
            tuple(longest),
            len(gaps) - len(longest),
            asleep_s,
            _number(read.sql("SELECT count(*) FROM main.series")[1]),
            _number(read.sql("SELECT count(*) FROM events WHERE time >= ? AND time < ?", between)[1]),
            _silences(read, period),
            _troubles(read, between),
            agent.__version__,
        )


def _number(rows: Sequence[Sequence[object]]) -> int:
    return int(str(rows[0][0]))


def _silences(read: Reader, period: Period) -> tuple[Silence, ...]:
    _, rows = read.sql(
        'SELECT matchers, why, "by" FROM silences WHERE time < ? AND (ended IS NULL OR ended >= ?)'
        " AND (every <> '' OR unixepoch(time) + for_s >= ?) ORDER BY time",
        (sql_time(period.end), sql_time(period.start), period.start),
    )
    return tuple(Silence(*map(str, row)) for row in rows)


def _troubles(read: Reader, between: tuple[str, str]) -> tuple[Trouble, ...]:
    """Crashes, refused reloads and the like: events of the agent that are errors, log matches left out."""
    _, rows = read.sql(
        "SELECT kind, max(severity), count(*), message, max(time) FROM events WHERE kind <> 'log_match'"
        " AND severity IN ('error', 'critical') AND time >= ? AND time < ? GROUP BY kind"
        " ORDER BY count(*) DESC LIMIT ?",
        (*between, MOST_TROUBLES),
    )
    return tuple(Trouble(str(kind), Severity(str(sev)), int(str(n)), str(text)) for kind, sev, n, text, _ in rows)
