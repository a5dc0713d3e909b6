"""The reader's side: both files, read-only, for commands and reports, while the agent runs or not."""

from __future__ import annotations

import json
import math
import sqlite3
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.errors import StoreError
from agent.model import Action, Alert, Event, Labels, Series, Severity
from agent.store.rows import ACTION, ALERT, ITEMS, action_of, alert_of
from agent.store.series import decode_labels, decode_values
from agent.store.statement import BUSY_S, Row

if TYPE_CHECKING:
    from agent.promql.nodes import Matcher
    from agent.promql.values import Points

_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info", "database_list"})
_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert as the ledger keeps it, with the instant at which it ended, if it did."""

    id: int
    alert: Alert
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class _Column:
    """The points of one series as they are read."""

    labels: Labels
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, at: float, value: float) -> None:
        if self.times and self.times[-1] == at:
            self.values[-1] = value  # written twice within a millisecond: the later one counts
        else:
            self.times.append(at)
            self.values.append(value)


class Reader:
    """A read-only view of a state directory; a PromQL source over the full-resolution rows.

    It needs no right to write anything, waits for no writer, and no writer waits for it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, state_dir: Path) -> Reader:
        """Open both files; a ledger that does not exist yet is left out.

        Raises
        ------
        StoreError
            There is no store, or it may not be read.
        """
        metrics, ledger = state_dir / "metrics.db", state_dir / "ledger.db"
        if not metrics.exists():
            raise StoreError(f'cannot read the store in "{state_dir}": there is no metrics.db')
        try:
            connection = sqlite3.connect(_uri(metrics), uri=True, timeout=BUSY_S, isolation_level=None)
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
                if ledger.exists():
                    connection.execute("ATTACH ? AS ledger", (_uri(ledger),))
                connection.execute("PRAGMA query_only = ON")
                connection.set_authorizer(_only_reading)
            except sqlite3.Error:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise StoreError(f'cannot read the store in "{state_dir}": {error}') from error
        return cls(connection)

    def sql(self, query: str, parameters: Sequence[object] = ()) -> tuple[list[str], list[Row]]:
        """Run one query over the views of both files; return the column names and the rows.

        Raises
        ------
        StoreError
            The query is wrong, or would change something.
        """
        try:
            cursor = self._connection.execute(query, parameters)
            rows = cursor.fetchall()
        except sqlite3.Error as error:
            denied = getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY)
            why = "the store is only read here" if denied else str(error)
            raise StoreError(f'cannot run "{query}": {why}') from error
        return [column[0] for column in cursor.description or ()], rows

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
        """Every series that meets all matchers, with its points in the closed interval, in seconds."""
        from agent.promql.nodes import NAME  # most commands ask in SQL, and PromQL's types take long to make
        from agent.promql.values import Points

        columns = {
            number: _Column(tuple(sorted(((NAME, one.metric), *one.labels)))) for number, one in self._series(matchers)
        }
        wanted: dict[int, list[tuple[int, _Column]]] = {}
        for number, column in columns.items():
            for layout, position in self._rows("SELECT layout, position FROM slot WHERE series = ?", (number,)):
                wanted.setdefault(layout, []).append((position, column))
        bounds = (math.ceil(start * 1000) * 1000, math.floor(end * 1000) * 1000 + 999)
        marks = ",".join(map(str, wanted))
        rows = self._connection.execute(
            f"SELECT id, layout, vals FROM tick WHERE id BETWEEN ? AND ? AND layout IN ({marks}) ORDER BY id", bounds
        )
        for number, layout, vals in rows:
            values = decode_values(vals)
            for position, column in wanted[layout]:
                column.add(number // 1000 / 1000, values[position])
        return [Points(column.labels, column.times, column.values) for column in columns.values() if column.times]

    def actions(self, *, since: float = 0.0, until: float = math.inf) -> list[Action]:
        """The actions requested in the closed interval, newest first."""
        rows = self._rows(
            f"SELECT {ACTION} FROM action WHERE requested_at BETWEEN ? AND ? ORDER BY id DESC", (since, until)
        )
        return [action_of(row, self._rows(f"{ITEMS} WHERE action = ? ORDER BY n", (row[0],))) for row in rows]

    def action(self, number: int) -> Action | None:
        """One action."""
        rows = self._rows(f"SELECT {ACTION} FROM action WHERE id = ?", (number,))
        found = [action_of(row, self._rows(f"{ITEMS} WHERE action = ? ORDER BY n", (row[0],))) for row in rows]
        return found[0] if found else None

    def alerts(self, *, since: float = 0.0, until: float = math.inf) -> list[AlertRecord]:
        """The alerts that were active at some instant of the closed interval, newest first."""
        rows = self._rows(
            f"SELECT id, ended_at, {ALERT} FROM alert WHERE active_since <= ? AND coalesce(ended_at, ?) >= ? "
            "ORDER BY active_since DESC, id DESC",
            (until, math.inf, since),
        )
        return [AlertRecord(number, alert_of(tuple(row)), ended_at) for number, ended_at, *row in rows]

    def events(self, *, since: float = 0.0, until: float = math.inf, kind: str = "", limit: int = -1) -> list[Event]:
        """The events of the closed interval, newest first, at most ``limit`` of them if it is not negative."""
        rows = self._rows(
            "SELECT kind, severity, message, source, at_ms, labels FROM event "
            "WHERE at_ms BETWEEN ? AND ? AND (? = '' OR kind = ?) ORDER BY at_ms DESC, id DESC LIMIT ?",
            (since * 1000, until * 1000, kind, kind, limit),
        )
        return [
            Event(kind, Severity(severity), message, source, at_ms / 1000, decode_labels(labels))
            for kind, severity, message, source, at_ms, labels in rows
        ]

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _series(self, matchers: Sequence[Matcher]) -> list[tuple[int, Series]]:
        from agent.promql.nodes import NAME, MatchOp

        metric = next((m.value for m in matchers if m.name == NAME and m.op is MatchOp.EQUAL), None)
        where, parameters = ("", ()) if metric is None else ("WHERE metric = ?", (metric,))
        found = []
        for number, name, labels in self._rows(f"SELECT id, metric, labels FROM series {where}", parameters):
            named = {NAME: name, **json.loads(labels)}
            if all(matcher.matches(named.get(matcher.name, "")) for matcher in matchers):
                found.append((number, Series(name, decode_labels(labels))))
        return found

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        return self.sql(sql, parameters)[1]


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _only_reading(action: int, first: str | None, second: str | None, database: str | None, inner: str | None) -> int:
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
