"""When whom is told: Alertmanager's grouping as a pure machine, step by step and as laws over random timelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.grouping import (
    MOST_NOTICES,
    Groups,
    Notice,
    Notification,
    Pace,
    groups_json,
    groups_of,
    notification_json,
    notification_of,
    step,
)
from agent.model import make_labels

PACE = Pace(group_by=("alertname",), wait_s=30.0, interval_s=300.0, repeat_s=3600.0)
T0 = 1_700_000_000.0


def notice(name: str, since: float = T0, **labels: str) -> Notice:
    return Notice(make_labels(labels, alertname=name), since)


class Play:
    """A route, told at each instant what fires; remembers what it said."""

    def __init__(self, pace: Pace = PACE) -> None:
        self.pace = pace
        self.groups: Groups = {}
        self.said: list[Notification] = []

    def at(self, after_s: float, *firing: Notice, muted: Sequence[str] = ()) -> list[Notification]:
        self.groups, said = step(
            "r", self.groups, firing, lambda each: each.label("alertname") in muted, self.pace, T0 + after_s
        )
        self.said += said
        return said

    def restart(self) -> None:
        self.groups = groups_of(json.loads(json.dumps(groups_json(self.groups))))


def test_a_new_group_waits_for_company_and_is_told_once() -> None:
    play = Play()
    one, two = notice("Disk", mount="/"), notice("Disk", since=T0 + 10, mount="/data")
    assert play.at(0, one) == []
    assert play.at(10, one, two) == []
    assert play.at(29, one, two) == []
    [said] = play.at(30, one, two)
    assert [each.label("mount") for each in said.notices] == ["/data", "/"]
    assert said.status == "firing"
    assert play.at(31, one, two) == play.at(330, one, two) == play.at(3600, one, two) == []


def test_a_group_that_does_not_change_is_told_again_after_the_repeat_interval() -> None:
    play = Play()
    one = notice("Disk")
    for second in range(0, 2 * 3600 + 60, 15):
        play.at(second, one)
    assert [said.at - T0 for said in play.said] == [30, 3630, 7230]
    assert [said.number for said in play.said] == [1, 2, 3]


def test_a_newcomer_is_told_at_the_next_interval_together_with_the_rest() -> None:
    play = Play()
    one = notice("Disk", mount="/")
    play.at(0, one)
    play.at(30, one)
    two = notice("Disk", since=T0 + 40, mount="/data")
    assert play.at(100, one, two) == []
    [said] = play.at(330, one, two)
    assert len(said.firing) == 2


def test_an_end_is_told_with_its_time_and_the_group_is_gone() -> None:
    play = Play()
    play.at(0, notice("Disk"))
    play.at(30, notice("Disk"))
    assert play.at(45) == []
    [said] = play.at(330)
    [ended] = said.resolved
    assert (said.status, ended.starts_at, ended.ends_at) == ("resolved", T0, T0 + 45)
    assert play.groups == {}


def test_what_ends_while_its_group_waits_is_never_told() -> None:
    play = Play()
    play.at(0, notice("Disk"))
    play.at(20)
    assert play.at(30) == []
    assert play.groups == {}


def test_an_alert_that_has_fired_for_long_does_not_wait() -> None:
    play = Play()
    assert len(play.at(600, notice("Disk"))) == 1


def test_without_send_resolved_the_end_is_not_told_and_the_next_beginning_is() -> None:
    play = Play(Pace(("alertname",), 30.0, 300.0, 3600.0, send_resolved=False))
    play.at(0, notice("Disk"))
    assert len(play.at(30, notice("Disk"))) == 1
    assert play.at(60) == play.at(330) == []
    play.at(340, notice("Disk", since=T0 + 340))
    assert len(play.at(370, notice("Disk", since=T0 + 340))) == 1


def test_what_is_muted_is_not_told_until_it_is_heard_again() -> None:
    play = Play()
    disk = notice("Disk")
    play.at(0, disk, muted=["Disk"])
    assert play.at(30, disk, muted=["Disk"]) == play.at(330, disk, muted=["Disk"]) == []
    assert len(play.at(630, disk)) == 1
    assert play.at(930, muted=["Disk"]) == []
    assert play.groups == {}


@pytest.mark.parametrize(("group_by", "count"), [((), 1), (("alertname",), 2), (("mount",), 2), (("...",), 3)])
def test_what_is_told_together(group_by: tuple[str, ...], count: int) -> None:
    play = Play(Pace(group_by, 0.0, 300.0, 3600.0))
    firing = (notice("Disk", mount="/"), notice("Disk", mount="/data"), notice("Inodes", mount="/"))
    assert len(play.at(0, *firing)) == count


def test_a_clock_that_steps_back_makes_nobody_wait_longer_than_an_interval() -> None:
    play = Play()
    disk = notice("Disk", since=T0 + 86400)
    play.at(86400, disk)
    told = [second for second in range(0, 600, 15) if play.at(second, disk)]
    assert told == [300]


def test_a_group_of_thousands_is_cut_and_says_so() -> None:
    play = Play(Pace((), 0.0, 300.0, 3600.0))
    [said] = play.at(0, *(notice("Disk", mount=str(index)) for index in range(MOST_NOTICES + 7)))
    assert (len(said.notices), said.left_out) == (MOST_NOTICES, 7)


def test_two_that_never_left_are_one_that_names_everybody() -> None:
    older = Notification("r", (), (notice("A"), notice("B")), T0, 1)
    newer = Notification("r", (), (notice("C"), Notice(notice("A").labels, T0, T0 + 5)), T0 + 9, 2)
    joined = newer.over(older)
    assert {(each.label("alertname"), each.firing) for each in joined.notices} == {
        ("A", False), ("B", True), ("C", True),
    }  # fmt: skip
    assert (joined.at, joined.number) == (T0 + 9, 2)


def test_the_fingerprint_is_alertmanagers() -> None:
    # From an Alertmanager 0.25 that was sent this alert.
    assert notice("Disk", mount="/data").fingerprint() == "743a00ec1c22ecbf"


# -- laws over random timelines --------------------------------------------------------------------------------------

NAMES = ("A", "B", "C")
Timeline = list[tuple[frozenset[str], frozenset[str], bool]]
timelines: st.SearchStrategy[Timeline] = st.lists(
    st.tuples(
        st.frozensets(st.sampled_from(NAMES)),
        st.frozensets(st.sampled_from(NAMES)) | st.just(frozenset[str]()),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)
QUICK = Pace((), 30.0, 60.0, 600.0)
STEP_S = 15.0


def played(timeline: Timeline, *, restarts: bool, mutes: bool = True) -> Play:
    """A step every 15 s; who fires keeps the instant at which it began."""
    play, since = Play(QUICK), dict[str, float]()
    for index, (firing, muted, restart) in enumerate(timeline):
        since = {name: since.get(name, T0 + index * STEP_S) for name in firing}
        play.at(
            index * STEP_S,
            *(notice(name, begun) for name, begun in since.items()),
            muted=tuple(muted) if mutes else (),
        )
        if restarts and restart:
            play.restart()
    return play


@settings(deadline=None)
@given(timelines)
def test_nobody_is_told_more_often_than_the_interval_nor_the_same_before_the_repeat(timeline: Timeline) -> None:
    said = played(timeline, restarts=False).said
    for earlier, later in pairwise(said):
        assert later.at - earlier.at >= min(QUICK.wait_s, QUICK.interval_s)
        same = {each.labels for each in earlier.firing} == {each.labels for each in later.firing}
        if same and not later.resolved and not earlier.resolved and later.firing:
            begun = max(each.starts_at for each in later.firing)
            assert later.at - earlier.at >= QUICK.repeat_s or begun > earlier.at


@settings(deadline=None)
@given(timelines)
def test_who_fires_for_longer_than_wait_and_interval_is_told(timeline: Timeline) -> None:
    long_enough = int((QUICK.wait_s + QUICK.interval_s) / STEP_S) + 1
    for restarts in (False, True):
        said = played(timeline, restarts=restarts, mutes=False).said
        for name in NAMES:
            run = 0
            for index, (firing, _, _) in enumerate(timeline):
                run = run + 1 if name in firing else 0
                if run == long_enough:
                    begun = T0 + (index - run + 1) * STEP_S
                    assert any(
                        each.label("alertname") == name and each.starts_at == begun
                        for one in said
                        for each in one.notices
                    )


@settings(deadline=None)
@given(timelines)
def test_whose_beginning_was_told_its_end_is_told(timeline: Timeline) -> None:
    quiet_end: Timeline = [(frozenset(), frozenset(), False)] * 10
    for restarts in (False, True):
        said = played(timeline + quiet_end, restarts=restarts, mutes=False).said
        last: dict[str, bool] = {}
        for one in said:
            last.update({each.label("alertname"): each.firing for each in one.notices})
        assert not any(last.values())


@settings(deadline=None, max_examples=200)
@given(timelines)
def test_a_restart_tells_nothing_twice(timeline: Timeline) -> None:
    def beginnings(said: list[Notification]) -> list[tuple[str, float, float | None]]:
        return [(each.label("alertname"), each.starts_at, each.ends_at) for one in said for each in one.resolved]

    restarted = beginnings(played(timeline, restarts=True, mutes=False).said)
    assert len(set(restarted)) == len(restarted), "each end is told once"


@settings(deadline=None)
@given(timelines)
def test_a_notification_is_the_same_after_a_trip_over_the_disk(timeline: Timeline) -> None:
    for said in played(timeline, restarts=False).said:
        assert notification_of(json.loads(json.dumps(notification_json(said)))) == said
