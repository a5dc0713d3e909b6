"""A forgotten line is in no page, no log and no text of either file; what happened is still known."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from agent.clock import SystemClock
from agent.model import Action, ActionStatus, Alert, AlertState, Event, Mode, Outcome, Severity, make_labels
from agent.store import Retention, Store
from agent.store.forget import ERASED, EVENTS_A_TURN, Forgotten

CANARY = "canary-7d1f"
FORGOTTEN = EVENTS_A_TURN + 300


def _event(number: int, pattern: str, text: str) -> Event:
    labels = make_labels(
        pattern=pattern, file="/x.log", line=str(number), user=text, logged_at="2026-01-01T00:00:00.000Z"
    )
    return Event(
        "log_match", Severity.ERROR, f"ERROR {text} " + "x" * (number % 7) * 600, "logwatch", 1e9 + number, labels
    )


def _alert(state: AlertState, rule: str) -> Alert:
    return Alert(rule, make_labels(pattern="secret", user=CANARY, severity="error"), state, 1.0, 1e9, 1e9)


def _action(status: ActionStatus, number: int) -> Action:
    return Action(
        id=0, cause="alert R", rule="R", labels=make_labels(pattern="secret", user=f"{CANARY}{number}"), fired_at=1e9,
        step=0, attempt=1, handler="notify", params={"message": f"seen: {CANARY}{number}"}, resource="mail",
        status=status, outcome=Outcome(text=f"told of {CANARY}{number}"), requested_at=1e9, mode=Mode.ACT,
    )  # fmt: skip


def _holding(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file() and text.encode() in path.read_bytes()]


async def _filled(folder: Path) -> Store:
    store = await Store.open(folder, clock=SystemClock(), limits=Retention())
    for at in range(0, FORGOTTEN, 500):
        await store.metrics.add_events(
            [_event(number, "secret", f"{CANARY}-{number}") for number in range(at, min(at + 500, FORGOTTEN))]
        )
    await store.metrics.add_events([_event(1, "other", "kept-5a2c")])
    await store.ledger.commit_alerts([_alert(AlertState.FIRING, "R"), _alert(AlertState.FIRING, "S")], [])
    await store.ledger.commit_alerts(
        [dataclasses.replace(_alert(AlertState.INACTIVE, "R"))],
        [_action(ActionStatus.DONE, 1), _action(ActionStatus.DONE, 2)],
    )
    return store


def test_a_forgotten_line_leaves_no_byte_and_the_rest_stays(tmp_path: Path) -> None:
    async def run() -> tuple[Forgotten, Forgotten, list[tuple[object, ...]]]:
        store = await _filled(tmp_path)
        assert _holding(tmp_path, CANARY)
        first = await store.forget("secret")
        left = _holding(tmp_path, f"{CANARY}-")
        again = await store.forget("secret")
        rows = await store._files[0].read("SELECT count(*), min(message), max(message) FROM event WHERE at_ms < 2e12")
        kept = await store._files[0].read(
            "SELECT count(*), count(json_extract(labels, '$.line')), count(json_extract(labels, '$.user')) FROM event"
        )
        await store.close()
        assert left == []
        return first, again, [*rows, *kept]

    first, again, [(events, least, most), (count, lines, users)] = asyncio.run(run())
    assert first.events == FORGOTTEN
    assert first.captured == {"user"}
    assert (first.alerts, first.actions, first.open, first.pages_left) == (1, 2, 1, False)
    assert (again.events, again.alerts, again.actions) == (0, 0, 0)
    assert (events, least, most) == (FORGOTTEN + 1, ERASED, "ERROR kept-5a2c " + "x" * 600)
    assert (count, lines, users) == (FORGOTTEN + 1, FORGOTTEN + 1, 1)
    assert _holding(tmp_path, "kept-5a2c") == ["metrics.db"]
    # The alert that still stands keeps its labels: they are its identity.
    assert _holding(tmp_path, CANARY) == ["ledger.db"]
