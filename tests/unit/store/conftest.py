from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.store import Retention, Store

Body = Callable[[Store], Awaitable[None]]


@pytest.fixture
def clock() -> ManualClock:
    """A wall clock at the start of an hour."""
    return ManualClock(wall=1_700_002_800.0)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def with_store(state_dir: Path, clock: ManualClock) -> Callable[..., None]:
    """Run an async body on an open store, closed cleanly afterwards."""

    @asynccontextmanager
    async def opened(limits: Retention) -> AsyncIterator[Store]:
        store = await Store.open(state_dir, clock=clock, limits=limits)
        try:
            yield store
        finally:
            await store.close()

    def run(body: Body, limits: Retention | None = None) -> None:
        async def main() -> None:
            async with opened(limits or Retention()) as store:
                await body(store)

        asyncio.run(main())

    return run
