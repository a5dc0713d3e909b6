"""Samples out of one store and into another: nothing changed, nothing twice, all or nothing."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import STALE, Event, Reading, Series, Severity, make_labels
from agent.store import Reader, Retention, Store, rollup, transfer
from agent.store.database import METRICS, connect
from agent.store.openmetrics import TextReader
from agent.store.transfer import Imported, export_csv, export_openmetrics, roll_ups_of, series_of, take_in

WithStore = Callable[..., None]
START = 1_700_002_800
NOW = START + 7200.0
A, B = Series("node_load1"), Series("node_cpu_seconds_total", (("cpu", "0"), ("mode", "idle")))
Samples = Iterable[tuple[Series, int, float]]


def exported(state_dir: Path, start: float = 0.0, end: float = math.inf, *, csv: bool = False) -> str:
    parts: list[str] = []
    with Reader.open(state_dir) as reader:
        write = export_csv if csv else export_openmetrics
        write(reader, series_of(reader, ()), start, end, parts.append, lambda done, whole: None)
    return "".join(parts)


def told(done: Imported) -> Event:
    return Event("history_imported", Severity.INFO, str(done.samples), "store", NOW)


def imported(state_dir: Path, samples: Samples, *, raw_s: float = 7 * 86400.0, room: int = 1 << 30) -> Imported:
    state_dir.mkdir(exist_ok=True)
    with closing(connect(state_dir / "metrics.db", METRICS)) as connection:
        return take_in(connection, samples, oldest_s=NOW - raw_s, room_bytes=room, max_series=1000, event=told)


def from_text(state_dir: Path, text: str, tmp_path: Path) -> Imported:
    path = tmp_path / "text"
    path.write_text(text)
    with path.open("rb") as file:
        return imported(state_dir, TextReader(file, "text", NOW).samples())


def fill(with_store: WithStore, clock: ManualClock) -> None:
    """Two hours of two layouts, the older half packed."""

    async def body(store: Store) -> None:
        for n in range(0, 7200, 30):
            at = START + n + 0.25
            await store.metrics.append([Reading(at, (A, B), [n / 7, float(n)])])
            if n % 60 == 0:
                await store.metrics.append([Reading(at + 1, (Series("up", (("job", "x"),)),), [1.0])])
        clock.advance(7200)
        for _ in range(4):
            await store.maintain(clock.wall())

    with_store(body, Retention(hot_s=3600))


def test_a_store_is_written_and_read_back_to_the_byte(
    with_store: WithStore, state_dir: Path, clock: ManualClock, tmp_path: Path
) -> None:
    fill(with_store, clock)
    first = exported(state_dir)
    assert first.count("\n") == 2 * 240 + 120 + 8
    assert first.endswith("# EOF\n")
    done = from_text(tmp_path / "other", first, tmp_path)
    assert (done.samples, done.series, done.already_there, done.too_old) == (600, 3, 0, 0)
    assert exported(tmp_path / "other") == first
    assert exported(tmp_path / "other", csv=True) == exported(state_dir, csv=True)


def test_what_is_there_already_stays(
    with_store: WithStore, state_dir: Path, clock: ManualClock, tmp_path: Path
) -> None:
    fill(with_store, clock)
    first = exported(state_dir)
    done = from_text(state_dir, first, tmp_path)
    assert (done.samples, done.series, done.already_there) == (0, 0, 600)
    assert exported(state_dir) == first
    # Hot and packed instants of ours stay as they are; what lies between is taken in.
    for at in (START + 0.25, START + 7200 - 30 + 0.25):
        ours, new = round(at * 1000), round(at * 1000) + 5
        done = imported(state_dir, [(A, ours, -1.0), (A, new, -2.0), (A, new, -3.0)])
        assert (done.samples, done.already_there) == (1, 2)
    assert len(exported(state_dir).splitlines()) == len(first.splitlines()) + 2
    assert "-1.0" not in exported(state_dir)
    assert "-3.0" not in exported(state_dir)


def test_imported_history_is_seen_by_sql_and_by_promql_and_stays(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    fill(with_store, clock)
    old = Series("node_load1", (("host", "other"),))
    days = [(old, round((NOW - 3 * 86400 + n) * 1000), float(n)) for n in range(0, 1200, 15)]
    assert imported(state_dir, days).samples == 80

    async def after(store: Store) -> None:
        for _ in range(3):
            await store.maintain(clock.wall())
        await store.metrics.tidy()
        assert not [one for one, *_ in store.metrics.recent.latest(NOW, 1e9) if one == old]  # rules do not judge it
        await store.metrics.append([Reading(NOW + 60, (A, B), [1.0, 2.0])])

    with_store(after)
    with Reader.open(state_dir) as reader:
        rows = reader.sql(
            "SELECT count(*), min(value), max(value) FROM samples WHERE metric = 'node_load1' AND labels <> '{}'"
        )[1]
        assert rows == [(80, 0.0, 1185.0)]
        [event] = reader.events(kind="history_imported")
        assert event.message == "80"
        matchers = [transfer.Matcher("host", transfer.MatchOp.EQUAL, "other")]
        [points] = reader.select(matchers, 0, 2e9)
        assert list(points.values) == [float(n) for n in range(0, 1200, 15)]


def test_what_is_older_than_what_is_kept_is_counted(state_dir: Path) -> None:
    samples = [(A, round((NOW - age) * 1000), 1.0) for age in (60, 86400, 7 * 86400 + 700, 30 * 86400)]
    done = imported(state_dir, samples)
    assert (done.samples, done.too_old) == (2, 2)


@pytest.mark.parametrize("kind", ["fault", "room", "disk", "series"])
def test_an_import_that_fails_leaves_nothing(state_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(state_dir, [(A, START * 1000, 1.0)])
    before = exported(state_dir)
    monkeypatch.setattr(transfer, "BUFFERED", 100)

    def samples() -> Samples:
        for n in range(5000):
            yield Series("new", (("n", str(n)),)), START * 1000 + n, math.sqrt(n)
        if kind == "fault":
            raise StoreError("the last line is wrong")

    with closing(connect(state_dir / "metrics.db", METRICS)) as connection:
        if kind == "disk":
            connection.execute("PRAGMA max_page_count = 60")
        room = 1 << 30 if kind != "room" else 200_000
        why = {
            "fault": "last line",
            "room": "more than the 0 MiB",
            "disk": "disk is full",
            "series": "allows 300 series",
        }[kind]
        limit = 300 if kind == "series" else 10_000
        with pytest.raises(StoreError, match=why):
            take_in(connection, samples(), oldest_s=0.0, room_bytes=room, max_series=limit, event=told)
    assert exported(state_dir) == before
    with closing(sqlite3.connect(state_dir / "metrics.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM series").fetchone() == (1,)


def test_a_range_is_closed_and_days_have_no_seams(state_dir: Path) -> None:
    midnight = START // 86400 * 86400 + 86400
    instants = [midnight * 1000 + ms for ms in (-86_400_000, -1001, -1, 0, 1, 86_399_999)]
    state_dir.mkdir()
    with closing(connect(state_dir / "metrics.db", METRICS)) as connection:
        take_in(
            connection, [(A, at, 1.0) for at in instants], oldest_s=0.0, room_bytes=1 << 30, max_series=9, event=told
        )

    def found(start: float, end: float) -> list[int]:
        lines = exported(state_dir, start, end).splitlines()
        return [round(float(line.split()[2]) * 1000) for line in lines if not line.startswith("#")]

    assert found(0.0, math.inf) == instants
    assert found(midnight - 0.001, midnight + 0.001) == instants[2:5]
    assert found(midnight, midnight) == instants[3:4]
    assert found(midnight + 1, midnight + 2) == []


def test_a_series_is_not_taken_for_one_with_more_labels(state_dir: Path) -> None:
    more = Series("node_load1", (("host", "b"),))
    imported(state_dir, [(A, START * 1000, 1.0), (more, START * 1000, 2.0)])
    assert exported(state_dir).splitlines()[2:4] == [
        "node_load1 1.0 1700002800.000",
        'node_load1{host="b"} 2.0 1700002800.000',
    ]


def test_stale_markers_are_not_samples(with_store: WithStore, state_dir: Path) -> None:
    async def body(store: Store) -> None:
        await store.metrics.append([Reading(START, (A, B), [math.nan, 1.0])])
        await store.metrics.append([Reading(START + 1, (A, B), [STALE, 2.0])])

    with_store(body)
    assert [line for line in exported(state_dir).splitlines() if line.startswith("node_load1")] == [
        "node_load1 NaN 1700002800.000"
    ]


def rolled_up(state_dir: Path, view: str) -> list[tuple[object, ...]]:
    with Reader.open(state_dir) as reader:
        return reader.sql(f"SELECT * FROM {view} ORDER BY time, metric, labels")[1]


def test_minutes_and_hours_of_another_store_are_taken_in(
    with_store: WithStore, state_dir: Path, clock: ManualClock, tmp_path: Path
) -> None:
    fill(with_store, clock)
    other, half = tmp_path / "other", tmp_path / "half"

    def take(target: Path, *, until: float = math.inf) -> int:
        with Reader.open(state_dir) as reader, closing(connect(target / "metrics.db", METRICS)) as connection:
            rows = [row for table in ("minute", "hour") for row in roll_ups_of(reader, table, 0.0, 2e9)]
            kept = [row for row in rows if row.start_s < until]
            return take_in(connection, (), kept, oldest_s=0.0, room_bytes=1 << 30, max_series=9, event=told).roll_ups

    for target in (other, half):
        target.mkdir()
    with Reader.open(state_dir) as reader:
        [(minutes, first)] = reader.sql("SELECT count(*), min(id) FROM minute")[1]
        [(hours,)] = reader.sql("SELECT count(*) FROM hour")[1]
    assert minutes > 30
    assert hours > 0
    assert take(other) == minutes + hours
    for view in ("minutes", "hours"):
        assert rolled_up(other, view) == rolled_up(state_dir, view)
    assert take(other) == 0

    # Where a stretch is there for some series only, the others are added, and ours stay.
    early = take(half, until=first + 600)
    assert early >= 10
    with closing(sqlite3.connect(half / "metrics.db")) as connection:
        [row] = connection.execute("SELECT vals, counts FROM minute WHERE id = ?", (first,))
        ours = [rollup.Summary(-7.0, -7.0, -7.0, -7.0, 2), None, *rollup.decode_row(*row)[2:]]
        connection.execute("UPDATE minute SET vals = ?, counts = ? WHERE id = ?", (*rollup.encode_row(ours), first))
        connection.commit()
    assert take(half) == minutes + hours - early + 1
    differing = [
        (one, other)
        for one, other in zip(rolled_up(half, "minutes"), rolled_up(state_dir, "minutes"), strict=True)
        if one != other
    ]
    assert [(one[3:7], other[0]) for one, other in differing] == [((-7.0,) * 4, rolled_up(state_dir, "minutes")[0][0])]


names = st.sampled_from(["node_load1", "node_network_receive_bytes_total", "x", "x_total", "node_uname_info", "job:a"])
text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=4)
series = st.builds(
    lambda name, pairs: Series(name, make_labels(pairs)),
    names,
    st.dictionaries(st.sampled_from(["a", "b", "le"]), text, max_size=2),
)
points = st.dictionaries(st.integers(START * 1000, round(NOW * 1000)), st.floats(), min_size=1, max_size=12)
stores = st.dictionaries(series, points, max_size=4)


@settings(deadline=None, max_examples=40)
@given(stores, st.integers(1, 20), st.randoms())
def test_any_content_in_any_order_comes_back_to_the_byte(content, buffered, order) -> None:  # type: ignore[no-untyped-def]
    samples = [(one, at, value) for one, its in content.items() for at, value in its.items()]
    order.shuffle(samples)
    saved, transfer.BUFFERED = transfer.BUFFERED, buffered
    try:
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder, "first"), Path(folder, "second")
            assert imported(first, samples).samples == len(samples)
            written = exported(first)
            assert from_text(second, written, Path(folder)).samples == len(samples)
            assert exported(second) == written
            assert exported(second, csv=True) == exported(first, csv=True)
            again = imported(second, samples)
            assert (again.samples, again.already_there) == (0, len(samples))
    finally:
        transfer.BUFFERED = saved


def test_an_agent_goes_on_after_an_import(state_dir: Path, clock: ManualClock) -> None:
    imported(state_dir, [(A, START * 1000, 1.0), (B, START * 1000, 2.0)])

    async def main() -> None:
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        try:
            assert store.notices == []
            await store.metrics.append([Reading(START + 60, (A, Series("new")), [3.0, 4.0])])
            assert store.metrics.fault == ""
        finally:
            await store.close()

    asyncio.run(main())
    assert exported(state_dir).count("\nn") == 4
