"""What the agent says and stores when the clock is set, and when the host slept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import config
from agent.app import Agent
from agent.clock import ManualClock
from agent.store import Reader


@pytest.mark.parametrize(
    ("happens", "events", "epochs"),
    [
        (
            lambda clock: clock.step_wall(-3600),
            [("clock_stepped", "warning", "the clock was set back by 3600 s")],
            [("started", 0.0), ("stepped", -3600.0)],
        ),
        (
            lambda clock: clock.suspend(7200),
            [("host_resumed", "info", "the host slept for 7200 s")],
            [("started", 0.0), ("resumed", 7200.0)],
        ),
        (lambda clock: clock.advance(60), [], [("started", 0.0)]),
    ],
    ids=["set", "asleep", "nothing"],
)
def test_time_that_changed_is_told_and_known_to_the_store(
    tmp_path: Path,
    happens: Callable[[ManualClock], None],
    events: list[tuple[str, str, str]],
    epochs: list[tuple[str, float]],
) -> None:
    path = tmp_path / "upkeep.yaml"
    path.write_text("state_dir: state\nshipped_rules: false\ncollect: {directories: {paths: []}}\nlogs: []\n")
    path.chmod(0o644)

    async def story() -> None:
        clock = ManualClock()
        agent = Agent(config.load(str(path)), clock)
        async with agent.built():
            await agent.parts.sampler.once()
            happens(clock)
            clock.advance(5)
            await agent.parts.sampler.once()

    asyncio.run(story())
    with Reader.open(tmp_path / "state") as reader:
        told = reader.sql("SELECT kind, severity, message FROM events WHERE source = 'agent'")[1]
        assert told == events
        assert reader.sql("SELECT why, seconds FROM main.epoch ORDER BY id")[1] == epochs
