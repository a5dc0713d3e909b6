"""Chunks: every float64 comes back bit by bit, and a sample is in one place at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import STALE, Reading, Series
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store, chunk
from agent.store.compact import compact_oldest
from agent.store.database import Database

CPU = (Series("cpu", (("mode", "idle"),)), Series("load"))
WithStore = Callable[..., None]

any_float64 = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
counter = st.tuples(st.integers(-(2**63), 2**63), st.lists(st.integers(0, 2000))).map(
    lambda made: [float(made[0] + sum(made[1][:n])) for n in range(len(made[1]) + 1)]
)
decimal = st.integers(-(10**9), 10**9).map(lambda n: n / 100)
whole = st.one_of(st.integers(2**63 - 4096, 2**63 + 4096).map(float), st.integers(-(2**53), 2**53).map(float))
decimals = st.lists(decimal, min_size=1)
columns = st.one_of(
    st.lists(st.one_of(any_float64, st.floats(), st.just(STALE)), min_size=1),
    st.lists(st.sampled_from([0.0, -0.0, math.nan, STALE, 5e-324, 1.5]), min_size=1),
    st.tuples(any_float64, st.integers(1, 700)).map(lambda made: [made[0]] * made[1]),
    counter,
    decimals,
)


def raw(values: object) -> bytes:
    found = list(values)  # type: ignore[call-overload]
    return struct.pack(f"<{len(found)}d", *found)


@given(columns)
@example([STALE, math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 2.0**63, 1e16, -1e15, 123456789.0])
@example([-0.0])
@example([0.0, -0.0])
@example([2.0**63 - 1024, 2.0**63, -(2.0**63), 2.0**64])
@example([-1.7976931348623157e308, 1.7976931348623157e308])
def test_every_float64_comes_back_bit_by_bit(values: list[float]) -> None:
    assert raw(chunk.decode_values(chunk.encode_values(values), len(values))) == raw(values)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
@example([-(2**63), 2**63 - 1, -(2**63)])
def test_irregular_times_come_back(numbers: list[int]) -> None:
    assert chunk.decode_integers(chunk.encode_integers(numbers)) == numbers


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_parts_are_read_alone(parts: list[bytes]) -> None:
    packed = chunk.pack(parts)
    assert [chunk.part(packed, position) for position in range(len(parts))] == parts


def test_an_offset_that_leads_to_zeros_is_an_error() -> None:
    changed = bytearray(chunk.pack([b"", b"\0" * 19]))
    for at in range(12):
        for bit in range(8):
            changed[at] ^= 1 << bit
            for position, part in enumerate([b"", b"\0" * 19]):
                with contextlib.suppress(ValueError, struct.error):
                    assert chunk.part(bytes(changed), position) == part
            changed[at] ^= 1 << bit


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_a_changed_bit_of_a_chunk_is_an_error_or_changes_no_part(parts: list[bytes], data: st.DataObject) -> None:
    changed = bytearray(chunk.pack(parts))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for position, part in enumerate(parts):
        try:
            assert chunk.part(bytes(changed), position) == part
        except (ValueError, struct.error):
            pass


@pytest.mark.parametrize(
    ("values", "most_bytes"),
    [
        ([5.0] * 600, 20),
        ([1e9 + 1000.0 * n for n in range(600)], 30),  # a steady counter
        ([8e9 + 4096.0 * (n * n % 97) for n in range(600)], 700),  # memory goes by pages
        ([(n * n % 97) / 100 for n in range(600)], 700),
    ],
)
def test_what_hosts_measure_is_short(values: list[float], most_bytes: int) -> None:
    assert len(chunk.encode_values(values)) <= most_bytes


steps_ms = st.lists(st.integers(1, 400_000), min_size=1, max_size=40)
rows_of_two = st.lists(st.tuples(st.one_of(any_float64, st.just(STALE)), decimal | whole), min_size=40, max_size=40)


@settings(max_examples=25, deadline=None)
@given(steps_ms, rows_of_two, st.integers(0, 4))
def test_from_hot_row_to_chunk_to_reader_no_bit_changes(
    steps: list[int], rows: list[tuple[float, float]], windows: int
) -> None:
    """Irregular instants, any float64: as hot rows, as chunks, as some of both, and after a restart."""
    begin_ms = 1_700_000_400_000
    instants = [begin_ms + sum(steps[:n]) for n in range(len(steps))]
    want = [(raw([at / 1000 for at in instants]), raw([row[i] for row in rows[: len(steps)]])) for i in range(2)]

    def read(state_dir: Path) -> list[tuple[bytes, bytes]]:
        with Reader.open(state_dir) as reader:
            found = [reader.select(named(metric), 0, 2e9) for metric in ("cpu", "load")]
        return [(raw(points.times), raw(points.values)) for [points] in found]

    async def main(state_dir: Path) -> None:
        clock = ManualClock(instants[-1] / 1000 + 1)
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        await store.metrics.append(
            [Reading(at / 1000, CPU, list(row)) for at, row in zip(instants, rows, strict=False)]
        )
        assert read(state_dir) == want
        for _ in range(windows):
            await compact_oldest(store._files[0], clock.wall() + 3600)
        assert read(state_dir) == want
        await store.close()
        assert read(state_dir) == want

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "state"))


def named(metric: str) -> list[Matcher]:
    return [Matcher(NAME, MatchOp.EQUAL, metric)]


def sql(state_dir: Path, query: str) -> list[tuple[object, ...]]:
    with Reader.open(state_dir) as reader:
        return reader.sql(query)[1]


def test_old_rows_are_packed_and_read_as_before(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    start = clock.wall()
    odd = [math.nan, math.inf, -math.inf, -0.0, 0.1, 5e-324, STALE, 2.0**63]

    async def body(store: Store) -> None:
        for n in range(0, 4 * 3600, 20):
            # Two layouts that share a series, by turns: its points must come out in the order of time.
            if n // 1000 % 2:
                await store.metrics.append([Reading(start + n + 0.125, CPU, [odd[n // 20 % 8], float(n)])])
            else:
                await store.metrics.append([Reading(start + n + 0.125, CPU[1:], [float(n)])])
        before = everything()
        while await compact_oldest(store._files[0], start + 3 * 3600):
            pass
        assert sql(state_dir, "SELECT min(id) / 1000000, count(*) FROM tick") == [(int(start) + 3 * 3600, 180)]
        assert sql(state_dir, "SELECT count(DISTINCT id / 1000) FROM chunk") == [(18,)]
        assert everything() == before

    def everything() -> list[object]:
        with Reader.open(state_dir) as reader:
            read = [reader.select(named(metric), start + 130, start + 14_000) for metric in ("cpu", "load")]
            rows = reader.sql("SELECT * FROM samples ORDER BY metric, time")[1]
            some = reader.sql("SELECT count(*) FROM samples WHERE metric = 'load'")[1]
        return [[(p.labels, raw(p.times), raw(p.values)) for p in found] for found in read] + [rows, some]

    with_store(body)
    with closing(sqlite3.connect(state_dir / "metrics.db")) as stock:
        assert stock.execute("SELECT count(*) FROM samples WHERE metric = 'load'").fetchone() == (180,)


def test_maintenance_packs_by_age_and_prunes_by_age(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    start, length = clock.wall(), 10 * 3600

    async def body(store: Store) -> None:
        for n in range(0, length, 60):
            await store.metrics.append([Reading(start + n, CPU, [1.0, float(n)])])
            await store.maintain(start + n)
        await store.metrics.tidy()

    with_store(body, Retention(raw_s=6 * 3600, hot_s=7200))

    values = [value for (value,) in sql(state_dir, "SELECT value FROM samples WHERE metric = 'load' ORDER BY time")]
    assert values == [float(n) for n in range(length - 6 * 3600 - 600, length, 60)]
    [(oldest,)] = sql(state_dir, "SELECT min(id) / 1000000 FROM tick")
    assert isinstance(oldest, int)
    assert length - 7200 - 660 <= oldest - start <= length - 7200


def test_a_crowded_file_packs_before_it_drops(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    limits = Retention(minutes_s=3600, max_size_bytes=5 << 19)
    wide = tuple(Series("wide", (("n", str(n)),)) for n in range(50))
    start, ticks = clock.wall(), 1800

    async def body(store: Store) -> None:
        for n in range(ticks):
            await store.metrics.append([Reading(start + 10 * n, wide, [n / 7 + i for i in range(50)])])
            if n % 6 == 0:
                await store.maintain(start + 10 * n)
        assert store.metrics._keeper.hot_bytes() <= limits.max_size_bytes / 2
        assert await store.metrics.size_bytes() <= limits.max_size_bytes

    with_store(body, limits)
    assert sql(state_dir, 'SELECT count(*) FROM samples WHERE labels = \'{"n":"7"}\'') == [(ticks,)]
    assert sql(state_dir, "SELECT count(*) > 0 FROM chunk") == [(1,)]


def test_late_rows_of_a_packed_window_are_packed_beside_it(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    start = clock.wall()

    async def body(store: Store) -> None:
        for shift in (0, 0.5, 0.25):
            await store.metrics.append([Reading(start + n + shift, CPU, [1.0, n + shift]) for n in range(0, 600, 10)])
            assert await compact_oldest(store._files[0], start + 600)
            assert not await compact_oldest(store._files[0], start + 600)

    with_store(body)
    with Reader.open(state_dir) as reader:
        [points] = reader.select(named("load"), 0, 2e9)
    assert list(points.values) == sorted(n + shift for shift in (0, 0.25, 0.5) for n in range(0, 600, 10))
    assert sql(state_dir, "SELECT id / 1000, id % 1000 FROM chunk ORDER BY id") == [(start, 0), (start, 1), (start, 2)]


def test_a_row_that_comes_while_its_window_is_packed_stays(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = clock.wall()

    async def body(store: Store) -> None:
        write = Database.write

        async def late(self: Database, *statements: object) -> object:
            monkeypatch.setattr(Database, "write", write)
            await store.metrics.append([Reading(start + 5.5, CPU, [0.0, 5.5])])
            return await write(self, *statements)  # type: ignore[arg-type]

        await store.metrics.append([Reading(start + n, CPU, [0.0, float(n)]) for n in range(60)])
        monkeypatch.setattr(Database, "write", late)
        await compact_oldest(store._files[0], start + 600)
        assert sql(state_dir, "SELECT count(*) FROM tick") == [(1,)]
        assert sql(state_dir, "SELECT count(*), sum(value) FROM samples WHERE metric = 'load'") == [(61, 1775.5)]

    with_store(body)


def test_a_damaged_chunk_is_said(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await store.metrics.append([Reading(clock.wall(), CPU, [1.0, 2.0])])
        await compact_oldest(store._files[0], clock.wall() + 3600)
        await store._files[0].write(("UPDATE chunk SET data = substr(data, 1, 30)", ()))

    with_store(body)
    with Reader.open(state_dir) as reader:
        with pytest.raises(StoreError, match="cannot read the chunk of 2023-11-14T23:00:00Z: it is damaged"):
            reader.select(named("load"), 0, 2e9)
        with pytest.raises(StoreError, match="user-defined function raised exception"):
            reader.sql("SELECT * FROM samples")
