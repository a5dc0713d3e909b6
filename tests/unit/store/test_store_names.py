"""Names of series, awake and at rest, against a plain dictionary."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.store import Reader, Retention, Store
from agent.store.names import Names

SERIES = st.builds(
    Series,
    st.sampled_from(["a", "b", "ab"]),
    st.sampled_from(["", "x", "xy", "\udcff", "é"]).map(lambda value: (("k", value),) if value else ()),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("number"), SERIES),
        st.tuples(st.just("rest"), st.frozensets(SERIES, max_size=4)),
        st.tuples(st.just("forget"), st.frozensets(st.integers(1, 12), max_size=3)),
    ),
    max_size=40,
)


@given(st.frozensets(SERIES, max_size=6), STEPS)
def test_rest_changes_nothing_that_can_be_asked(first: frozenset[Series], steps: list[tuple[str, object]]) -> None:
    known = {one: number for number, one in enumerate(sorted(first, key=repr), 1)}
    names, following = Names(known), len(known) + 1
    for what, of in steps:
        if isinstance(of, Series):
            if of not in known:
                known[of], following = following, following + 1
            assert names.number(of) == known[of]
            assert names.series(known[of]) == of
        elif what == "rest":
            assert isinstance(of, frozenset)
            names.rest(of)
            assert set(names.resting(known.values())) >= {number for one, number in known.items() if one not in of}
        else:
            assert isinstance(of, frozenset)
            names.forget(of)
            known = {one: number for one, number in known.items() if number not in of}
        assert len(names) == len(known)
        assert all(one in names for one in known)
        for metric in ("a", "b", "ab"):
            assert names.count(metric) == sum(one.metric == metric for one in known)


def test_a_name_at_rest_takes_some_bytes() -> None:
    ended = {
        Series("process_cpu_seconds_total", (("pid", str(n)), ("name", f"worker-{n}"))): n for n in range(1, 10_001)
    }
    tracemalloc.start()
    names = Names(ended)
    names.rest(frozenset())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 10_000 < 40
    assert len(names) == 10_000


def test_a_series_that_comes_back_after_hours_has_its_number_and_its_history(tmp_path: Path) -> None:
    steady, passing = (Series("steady"),), (Series("steady"), Series("passing", (("pid", "7"),)))

    async def story() -> None:
        clock = ManualClock(wall=1_700_002_800.0)
        store = await Store.open(tmp_path / "state", clock=clock, limits=Retention(hot_s=1200))
        for n in range(4 * 360):
            clock.advance(10)
            there = n < 60 or n > 1300
            series = passing if there else steady
            await store.metrics.append([Reading(clock.wall(), series, [float(n)] * len(series))])
            if n % 6 == 0:
                await store.maintain(clock.wall())
            if n == 1000:
                assert store.metrics._layouts.resting([1, 2]) == [2]
        await store.close()

    asyncio.run(story())
    with Reader.open(tmp_path / "state") as reader:
        assert reader.sql("SELECT id, metric FROM main.series ORDER BY id")[1] == [(1, "steady"), (2, "passing")]
        assert reader.sql("SELECT count(*) FROM samples WHERE metric = 'passing'")[1] == [(60 + 139,)]
