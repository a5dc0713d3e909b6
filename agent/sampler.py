"""One merged tick for all collectors that are due: read, merge, append.

A series that its collector no longer makes is marked stale once. A collector that is late is skipped and counted, one
that hangs is given up and reported once, one that fails is an event; the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from agent import faultpoint
from agent.clock import Clock
from agent.collectors import Closing, Source
from agent.metrics import METRICS
from agent.model import STALE, Event, Reading, Series, Severity

log = logging.getLogger(__name__)

Append = Callable[[Sequence[Reading]], Awaitable[None]]
Tell = Callable[[Event], Awaitable[None]]

DEADLINE_S = 5.0
"""The least time after which a collector that does not return is given up."""

GRACE_S = 0.1
"""How long a tick waits for collectors that ask others (a GPU, a server), so that all of it is one commit."""

LONGEST_SLEEP_S = 10.0
"""However far the next reading is: the watchdog wants to hear, and a timer does not count while the host sleeps."""

ALIGNED_S = 0.002
"""A tick that comes so close to its due instant carries that: instants an even step apart take no room in the store,
and no reading is known to a millisecond. Prometheus aligns its scrapes by as much."""

_EARLY_S = 0.002
"""Timers have a grain of a millisecond: one that fires this early is on time."""

_GRAIN_S = 0.0005
"""What uvloop may round off a wait; a wait so much longer does not end before its instant."""


@dataclass(slots=True)
class _Slot:
    """A collector's place in the schedule; ``due`` and ``started`` are on the boot clock.

    A slot is idle (no task), busy (a task), or stuck (a task that was given up; what it returns is thrown away).
    """

    source: Source
    due: float
    started: float = 0.0
    task: asyncio.Task[None] | None = None
    stuck: bool = False
    up: bool = True
    duration_s: float = 0.0
    missed: int = 0
    series: tuple[Series, ...] = ()
    metrics: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.source.collector.name

    @property
    def deadline_s(self) -> float:
        return self.source.deadline_s or max(DEADLINE_S, self.source.interval_s)

    def advance(self, boot: float) -> int:
        """Move ``due`` to the next multiple of the interval; returns how many were slept through."""
        interval_s = self.source.interval_s
        slept = math.floor((boot + _EARLY_S - self.due) / interval_s)
        self.due = (math.floor((boot + _EARLY_S) / interval_s) + 1) * interval_s
        return slept

    def makes(self, wanted: Collection[str]) -> bool:
        """Whether a wanted metric was in the last reading, or is this family's by the table."""
        family = self.name.partition(":")[0]
        return any(name in self.metrics or (name in METRICS and METRICS[name].source == family) for name in wanted)


class Sampler:
    """Runs collectors and hands their readings to the store. It is made within the running loop.

    Parameters
    ----------
    sources
        The collectors, in the order in which they are read.
    append
        Stores the readings of a tick and returns once they are committed.
    clock
        Each collector is due at the multiples of its interval on the boot clock; samples carry the wall clock's time
        at which their reading began.
    tell
        Records an event.
    """

    def __init__(self, sources: Iterable[Source], append: Append, clock: Clock, tell: Tell) -> None:
        boot = clock.boot()
        self._slots = [_Slot(source, due=boot) for source in sources]
        self._append = append
        self._clock = clock
        self._tell = tell
        self._rows: list[Reading] = []
        self._samples = 0
        self._wake = asyncio.Event()
        self._committing = asyncio.Lock()
        names = ("upkeep_collector_duration_seconds", "upkeep_collector_up", "upkeep_ticks_missed_total")
        self._series = (
            *(Series(name, (("collector", slot.name),)) for name in names for slot in self._slots),
            Series("upkeep_samples_total"),
        )

    def figures(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        """What the sampler says of itself, for the collector ``self``."""
        durations = [slot.duration_s for slot in self._slots]
        up = [float(slot.up) for slot in self._slots]
        missed = [float(slot.missed) for slot in self._slots]
        return self._series, [*durations, *up, *missed, float(self._samples)]

    async def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Tick until cancelled.

        Parameters
        ----------
        progress
            Called each time the loop gets round, for the watchdog.

        Raises
        ------
        Exception
            What ``append`` or ``tell`` raised. Run again, it goes on where it was: what is under way stays so.
        """
        try:
            while True:
                await self._tick()
                progress()
                await self._sleep()
        except asyncio.CancelledError:
            await self.close()
            raise

    async def once(self) -> None:
        """One pass of everything, slow collectors included, for ``upkeep run --once``."""
        await self._tick()
        await self._settle(self._slots)
        await self._commit()

    async def collect_now(self, metrics: Collection[str]) -> float:
        """Measure afresh and store what makes these metrics: no proof of a repair may be older than the repair.

        Parameters
        ----------
        metrics
            Names of metrics; one that no collector makes is passed over.

        Returns
        -------
        float
            Seconds since the epoch. All that could be measured was measured after the call and no later than this.
            A collector that hangs has measured nothing.
        """
        slots = [slot for slot in self._slots if slot.makes(metrics)]
        await self._settle(slots)  # a reading that began before the repair does not count
        at = self._clock.wall()
        for slot in slots:
            if slot.task is None:
                await self._begin(slot, at)
        await self._settle(slots)
        await self._commit()
        return at

    async def close(self) -> None:
        """Cancel what is under way and let collectors release what they hold."""
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for slot in self._slots:
            if isinstance(slot.source.collector, Closing):
                await slot.source.collector.close()

    async def _sleep(self) -> None:
        """Until a collector is due, or a late one has ended."""
        seconds = min((slot.due for slot in self._slots), default=math.inf) - self._clock.boot()
        if self._rows or seconds <= 0:
            return
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(min(seconds + _GRAIN_S, LONGEST_SLEEP_S), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _tick(self) -> None:
        boot, at = self._clock.boot(), self._clock.wall()
        late_s = boot - max((slot.due for slot in self._slots if slot.due <= boot + _EARLY_S), default=boot)
        if 0 <= late_s <= ALIGNED_S:
            at -= late_s
        begun: list[_Slot] = []
        for slot in self._slots:
            if slot.due > boot + _EARLY_S:
                continue
            slot.missed += slot.advance(boot)
            if slot.task is None:
                await self._begin(slot, at)
                begun.append(slot)
                continue
            slot.missed += 1
            if not slot.stuck and boot - slot.started >= slot.deadline_s - _EARLY_S:
                slot.stuck = True
                await self._lose(slot, at, "collector_stuck", f"no answer for {boot - slot.started:.0f} s")
        # The first samples wait for nobody: rules and readers wait for them.
        await self._settle(begun, GRACE_S if self._samples else 0.0)
        await self._commit()

    async def _begin(self, slot: _Slot, at: float) -> None:
        if slot.source.inline:
            await self._collect(slot, at)
            return
        slot.task = asyncio.create_task(self._collect(slot, at), name=f"collect {slot.name}")
        slot.task.add_done_callback(lambda task: self._ended(slot, task))

    async def _collect(self, slot: _Slot, at: float) -> None:
        slot.started = self._clock.boot()
        try:
            reading = await slot.source.collector.collect(at)
        except Exception as error:
            log.exception("collector_crashed name=%s", slot.name)
            if not slot.stuck:
                await self._lose(slot, at, "collector_crashed", repr(error))
            return
        slot.duration_s = self._clock.boot() - slot.started
        if not slot.stuck:
            slot.up = True
            self._take(slot, reading)

    def _ended(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        slot.task, slot.stuck = None, False
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("collector_untold name=%s", slot.name, exc_info=task.exception())

    def _take(self, slot: _Slot, reading: Reading) -> None:
        if reading.series is not slot.series:
            self._end_series(slot, reading.at, frozenset(reading.series))
            slot.series = reading.series
            slot.metrics = frozenset(series.metric for series in reading.series)
        if reading.series:
            self._rows.append(reading)

    async def _lose(self, slot: _Slot, at: float, kind: str, why: str) -> None:
        self._end_series(slot, at, frozenset())
        slot.series = ()
        if slot.up:
            slot.up = False
            message = f'cannot collect "{slot.name}": {why}'
            await self._tell(Event(kind, Severity.ERROR, message, "sampler", at, (("collector", slot.name),)))

    def _end_series(self, slot: _Slot, at: float, going_on: frozenset[Series]) -> None:
        ended = tuple(series for series in slot.series if series not in going_on)
        if ended:
            self._rows.append(Reading(at, ended, [STALE] * len(ended)))

    async def _settle(self, slots: Iterable[_Slot], most_s: float = math.inf) -> None:
        """Wait for those that are busy, each at most its deadline."""
        busy = {slot.task: slot.deadline_s for slot in slots if slot.task is not None and not slot.stuck}
        if busy:
            await asyncio.wait(busy, timeout=min(most_s, max(busy.values())))

    async def _commit(self) -> None:
        async with self._committing:  # whoever comes second returns only when the first one's rows are committed
            rows, self._rows = self._rows, []
            if rows:
                faultpoint.reach("sample_before")
                await self._append(rows)
                faultpoint.reach("sample_after")
                self._samples += sum(len(row.series) for row in rows)
