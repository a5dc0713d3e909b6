"""A running LogWatch over a folder, for tests: real files, the real watch, what it committed kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agent.clock import SystemClock
from agent.logwatch.patterns import Pattern, compile_patterns
from agent.logwatch.runner import LogWatch
from agent.model import Event, Reading, Severity

SHIPPED = (
    Pattern("evaluation_failed", r"ERROR.*evaluation failed", Severity.ERROR),
    Pattern("system_overload", r"CRITICAL.*system overload", Severity.CRITICAL),
    Pattern("high_latency", r"WARNING.*high latency", Severity.WARNING),
    Pattern("cuda_out_of_memory", r"ERROR.*CUDA out of memory(?:.*GPU (?P<gpu>\d+))?", Severity.CRITICAL),
)
PATIENCE_S = 20.0


class Kept:
    """A store in memory: each commit is whole or, while ``failing``, not there."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.readings: list[Reading] = []
        self.offsets: dict[str, Mapping[str, Any]] = {}
        self.woken: list[frozenset[str]] = []
        self.commits = self.refused = 0
        self.failing = False

    async def commit(
        self, events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, Any]]
    ) -> None:
        if self.failing:
            self.refused += 1
            raise OSError("no space left on device")
        self.commits += 1
        self.events += events
        self.readings += readings
        self.offsets.update(offsets)

    def messages(self, kind: str = "log_match") -> list[str]:
        return [event.message for event in self.events if event.kind == kind]

    def counter(self, metric: str, **labels: str) -> float:
        """The last value of all its series that carry these labels, summed."""
        last: dict[str, float] = {}
        for reading in self.readings:
            for series, value in zip(reading.series, reading.values, strict=True):
                if series.metric == metric and labels.items() <= dict(series.labels).items():
                    last[str(series)] = value
        return sum(last.values())

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for it; a test that waits in vain fails with what was committed."""
        for _ in range(int(PATIENCE_S / 0.005)):
            if reached():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"not reached; {self.commits} commits, last events {self.events[-3:]}")


@asynccontextmanager
async def watching(
    glob: str, kept: Kept, patterns: Sequence[Pattern] = SHIPPED, **options: Any
) -> AsyncIterator[LogWatch]:
    """Run until the block ends; the first sweep is committed when it begins."""
    watch = LogWatch(
        [glob],
        compile_patterns(patterns),
        kept.commit,
        SystemClock(),
        stored=kept.offsets,
        wake=kept.woken.append,
        **options,
    )
    task = asyncio.create_task(watch.run())
    before = kept.commits
    try:
        if not kept.failing:
            await kept.until(lambda: kept.commits > before)
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or task.exception() is None
