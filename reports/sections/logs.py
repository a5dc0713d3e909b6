"""What the log patterns found: how often on each day, and the lines that say it most."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from agent.model import Severity
from agent.store.read import Reader
from reports.period import Period
from reports.words import clean, local

MOST_PATTERNS = 12
TOP_LINES = 3
MOST_LINES_FOLDED = 20_000
MOST_KINDS_OF_LINES = 2_000
LONGEST_LINE = 200

_COUNTS = """
SELECT json_extract(labels, '$.pattern'), severity, at_ms / 60000, count(*)
FROM event WHERE kind = 'log_match' AND at_ms >= ? AND at_ms < ? GROUP BY 1, 2, 3
"""
_LINES = """
SELECT json_extract(labels, '$.pattern'), substr(message, 1, 400), json_extract(labels, '$.file'), at_ms / 1000.0
FROM event WHERE kind = 'log_match' AND at_ms >= ? AND at_ms < ? ORDER BY at_ms DESC LIMIT ?
"""

# What differs between two lines that say the same: instants, numbers, addresses, identifiers.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?")
_VARYING = re.compile(r"\b(?:0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*|\d+(?:\.\d+)*)\b")


@dataclass(frozen=True, slots=True)
class FoldedLine:
    """Lines that are alike but for their numbers: how many, the newest of them, its file and its instant."""

    times: int
    newest: str
    file: str
    at: float


@dataclass(frozen=True, slots=True)
class PatternRow:
    """One pattern: matches in all and on each local day of the period, in the order of :attr:`Logs.days`."""

    pattern: str
    severity: Severity
    total: int
    by_day: tuple[int, ...]
    top_lines: tuple[FoldedLine, ...]


@dataclass(frozen=True, slots=True)
class Logs:
    """``folded`` is how many matches, the newest, the top lines are made from."""

    days: tuple[date, ...]
    patterns: tuple[PatternRow, ...]
    left_out: int
    total: int
    folded: int


class LogsSection:
    name = "logs"

    def build(self, read: Reader, period: Period) -> Logs:
        days = tuple(day for day, _, _ in period.days())
        between = (round(period.start * 1000), round(period.end * 1000))
        _, counted = read.sql(_COUNTS, between)
        severity: dict[str, Severity] = {}
        by_day: dict[str, Counter[date]] = defaultdict(Counter)
        for pattern, graded, minute, number in counted:
            # minutes are folded into local days here: SQL knows no time zones, and no zone is off by seconds
            at = local(60.0 * int(str(minute)), period.zone)
            by_day[str(pattern)][max(at.date(), days[0])] += int(str(number))
            severity[str(pattern)] = Severity(str(graded))
        _, lines = read.sql(_LINES, (*between, MOST_LINES_FOLDED))
        folded = _fold((str(p), str(text), str(file), float(str(at))) for p, text, file, at in lines)
        rows = [
            PatternRow(
                pattern, severity[pattern], counts.total(), tuple(counts[day] for day in days), folded.get(pattern, ())
            )
            for pattern, counts in by_day.items()
        ]
        rows.sort(key=lambda row: (list(Severity)[::-1].index(row.severity), -row.total, row.pattern))
        total = sum(row.total for row in rows)
        kept = tuple(rows[:MOST_PATTERNS])
        return Logs(days, kept, len(rows) - len(kept), total, len(lines))


def _fold(lines: Iterable[tuple[str, str, str, float]]) -> Mapping[str, tuple[FoldedLine, ...]]:
    """The lines of each pattern that occur most, folded by their shape; ``lines`` come newest first."""
    times: dict[str, Counter[str]] = defaultdict(Counter)
    newest: dict[tuple[str, str], tuple[str, str, float]] = {}
    for pattern, text, file, at in lines:
        shape = shape_of(text)
        if shape in times[pattern] or len(times[pattern]) < MOST_KINDS_OF_LINES:
            times[pattern][shape] += 1
            newest.setdefault((pattern, shape), (text, file, at))
    found = {}
    for pattern, shapes in times.items():
        top = []
        for shape, number in shapes.most_common(TOP_LINES):
            text, file, at = newest[pattern, shape]
            top.append(FoldedLine(number, clean(text, LONGEST_LINE), file, at))
        found[pattern] = tuple(top)
    return found


def shape_of(line: str) -> str:
    """A line without what varies: lines of one shape say the same thing."""
    return _VARYING.sub("#", _INSTANT.sub("#", clean(line)))
