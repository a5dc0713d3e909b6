"""The wall clock is set back and forth: each instant is found once, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from agent.clock import ManualClock, boot_id
from agent.model import Reading, Series
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store

SERIES = (Series("n"), Series("wide", (("i", "1"),)))
ALL = [Matcher(NAME, MatchOp.EQUAL, "n")]


class Host:
    """One sample a second; each has the number of its place in the order of the boot clock."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store, self.clock = store, clock
        self.count = itertools.count()
        self.newest: dict[int, float] = {}
        """What each instant, in milliseconds, was last sampled as."""

    async def lives(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            value = float(next(self.count))
            await self.store.metrics.append([Reading(self.clock.wall(), SERIES, [value, 0.0])])
            self.newest[round(self.clock.wall() * 1000)] = value

    async def is_set(self, by_s: float) -> None:
        self.clock.step_wall(by_s)
        await self.store.metrics.epochs.begin("stepped", by_s)


def told(tmp_path: Path, story: Callable[[Host], Awaitable[None]]) -> Path:
    async def whole() -> None:
        clock = ManualClock(wall=1_700_000_000.0)
        store = await Store.open(tmp_path / "state", clock=clock, limits=Retention())
        try:
            await story(Host(store, clock))
        finally:
            await store.close()

    asyncio.run(whole())
    return tmp_path / "state"


def stored(state_dir: Path) -> tuple[list[float], list[float]]:
    with Reader.open(state_dir) as reader:
        [found] = reader.select(ALL, 0, 2e9)
    return list(found.times), list(found.values)


def test_an_hour_lived_twice_is_found_as_it_was_lived_last(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await host.lives(300)
        await host.is_set(-100.5)
        await host.lives(50)

    times, values = stored(told(tmp_path, story))
    assert times == sorted(set(times))
    assert values == [*range(199), *range(300, 350), *range(249, 300)]


def test_what_was_stored_in_the_first_run_is_kept_aside(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await host.lives(300)
        await host.is_set(-100)
        await host.lives(200)

    with Reader.open(told(tmp_path, story)) as reader:
        rows = reader.sql("SELECT epoch, json_extract(vals, '$[0]') FROM main.relived ORDER BY at_ms")[1]
        assert [value for _, value in rows] == list(range(200, 300))
        epochs = reader.sql("SELECT id, why, seconds, boot_id FROM main.epoch")[1]
    assert epochs == [(1, "started", 0.0, boot_id()), (2, "stepped", -100.0, boot_id())]
    assert {epoch for epoch, _ in rows} == {2}


def test_a_clock_that_begins_in_1970_moves_nothing_that_is_stored(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await host.lives(100)
        await host.is_set(-1.6e9)
        await host.lives(100)
        await host.is_set(1.6e9)
        await host.lives(100)

    state_dir = told(tmp_path, story)
    _, values = stored(state_dir)
    assert values == [*range(100, 200), *range(100), *range(200, 300)]
    with Reader.open(state_dir) as reader:
        assert reader.sql("SELECT count(*) FROM main.relived")[1] == [(0,)]


def test_a_clock_that_was_a_year_ahead_leaves_no_newest_values_from_there(tmp_path: Path) -> None:
    """The views are asked at the real time: the year ahead is one from now."""

    async def whole() -> None:
        import time

        clock = ManualClock(wall=time.time() - 50 + 365 * 86400)
        store = await Store.open(tmp_path / "state", clock=clock, limits=Retention())
        host = Host(store, clock)
        await host.lives(10)
        await host.is_set(-365 * 86400)
        await host.lives(10)
        await store.close()
        clock.advance(5)
        store = await Store.open(tmp_path / "state", clock=clock, limits=Retention())
        [points] = store.metrics.select(ALL, 0, 4e9)
        assert list(points.values) == list(range(10, 20)), "a start takes into memory what is past"
        await store.close()

    asyncio.run(whole())
    with Reader.open(tmp_path / "state") as reader:
        assert reader.sql("SELECT value FROM latest WHERE metric = 'n'")[1] == [(19.0,)]


def test_a_start_with_an_earlier_clock_is_time_lived_again(tmp_path: Path) -> None:
    state_dir = told(tmp_path, lambda host: host.lives(100))

    async def again() -> None:
        clock = ManualClock(wall=1_700_000_000.5 + 40)
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        host = Host(store, clock)
        host.count = itertools.count(1000)
        await host.lives(20)
        await store.close()

    asyncio.run(again())
    assert stored(state_dir)[1] == [*range(40), *range(1000, 1020), *range(60, 100)]


def test_chunks_of_time_lived_again_give_way_too(tmp_path: Path) -> None:
    async def whole() -> None:
        clock = ManualClock(wall=1_700_000_400.0)
        store = await Store.open(tmp_path / "state", clock=clock, limits=Retention(hot_s=600))
        host = Host(store, clock)
        await host.lives(4000)
        await store.maintain(clock.wall())
        [(chunks,)] = await store.metrics._database.read("SELECT count(*) FROM chunk")
        assert chunks >= 2
        await host.is_set(-3900)
        await host.lives(3000)
        await store.maintain(clock.wall())
        await store.close()

    asyncio.run(whole())
    times, values = stored(tmp_path / "state")
    assert times == sorted(set(times))
    assert values == [*range(100), *range(4000, 7000), *range(3100, 4000)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(1, 40),
            st.integers(-120_000, 120_000).map(lambda ms: ms / 1000),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_each_instant_is_found_once_as_it_was_sampled_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | float]
) -> None:
    hosts: list[Host] = []

    async def story(host: Host) -> None:
        hosts.append(host)
        await host.lives(1)
        for step in steps:
            if isinstance(step, int):
                await host.lives(step)
            else:
                await host.is_set(step)

    times, values = stored(told(tmp_path_factory.mktemp("time"), story))
    assert times == sorted(set(times))
    found = dict(zip((round(at * 1000) for at in times), values, strict=True))
    assert found.items() <= hosts[0].newest.items(), "no instant tells what was sampled before it was lived again"
    assert {round(value) for value in found.values()} >= {max(map(round, hosts[0].newest.values()))}
