"""What keeps an alert quiet at an instant, a silence or another alert: pure functions over what is kept elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from agent import schedule
from agent.errors import UpkeepError
from agent.matching import Inhibition, full_labels, inhibitor_of, matches, parse_matchers
from agent.model import Alert, AlertState, Labels
from agent.store import Silence

__all__ = ["check_every", "covers", "every_in_zone", "parse_matchers", "quiet_reason", "silence_of"]

_ZONE = "CRON_TZ="


def every_in_zone(every: str, zone: str) -> str:
    """A recurring silence's schedule with the time zone that it keeps, whatever the host's becomes.

    Written as cron daemons write it: ``CRON_TZ=Europe/Berlin 0 3 * * *``.
    """
    return f"{_ZONE}{zone} {every}" if every and zone else every


def _parts(every: str) -> tuple[str, str]:
    """The schedule and its zone; the host's own where none was written."""
    if not every.startswith(_ZONE):
        return every, "local"
    zone, _, rest = every.removeprefix(_ZONE).partition(" ")
    return rest, zone


def check_every(every: str) -> None:
    """Refuse what is no schedule, or names a time zone that nobody knows.

    Raises
    ------
    UpkeepError
        Saying why.
    """
    rest, zone = _parts(every)
    try:
        schedule.zone(zone)
    except (OSError, ValueError, KeyError):
        raise UpkeepError(f'unknown time zone "{zone}"') from None
    try:
        schedule.check(rest)
    except ValueError as error:
        raise UpkeepError(str(error)) from None


def covers(silence: Silence, at: float) -> bool:
    """Whether a silence is in force: within its length from its start, or from an instant of its schedule."""
    if at < silence.starts_at:
        return False
    if not silence.every:
        return at < silence.starts_at + silence.for_s
    every, zone = _parts(silence.every)
    # Looked for forwards, as the calendar does: one rule for the hours that a clock change skips or repeats.
    return schedule.next_due(every, at - silence.for_s, zone) <= at


def silence_of(silences: Sequence[Silence], rule: str, labels: Labels, at: float) -> Silence | None:
    """The first silence in force that matches an alert; its name counts as the label ``alertname``."""
    full = full_labels(rule, labels)
    for silence in silences:
        if covers(silence, at) and matches(silence.matchers, full):
            return silence
    return None


def firing_labels(alerts: Iterable[Alert]) -> list[Labels]:
    """Full labels of the alerts that fire."""
    return [full_labels(alert.rule, alert.labels) for alert in alerts if alert.state is AlertState.FIRING]


def quiet_reason(
    silences: Sequence[Silence],
    inhibitions: Iterable[Inhibition],
    rule: str,
    labels: Labels,
    firing: Collection[Labels],
    at: float,
) -> str:
    """``silenced``, ``inhibited``, or nothing: why an alert is neither acted upon nor told."""
    if silence_of(silences, rule, labels, at) is not None:
        return "silenced"
    return "inhibited" if inhibitor_of(inhibitions, full_labels(rule, labels), firing) is not None else ""
