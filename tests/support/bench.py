"""Store, engine, dispatch and real hands on a scratch folder, stepped by hand under a clock that obeys."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from agent import rulefile
from agent.clock import ManualClock
from agent.config import Limits, RemediationConfig
from agent.dispatch import Brakes, Dispatch
from agent.engine import Engine
from agent.handlers import Tools
from agent.model import Action, Event, Mode, Reading, Series
from agent.ops.client import OpsClient
from agent.ops.policy import Policy
from agent.rulefile import RuleSet
from agent.store import Reader, Retention, Store

MIB = 1024 * 1024

RULES = """
groups:
  - name: g
    rules:
      - alert: CacheTooLarge
        expr: directory_size_bytes{{path="{cache}"}} > {limit}
        remediation:
          cooldown: {cooldown}
          limit: {per}
          steps:
            - clean_cache: {{path: {cache}, down_to: 1100KiB, use: mtime}}
              verify_within: 0
            - notify: {{message: the cache does not shrink}}
"""


class Told:
    """A notifier that keeps what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def notify(self, message: str) -> None:
        self.messages.append(message)


@dataclasses.dataclass
class Bench:
    folder: Path
    clock: ManualClock
    store: Store
    engine: Engine
    dispatch: Dispatch
    told: Told
    events: list[Event]
    paused: bool = False

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def fill(self, count: int, *, prefix: str = "f", mib: int = 1) -> list[Path]:
        made = []
        for index in range(count):
            path = self.cache / f"{prefix}{index}"
            path.write_bytes(b"x" * (mib * MIB))
            then = self.clock.wall() - 86400 - index * 60
            os.utime(path, (then, then))
            made.append(path)
        return made

    async def measure(self, metrics: object = None) -> float:
        """What the sampler would do: measure the cache now and store it."""
        size = sum(path.stat().st_blocks * 512 for path in self.cache.iterdir())
        at = self.clock.wall()
        series = (Series("directory_size_bytes", (("path", str(self.cache)),)),)
        await self.store.metrics.append([Reading(at, series, [float(size)])])
        return at

    async def step(self) -> None:
        """A second: measure, judge, carry out, verify."""
        self.clock.advance(1)
        await self.measure()
        await self.engine.once()
        await self.dispatch.round()
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing is being verified any more and follow-up rungs were carried out."""
        while self.dispatch.verifying:
            await asyncio.wait(self.dispatch.verifying)
            await self.dispatch.round()

    def actions(self, handler: str = "") -> list[Action]:
        """Oldest first."""
        with Reader.open(self.folder / "state") as reader:
            found = list(reversed(reader.actions()))
        return [action for action in found if handler in ("", action.handler)]


def rules_of(text: str, folder: Path) -> RuleSet:
    path = folder / "rules.yaml"
    path.write_text(text)
    path.chmod(0o644)
    return rulefile.load([str(path)])


@contextlib.asynccontextmanager
async def bench(
    folder: Path,
    *,
    rules: str = RULES,
    mode: Mode = Mode.ACT,
    limits: Limits | None = None,
    config: RemediationConfig | None = None,
    cooldown: str = "0s",
    per: str = "1000 per day",
    collect_now: object = None,
) -> AsyncIterator[Bench]:
    """A bench on ``folder``; opened again on the same folder it goes on, as after a restart."""
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    clock = ManualClock(wall=time.time())
    text = rules.format(cache=cache, limit=4 * MIB, cooldown=cooldown, per=per)
    store = await Store.open(folder / "state", clock=clock, limits=Retention())
    ops = OpsClient.spawn(Policy((str(cache),)), clock)
    told, events = Told(), []

    async def record(new: Sequence[Event]) -> None:
        events.extend(new)

    async def report(period: str) -> str:
        return period

    dispatch: Dispatch
    engine = Engine(
        rules_of(text, folder),
        mode=mode,
        clock=clock,
        recent=store.metrics.recent,
        reach_s=lambda: 3600.0,
        history=lambda: Reader.open(folder / "state"),
        ledger=store.ledger,
        append=store.metrics.append,
        record=record,
        requested=lambda: dispatch.wake(),
        progress=lambda: None,
    )
    made = Bench(folder, clock, store, engine, None, told, events)  # type: ignore[arg-type]
    remediation = config or RemediationConfig(roots=(str(cache),), boot_grace=0.0, limits=limits or Limits())
    dispatch = Dispatch(
        ledger=store.ledger,
        engine=engine,
        tools=Tools(ops, told, report),
        brakes=Brakes(remediation, mode, lambda: made.paused),
        clock=clock,
        collect_now=collect_now or made.measure,  # type: ignore[arg-type]
        record=record,
        finished=lambda action: None,
        progress=lambda: None,
    )
    made.dispatch = dispatch
    try:
        await engine.restore()
        yield made
    finally:
        await ops.close()
        await store.close()
