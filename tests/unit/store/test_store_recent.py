"""The memory that rules are judged on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Reading, Sample, Series
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store.recent import Recent
from agent.store.series import Layout, Layouts

CPU = Series("cpu", (("mode", "idle"),))
DISK = Series("disk", (("path", "/"),))
LOG = Series("log_matches_total")


def layout(number: int, *series: Series) -> Layout:
    return Layout(number, series, tuple(range(len(series))), stored=True)


def named(metric: str) -> list[Matcher]:
    return [Matcher(NAME, MatchOp.EQUAL, metric)]


def points(recent: Recent, metric: str, start: float = 0, end: float = 1e12) -> list[tuple[float, float]]:
    found = recent.select(named(metric), start, end)
    assert len(found) <= 1
    return [pair for one in found for pair in zip(one.times, one.values, strict=True)]


def test_select_is_closed_on_both_sides() -> None:
    recent = Recent()
    for at in range(5):
        recent.add(layout(1, CPU, DISK), at, [at * 10.0, at * 20.0])

    assert points(recent, "disk", 1, 3) == [(1, 20.0), (2, 40.0), (3, 60.0)]
    assert points(recent, "disk", 5, 9) == []
    assert recent.select(named("none"), 0, 9) == []


def test_labels_carry_the_name_and_all_matchers_count() -> None:
    recent = Recent()
    recent.add(layout(1, CPU, DISK, LOG), 1, [1.0, 2.0, 3.0])

    [only] = recent.select([Matcher("path", MatchOp.REGEX, "/.*")], 0, 9)
    assert only.labels == ((NAME, "disk"), ("path", "/"))
    everything = recent.select([Matcher(NAME, MatchOp.NOT_EQUAL, "cpu")], 0, 9)
    assert [dict(one.labels)[NAME] for one in everything] == ["disk", "log_matches_total"]
    assert recent.select([*named("disk"), Matcher("path", MatchOp.EQUAL, "/home")], 0, 9) == []
    assert recent.select([*named("disk"), Matcher(NAME, MatchOp.EQUAL, "cpu")], 0, 9) == []


def test_a_series_goes_on_when_its_source_changes_its_layout() -> None:
    recent, first, second = Recent(), layout(1, CPU), layout(2, DISK, CPU)
    recent.add(first, 1, [1.0])
    recent.add(second, 2, [0.0, 2.0])
    recent.add(first, 3, [3.0])
    recent.add(second, 4, [0.0, 4.0])

    assert points(recent, "cpu") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_one_instant_holds_one_value_the_later_written() -> None:
    recent, first, second = Recent(), layout(1, CPU), layout(2, CPU)
    recent.add(first, 1, [1.0])
    recent.add(first, 1, [2.0])
    recent.add(second, 1, [3.0])

    assert points(recent, "cpu") == [(1, 3.0)]


def test_a_clock_that_steps_back_takes_the_future_with_it() -> None:
    recent = Recent()
    for at in (10, 20, 30, 15):
        recent.add(layout(1, CPU), at, [float(at)])

    assert points(recent, "cpu") == [(10, 10.0), (15, 15.0)]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50)), max_size=60))
def test_times_always_rise(writes: list[tuple[int, int]]) -> None:
    recent = Recent()
    layouts = {1: layout(1, CPU), 2: layout(2, DISK, CPU), 3: layout(3, CPU, LOG)}
    for number, at in writes:
        recent.add(layouts[number], at, [0.0] * len(layouts[number].series))

    for one in recent.select([], 0, 100):
        assert list(one.times) == sorted(set(one.times))
        assert len(one.times) == len(one.values)


def test_only_the_span_is_kept_and_dead_series_leave() -> None:
    recent, alive, dead = Recent(span_s=100), layout(1, CPU), layout(2, DISK)
    recent.add(dead, 0, [1.0])
    for at in range(1000):
        recent.add(alive, at, [1.0])
    gone = recent.trim(1000)

    assert gone == [dead]
    assert recent.select(named("disk"), 0, 2000) == []
    assert recent.start() == 900
    assert recent.bytes_held() == 100 * 2 * 8


def test_memory_is_bounded() -> None:
    recent = Recent(span_s=1e9, max_bytes=16_000)
    for at in range(5_000):
        recent.add(layout(1, CPU), at, [1.0])
    recent.trim(5_000)

    assert 8_000 < recent.bytes_held() <= 16_000
    assert points(recent, "cpu")[-1] == (4_999, 1.0)


def test_a_bound_below_one_row_still_ends() -> None:
    recent = Recent(max_bytes=1)
    recent.add(layout(1, CPU), 5.0, [1.0])

    assert [gone.id for gone in recent.trim(5.0)] == [1]


def test_a_source_that_makes_new_tuples_keeps_one_layout() -> None:
    layouts, samples = Layouts({}, 1), [Sample(one.metric, 0, 0, one.labels) for one in (CPU, DISK)]
    same = {layouts.of(Reading.of(0, samples).series).id for _ in range(1000)}

    assert same == {1}
    assert layouts.ids() == [1]
    assert layouts.of((CPU,)).id == 2
    assert layouts.of((DISK, CPU)).series_ids == (2, 1)


def test_a_forgotten_layout_comes_back_under_a_new_number() -> None:
    layouts = Layouts({}, 1)
    first = layouts.of((CPU,))
    layouts.forget([first])

    again = layouts.of((CPU,))
    assert (again.id, again.stored, again.series_ids) == (2, False, first.series_ids)
