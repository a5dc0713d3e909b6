"""Ticks that share a commit: rules see each at once, the file gets them together, and only a kill can lose any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Store

LOAD = (Series("load"),)
ALL = [Matcher(NAME, MatchOp.EQUAL, "load")]
WithStore = Callable[..., None]


async def tick(store: Store, clock: ManualClock, seconds: float = 1.0) -> None:
    await store.metrics.append_tick([Reading(clock.wall(), LOAD, [clock.wall()])], clock.boot())
    clock.advance(seconds)


def stored(state_dir: Path) -> int:
    with Reader.open(state_dir) as reader:
        return sum(len(points.times) for points in reader.select(ALL, 0, 2e9))


def seen(store: Store) -> int:
    return sum(len(points.times) for points in store.metrics.select(ALL, 0, 2e9))


def test_five_ticks_a_second_apart_share_a_commit(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        counts = []
        for n in range(1, 12):
            await tick(store, clock)
            assert seen(store) == n
            assert store.metrics.waiting_rows == n - stored(state_dir)
            counts.append(stored(state_dir))
        assert counts == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11]

    with_store(body)


def test_at_the_default_interval_each_tick_is_a_commit(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        for n in range(1, 6):
            await tick(store, clock, 5.0 + 0.02 * (-1) ** n)  # timers come a little early and a little late
            assert stored(state_dir) == n

    with_store(body)


def test_a_clean_stop_stores_what_waits(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        for _ in range(4):
            await tick(store, clock)

    with_store(body)
    assert stored(state_dir) == 4


def test_what_must_be_stored_takes_along_what_waits(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await tick(store, clock)
        await tick(store, clock)
        await store.metrics.append([Reading(clock.wall(), LOAD, [1.0])])
        assert (stored(state_dir), store.metrics.waiting_rows) == (3, 0)

    with_store(body)


def test_a_series_may_appear_while_a_minute_is_folded(with_store: WithStore, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        start = clock.wall()
        await store.metrics.append([Reading(start, LOAD, [1.0])])
        window = store.metrics.recent.window(start, start + 60)
        assert next(window)[0] == LOAD[0]
        await store.metrics.append([Reading(start, (Series("late"),), [2.0])])
        assert list(window) == []

    with_store(body)
