"""Rows of the ledger and the values they stand for, both ways: for its writer, and for readers, who import no more."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence

from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    ItemResult,
    Mode,
    Outcome,
    Plan,
    PlanItem,
    Skipped,
    Verdict,
)
from agent.store.series import decode_labels, decode_value, encode_labels, encode_value
from agent.store.statement import Row, Statement

ALERT = "rule, labels, state, value, active_since, fired_at, clear_since, missing"
ACTION = (
    "id, cause, rule, labels, fired_at, step, attempt, handler, params, resource, status, reason, verdict, plan, "
    "outcome, requested_at, started_at, finished_at, mode, extra"
)
ITEMS = (
    "SELECT n, part, target, change, bytes, identity, result_n, result, result_bytes FROM action_item WHERE action = ?"
)
PACKED_ITEMS = "SELECT items FROM packed_items WHERE action = ?"
"""To be read after :data:`ITEMS`: what is packed between the two is found twice, and counts once."""

INSERT_ITEM = (
    "INSERT INTO action_item (action, n, part, target, change, bytes, identity, result_n, result, result_bytes) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def pack_items(rows: Sequence[Row]) -> bytes:
    """Rows of :data:`ITEMS` as one value."""
    return zlib.compress(_json(rows).encode("utf-8"), zlib.Z_BEST_COMPRESSION)


def unpacked_items(packed: bytes) -> str:
    """What :func:`pack_items` packed, as a JSON array of arrays."""
    return zlib.decompress(packed).decode("utf-8")


def items_of(rows: Iterable[Row], packed: Iterable[Row]) -> list[Row]:
    """All items of an action without their numbers, in order, from rows of :data:`ITEMS` and :data:`PACKED_ITEMS`."""
    found = {row[0]: tuple(row[1:]) for (value,) in packed for row in json.loads(unpacked_items(value))}
    found.update((row[0], tuple(row[1:])) for row in rows)
    return [found[number] for number in sorted(found)]


def action_of(row: Row, items: Sequence[Row]) -> Action:
    """An action from its row (:data:`ACTION`) and its items (:func:`items_of`)."""
    number, cause, rule, labels, fired_at, step, attempt, handler, params, resource = row[:10]
    status, reason, verdict, plan, outcome, requested_at, started_at, finished_at, mode, extra = row[10:]
    return Action(
        id=number,
        cause=cause,
        rule=rule,
        labels=decode_labels(labels),
        fired_at=fired_at,
        step=step,
        attempt=attempt,
        handler=handler,
        params=json.loads(params),
        resource=resource,
        status=ActionStatus(status),
        reason=reason,
        verdict=Verdict(verdict) if verdict else None,
        plan=_plan(plan, items) if plan else None,
        outcome=_outcome(outcome, items) if outcome else None,
        requested_at=requested_at,
        started_at=started_at,
        finished_at=finished_at,
        mode=Mode(mode),
        extra=json.loads(extra),
    )


def alert_of(row: Row) -> Alert:
    """An alert from its row (:data:`ALERT`)."""
    rule, labels, state, value, active_since, fired_at, clear_since, missing = row
    decoded = decode_value(json.loads(value))
    return Alert(
        rule, decode_labels(labels), AlertState(state), decoded, active_since, fired_at, clear_since, bool(missing)
    )


def alert_statements(alert: Alert, now: float) -> list[Statement]:
    key = (alert.rule, encode_labels(alert.labels))
    its_own = "rule = ? AND labels = ? AND ended_at IS NULL"
    if alert.state is AlertState.INACTIVE:
        return [
            (f"DELETE FROM alert WHERE {its_own} AND fired_at IS NULL", key),
            (f"UPDATE alert SET ended_at = ?, missing = 0 WHERE {its_own}", (now, *key)),
        ]
    row = (*key, alert.state.value, encode_value(alert.value), alert.active_since, alert.fired_at, alert.clear_since)
    return [
        # A new episode without an end of the last one between: the last one ends where the new one begins.
        (
            f"UPDATE alert SET ended_at = ? WHERE {its_own} AND active_since <> ?",
            (alert.active_since, *key, alert.active_since),
        ),
        (
            f"INSERT INTO alert ({ALERT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (rule, labels) WHERE ended_at IS NULL DO UPDATE SET state = excluded.state, "
            "value = excluded.value, fired_at = excluded.fired_at, clear_since = excluded.clear_since, "
            "missing = excluded.missing",
            (*row, int(alert.missing)),
        ),
    ]


def columns_of(action: Action) -> dict[str, object]:
    return {
        "status": action.status.value,
        "resource": action.resource,
        "reason": action.reason,
        "verdict": action.verdict.value if action.verdict else None,
        "plan": _plan_text(action.plan),
        "outcome": _outcome_text(action.outcome),
        "started_at": action.started_at,
        "finished_at": action.finished_at,
        "mode": action.mode.value,
        "extra": _json(action.extra),
    }


def insert_action(action: Action) -> Statement:
    columns = columns_of(action) | {
        "cause": action.cause,
        "rule": action.rule,
        "labels": encode_labels(action.labels),
        "fired_at": action.fired_at,
        "step": action.step,
        "attempt": action.attempt,
        "handler": action.handler,
        "params": _json(action.params),
        "requested_at": action.requested_at,
    }
    marks = ", ".join("?" * len(columns))
    sql = f"INSERT INTO action ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING RETURNING id"
    return sql, tuple(columns.values())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(items: object) -> str:
    """What tells one list of items from another without reading the stored rows back."""
    import hashlib  # a writer's work: readers need not load OpenSSL

    return hashlib.sha256(_json(items).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plan_text(plan: Plan | None) -> str | None:
    if plan is None:
        return None
    return _json(
        {
            "handler": plan.handler,
            "resource": plan.resource,
            "summary": plan.summary,
            "considered_items": plan.considered_items,
            "considered_bytes": plan.considered_bytes,
            "refused": plan.refused,
            "item_count": len(plan.items),
            "skipped_count": len(plan.skipped),
            "digest": _digest(
                [
                    [[item.change, item.target, item.bytes, item.identity] for item in plan.items],
                    [[one.target, one.reason, one.bytes] for one in plan.skipped],
                ]
            ),
            "bytes": plan.bytes,
        }
    )


def _plan(text: str, items: Sequence[Row]) -> Plan:
    head = json.loads(text)
    return Plan(
        head["handler"],
        head["resource"],
        head["summary"],
        tuple(
            PlanItem(change, target, size, tuple(json.loads(identity)))
            for part, target, change, size, identity, *_ in items
            if part == "plan"
        ),
        tuple(Skipped(target, change, size) for part, target, change, size, *_ in items if part == "skipped"),
        head["considered_items"],
        head["considered_bytes"],
        head["refused"],
    )


def _outcome_text(outcome: Outcome | None) -> str | None:
    if outcome is None:
        return None
    head = {
        "bytes_freed": outcome.bytes_freed,
        "bytes_removed": outcome.bytes_removed,
        "error": outcome.error,
        "text": outcome.text,
        "item_count": len(outcome.items),
        "digest": _digest([[item.target, item.result, item.bytes] for item in outcome.items]),
    }
    return _json(head)


def _outcome(text: str, items: Sequence[Row]) -> Outcome:
    head = json.loads(text)
    reached = sorted((n, target, result, size) for _, target, _, _, _, n, result, size in items if n is not None)
    results = tuple(ItemResult(target, result, size) for _, target, result, size in reached)
    return Outcome(results, head["bytes_freed"], head["bytes_removed"], head["error"], head["text"])


def item_rows(action: Action) -> Iterable[Row]:
    """One row for each target: what was planned and what became of it lie side by side."""
    plan, outcome = action.plan or Plan("", "", ""), action.outcome or Outcome()
    reached: dict[str, list[tuple[int, str, int]]] = {}
    for n, result in enumerate(outcome.items):
        reached.setdefault(result.target, []).append((n, result.result, result.bytes))
    rows: list[Row] = []
    for item in plan.items:
        found = reached.get(item.target)
        its_result = found.pop(0) if found else (None, None, None)
        rows.append(("plan", item.target, item.change, item.bytes, _json(item.identity), *its_result))
    rows += [("skipped", one.target, one.reason, one.bytes, "[]", None, None, None) for one in plan.skipped]
    rows += [("extra", target, "", 0, "[]", *result) for target, rest in reached.items() for result in rest]
    return [(action.id, n, *row) for n, row in enumerate(rows)]
