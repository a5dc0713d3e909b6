"""Lines that were stored and should not have been: erased where they lie, and their bytes with them.

What happened stays (when, in which file, at which line); what the line said goes, and what patterns captured of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.store.database import Database
from agent.store.statement import Many, Row

ERASED = "(erased)"
EVENTS_A_TURN = 2000
"""Between two turns the writer takes what else waits."""

_PLACES = frozenset({"pattern", "file", "line", "lines", "matches", "repeated", "truncated"})
"""Labels of an event that its line did not write; ``logged_at`` is the line's own word."""

_EVENTS = "kind = 'log_match' AND json_extract(labels, '$.pattern') = ?"
_UNFORGOTTEN = f"{_EVENTS} AND NOT (message = '{ERASED}' AND json_extract(labels, '$.logged_at') IS NULL)"
_NEXT = f"SELECT id, labels FROM event WHERE id > ? AND {_UNFORGOTTEN} ORDER BY id LIMIT {EVENTS_A_TURN}"
_MEANT = "json_valid(labels) AND json_extract(labels, '$.pattern') = ?"
_ALERTS = f"SELECT id, labels FROM alert WHERE ended_at IS NOT NULL AND {_MEANT}"
_ENDED = "status NOT IN ('requested', 'awaiting_approval', 'running', 'verifying')"
_ACTION_TEXTS = ("params", "resource", "reason", "plan", "outcome", "extra")
_ACTIONS = f"SELECT id, labels, {', '.join(_ACTION_TEXTS)} FROM action WHERE {_ENDED} AND {_MEANT}"


@dataclass(slots=True)
class Forgotten:
    """What was erased. ``open`` alerts and actions are in use and stay; ``pages_left``: a reader holds old pages."""

    events: int = 0
    alerts: int = 0
    actions: int = 0
    open: int = 0
    pages_left: bool = False
    captured: set[str] = field(default_factory=set)


async def forget(metrics: Database, ledger: Database, pattern: str) -> Forgotten:
    """Erase the text of every stored match of a pattern, and its captured labels in what the ledger holds of it.

    Freed bytes are overwritten (``secure_delete``) and the write-ahead log is emptied. Calling it again goes on where
    a crash ended it.

    Raises
    ------
    StoreError
        A file cannot be written; what was erased before stays erased.
    """
    done = Forgotten()
    try:
        for file in (metrics, ledger):
            await file.read("PRAGMA secure_delete = ON")
        # The ledger first: which labels were captured is known from the events as long as these stand.
        last = 0
        while rows := await metrics.read(_NEXT, (last, pattern)):
            done.captured.update(*(_captured(json.loads(labels)) for _, labels in rows))
            last = rows[-1][0]
        await _forget_ledger(ledger, pattern, done)
        last = 0
        while rows := await metrics.read(_NEXT, (last, pattern)):
            changes = [(ERASED, _without(labels, done.captured | {"logged_at"}), number) for number, labels in rows]
            await metrics.write(Many("UPDATE event SET message = ?, labels = ? WHERE id = ?", changes))
            done.events += len(changes)
            last = rows[-1][0]
        for file in (metrics, ledger):
            [(busy, *_)] = await file.read("PRAGMA wal_checkpoint(TRUNCATE)")
            done.pages_left |= bool(busy)
    finally:
        for file in (metrics, ledger):
            await file.read("PRAGMA secure_delete = OFF")
    return done


async def _forget_ledger(ledger: Database, pattern: str, done: Forgotten) -> None:
    alerts = [
        (changed, number)
        for number, labels in await ledger.read(_ALERTS, (pattern,))
        if (changed := _erased(labels, number, done.captured)) != labels
    ]
    closed = (_action(row, done.captured) for row in await ledger.read(_ACTIONS, (pattern,)))
    actions = [row for row in closed if row is not None]
    texts = ", ".join(f"{name} = ?" for name in _ACTION_TEXTS)
    if alerts:
        await ledger.write(Many("UPDATE alert SET labels = ? WHERE id = ?", alerts))
    if actions:
        await ledger.write(Many(f"UPDATE action SET labels = ?, {texts} WHERE id = ?", actions))
    done.alerts, done.actions = len(alerts), len(actions)
    for table, where in (("alert", "ended_at IS NULL"), ("action", f"NOT {_ENDED}")):
        [(standing,)] = await ledger.read(f"SELECT count(*) FROM {table} WHERE {where} AND {_MEANT}", (pattern,))
        done.open += standing


def _captured(labels: Mapping[str, str]) -> set[str]:
    return set(labels) - _PLACES - {"logged_at"}


def _without(labels: str, names: Iterable[str]) -> str:
    held = json.loads(labels)
    return json.dumps({name: value for name, value in held.items() if name not in names})


def _erased(labels: str, number: int, names: Iterable[str]) -> str:
    """Labels with captured values replaced; by the row's number, as two rows may differ in nothing else."""
    held = json.loads(labels)
    found = [name for name in names if name in held and not str(held[name]).startswith(ERASED)]
    return json.dumps({**held, **dict.fromkeys(found, f"{ERASED} {number}")}, sort_keys=True) if found else labels


def _action(row: Row, names: Iterable[str]) -> tuple[object, ...] | None:
    """What an action becomes, its number last; None: nothing captured is in it."""
    number, labels, *texts = row
    held = json.loads(labels)
    values = [str(held[name]) for name in names if name in held and not str(held[name]).startswith(ERASED)]
    if not values:
        return None
    return _erased(labels, number, names), *(_replaced(text, values) for text in texts), number


def _replaced(text: str | None, values: Iterable[str]) -> str | None:
    for value in sorted(values, key=len, reverse=True):
        for written in {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}:
            # Shorter ones ("0") would be found in every number; alone they say nothing.
            if text is not None and len(written) >= 3:
                text = text.replace(written, ERASED)
    return text
