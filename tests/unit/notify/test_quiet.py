"""Silences, once and recurring over clock changes, and inhibition as Alertmanager does it."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ExpressionError, UpkeepError
from agent.matching import Inhibition, full_labels, inhibitor_of, parse_matchers
from agent.model import Alert, AlertState, Labels, make_labels
from agent.schedule import last_due, next_due
from agent.silencing import check_every, covers, every_in_zone, firing_labels, quiet_reason
from agent.store import Silence

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")


def local(text: str, zone: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def nightly(every: str, zone: str, for_s: float) -> Silence:
    return Silence('alertname="A"', "why", "who", 0.0, for_s, every_in_zone(every, zone))


@pytest.mark.parametrize(
    ("at", "held"),
    [
        ("2026-07-01 01:59:59", False),
        ("2026-07-01 02:00:00", True),
        ("2026-07-01 03:59:59", True),
        ("2026-07-01 04:00:00", False),
        ("2026-01-01 02:00:00", True),
        ("2026-01-01 04:00:00", False),
    ],
)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_a_recurring_silence_keeps_its_own_zone(at: str, held: bool, zone: str) -> None:
    assert covers(nightly("0 2 * * *", zone, 7200.0), local(at, zone)) is held


def test_the_night_of_a_clock_change_is_as_long_as_it_is() -> None:
    berlin = "Europe/Berlin"
    window = nightly("0 1 * * *", berlin, 3 * 3600.0)
    # Spring: 02:00 is 03:00; three hours from 01:00 end at 05:00.
    assert covers(window, local("2026-03-29 04:59:59", berlin))
    assert not covers(window, local("2026-03-29 05:00:00", berlin))
    # Autumn: 03:00 is 02:00 again; three hours from 01:00 end at 03:00.
    assert covers(window, local("2026-10-25 02:59:59", berlin, fold=1))
    assert not covers(window, local("2026-10-25 03:00:00", berlin))


def test_a_time_that_spring_skips_comes_right_after_and_one_that_autumn_repeats_comes_once() -> None:
    berlin = "Europe/Berlin"
    window = nightly("30 2 * * *", berlin, 600.0)
    skipped = local("2026-03-29 03:00:00", berlin)
    assert [covers(window, skipped + offset) for offset in (-1, 1, 599, 3600)] == [False, True, True, False]
    first = local("2026-10-25 02:30:00", berlin)
    assert [covers(window, first + offset) for offset in (0, 599, 3600, 3600 + 599)] == [True, True, False, False]


CHANGES = [local(f"{day} 02:30:00", zone) for zone in ZONES for day in ("2026-03-29", "2026-10-25", "2026-11-01")]


@settings(deadline=None, max_examples=60)
@given(
    at=st.integers(min_value=1_700_000_000, max_value=1_800_000_000)
    | st.builds(lambda change, by: int(change) + by, st.sampled_from(CHANGES), st.integers(-12_000, 12_000)),
    every=st.sampled_from(["0 2 * * *", "30 2 * * *", "*/30 * * * *", "15 3 * * 1", "0 0 1 * *"]),
    zone=st.sampled_from(ZONES),
    for_s=st.sampled_from([60.0, 1800.0, 6 * 3600.0, 26 * 3600.0]),
)
def test_it_covers_exactly_what_lies_within_its_length_of_an_instant_of_the_calendar(
    at: int, every: str, zone: str, for_s: float
) -> None:
    instants = CronSim(every, datetime.fromtimestamp(at - 40 * 86400.0, ZoneInfo(zone)))
    last, begun = None, next(instants).timestamp()
    while begun <= at:
        last, begun = begun, next(instants).timestamp()
    assert last_due(every, at, zone) == last
    assert next_due(every, at, zone) == begun
    assert covers(nightly(every, zone, for_s), float(at)) is (last is not None and at - last < for_s)


def test_a_silence_once_ends_by_itself() -> None:
    once = Silence('alertname="A"', "why", "who", 100.0, 50.0)
    assert [covers(once, at) for at in (99.0, 100.0, 149.0, 150.0)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("every", "words"),
    [
        ("CRON_TZ=Europe/Berln 0 3 * * *", 'unknown time zone "Europe/Berln"'),
        ("CRON_TZ=../../etc/passwd 0 3 * * *", "unknown time zone"),
        ("CRON_TZ=UTC 0 3 * *", "write five fields"),
        ("0 25 * * *", "as a schedule"),
    ],
)
def test_a_schedule_that_nobody_can_keep_is_refused(every: str, words: str) -> None:
    with pytest.raises(UpkeepError, match=words):
        check_every(every)


# -- inhibition ------------------------------------------------------------------------------------------------------


def inhibition(source: str, target: str, *equal: str) -> Inhibition:
    return Inhibition(source, target, equal)


def full(name: str, **labels: str) -> Labels:
    return full_labels(name, make_labels(labels))


BUS = inhibition('alertname="OffTheBus"', 'alertname="Hot"', "gpu")


@pytest.mark.parametrize(
    ("firing", "inhibited"),
    [
        ([], False),
        ([full("OffTheBus", gpu="0")], True),
        ([full("OffTheBus", gpu="1")], False),
        ([full("OffTheBus")], False),
        ([full("Other", gpu="0")], False),
    ],
)
def test_a_source_inhibits_its_targets_with_equal_labels(firing: list[Labels], inhibited: bool) -> None:
    assert (inhibitor_of([BUS], full("Hot", gpu="0"), firing) is not None) is inhibited


def test_a_label_that_both_lack_is_equal() -> None:
    assert inhibitor_of([BUS], full("Hot"), [full("OffTheBus")]) == full("OffTheBus")


def test_no_two_alerts_hide_each_other() -> None:
    both = inhibition('severity="critical"', 'severity=~"critical|warning"')
    one, two = full("One", severity="critical"), full("Two", severity="critical")
    assert inhibitor_of([both], one, [one, two]) is None
    assert inhibitor_of([both], two, [one, two]) is None
    assert inhibitor_of([both], full("Three", severity="warning"), [one, two]) == one


def test_only_what_fires_inhibits_and_a_silence_is_named_first() -> None:
    def alert(rule: str, state: AlertState) -> Alert:
        return Alert(rule, (("gpu", "0"),), state, 1.0, 0.0)

    pending = firing_labels([alert("OffTheBus", AlertState.PENDING)])
    firing = firing_labels([alert("OffTheBus", AlertState.FIRING)])
    hot = (("gpu", "0"),)
    assert quiet_reason([], [BUS], "Hot", hot, pending, 10.0) == ""
    assert quiet_reason([], [BUS], "Hot", hot, firing, 10.0) == "inhibited"
    silence = Silence('alertname="Hot"', "why", "who", 0.0, 60.0)
    assert quiet_reason([silence], [BUS], "Hot", hot, firing, 10.0) == "silenced"


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True),
    st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["critical", "warning"])), max_size=5),
)
def test_the_loudest_that_explains_is_never_hidden_by_its_like(names: list[str], alerts: list[tuple[str, str]]) -> None:
    """Of the alerts that are source and target alike one always is heard: hiding goes from cause to effect."""
    rule = inhibition('severity="critical"', 'severity=~".+"')
    firing = [full(name, severity=severity) for name, severity in alerts]
    heard = [each for each in firing if inhibitor_of([rule], each, firing) is None]
    assert bool(heard) is bool(firing)
    assert all(each in heard for each in firing if dict(each)["severity"] == "critical")


def test_matchers_that_match_everything_are_refused() -> None:
    with pytest.raises(ExpressionError):
        parse_matchers('severity=~".*"')
