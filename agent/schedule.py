"""Cron schedules in a time zone, as pure functions of an instant. Daylight saving is cronsim's: a job at a time that
the spring change skips runs right after it, one at a time that autumn repeats runs once.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_REPEATED_S = 2 * 3600.0
"""More than any clock change repeats: a search that began within the hour that comes twice would find it anew."""


def zone(name: str) -> tzinfo:
    """The time zone of a configuration; ``local`` is the host's own, by its name, so that it keeps both its offsets."""
    if name != "local":
        return ZoneInfo(name)
    try:
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError):
        return ZoneInfo("UTC")


def check(schedule: str) -> None:
    """Refuse what is no schedule of five fields.

    Raises
    ------
    ValueError
        Saying why.
    """
    if len(schedule.split()) != 5:
        raise ValueError(f'cannot read "{schedule}" as a schedule: write five fields, such as "0 3 * * *"')
    try:
        next(CronSim(schedule, datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))))
    except StopIteration:
        raise ValueError(f'cannot use "{schedule}" as a schedule: it never comes') from None
    except CronSimError as error:
        raise ValueError(f'cannot read "{schedule}" as a schedule: {str(error).lower()}') from None


def next_due(schedule: str, after: float, zone_name: str) -> float:
    """The first instant of a schedule strictly after ``after``."""
    start = datetime.fromtimestamp(after, zone(zone_name))
    if start.fold:
        start = datetime.fromtimestamp(after - _REPEATED_S, zone(zone_name))
    return next(due for each in CronSim(schedule, start) if (due := each.timestamp()) > after)


def last_due(schedule: str, at: float, zone_name: str) -> float | None:
    """The last instant of a schedule at or before ``at``; None where there is none in living memory."""
    # One second on: the reverse search is strictly before its start.
    start = datetime.fromtimestamp(int(at) + 1, zone(zone_name))
    if start.fold:
        start = datetime.fromtimestamp(at + _REPEATED_S, zone(zone_name))
    return next((due for each in CronSim(schedule, start, reverse=True) if (due := each.timestamp()) <= at), None)
