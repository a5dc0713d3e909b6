from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.period import DAY_S, Period, midnight

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S = 3600.0
ZONES = [ZoneInfo(n) for n in ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia")]


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_day_has_as_many_hours_as_the_clocks_say() -> None:
    assert Period.daily(date(2026, 3, 28), BERLIN).length_s == 24 * HOUR_S
    assert Period.daily(date(2026, 3, 29), BERLIN).length_s == 23 * HOUR_S
    assert Period.daily(date(2026, 10, 25), BERLIN).length_s == 25 * HOUR_S


def test_a_week_is_monday_to_sunday_on_the_local_calendar() -> None:
    week = Period.weekly(date(2026, 3, 29), BERLIN)
    assert week.start == stamp("2026-03-23T00:00:00+01:00")
    assert week.end == stamp("2026-03-30T00:00:00+02:00")
    assert Period.weekly(date(2026, 3, 23), BERLIN) == week
    assert Period.weekly(date(2026, 3, 30), BERLIN).start == week.end


def test_a_month_ends_where_the_next_begins() -> None:
    assert Period.monthly(date(2026, 12, 31), BERLIN).end == stamp("2027-01-01T00:00:00+01:00")
    assert Period.monthly(date(2028, 2, 10), UTC).length_s == 29 * DAY_S


def test_a_skipped_midnight_is_the_instant_of_the_change() -> None:
    assert midnight(date(2018, 11, 4), ZoneInfo("America/Sao_Paulo")) == stamp("2018-11-04T03:00:00+00:00")


def test_by_hand_the_last_minute_is_part_of_it() -> None:
    at = stamp("2026-11-23T00:05:00+01:00")
    assert Period.of("weekly", None, at, BERLIN) == Period("weekly", at - 7 * DAY_S, at, BERLIN)


def test_a_date_names_the_calendar_week_it_lies_in_and_nothing_after_now() -> None:
    monday_morning = stamp("2026-11-23T07:00:00+01:00")
    done = Period.of("weekly", date(2026, 11, 22), monday_morning, BERLIN)
    assert (done.start, done.end) == (stamp("2026-11-16T00:00:00+01:00"), stamp("2026-11-23T00:00:00+01:00"))
    running = Period.of("weekly", date(2026, 11, 23), monday_morning, BERLIN)
    assert (running.start, running.end) == (done.end, monday_morning)
    with pytest.raises(ValueError, match='cannot report on "2026-11-30": it has not begun'):
        Period.of("weekly", date(2026, 11, 30), monday_morning, BERLIN)


@given(
    st.dates(date(1990, 1, 2), date(2035, 1, 1)),
    st.integers(1, 40 * 24 * 60),
    st.integers(0, 1439),
    st.sampled_from(ZONES),
)
def test_days_cover_a_period_without_gap_or_overlap(day: date, minutes: int, into: int, zone: ZoneInfo) -> None:
    start = midnight(day, zone) + into * 60.0
    period = Period("last", start, start + minutes * 60.0, zone)
    days = list(period.days())
    assert days[0][1] == period.start
    assert days[-1][2] == period.end
    for (_, _, end), (_, start_of_next, _) in pairwise(days):
        assert end == start_of_next
    for name, first, last in days:
        assert first < last
        assert last - first <= 25 * HOUR_S + 1
        assert datetime.fromtimestamp(first, zone).date() == name
        assert datetime.fromtimestamp(last - 1, zone).date() == name


@given(st.dates(date(1990, 1, 2), date(2035, 1, 1)), st.sampled_from(ZONES))
def test_weeks_follow_each_other(day: date, zone: ZoneInfo) -> None:
    week, following = Period.weekly(day, zone), Period.weekly(day + timedelta(days=7), zone)
    assert week.end == following.start
    assert datetime.fromtimestamp(week.start, zone).weekday() == 0
