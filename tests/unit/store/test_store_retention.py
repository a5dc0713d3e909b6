"""The size that the store keeps: shares, steps, the fence, the log under a reader, series that come and go."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.model import (
    STALE,
    Action,
    ActionStatus,
    Event,
    Outcome,
    Plan,
    PlanItem,
    Reading,
    Series,
    Severity,
    is_stale,
)
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store, StoreError, ledger, read, wal
from agent.store.cap import FirstStart, remembered
from agent.store.database import LEDGER
from agent.store.retention import TIERS
from agent.store.series import Budget, Layouts
from agent.store.survey import PAYLOADS, on_pages

WithStore = Callable[..., None]

WIDE = tuple(Series("wide", (("n", str(n)),)) for n in range(100))


def named(metric: str) -> list[Matcher]:
    return [Matcher(NAME, MatchOp.EQUAL, metric)]


def sql(state_dir: Path, query: str) -> list[tuple[object, ...]]:
    with Reader.open(state_dir) as reader:
        return reader.sql(query)[1]


def wide(at: float) -> Reading:
    return Reading(at, WIDE, [at / 7 + n for n in range(100)])


def files_bytes(state_dir: Path) -> int:
    return sum((state_dir / name).stat().st_size for name in ("metrics.db", "ledger.db"))


def with_copies_bytes(state_dir: Path) -> int:
    return sum(path.stat().st_size for path in state_dir.rglob("*.db"))


@contextmanager
def reader_of(database: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a read transaction, as a forgotten shell does."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN');"
        "c.execute('SELECT count(*) FROM sqlite_master').fetchall(); print('reads', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
        try:
            yield process
        finally:
            process.kill()


# What is counted.


def test_the_survey_agrees_with_the_pages(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    start = clock.wall()
    some = (Series("a"), Series("b"))

    async def body(store: Store) -> None:
        for n in range(1500):
            await store.metrics.append([wide(start + n), Reading(start + n, some, [n / 3, 1.0])])
            await store.metrics.add_events([Event("e", Severity.INFO, "x" * (n % 900), "test", start + n)])
        await store.maintain(start + 1600)
        await store.metrics._keeper._compact(start + 90_000)
        await store.metrics._keeper._survey.look()
        held = {table: store.metrics._keeper._survey.held(table) for table in PAYLOADS}
        await store._files[0].checkpoint()
        with closing(sqlite3.connect(f"file:{state_dir}/metrics.db?mode=ro", uri=True)) as connection:
            query = "SELECT name, sum(pgsize) FROM dbstat WHERE pagetype <> 'internal' GROUP BY name"
            pages = dict(connection.execute(query).fetchall())
        pages["event"] += pages["event_at"]
        for table in ("tick", "chunk", "event", "minute"):
            assert held[table] == pytest.approx(pages[table], rel=0.15, abs=8192), table

    try:
        sqlite3.connect(":memory:").execute("SELECT * FROM dbstat")
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no dbstat")
    with_store(body)


@given(st.integers(0, 200_000))
def test_no_row_takes_less_than_it_holds(payload: int) -> None:
    assert payload <= on_pages(payload) <= 2 * payload + 4096


# What is dropped.


def test_no_tier_pushes_out_another(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(max_size_bytes=4 << 20)
    start = clock.wall()

    async def body(store: Store) -> None:
        for second in range(0, 3 * 3600, 5):
            clock.advance(5)
            await store.metrics.append([wide(start + second)])
            # A flood: three times the size in the end.
            await store.metrics.add_events([Event("flood", Severity.INFO, "x" * 5000, "t", start + second)])
            if second % 60 == 0:
                await store.maintain(start + second)
                assert files_bytes(state_dir) <= limits.max_size_bytes
        keeper = store.metrics._keeper
        for tier in TIERS[:3]:
            held = keeper.held_bytes(tier)
            assert held > 0.7 * limits.max_size_bytes * tier.sixteenths / 16
        assert store.metrics.fault == ""

    with_store(body, limits)
    [(ticks,)] = sql(state_dir, 'SELECT count(*) FROM samples WHERE labels = \'{"n":"7"}\'')
    assert isinstance(ticks, int)
    assert ticks > 300
    [(minutes,)] = sql(state_dir, "SELECT count(*) FROM minute")
    assert isinstance(minutes, int)
    assert minutes > 50
    [(events,)] = sql(state_dir, "SELECT count(*) FROM event")
    assert isinstance(events, int)
    assert 50 < events < 1000


def test_weeks_at_the_cap(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    """A week in steps of twenty minutes: every tier fills, and at no step is the size over its cap."""
    limits = Retention(max_size_bytes=2 << 20, raw_s=90 * 86400)
    start = clock.wall()

    async def body(store: Store) -> None:
        sizes, wholes = [], []
        for step in range(7 * 72):
            at = clock.wall()
            await store.metrics.append([wide(at + 300 * n) for n in range(4)])
            await store.metrics.add_events([Event("e", Severity.INFO, "x" * 1000, "t", at)])
            clock.advance(1200)
            await store.maintain(clock.wall())
            sizes.append(files_bytes(state_dir))
            wholes.append(with_copies_bytes(state_dir))
            assert store.metrics.fault == "", step
        assert max(sizes) <= limits.max_size_bytes
        # The copies of so small a store take a third of it; a new one is there before others gave way.
        assert max(wholes) <= 1.25 * limits.max_size_bytes
        assert min(wholes[-72:]) > 0.75 * limits.max_size_bytes

    with_store(body, limits)
    [(hours, first)] = sql(state_dir, "SELECT count(*), min(id) FROM hour")
    assert isinstance(hours, int)
    assert hours > 5
    assert isinstance(first, int)
    assert first > start


def test_the_fence_holds_without_maintenance(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(max_size_bytes=2 << 20)

    async def body(store: Store) -> None:
        for _ in range(2000):
            clock.advance(1)
            await store.metrics.append([wide(clock.wall())])
        assert store.metrics.waiting_rows < 100
        await store.maintain(clock.wall())
        clock.advance(1)
        await store.metrics.append([wide(clock.wall())])
        assert (store.metrics.fault, store.metrics.dropped_rows, store.metrics.waiting_rows) == ("", 0, 0)

    with_store(body, limits)
    assert (state_dir / "metrics.db").stat().st_size <= limits.max_size_bytes
    [(newest,)] = sql(state_dir, "SELECT max(id) / 1000000 FROM tick")
    assert newest == clock.wall()


def test_a_tenth_of_the_free_space_is_remembered(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        found = remembered(state_dir)
        assert found is not None
        assert found.at == clock.wall()
        assert store._limits.max_size_bytes == min(1 << 30, int(found.free_bytes * 0.1))

    async def later(store: Store) -> None:
        assert store._limits.max_size_bytes == 7 << 20

    with_store(body)
    (state_dir / "first-start.json").write_text(json.dumps({"free_bytes": 70 << 20, "at": 1.0}))
    with_store(later)
    (state_dir / "first-start.json").write_text("nonsense")
    with_store(body)
    assert FirstStart(100, 0.0).most(1 << 30) == 4 << 20


# The log under a reader.


def test_a_reader_that_stays_is_named_and_the_log_stays_small(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("SPACED_BYTES", 6 << 20), ("WAITING_BYTES", 8 << 20), ("REFUSED_BYTES", 9 << 20)):
        monkeypatch.setattr(wal, name, size)
    log = state_dir / "metrics.db-wal"

    async def body(store: Store) -> None:
        async def seconds(count: int) -> None:
            for _ in range(count):
                clock.advance(1)
                await store.metrics.append_tick([wide(clock.wall())], clock.boot())
                assert log.stat().st_size < 10 << 20
                if int(clock.wall()) % 60 == 0:
                    await store.maintain(clock.wall())

        await seconds(60)
        with reader_of(state_dir / "metrics.db") as process:
            await seconds(2400)
            [(message,)] = sql(state_dir, "SELECT message FROM events WHERE kind = 'store_log_held'")
            assert f'kept by pid {process.pid} ("{sys.executable} -c import sqlite3' in str(message)
            before = sql(state_dir, "SELECT max(id) FROM tick")
            await seconds(50)
            assert store.metrics.log.held
            await seconds(3000)
            assert "its log holds" in store.metrics.fault
            assert store.metrics.waiting_rows > 1000
            assert len(store.metrics.select(named("wide"), clock.wall() - 3000, clock.wall())[0].times) == 3001
            large = [Event("e", Severity.INFO, "x" * 50_000, "t", clock.wall())]
            while store.metrics.log.size_bytes() < 9 << 20:
                await store.metrics.add_events(large)
            with pytest.raises(StoreError, match="kept by pid"):
                await store.metrics.add_events(large)
            assert log.stat().st_size < 10 << 20
        await seconds(120)
        assert (store.metrics.fault, store.metrics.dropped_rows, store.metrics.log.held) == ("", 0, False)
        assert before != sql(state_dir, "SELECT max(id) FROM tick")
        assert log.stat().st_size < 6 << 20

    start = clock.wall()
    with_store(body)
    times = sql(state_dir, "SELECT id / 1000000 FROM tick ORDER BY id")
    assert [time for (time,) in times] == [start + n for n in range(1, 5631)]


def test_locks_of_others_are_read_from_proc() -> None:
    locks = (
        "1: POSIX  ADVISORY  READ 4711 fe:00:131 124 124\n"
        "1: -> POSIX  ADVISORY  WRITE 12 fe:00:131 120 120\n"
        "2: POSIX  ADVISORY  READ 4712 fe:00:131 128 128\n"
        "3: FLOCK  ADVISORY  WRITE 4713 fe:00:131 0 EOF\n"
        "4: POSIX  ADVISORY  READ 4714 fe:00:132 124 124\n"
        "5: POSIX  ADVISORY  READ 4715 00:2a:131 0 EOF\n"
        "6: OFDLCK ADVISORY  READ -1 00:2a:131 0 EOF\n"
    )
    assert wal.reading_pids(locks, 131) == [4711, 4715]


def test_our_own_readers_end_at_a_deadline(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        await store.metrics.append([wide(clock.wall())])

    with_store(body)
    monkeypatch.setattr(read, "READ_DEADLINE_S", 0.0)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with Reader.open(state_dir) as reader, pytest.raises(StoreError, match="it took more than 0 s"):
        reader.sql(endless)


# Series that come and go.


def churn(second: int, steady: int, coming: int, lives_s: int) -> tuple[Series, ...]:
    pids = range((second - lives_s) * coming, second * coming)
    return (
        *(Series("steady", (("n", str(n)),)) for n in range(steady)),
        *(Series("pid", (("pid", str(pid)),)) for pid in pids if pid >= 0),
    )


def test_ten_thousand_new_series_an_hour_are_bounded(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    limits = Retention(max_series=1500)
    start = clock.wall()
    hour = 1200

    async def body(store: Store) -> None:
        held: tuple[Series, ...] = ()
        for second in range(1, hour):
            clock.advance(3)
            at, now = clock.wall(), churn(second, 200, 9, 20)
            ended = tuple(set(held) - set(now))
            readings = [Reading(at, now, [float(second)] * len(now))]
            if ended:
                readings.insert(0, Reading(at, ended, [STALE] * len(ended)))
            await store.metrics.append(readings)
            held = now
            if second % 20 == 0:
                await store.maintain(clock.wall())
        assert store.metrics.series_known <= 1500
        assert store.metrics.refused_values > 0
        await store.metrics.append([Reading(at, (Series("new_mount"),), [1.0])])
        [points] = store.metrics.select(named("new_mount"), 0, 2e9)
        assert list(points.values) == [1.0]
        [points] = store.metrics.select([*named("steady"), Matcher("n", MatchOp.EQUAL, "7")], start, 2e9)
        assert list(points.values) == [float(second) for second in range(1, hour)]

    with_store(body, limits)
    [(slots, layouts)] = sql(state_dir, "SELECT count(*), count(DISTINCT layout) FROM slot")
    assert isinstance(slots, int)
    assert slots < 100_000, f"{slots} slots in {layouts} layouts"
    rows = sql(state_dir, 'SELECT count(*), count(DISTINCT time) FROM samples WHERE labels = \'{"n":"7"}\'')
    assert rows == [(hour - 1, hour - 1)]
    with Reader.open(state_dir) as reader:
        [points] = reader.select([*named("steady"), Matcher("n", MatchOp.EQUAL, "7")], 0, 2e9)
        assert list(points.values) == [float(second) for second in range(1, hour)]
        [points] = reader.select([*named("pid"), Matcher("pid", MatchOp.EQUAL, "30")], 0, 2e9)
        assert [value for value in points.values if not is_stale(value)] == [float(n) for n in range(4, 24)]
    [(message,)] = sql(state_dir, "SELECT message FROM events WHERE kind = 'series_refused'")
    assert 'cannot take in new series of "pid"' in str(message)


def test_series_that_ended_are_forgotten(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(raw_s=600, minutes_s=600, hours_s=600, max_series=100)

    async def body(store: Store) -> None:
        for round_ in range(5):
            mine = tuple(Series(f"m{round_}", (("n", str(n)),)) for n in range(45))
            for _ in range(3):
                clock.advance(60)
                await store.metrics.append([Reading(clock.wall(), mine, [1.0] * 45)])
                await store.maintain(clock.wall())
            clock.advance(86_400)
            await store.maintain(clock.wall())
            await store.maintain(clock.wall())
            await store.metrics.tidy()
            assert store.metrics.refused_values == 0, round_
        assert store.metrics.series_known <= 45

    with_store(body, limits)
    assert sql(state_dir, "SELECT count(*) FROM series") <= [(45,)]


NAMES = st.lists(st.integers(0, 30), min_size=1, max_size=15, unique=True)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=30), st.integers(5, 60))
def test_cut_readings_hold_each_value_once(mixes: list[list[int]], most: int) -> None:
    layouts = Layouts({}, 1, max_series=most)
    layouts._budget = Budget(slots=20, an_hour=0)
    known: set[int] = set()
    for number, mix in enumerate(mixes):
        reading = Reading(float(number), tuple(Series("s", (("n", str(n)),)) for n in mix), [n + 0.5 for n in mix])
        refused_before = layouts.refused_values
        parts = layouts.parts(reading)
        found: dict[str, float] = {}
        for part in parts:
            assert len(layouts.of(part.series).series) == len(part.values)
            for series, value in zip(part.series, part.values, strict=True):
                if not is_stale(value):
                    assert series.labels[0][1] not in found
                    found[series.labels[0][1]] = value
        known.update(map(int, found))
        assert found.items() <= {(str(n), n + 0.5) for n in mix}
        assert len(mix) - len(found) == layouts.refused_values - refused_before
        assert known & set(mix) <= set(map(int, found)), "a series that was taken in goes on"
    assert len(layouts) <= most


# Items of actions.

ACTION = Action(0, "alert", "DiskFull", (), 1.0, 0, 0, "clean_temp", {}, "directory:/tmp", ActionStatus.REQUESTED)


def big(count: int) -> Plan:
    return Plan("clean_temp", "directory:/tmp", "x", tuple(PlanItem("unlink", f"f{n}", n) for n in range(count)))


def test_items_are_packed_and_then_dropped(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        asked = await store.ledger.request(replace(ACTION, requested_at=clock.wall()))
        assert asked is not None
        done = replace(
            asked, status=ActionStatus.DONE, plan=big(2500), outcome=Outcome(bytes_freed=7), finished_at=clock.wall()
        )
        await store.ledger.save_action(done)
        open_one = await store.ledger.request(replace(ACTION, fired_at=2.0, plan=None, requested_at=clock.wall()))
        assert open_one is not None
        await store.ledger.save_action(replace(open_one, status=ActionStatus.RUNNING, plan=big(3)))
        items = "SELECT * FROM action_items ORDER BY action_id, item"
        before = sql(state_dir, items)

        clock.advance(2 * 86_400)
        await store.maintain(clock.wall())
        assert sql(state_dir, "SELECT count(*) FROM packed_items") == [(0,)]
        clock.advance(1.1 * 86_400)
        await store.maintain(clock.wall())

        assert sql(state_dir, "SELECT sum(count), count(*) FROM packed_items") == [(2500, 3)]
        assert sql(state_dir, "SELECT count(*) FROM action_item") == [(3,)]
        assert sql(state_dir, items) == before
        assert await store.ledger.action(1) == done
        with Reader.open(state_dir) as reader:
            assert reader.action(1) == done
        with closing(sqlite3.connect(f"file:{state_dir}/ledger.db?mode=ro", uri=True)) as shell:
            asked_of_shell = "SELECT part, target FROM action_items WHERE action_id = 1"
            assert shell.execute(asked_of_shell).fetchall() == [("packed", "2500 items; upkeep sql shows them")]

        clock.advance(400 * 86_400)
        await store.maintain(clock.wall())
        assert sql(state_dir, "SELECT count(*) FROM packed_items") == [(0,)]
        assert sql(state_dir, "SELECT id, planned_items, bytes_freed FROM actions WHERE id = 1") == [(1, 2500, 7)]

    with_store(body)


def test_a_crowded_ledger_packs_at_once_and_keeps_its_actions(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        for n in range(30):
            asked = await store.ledger.request(replace(ACTION, fired_at=float(n), requested_at=clock.wall()))
            assert asked is not None
            await store.ledger.save_action(
                replace(asked, status=ActionStatus.DONE, plan=big(1000), finished_at=clock.wall())
            )
            await store.maintain(clock.wall())
        await store.maintain(clock.wall())
        assert (state_dir / "ledger.db").stat().st_size < 3 << 20
        assert files_bytes(state_dir) <= 4 << 20

    with_store(body, Retention(max_size_bytes=4 << 20))
    assert sql(state_dir, "SELECT count(*) FROM actions") == [(30,)]
    assert ledger.PACK_AFTER_S == 3 * 86_400


def test_a_ledger_of_the_first_version_is_brought_forward(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        asked = await store.ledger.request(replace(ACTION, requested_at=clock.wall()))
        assert asked is not None
        await store.ledger.save_action(replace(asked, plan=big(2)))

    async def later(store: Store) -> None:
        found = await store.ledger.action(1)
        assert found is not None
        assert found.plan == big(2)

    with_store(body)
    (state_dir / "ledger.db").rename(state_dir / "made.db")
    with closing(sqlite3.connect(state_dir / "ledger.db")) as old:
        old.executescript(f"PRAGMA application_id = {LEDGER.application_id}; PRAGMA user_version = 1;")
        old.executescript(LEDGER._text("ledger.sql"))
        old.execute("ATTACH ? AS made", (str(state_dir / "made.db"),))
        for table in ("action", "action_item"):
            old.execute(f"INSERT INTO {table} SELECT * FROM made.{table}")
        old.execute("CREATE VIEW action_items AS SELECT action AS action_id FROM action_item")
        old.commit()
    with_store(later)
    assert len(sql(state_dir, "SELECT bytes_removed FROM action_items")) == 2


def test_the_watch_gives_figures(with_store: WithStore, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await store.metrics.append([wide(clock.wall())])
        await store.maintain(clock.wall())
        series, values = store.watch.figures()
        found = {one.metric: value for one, value in zip(series, values, strict=True)}
        assert found["upkeep_store_series"] == 100.0
        assert found["upkeep_store_bytes"] > 100_000
        assert found["upkeep_store_log_bytes"] > 0
        assert found["upkeep_store_refused_values_total"] == found["upkeep_store_lost_rows_total"] == 0.0

    with_store(body)
    assert asyncio.iscoroutinefunction(Store.maintain)
