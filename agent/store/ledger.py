"""What was judged and what was done about it: alerts, actions, silences, circuits, job runs, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from agent.clock import Clock, boot_id
from agent.errors import StoreError
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    Labels,
    Verdict,
)
from agent.store.database import Database
from agent.store.retention import DAY_S, shrink, used_bytes
from agent.store.rows import (
    ACTION,
    ALERT,
    INSERT_ITEM,
    ITEMS,
    PACKED_ITEMS,
    action_of,
    alert_of,
    alert_statements,
    columns_of,
    insert_action,
    item_rows,
    items_of,
    pack_items,
)
from agent.store.series import encode_labels
from agent.store.statement import Many, Row, Statement

OPEN = (ActionStatus.REQUESTED, ActionStatus.AWAITING_APPROVAL, ActionStatus.RUNNING, ActionStatus.VERIFYING)

PACK_AFTER_S = 3 * DAY_S
"""Items of an action that ended are rows, which every shell reads, for so long; then packed, a tenth of the size."""

ITEMS_KEPT_S = 400 * DAY_S
"""Then they go. What an action planned and achieved in numbers stays for good."""

_PACKED_AT_ONCE = 1000
"""Some five milliseconds: an alert's commit comes in between."""

_STEPS = 20
_SPARE_PAGES = 256
_OPEN_SQL = "status IN ('requested', 'awaiting_approval', 'running', 'verifying')"

# Which actions have rows is looked up number by number: DISTINCT would read all items.
_TO_PACK = f"""
WITH RECURSIVE found (action) AS (
    SELECT min(action) FROM action_item
    UNION ALL
    SELECT (SELECT min(action) FROM action_item WHERE action_item.action > found.action) FROM found
    WHERE action IS NOT NULL
)
SELECT action FROM found JOIN action ON id = action
WHERE NOT {_OPEN_SQL} AND coalesce(finished_at, requested_at) <= ? LIMIT 1
"""
_DROP_PACKED = """
DELETE FROM packed_items WHERE rowid IN (
    SELECT packed_items.rowid FROM packed_items JOIN action ON action.id = packed_items.action
    WHERE packed_items.action = (SELECT min(action) FROM packed_items) AND requested_at < ? LIMIT 8
) RETURNING action
"""


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
            statements += alert_statements(alert, now)
        first = sum(not isinstance(statement, Many) for statement in statements)
        inserted = [insert_action(action) for action in requests]
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

    async def save_action(self, action: Action, requests: Sequence[Action] = ()) -> None:
        """Commit what became of an action: its intent before it is carried out, its outcome, its verdict.

        Parameters
        ----------
        action
            One that the ledger has.
        requests
            The actions that follow from it, in the same transaction; one that was requested before is left as it is.

        Raises
        ------
        StoreError
            Also when there is no such action.
        """
        columns = columns_of(action)
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
            statements.append(("DELETE FROM packed_items WHERE action = ?", (action.id,)))
            statements.append(Many(INSERT_ITEM, list(item_rows(action))))
        statements += map(insert_action, requests)
        saved, *_ = await self._database.write(*statements)
        if not saved:
            raise StoreError(f"cannot save action {action.id}: the ledger has no such action")

    async def episode(self, rule: str, labels: Labels, fired_at: float) -> list[Action]:
        """What one alert asked for since it began to fire, oldest first, without the items."""
        where = "rule <> '' AND rule = ? AND labels = ? AND fired_at = ?"
        rows = await self._database.read(
            f"SELECT {ACTION} FROM action WHERE {where} ORDER BY id", (rule, encode_labels(labels), fired_at)
        )
        return [action_of(row, ()) for row in rows]

    async def notes(self, after: int) -> list[Action]:
        """The `notify` steps of jobs and people with a later id, in whatever state, oldest first, without the items."""
        rows = await self._database.read(
            f"SELECT {ACTION} FROM action WHERE id > ? AND handler = 'notify' AND rule = '' ORDER BY id", (after,)
        )
        return [action_of(row, ()) for row in rows]

    async def last_note(self) -> int:
        """The id after which :meth:`notes` finds nothing yet."""
        [(number,)] = await self._database.read("SELECT coalesce(max(id), 0) FROM action")
        return int(number)

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

    async def keep_rules(self, digest: str, text: str, by: str = "start") -> None:
        """Keep the text of a rule set that came into force, when, and by whose word; once while it stays in force."""
        now = self._clock.wall()
        await self._database.write(
            ("INSERT OR IGNORE INTO rule_set (hash, first_at, text) VALUES (?, ?, ?)", (digest, now, text)),
            (
                "INSERT INTO rule_use (at, hash, by) SELECT ?, ?, ? "
                "WHERE ? IS NOT (SELECT hash FROM rule_use ORDER BY id DESC LIMIT 1)",
                (now, digest, by, digest),
            ),
        )

    async def last_rules(self) -> tuple[str, str] | None:
        """Hash and text of the rule set that came into force last."""
        rows = await self._database.read(
            "SELECT hash, text FROM rule_use JOIN rule_set USING (hash) ORDER BY rule_use.id DESC LIMIT 1"
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def mark_alert(self, number: int, *, useful: bool, why: str, by: str) -> bool:
        """Commit what a person says of an alert; false when there is none of that id."""
        return await self._hit(
            "INSERT INTO alert_mark (alert, useful, why, by, at) SELECT id, ?, ?, ?, ? FROM alert WHERE id = ? "
            "RETURNING id",
            (useful, why, by, self._clock.wall(), number),
        )

    async def rules(self, digest: str) -> str | None:
        """The text of a rule set by its hash."""
        rows = await self._database.read("SELECT text FROM rule_set WHERE hash = ?", (digest,))
        return rows[0][0] if rows else None

    async def maintain(self, at: float, *, share_bytes: int) -> None:
        """Pack items that are some days old and drop those that are too old; to be called about once a minute.

        Where the file is larger than its share of the store's size, items are packed at once, and then the oldest go.
        """
        packed_before = at - PACK_AFTER_S
        for _ in range(_STEPS):
            crowded = await used_bytes(self._database) > share_bytes
            if await self._drop_items(at - ITEMS_KEPT_S) or await self._pack_items(at if crowded else packed_before):
                continue
            if not crowded or not await self._drop_items(at):
                break
        await shrink(self._database, spare_pages=_SPARE_PAGES, steps=_STEPS)

    async def _pack_items(self, before: float) -> bool:
        """Pack some items of the first action that ended before an instant; false when there is none."""
        found = await self._database.read(_TO_PACK, (before,))
        if not found:
            return False
        [(action,)] = found
        rows = await self._database.read(f"{ITEMS} ORDER BY n LIMIT ?", (action, _PACKED_AT_ONCE))
        await self._database.write(
            ("INSERT INTO packed_items VALUES (?, ?, ?, ?)", (action, rows[0][0], len(rows), pack_items(rows))),
            ("DELETE FROM action_item WHERE action = ? AND n BETWEEN ? AND ?", (action, rows[0][0], rows[-1][0])),
        )
        return True

    async def _drop_items(self, before: float) -> bool:
        """Drop some packed items of the oldest action, if it was asked for before an instant."""
        return await self._hit(_DROP_PACKED, (before,))

    async def _hit(self, sql: str, parameters: Sequence[object]) -> bool:
        [rows] = await self._database.write((sql, parameters))
        return bool(rows)

    async def _actions(self, where: str, parameters: Sequence[object]) -> list[Action]:
        rows = await self._database.read(f"SELECT {ACTION} FROM action WHERE {where} ORDER BY id", parameters)
        return [action_of(row, await self._items(row[0])) for row in rows]

    async def _items(self, action: int) -> list[Row]:
        rows = await self._database.read(ITEMS, (action,))
        return items_of(rows, await self._database.read(PACKED_ITEMS, (action,)))

    async def _items_changed(self, action: Action, columns: Mapping[str, object]) -> bool:
        """Whether plan or outcome differ from what is stored: items can be a hundred thousand, a status is one row."""
        rows = await self._database.read("SELECT plan, outcome FROM action WHERE id = ?", (action.id,))
        return bool(rows) and rows[0] != (columns["plan"], columns["outcome"])
