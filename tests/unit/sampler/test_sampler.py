"""The sampler's loop in virtual time: ticks, late ones, hung ones, crashes, series that end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from agent.collectors import Source
from agent.model import Event, Reading, Series, is_stale
from agent.sampler import Sampler
from tests.support.virtual import LoopClock, run

A, B, C = Series("a"), Series("b"), Series("c")


@dataclass
class Scripted:
    """A collector that does at each call what it was told for it, and counts how many run at once."""

    name: str
    does: Callable[[int], Awaitable[Sequence[Series]]]
    calls: int = 0
    running: int = 0
    most_running: int = 0
    closed: bool = False

    async def collect(self, at: float) -> Reading:
        call, self.calls = self.calls, self.calls + 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            series = tuple(await self.does(call))
        finally:
            self.running -= 1
        return Reading(at, series, [float(call)] * len(series))

    async def close(self) -> None:
        self.closed = True


@dataclass
class Host:
    """A sampler with its surroundings: what was stored, what was told."""

    sources: Sequence[Source]
    clock: LoopClock = field(default_factory=LoopClock)
    rows: list[tuple[float, list[Reading]]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    append_takes_s: float = 0.0

    async def append(self, readings: Sequence[Reading]) -> None:
        await asyncio.sleep(self.append_takes_s)
        self.rows.append((self.clock.boot(), list(readings)))

    async def tell(self, event: Event) -> None:
        self.events.append(event)

    async def sampled_for(self, seconds: float) -> Sampler:
        sampler = Sampler(self.sources, self.append, self.clock, self.tell)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await sampler.run()
        return sampler

    def values(self, series: Series) -> list[tuple[float, float]]:
        """Instants and values of a series, in the order in which they were stored."""
        return [
            (reading.at, reading.values[reading.series.index(series)])
            for _, readings in self.rows
            for reading in readings
            if series in reading.series
        ]


def always(*series: Series, after_s: float = 0.0) -> Callable[[int], Awaitable[Sequence[Series]]]:
    async def does(_: int) -> Sequence[Series]:
        if after_s:
            await asyncio.sleep(after_s)
        return series

    return does


def test_collectors_due_together_are_one_append_on_multiples_of_their_intervals() -> None:
    fast, slow = Scripted("fast", always(A)), Scripted("slow", always(B))
    host = Host([Source(fast, 1.0, inline=True), Source(slow, 5.0, inline=True)], clock=LoopClock(boot=1000.3))
    run(host.sampled_for(10.5))
    assert [round(boot, 2) for boot, _ in host.rows] == [1000.3, *range(1001, 1011)]
    together = [boot for boot, readings in host.rows if len(readings) == 2]
    assert [round(boot, 2) for boot in together] == [1000.3, 1005, 1010]


def test_a_tick_that_is_hardly_late_carries_the_instant_at_which_it_was_due() -> None:
    async def reads(call: int) -> Sequence[Series]:
        asyncio.get_running_loop().call_later(0.5, wakes_late_by, (0.001, 0.0014, 0.02, 0.0)[call % 4])
        return (A,)

    def wakes_late_by(seconds: float) -> None:
        host.clock.boot_ahead += seconds

    host = Host([Source(Scripted("a", reads), 1.0, inline=True)])
    run(host.sampled_for(8.5))
    assert [round(at * 1000) % 1000 for at, _ in host.values(A)] == [0, 0, 0, 20, 0, 0, 0, 20, 0]


def test_all_readings_of_a_tick_carry_its_instant() -> None:
    host = Host([Source(Scripted("a", always(A)), 1.0, inline=True), Source(Scripted("b", always(B)), 1.0)])
    run(host.sampled_for(3.5))
    for _, readings in host.rows:
        assert len({reading.at for reading in readings}) == 1
        assert len(readings) == 2


def test_a_collector_that_answers_within_the_grace_joins_its_tick_and_a_later_one_comes_when_it_ends() -> None:
    soon, later = Scripted("soon", always(A, after_s=0.05)), Scripted("later", always(B, after_s=0.4))
    host = Host([Source(soon, 10.0), Source(later, 10.0)])
    run(host.sampled_for(15.0))
    assert [(round(boot - 1000, 2), [reading.series for reading in readings]) for boot, readings in host.rows] == [
        (0.05, [(A,)]),  # the first tick waits for nobody
        (0.4, [(B,)]),
        (10.1, [(A,)]),
        (10.4, [(B,)]),
    ]


def test_a_late_collector_is_skipped_and_counted_and_never_run_twice_at_once() -> None:
    late, other = Scripted("late", always(A, after_s=2.5)), Scripted("other", always(B))
    host = Host([Source(late, 1.0), Source(other, 1.0, inline=True)])
    sampler = run(host.sampled_for(9.2))
    assert late.most_running == 1
    assert late.calls == 4  # at 0, 3, 6 and 9 s
    series, values = sampler.figures()
    missed = values[series.index(Series("upkeep_ticks_missed_total", (("collector", "late"),)))]
    assert missed == 6
    assert len(host.values(B)) == 10
    assert host.events == []


def test_a_hung_collector_is_reported_once_and_the_others_go_on() -> None:
    async def hangs_after_two(call: int) -> Sequence[Series]:
        if call >= 2:
            await asyncio.Event().wait()
        return [A]

    hung, other = Scripted("hung", hangs_after_two), Scripted("other", always(B))
    host = Host([Source(hung, 1.0), Source(other, 1.0, inline=True)])
    sampler = run(host.sampled_for(60.0))
    assert [(event.kind, event.labels) for event in host.events] == [("collector_stuck", (("collector", "hung"),))]
    assert host.events[0].at == pytest.approx(1_700_000_007.0)
    assert hung.calls == 3
    assert [is_stale(value) for _, value in host.values(A)] == [False, False, True]
    assert len(host.values(B)) == 60
    series, values = sampler.figures()
    assert values[series.index(Series("upkeep_collector_up", (("collector", "hung"),)))] == 0


def test_a_hung_collector_that_comes_back_is_used_again_but_not_what_it_brought() -> None:
    async def hangs_once(call: int) -> Sequence[Series]:
        if call == 1:
            await asyncio.sleep(20.5)
        return [A]

    host = Host([Source(Scripted("hung", hangs_once), 1.0)])
    run(host.sampled_for(25.0))
    values = host.values(A)
    assert [value for _, value in values if not is_stale(value)] == [0, 2, 3, 4]  # call 1 is thrown away
    assert [at for at, value in values if value == 2] == [1_700_000_022.0]


def test_a_crash_is_one_event_and_its_series_end() -> None:
    async def crashes_sometimes(call: int) -> Sequence[Series]:
        if call in (2, 3):
            raise OSError(5, "Input/output error")
        return [A, B]

    host = Host([Source(Scripted("disk", crashes_sometimes), 1.0, inline=True)])
    run(host.sampled_for(5.5))
    assert [event.message for event in host.events] == [
        "cannot collect \"disk\": OSError(5, 'Input/output error')",
    ]
    kinds = ["stale" if is_stale(value) else value for _, value in host.values(B)]
    assert kinds == [0, 1, "stale", 4, 5]


def test_a_series_that_goes_is_stale_once_and_the_rest_are_not() -> None:
    async def loses_one(call: int) -> Sequence[Series]:
        return [A, B, C] if call < 2 else [A, C]

    host = Host([Source(Scripted("devices", loses_one), 1.0, inline=True)])
    run(host.sampled_for(4.5))
    assert ["stale" if is_stale(value) else value for _, value in host.values(B)] == [0, 1, "stale"]
    assert [value for _, value in host.values(A)] == [0, 1, 2, 3, 4]


def test_ticks_slept_through_are_one_tick_and_counted() -> None:
    collector = Scripted("a", always(A))
    host = Host([Source(collector, 1.0, inline=True)])

    async def story() -> Sampler:
        sampler = Sampler(host.sources, host.append, host.clock, host.tell)
        task = asyncio.create_task(sampler.run())
        await asyncio.sleep(2.5)
        host.clock.boot_ahead += 3600.0
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        return sampler

    series, values = run(story()).figures()
    assert collector.calls == 4  # at 0, 1, 2 s, and one after the sleep
    assert values[series.index(Series("upkeep_ticks_missed_total", (("collector", "a"),)))] == 3600


def test_a_proof_is_newer_than_the_question_and_stored_before_it_is_given() -> None:
    slow, other = Scripted("directories", always(A, after_s=2.0)), Scripted("other", always(B))
    host = Host([Source(slow, 60.0), Source(other, 60.0)], append_takes_s=0.3)

    async def story() -> None:
        sampler = Sampler(host.sources, host.append, host.clock, host.tell)
        task = asyncio.create_task(sampler.run())
        await asyncio.sleep(1.0)
        asked = host.clock.wall()
        at = await sampler.collect_now(["directory_size_bytes"])
        stored = host.values(A)
        assert asked <= stored[-1][0] <= at
        assert len(stored) == 2  # the reading that was under way when asked does not count, and is kept
        assert other.calls == 1
        assert slow.most_running == 1
        task.cancel()
        await asyncio.wait({task})

    run(story())


def test_a_proof_can_be_asked_for_by_a_name_the_table_does_not_know() -> None:
    textfile = Scripted("textfile", always(Series("my_own_metric")))
    host = Host([Source(textfile, 60.0)])

    async def story() -> None:
        sampler = Sampler(host.sources, host.append, host.clock, host.tell)
        await sampler.once()
        await asyncio.sleep(5.0)
        assert await sampler.collect_now(["my_own_metric"]) == host.clock.wall()
        assert await sampler.collect_now(["nobody_makes_this"]) == host.clock.wall()
        assert textfile.calls == 2

    run(story())


def test_a_proof_does_not_wait_for_ever_for_a_collector_that_hangs() -> None:
    host = Host([Source(Scripted("directories", always(A, after_s=1e6)), 1.0)])

    async def story() -> None:
        sampler = Sampler(host.sources, host.append, host.clock, host.tell)
        task = asyncio.create_task(sampler.run())
        await asyncio.sleep(0.5)
        await sampler.collect_now(["directory_size_bytes"])
        assert host.clock.boot() < 1000 + 15
        task.cancel()
        await asyncio.wait({task})

    run(story())


def test_an_append_that_fails_ends_the_loop_and_it_goes_on_when_run_again() -> None:
    host = Host([Source(Scripted("a", always(A)), 1.0, inline=True)])
    fails = [True]

    async def append(readings: Sequence[Reading]) -> None:
        if fails.pop() if fails else False:
            raise OSError("disk full")
        await host.append(readings)

    async def story() -> None:
        sampler = Sampler(host.sources, append, host.clock, host.tell)
        with pytest.raises(OSError, match="disk full"):
            await sampler.run()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.5):
                await sampler.run()

    run(story())
    assert len(host.values(A)) == 3


def test_stopping_cancels_what_is_under_way_and_closes_collectors() -> None:
    slow = Scripted("slow", always(A, after_s=3.0))
    host = Host([Source(slow, 60.0)])
    run(host.sampled_for(1.0))
    assert slow.running == 0
    assert slow.closed


def test_one_pass_waits_for_the_slow_ones() -> None:
    host = Host(
        [Source(Scripted("slow", always(A, after_s=3.0)), 60.0), Source(Scripted("b", always(B)), 1.0, inline=True)]
    )

    async def story() -> None:
        await Sampler(host.sources, host.append, host.clock, host.tell).once()

    run(story())
    assert len(host.values(A)) == len(host.values(B)) == 1


def test_the_watchdog_hears_of_the_sampler_however_long_the_intervals() -> None:
    async def scene() -> None:
        host = Host([Source(Scripted("slow", lambda call: asyncio.sleep(0, (A,))), 300.0)])
        heard: list[float] = []
        sampler = Sampler(host.sources, host.append, host.clock, host.tell)
        running = asyncio.create_task(sampler.run(lambda: heard.append(host.clock.boot())))
        await asyncio.sleep(900)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert max(after - before for before, after in pairwise(heard)) <= 30.0
        assert len(host.rows) in (3, 4), "and reads no more often"

    run(scene())
