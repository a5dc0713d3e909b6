"""Laws of alerts, kept by the engine with its ledger: whatever is found, and wherever it is started anew."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.engine import Engine
from agent.model import STALE, Alert, AlertState, Mode, Reading, Series
from agent.store import Reader, Retention, Store
from tests.support.bench import rules_of

RULES = """
groups:
  - name: g
    rules:
      - {alert: Now, expr: x > 10, remediation: {steps: [{notify: {message: look}}]}}
      - {alert: Soon, expr: x > 10, for: 30s, keep_firing_for: 30s, remediation: {steps: [{notify: {message: look}}]}}
      - {alert: Two, expr: x > 10, clear: x < 5, remediation: {steps: [{notify: {message: look}}]}}
"""
SERIES = (Series("x", (("host", "a"),)),)
VALUES = {"high": 20.0, "between": 7.0, "low": 1.0, "missing": STALE}
_found = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=12)

Seen = tuple[list[Alert], int]
"""The alerts that stand after a step, and how many actions were asked for until then."""


async def _play(folder: Path, found: list[str], restarts: frozenset[int]) -> list[Seen]:
    """An evaluation every fifteen seconds, by an engine that ends and begins anew before some of them."""
    clock, rules = ManualClock(), rules_of(RULES, folder)
    seen: list[Seen] = []
    store = await Store.open(folder / "state", clock=clock, limits=Retention())
    engine: Engine | None = None
    for index, name in enumerate(found):
        if engine is None or index in restarts:
            await store.close()
            store = await Store.open(folder / "state", clock=clock, limits=Retention())
            engine = Engine(
                rules,
                mode=Mode.OBSERVE,
                clock=clock,
                recent=store.metrics,
                reach_s=lambda: 3600.0,
                history=lambda: Reader.open(folder / "state"),
                ledger=store.ledger,
                append=store.metrics.append,
                record=store.metrics.add_events,
                requested=lambda: None,
                progress=lambda: None,
            )
            await engine.restore()
        clock.advance(15)
        await store.metrics.append([Reading(clock.wall(), SERIES, [VALUES[name]])])
        await engine.once()
        standing = sorted(engine.alerts(), key=lambda alert: alert.rule)
        with Reader.open(folder / "state") as reader:
            seen.append((standing, len(reader.actions())))
    await store.close()
    return seen


def play(found: list[str], restarts: frozenset[int] = frozenset()) -> list[Seen]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_play(Path(folder), found, restarts))


def _lasting(alert: Alert) -> tuple[object, ...]:
    """An alert without its value: what it is since the last change of state is not worth a commit."""
    return alert.rule, alert.labels, alert.state, alert.active_since, alert.fired_at, alert.clear_since, alert.missing


@settings(max_examples=15, deadline=None)
@given(_found, st.frozensets(st.integers(0, 11)))
def test_a_restart_at_any_step_changes_nothing(found: list[str], restarts: frozenset[int]) -> None:
    plain, restarted = play(found), play(found, restarts)
    assert [actions for _, actions in restarted] == [actions for _, actions in plain]
    for (ours, _), (theirs, _) in zip(restarted, plain, strict=True):
        assert list(map(_lasting, ours)) == list(map(_lasting, theirs))


@settings(max_examples=15, deadline=None)
@given(_found)
def test_missing_data_neither_clear_an_alert_nor_ask_for_an_action(found: list[str]) -> None:
    seen = play(found)
    for name, (before, asked), (now, asked_now) in zip(found[1:], seen, seen[1:], strict=False):
        if name == "missing":
            assert asked_now == asked
            firing = {alert.rule for alert in before if alert.state is AlertState.FIRING}
            assert firing == {alert.rule for alert in now if alert.state is AlertState.FIRING}
