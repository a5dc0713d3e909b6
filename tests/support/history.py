"""A state directory with a past, for commands that look back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.store import Retention, Store


def make_history(
    state_dir: Path, series: Mapping[Series, Callable[[float], float]], start: float, end: float, step_s: float
) -> None:
    """Store one reading of all series at each step; each value is a function of the seconds since ``start``."""

    async def write() -> None:
        clock = ManualClock(wall=start)
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        try:
            layout, at = tuple(series), start
            while at <= end:
                values = [value(at - start) for value in series.values()]
                await store.metrics.append_tick([Reading(at, layout, values)], clock.boot())
                clock.advance(step_s)
                at += step_s
        finally:
            await store.close()

    asyncio.run(write())


def write_file(path: Path, text: str) -> Path:
    """A file that the loader takes: writable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return path
