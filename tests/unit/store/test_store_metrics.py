"""Samples, events, offsets and roll-ups, through a real file."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import STALE, Event, Reading, Sample, Series, Severity
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store
from agent.store.database import Database

CPU = (Series("cpu", (("mode", "idle"),)), Series("load"))
DISK = (Series("disk", (("path", "/"),)),)
WithStore = Callable[..., None]


def named(metric: str) -> list[Matcher]:
    return [Matcher(NAME, MatchOp.EQUAL, metric)]


async def tick(store: Store, at: float, value: float) -> None:
    await store.metrics.append([Reading(at, CPU, [value, -value]), Reading(at, DISK, [value / 3])])


def sql(state_dir: Path, query: str) -> list[tuple[object, ...]]:
    with Reader.open(state_dir) as reader:
        return reader.sql(query)[1]


def test_a_tick_is_in_memory_and_in_the_file(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await tick(store, clock.wall(), 1.5)

        [points] = store.metrics.select(named("disk"), 0, 2e9)
        assert (list(points.times), list(points.values)) == ([clock.wall()], [0.5])
        assert store.metrics.waiting_rows == 0
        assert sql(state_dir, "SELECT * FROM samples ORDER BY metric") == [
            ("2023-11-14T23:00:00.000Z", "cpu", '{"mode":"idle"}', 1.5),
            ("2023-11-14T23:00:00.000Z", "disk", '{"path":"/"}', 0.5),
            ("2023-11-14T23:00:00.000Z", "load", "{}", -1.5),
        ]

    with_store(body)


def test_reader_and_memory_agree(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        start = clock.wall()
        for n in range(100):
            await tick(store, start + n, float(n))
        await store.metrics.append([Reading(start + 100, (*CPU, *DISK), [7.0, STALE, 9.0])])

        for metric in ("cpu", "load", "disk"):
            with Reader.open(state_dir) as reader:
                [filed] = reader.select(named(metric), start + 10, start + 100)
            [held] = store.metrics.select(named(metric), start + 10, start + 100)
            assert filed.labels == held.labels
            assert list(filed.times) == list(held.times)
            assert (
                array("d", filed.values).tobytes() == array("d", held.values).tobytes()
            )  # the stale marker is no number

    with_store(body)


def test_the_last_hour_is_there_after_a_restart(with_store: WithStore, clock: ManualClock) -> None:
    async def first(store: Store) -> None:
        await tick(store, clock.wall(), 1.0)
        await tick(store, clock.wall() + 5000, 2.0)

    async def second(store: Store) -> None:
        [points] = store.metrics.select(named("cpu"), 0, 2e9)
        assert list(points.values) == [2.0]
        await tick(store, clock.wall() + 1, 3.0)
        [points] = store.metrics.select(named("cpu"), 0, 2e9)
        assert list(points.values) == [2.0, 3.0]

    with_store(first)
    clock.advance(5001)
    with_store(second)


def test_a_restart_makes_no_new_layouts(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await tick(store, clock.wall(), 1.0)

    with_store(body)
    clock.advance(1)
    with_store(body)

    assert sql(state_dir, "SELECT count(DISTINCT layout), count(*) FROM slot") == [(2, 3)]
    assert sql(state_dir, "SELECT count(*) FROM series") == [(3,)]
    assert sql(state_dir, "SELECT count(*) FROM tick") == [(4,)]


def test_a_series_that_ended_is_not_among_the_latest(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        at = clock.wall()
        await tick(store, at, 1.0)
        await store.metrics.append([Reading(at + 1, CPU, [2.0, STALE])])

    with_store(body)

    assert sql(state_dir, "SELECT metric, value, time FROM latest ORDER BY metric") == [
        ("cpu", 2.0, "2023-11-14T23:00:01.000Z"),
        ("disk", 1 / 3, "2023-11-14T23:00:00.000Z"),
    ]


def test_nan_and_infinities_are_text_in_sql(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        series = tuple(Series("x", (("n", str(n)),)) for n in range(4))
        odd = [float("nan"), float("inf"), -float("inf"), -float("nan")]
        await store.metrics.append([Reading(clock.wall(), series, odd)])

    with_store(body)

    for view in ("samples", "latest"):
        values = sql(state_dir, f"SELECT value FROM {view} ORDER BY labels")
        assert values == [("NaN",), ("+Inf",), ("-Inf",), ("NaN",)]


def test_events_counters_and_offsets_are_one_transaction(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = Event("log_match", Severity.ERROR, "boom\nline", "logs", clock.wall(), (("line", "7"),))
    matches = [Reading.of(clock.wall(), [Sample("log_matches_total", 1, 0, (("pattern", "p"),))])]

    async def body(store: Store) -> None:
        commit = store.metrics.commit_log
        with monkeypatch.context() as broken:
            broken.setattr("agent.store.metrics._insert_events", lambda events: ("INSERT INTO nowhere VALUES (1)", ()))
            with pytest.raises(StoreError, match="no such table"):
                await commit([event], matches, {"/a.log": {"offset": 10}})
        assert store.metrics.select(named("log_matches_total"), 0, 2e9) == []
        assert await store.metrics.offsets() == {}
        assert sql(state_dir, "SELECT count(*) FROM tick") == [(0,)]

        await commit([event], matches, {"/a.log": {"offset": 10}, "/b.log": {"offset": 3}})
        await commit([], [], {"/b.log": {}})
        assert await store.metrics.offsets() == {"/a.log": {"offset": 10}}
        assert sql(state_dir, "SELECT kind, severity, source, message, labels FROM events") == [
            ("log_match", "error", "logs", "boom\nline", '{"line":"7"}')
        ]
        with Reader.open(state_dir) as reader:
            assert reader.events() == [event]
            assert reader.events(kind="other") == []
            assert reader.events(since=clock.wall() + 1) == []

    with_store(body)


def test_minutes_and_hours_are_folded_once_and_whole(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    start = clock.wall()

    async def body(store: Store) -> None:
        for second in range(0, 3720, 10):
            await tick(store, start + second, float(second))
            if second % 60 == 0:
                await store.maintain(start + second)
        await store.maintain(start + 3720)

    with_store(body)

    minutes = "SELECT time, min, max, mean, last, count FROM minutes WHERE metric = 'cpu' ORDER BY time"
    found = sql(state_dir, minutes)
    assert len(found) == 61  # the last one may still get a late reading
    assert found[1] == ("2023-11-14T23:01:00.000Z", 60.0, 110.0, 85.0, 110.0, 6)
    assert sql(state_dir, minutes.replace("minutes", "hours")) == [
        ("2023-11-14T23:00:00.000Z", 0.0, 3590.0, 1795.0, 3590.0, 360)
    ]


def test_what_a_killed_run_had_not_folded_is_folded_later(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    start = clock.wall()

    async def run(store: Store) -> None:
        for second in range(0, 180, 10):
            await tick(store, start + second, 5.0)

    async def later(store: Store) -> None:
        await store.maintain(clock.wall())

    with_store(run)
    clock.advance(86_400)
    with_store(later)

    assert sql(state_dir, "SELECT count(*), sum(count) FROM minutes WHERE metric = 'cpu'") == [(3, 18)]
    assert sql(state_dir, "SELECT min, max, count FROM hours WHERE metric = 'cpu'") == [(5.0, 5.0, 18)]


def test_rules_look_back_by_minutes_beyond_the_last_hour(with_store: WithStore, clock: ManualClock) -> None:
    start = clock.wall()

    async def run(store: Store) -> None:
        for second in range(0, 3 * 3600, 30):
            await tick(store, start + second, float(second))
            if second % 600 == 0:
                await store.maintain(start + second)
        await store.maintain(start + 3 * 3600)
        check(store)

    async def again(store: Store) -> None:
        check(store)

    def check(store: Store) -> None:
        [points] = store.metrics.select(named("cpu"), start, start + 3 * 3600)
        times, values = list(points.times), list(points.values)
        assert times == sorted(set(times))
        assert times[0] == start + 60
        assert values[0] == 30.0
        assert times[-1] == start + 3 * 3600 - 30
        assert 239 <= len(times) <= 250
        # A minute's last value stands at the minute's end: never more than a minute off.
        assert all(0 <= at - start - value <= 60 for at, value in zip(times, values, strict=True))
        [recent] = store.metrics.select(named("cpu"), start + 3 * 3600 - 60, start + 3 * 3600)
        assert list(recent.values) == [10740.0, 10770.0]

    with_store(run)
    clock.advance(3 * 3600)
    with_store(again)


def test_new_and_vanished_series_share_rollup_rows(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    start = clock.wall()

    async def body(store: Store) -> None:
        for minute in range(4):
            one = (Series("pid", (("pid", str(minute)),)), *CPU)
            await store.metrics.append([Reading(start + 60 * minute, one, [1.0, 2.0, 3.0])])
            await store.maintain(start + 60 * minute + 59)
        await store.maintain(start + 300)

    with_store(body)

    assert sql(state_dir, "SELECT metric, count(*), count(DISTINCT time) FROM minutes GROUP BY metric") == [
        ("cpu", 4, 4),
        ("load", 4, 4),
        ("pid", 4, 4),
    ]


def test_a_reading_that_does_not_fit_is_refused(with_store: WithStore, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(ValueError, match="1 values for 2 series"):
            await store.metrics.append([Reading(clock.wall(), CPU, [1.0])])
        with pytest.raises(ValueError, match="same series twice"):
            await store.metrics.append([Reading(clock.wall(), (CPU[0], CPU[0]), [1.0, 2.0])])
        await tick(store, clock.wall(), 1.0)
        assert len(list(store.metrics.select([], 0, 2e9))) == 3

    with_store(body)


def test_what_is_too_old_goes_in_small_steps(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(raw_s=600, minutes_s=3600, hours_s=7200, events_s=600)
    start = clock.wall()

    async def body(store: Store) -> None:
        for second in range(0, 4 * 3600, 60):
            await tick(store, start + second, 1.0)
            await store.metrics.add_events([Event("e", Severity.INFO, "", "", start + second)])
            await store.maintain(start + second)
        await store.metrics.tidy()

    with_store(body, limits)

    end = start + 4 * 3600 - 60
    for table, oldest, unit in (
        ("tick", 600, 1_000_000),
        ("minute", 3600, 1),
        ("hour", 7200, 1),
    ):
        [(first, count)] = sql(state_dir, f"SELECT min(id), count(*) FROM {table}")
        assert isinstance(first, int)
        assert end - oldest <= first / unit <= end - oldest + 3600
        assert count
    assert sql(state_dir, "SELECT count(*) FROM event") == [(11,)]


def test_a_vanished_source_leaves_no_layouts_behind(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    start = clock.wall()
    gone = (Series("gone"),)

    async def body(store: Store) -> None:
        await store.metrics.append([Reading(start, gone, [1.0])])
        await tick(store, start + 1, 1.0)
        await store.maintain(start + 9000)  # folds what is too old by then
        await store.maintain(start + 9000)

    async def later(store: Store) -> None:
        await store.metrics.tidy()
        assert sql(state_dir, "SELECT (SELECT count(*) FROM series), (SELECT count(*) FROM slot)") == [(0, 0)]
        await store.metrics.append([Reading(start + 9001, gone, [2.0])])
        assert sql(state_dir, "SELECT metric, value FROM samples") == [("gone", 2.0)]

    everything_goes = Retention(raw_s=60, minutes_s=60, hours_s=60)
    with_store(body, everything_goes)
    clock.advance(9000)
    with_store(later, everything_goes)


def test_the_file_keeps_its_size(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(max_size_bytes=4 << 20)  # a minute's rows fit between the size and the fence
    wide = tuple(Series("wide", (("n", str(n)),)) for n in range(100))
    start = clock.wall()

    async def body(store: Store) -> None:
        for second in range(4000):
            await store.metrics.append([Reading(start + second, wide, [second / 7 + n for n in range(100)])])
            if second % 60 == 0:
                await store.maintain(start + second)
        assert store.metrics.fault == ""
        assert await store.metrics.size_bytes() <= 1.1 * limits.max_size_bytes
        [points] = store.metrics.select([Matcher("n", MatchOp.EQUAL, "5")], start + 3990, 2e9)
        assert len(points.times) == 10

    with_store(body, limits)

    assert (state_dir / "metrics.db").stat().st_size <= limits.max_size_bytes * 17 // 16


def test_a_stuck_disk_holds_up_one_tick_and_loses_nothing(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = clock.wall()

    async def body(store: Store) -> None:
        gate, write_one = asyncio.Event(), Database.write_one

        async def stuck(self: Database, statement: str, parameters: list[object]) -> None:
            await gate.wait()
            await write_one(self, statement, parameters)

        await tick(store, start, 0.0)
        monkeypatch.setattr(Database, "write_one", stuck)
        for second in range(1, 200):
            await store.metrics.append([Reading(start + second, CPU, [1.0, 2.0])], deadline_s=0.01)
        assert store.metrics.fault == "the disk did not take a commit within 0.01 s"
        assert store.metrics.waiting_rows == 199
        [points] = store.metrics.select(named("cpu"), start, 2e9)
        assert len(points.times) == 200
        assert sql(state_dir, "SELECT count(*) FROM tick") == [(2,)]

        gate.set()
        await store.metrics.settled()
        assert (store.metrics.fault, store.metrics.waiting_rows, store.metrics.dropped_rows) == ("", 0, 0)
        assert sql(state_dir, "SELECT count(*), count(DISTINCT id / 1000) FROM tick") == [(201, 200)]

    with_store(body)


def test_what_waits_is_bounded(with_store: WithStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.store.metrics.WAITING_BYTES", 1000)

    async def never(self: Database, *statements: object) -> None:
        raise StoreError("cannot write")

    async def body(store: Store) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(Database, "write", never)
            broken.setattr(Database, "write_one", never)
            for second in range(500):
                await tick(store, clock.wall() + second, 1.0)
            assert store.metrics.fault == "cannot write"
            assert 10 < store.metrics.waiting_rows < 500
            assert store.metrics.waiting_rows + store.metrics.dropped_rows == 1000
        await tick(store, clock.wall() + 500, 1.0)
        assert (store.metrics.fault, store.metrics.waiting_rows) == ("", 0)

    with_store(body)


@pytest.mark.parametrize("step", [-3600.0, -0.5, 3600.0])
def test_a_stepped_clock_neither_loses_nor_doubles(
    with_store: WithStore, state_dir: Path, clock: ManualClock, step: float
) -> None:
    async def body(store: Store) -> None:
        start = clock.wall()
        for second in range(100):
            await tick(store, start + second, 1.0)
        for second in range(100, 200):
            await tick(store, start + step + second, 2.0)
        now = start + step + 199
        [points] = store.metrics.select(named("cpu"), 0, now)
        assert list(points.times) == sorted(set(points.times))
        assert list(points.values)[-100:] == [2.0] * 100
        assert points.times[-1] == now
        await store.maintain(now + 60)

    with_store(body)
    assert sql(state_dir, "SELECT count(*) FROM samples WHERE metric = 'cpu' AND value = 2.0") == [(100,)]
    with Reader.open(state_dir) as reader:
        [points] = reader.select(named("cpu"), 0, 2e9)
    assert list(points.times) == sorted(set(points.times))


def test_rows_are_json_in_time_order(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        for n in range(3):
            await tick(store, clock.wall() + n / 1000, float(n))

    with_store(body)

    rows = sql(state_dir, "SELECT id, vals FROM tick ORDER BY id")
    assert [json.loads(str(vals))[0] for _, vals in rows] == [0, 0, 1, 1 / 3, 2, 2 / 3]
    assert [int(str(number)) // 1000 - int(clock.wall() * 1000) for number, _ in rows] == [0, 0, 1, 1, 2, 2]
