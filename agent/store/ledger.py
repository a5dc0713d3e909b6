"""What was judged and what was done about it: alerts, actions, silences, circuits, job runs, reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from agent.clock import Clock, boot_id
from agent.errors import StoreError
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
from agent.store.database import Database, Many, Row, Statement
from agent.store.series import decode_labels, decode_value, encode_labels, encode_value

OPEN = (ActionStatus.REQUESTED, ActionStatus.AWAITING_APPROVAL, ActionStatus.RUNNING, ActionStatus.VERIFYING)
_OPEN_SQL = "status IN ('requested', 'awaiting_approval', 'running', 'verifying')"


@dataclass(frozen=True, slots=True)
class Past:
    """An action that was carried out, for cooldowns, limits and circuits.

    ``age_s`` counts from its start on the boot clock, so that a stepped wall clock moves no cooldown; over a reboot it
    is the wall clock's difference, or the uptime where that is longer.
    """

    id: int
    rule: str
    handler: str
    resource: str
    status: ActionStatus
    verdict: Verdict | None
    age_s: float


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts that are not to be acted upon for a while: once from ``starts_at``, or at each instant of ``every``."""

    matchers: str
    why: str
    by: str
    starts_at: float
    for_s: float
    every: str = ""
    id: int = 0


@dataclass(frozen=True, slots=True)
class Circuit:
    """A handler that did no good on a resource and is stopped there until a person closes the circuit."""

    handler: str
    resource: str
    opened_at: float
    why: str


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of a calendar entry; ``(job, due_at)`` is its key. An open one has no ``finished_at``."""

    job: str
    due_at: float
    started_at: float
    finished_at: float | None = None
    result: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """A report that was written."""

    kind: str
    period_start: float
    period_end: float
    made_at: float
    path: str
    verdict: str
    mailed_at: float | None = None


class Ledger:
    """What ``Store.ledger`` is. Each method that changes something is one transaction, on the disk when it returns.

    All of them raise :class:`agent.errors.StoreError` when the file cannot be read or written; nothing may act then.
    """

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._boot_id = boot_id()

    # Alerts.

    async def alerts(self) -> list[Alert]:
        """All alerts that have not ended, pending ones included."""
        return [alert_of(row) for row in await self._database.read(f"SELECT {ALERT} FROM alert WHERE ended_at IS NULL")]

    async def commit_alerts(self, changed: Sequence[Alert], requests: Sequence[Action]) -> list[Action]:
        """Commit changed alerts and the actions they ask for, together.

        Parameters
        ----------
        changed
            Alerts as they are now. An inactive one ends now; if it never fired, nothing of it is kept.
        requests
            Actions with any id.

        Returns
        -------
        list of Action
            The actions that are new, with their ids; one that was requested before is not among them.
        """
        now = self._clock.wall()
        statements: list[Statement] = []
        for alert in changed:
            statements += _alert_statements(alert, now)
        first = sum(not isinstance(statement, Many) for statement in statements)
        inserted = [_insert(action) for action in requests]
        results = await self._database.write(*statements, *inserted)
        ids = results[first:]
        return [replace(action, id=row[0][0]) for action, row in zip(requests, ids, strict=True) if row]

    # Actions.

    async def request(self, action: Action) -> Action | None:
        """Commit an action that no alert asked for; None when it was requested before."""
        return next(iter(await self.commit_alerts((), (action,))), None)

    async def action(self, number: int) -> Action | None:
        """One action with all its items."""
        return next(iter(await self._actions("id = ?", (number,))), None)

    async def open_actions(self) -> list[Action]:
        """The actions that are not final, oldest first."""
        return await self._actions(_OPEN_SQL, ())

    async def save_action(self, action: Action) -> None:
        """Commit what became of an action: its intent before it is carried out, its outcome, its verdict.

        Raises
        ------
        StoreError
            Also when there is no such action.
        """
        columns = _columns(action)
        started = (self._boot_id, self._clock.boot()) if action.status is ActionStatus.RUNNING else (None, None)
        updates = ", ".join(f"{name} = ?" for name in columns)
        statements: list[Statement] = [
            (
                f"UPDATE action SET {updates}, boot_id = coalesce(boot_id, ?), "
                "started_boot = coalesce(started_boot, ?) WHERE id = ? RETURNING id",
                (*columns.values(), *started, action.id),
            )
        ]
        if await self._items_changed(action, columns):
            statements.append(("DELETE FROM action_item WHERE action = ?", (action.id,)))
            statements.append(Many(_INSERT_ITEM, list(_item_rows(action))))
        saved, *_ = await self._database.write(*statements)
        if not saved:
            raise StoreError(f"cannot save action {action.id}: the ledger has no such action")

    async def past_actions(self, *, within_s: float) -> list[Past]:
        """The actions that were started within the last ``within_s`` seconds, newest first."""
        wall, boot = self._clock.wall(), self._clock.boot()
        rows = await self._database.read(
            "SELECT id, rule, handler, resource, status, verdict, started_at, boot_id, started_boot FROM action "
            "WHERE started_boot IS NOT NULL AND (boot_id = ? AND started_boot > ? OR boot_id <> ? AND started_at > ?) "
            "ORDER BY id DESC",
            (self._boot_id, boot - within_s, self._boot_id, wall - within_s),
        )
        past = []
        for number, rule, handler, resource, status, verdict, started_at, its_boot, started_boot in rows:
            age = boot - started_boot if its_boot == self._boot_id else max(wall - (started_at or 0.0), boot)
            judged = Verdict(verdict) if verdict else None
            past.append(Past(number, rule, handler, resource, ActionStatus(status), judged, age))
        return [one for one in past if one.age_s < within_s]

    # Silences, circuits.

    async def silences(self, at: float) -> list[Silence]:
        """The silences that can still matter: not ended, not over, or recurring (the caller reads their schedule)."""
        rows = await self._database.read(
            "SELECT matchers, why, by, starts_at, for_s, every, id FROM silence "
            "WHERE ended_at IS NULL AND (every <> '' OR starts_at + for_s > ?) ORDER BY id",
            (at,),
        )
        return [Silence(*row) for row in rows]

    async def add_silence(self, silence: Silence) -> Silence:
        """Commit a silence; it is returned with its id."""
        [[(number,)]] = await self._database.write(
            (
                "INSERT INTO silence (matchers, why, by, starts_at, for_s, every) VALUES (?, ?, ?, ?, ?, ?) "
                "RETURNING id",
                (silence.matchers, silence.why, silence.by, silence.starts_at, silence.for_s, silence.every),
            )
        )
        return replace(silence, id=number)

    async def end_silence(self, number: int) -> bool:
        """End a silence now; false when there is none of that id that has not ended."""
        return await self._hit(
            "UPDATE silence SET ended_at = ? WHERE id = ? AND ended_at IS NULL RETURNING id",
            (self._clock.wall(), number),
        )

    async def circuits(self) -> list[Circuit]:
        """The circuits that are open."""
        rows = await self._database.read("SELECT handler, resource, opened_at, why FROM circuit")
        return [Circuit(*row) for row in rows]

    async def open_circuit(self, circuit: Circuit) -> None:
        """Commit an open circuit; one that is open already keeps its instant."""
        await self._database.write(
            (
                "INSERT OR IGNORE INTO circuit (handler, resource, opened_at, why) VALUES (?, ?, ?, ?)",
                (circuit.handler, circuit.resource, circuit.opened_at, circuit.why),
            )
        )

    async def close_circuit(self, handler: str, resource: str) -> bool:
        """Close a circuit; false when it was not open."""
        return await self._hit(
            "DELETE FROM circuit WHERE handler = ? AND resource = ? RETURNING handler", (handler, resource)
        )

    # Calendar, reports, rule sets.

    async def last_runs(self) -> dict[str, JobRun]:
        """The run of each job with the latest due instant."""
        rows = await self._database.read(
            "SELECT job, max(due_at), started_at, finished_at, result, message FROM job_run GROUP BY job"
        )
        return {row[0]: JobRun(*row) for row in rows}

    async def save_run(self, run: JobRun) -> None:
        """Commit a run, begun or finished."""
        await self._database.write(
            (
                "INSERT OR REPLACE INTO job_run (id, job, due_at, started_at, finished_at, result, message) VALUES "
                "((SELECT id FROM job_run WHERE job = ? AND due_at = ?), ?, ?, ?, ?, ?, ?)",
                (run.job, run.due_at, run.job, run.due_at, run.started_at, run.finished_at, run.result, run.message),
            )
        )

    async def add_report(self, report: ReportRecord) -> None:
        """Commit that a report was written."""
        await self._database.write(
            (
                "INSERT INTO report (kind, period_start, period_end, made_at, path, verdict, mailed_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                tuple(asdict(report).values()),
            )
        )

    async def keep_rules(self, digest: str, text: str) -> None:
        """Keep the text of a rule set that came into force."""
        await self._database.write(
            (
                "INSERT OR IGNORE INTO rule_set (hash, first_at, text) VALUES (?, ?, ?)",
                (digest, self._clock.wall(), text),
            )
        )

    async def rules(self, digest: str) -> str | None:
        """The text of a rule set by its hash."""
        rows = await self._database.read("SELECT text FROM rule_set WHERE hash = ?", (digest,))
        return rows[0][0] if rows else None

    async def _hit(self, sql: str, parameters: Sequence[object]) -> bool:
        [rows] = await self._database.write((sql, parameters))
        return bool(rows)

    async def _actions(self, where: str, parameters: Sequence[object]) -> list[Action]:
        rows = await self._database.read(f"SELECT {ACTION} FROM action WHERE {where} ORDER BY id", parameters)
        items = [await self._database.read(f"{ITEMS} WHERE action = ? ORDER BY n", (row[0],)) for row in rows]
        return [action_of(row, its) for row, its in zip(rows, items, strict=True)]

    async def _items_changed(self, action: Action, columns: Mapping[str, object]) -> bool:
        """Whether plan or outcome differ from what is stored: items can be a hundred thousand, a status is one row."""
        rows = await self._database.read("SELECT plan, outcome FROM action WHERE id = ?", (action.id,))
        return bool(rows) and rows[0] != (columns["plan"], columns["outcome"])


# Rows to values and back; the reader uses these too.

ALERT = "rule, labels, state, value, active_since, fired_at, clear_since, missing"
ACTION = (
    "id, cause, rule, labels, fired_at, step, attempt, handler, params, resource, status, reason, verdict, plan, "
    "outcome, requested_at, started_at, finished_at, mode, extra"
)
ITEMS = "SELECT part, target, change, bytes, identity, result_n, result, result_bytes FROM action_item"
_INSERT_ITEM = (
    "INSERT INTO action_item (action, n, part, target, change, bytes, identity, result_n, result, result_bytes) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def action_of(row: Row, items: Sequence[Row]) -> Action:
    """An action from its row (:data:`ACTION`) and those of its items (:data:`ITEMS`)."""
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


def _alert_statements(alert: Alert, now: float) -> list[Statement]:
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


def _columns(action: Action) -> dict[str, object]:
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


def _insert(action: Action) -> Statement:
    columns = _columns(action) | {
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


def _item_rows(action: Action) -> Iterable[Row]:
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
