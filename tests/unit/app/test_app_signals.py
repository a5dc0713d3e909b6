"""The whole agent in this process: what a signal may do at a bad moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.app import Agent
from agent.errors import StoreError

Scene = Callable[[Agent], Awaitable[None]]


def play(folder: Path, scene: Scene, *, stop: bool = True) -> None:
    """Run an agent, play the scene once it is ready, and see that it ends within seconds of being stopped."""

    async def run() -> None:
        agent = Agent(config.load(str(path)))
        running = asyncio.create_task(agent.run())
        ready = asyncio.create_task(agent.ready.wait())
        await asyncio.wait({running, ready}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        try:
            await scene(agent)
            assert not running.done()
        finally:
            agent.stop()
            await asyncio.wait({running}, timeout=10)
            ended = running.done()
            running.cancel()
            await asyncio.gather(running, return_exceptions=not ended)
        assert ended, "it did not end"

    path = folder / "upkeep.yaml"
    (folder / "log").mkdir()
    path.write_text(
        "state_dir: state\nshipped_rules: false\nrule_files: [rules.yaml]\n"
        "collect: {interval: 1s, directories: {paths: []}}\n"
        f"logs: [{{paths: ['{folder}/log/*.log']}}]\n"
    )
    write_rules(folder, "one")
    path.chmod(0o644)
    asyncio.run(run())


def write_rules(folder: Path, pattern: str) -> None:
    path = folder / "rules.yaml"
    path.write_text(f"patterns: [{{name: p, regex: {pattern}}}]\n")
    path.chmod(0o644)


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_reload_that_cannot_be_recorded_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(agent: Agent) -> None:
        refused = []

        async def full(*args: Any) -> None:
            refused.append(args)
            raise StoreError("cannot write: the disk is full")

        monkeypatch.setattr(agent.parts.store.metrics, "add_events", full)
        monkeypatch.setattr(agent.parts.store.ledger, "keep_rules", full)
        write_rules(tmp_path, "two")
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: refused)
        await asyncio.sleep(0.1)
        monkeypatch.undo()
        assert agent.parts.engine.rules.patterns[0].regex == "two"

    play(tmp_path, scene)


def test_reloads_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(agent: Agent) -> None:
        replace, under_way, most = agent.parts.engine.replace, 0, 0

        async def slow(rules: Any) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.05)
            await replace(rules)
            under_way -= 1

        monkeypatch.setattr(agent.parts.engine, "replace", slow)
        await asyncio.gather(*(agent.reload() for _ in range(3)))
        assert most == 1

    play(tmp_path, scene)


def test_a_stop_in_the_middle_of_a_reload_ends_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(agent: Agent) -> None:
        replace = agent.parts.engine.replace

        async def stopped_meanwhile(rules: Any) -> None:
            await replace(rules)
            agent.stop()
            await asyncio.sleep(0.2)

        monkeypatch.setattr(agent.parts.engine, "replace", stopped_meanwhile)
        write_rules(tmp_path, "two")
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(agent._stopping.is_set)

    play(tmp_path, scene)
