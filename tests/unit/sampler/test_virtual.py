"""Virtual time itself."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import LoopClock, run


def test_an_hour_passes_at_once_and_timers_keep_their_order() -> None:
    async def story() -> list[str]:
        seen: list[str] = []

        async def note(after_s: float, word: str) -> None:
            await asyncio.sleep(after_s)
            seen.append(word)

        clock = LoopClock()
        before = clock.boot()
        await asyncio.gather(note(3600, "hour"), note(1, "second"), note(60, "minute"))
        assert clock.boot() - before == pytest.approx(3600)
        return seen

    assert run(story()) == ["second", "minute", "hour"]


def test_a_wait_that_nothing_can_end_fails_instead_of_hanging() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing can wake the loop"):
        run(story())
