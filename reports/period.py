"""The stretch of time a report covers, on the calendar of its reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as clock_time
from typing import Literal

DAY_S = 86400.0

Kind = Literal["daily", "weekly", "monthly", "last"]
Named = Literal["daily", "weekly", "monthly"]

_ROLLING_S: dict[Named, float] = {"daily": DAY_S, "weekly": 7 * DAY_S, "monthly": 30 * DAY_S}


def midnight(day: date, zone: tzinfo) -> float:
    """The first instant of a local day; where the clocks skip midnight, the instant they are set forward."""
    naive = datetime.combine(day, clock_time())
    # fold=0 reads a skipped midnight with the offset before the gap: exactly the instant of the change
    return naive.replace(tzinfo=zone).astimezone(UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start`` to ``end``, half open, in seconds since the epoch, and the time zone its days are counted in."""

    kind: Kind
    start: float
    end: float
    zone: tzinfo = UTC

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise ValueError(f"a period ends after it starts, not {self.start} to {self.end}")

    @property
    def length_s(self) -> float:
        return self.end - self.start

    @classmethod
    def daily(cls, day: date, zone: tzinfo) -> Period:
        """One local day: 23 or 25 hours long where the clocks change."""
        return cls("daily", midnight(day, zone), midnight(day + timedelta(days=1), zone), zone)

    @classmethod
    def weekly(cls, day: date, zone: tzinfo) -> Period:
        """The week, Monday to Sunday, that ``day`` lies in."""
        monday = day - timedelta(days=day.weekday())
        return cls("weekly", midnight(monday, zone), midnight(monday + timedelta(days=7), zone), zone)

    @classmethod
    def monthly(cls, day: date, zone: tzinfo) -> Period:
        """The calendar month that ``day`` lies in."""
        first = day.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
        return cls("monthly", midnight(first, zone), midnight(following, zone), zone)

    @classmethod
    def last(cls, duration_s: float, at: float, zone: tzinfo) -> Period:
        """The stretch of ``duration_s`` seconds that ends at ``at``."""
        return cls("last", at - duration_s, at, zone)

    @classmethod
    def of(cls, kind: Named, day: date | None, at: float, zone: tzinfo) -> Period:
        """What ``upkeep report KIND [--end DATE]`` covers.

        With a date: the calendar day, week or month it lies in, so that the mail of Monday morning names Sunday and
        gets Monday to Sunday. Without one: the last 24 hours, 7 days or 30 days, so that a report made by hand holds
        what happened a minute ago. Nothing after ``at`` is ever part of it.

        Raises
        ------
        ValueError
            When the whole of it lies after ``at``.
        """
        if day is None:
            return cls(kind, at - _ROLLING_S[kind], at, zone)
        calendar: Period = getattr(cls, kind)(day, zone)
        if calendar.start >= at:
            raise ValueError(f'cannot report on "{day.isoformat()}": it has not begun')
        return cls(kind, calendar.start, min(calendar.end, at), zone)

    def before(self) -> Period:
        """The stretch of the same length just before this one, to compare with."""
        return Period(self.kind, self.start - self.length_s, self.start, self.zone)

    def days(self) -> Iterator[tuple[date, float, float]]:
        """Each local day touched, with its first and last instant within the period."""
        day = datetime.fromtimestamp(self.start, self.zone).date()
        start = self.start
        while start < self.end:
            following = day + timedelta(days=1)
            end = min(midnight(following, self.zone), self.end)
            yield day, start, end
            day, start = following, end
