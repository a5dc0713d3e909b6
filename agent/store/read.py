"""The reader's side: both files, read-only, for commands and reports, while the agent runs or not."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice, repeat
from operator import lt, truediv
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.errors import StoreError
from agent.model import Action, Alert, Event, Labels, Series, Severity, is_stale
from agent.store import chunk
from agent.store.chunk import WINDOW_S
from agent.store.rollup import decode_last
from agent.store.rows import ACTION, ALERT, ITEMS, PACKED_ITEMS, action_of, alert_of, items_of, unpacked_items
from agent.store.series import decode_labels, decode_values, encode_value
from agent.store.statement import BUSY_S, Row, lenient_text

if TYPE_CHECKING:
    from agent.promql.nodes import Matcher
    from agent.promql.values import Points

_WINDOW_MS = WINDOW_S * 1000

_OLDEST = """
SELECT (SELECT min(at) FROM (SELECT min(id) / 1000.0 AS at FROM chunk UNION ALL SELECT min(id) / 1e6 FROM tick)),
       (SELECT min(id) FROM minute), (SELECT min(id) FROM hour)
"""

# What the stock shell sees of ``samples`` is what is still in hot rows: only here is there a function for the rest.
_SAMPLES = """
CREATE TEMP VIEW samples AS
SELECT time, metric, labels, value FROM main.samples
UNION ALL
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', point.key / 1000.0, 'unixepoch'),
       series.metric,
       series.labels,
       CASE point.type WHEN 'text' THEN substr(point.value, 1, 3 + (point.value LIKE '_Inf')) ELSE point.value * 1.0 END
FROM main.series JOIN main.slot ON slot.series = series.id JOIN main.chunk ON chunk.layout = slot.layout
     JOIN json_each(chunk_values(chunk.data, slot.position)) AS point
WHERE point.type <> 'null'
"""

_ACTION_ITEMS = """
CREATE TEMP VIEW action_items AS
SELECT action AS action_id, n AS item, part, change, target, bytes, result, result_bytes AS bytes_removed
FROM ledger.action_item
UNION ALL
SELECT action, json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[3]'),
       json_extract(value, '$[2]'), json_extract(value, '$[4]'), json_extract(value, '$[7]'),
       json_extract(value, '$[8]')
FROM ledger.packed_items JOIN json_each(unpacked_items(items))
"""

READ_DEADLINE_S = 300.0
"""No statement reads longer: it would keep the log of the writer from being emptied (docs/decisions/023)."""

_STEPS_BETWEEN_LOOKS = 100_000
# A slot is in the table and in its index: where a disk changed one of them, its samples are nobody's.
_SLOTS = """
SELECT layout, position FROM slot INDEXED BY slot_series
WHERE series = ?1 AND (SELECT own.series FROM slot AS own NOT INDEXED
                       WHERE own.layout = slot.layout AND own.position = slot.position) = ?1
"""

_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info", "database_list"})
_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert as the ledger keeps it, with the instant at which it ended, if it did."""

    id: int
    alert: Alert
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Tier:
    """One resolution of what is kept: its view, its step in seconds (0: as sampled), and where it begins."""

    name: str
    step_s: float
    since: float


@dataclass(frozen=True, slots=True)
class _Column:
    """The points of one series as they are read."""

    labels: Labels
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def points(self) -> Points:
        """What was read, with rising instants: of what was written twice within a millisecond, the later counts."""
        from agent.promql.values import Points

        if all(map(lt, self.times, islice(self.times, 1, None))):
            return Points(self.labels, self.times, self.values)
        found: dict[float, float] = {}
        for at, value in zip(self.times, self.values, strict=True):
            if at not in found or not is_stale(value):  # a series that moved to another layout did not end in this one
                found[at] = value
        instants = sorted(found)
        return Points(self.labels, instants, [found[at] for at in instants])


class Reader:
    """A read-only view of a state directory; a PromQL source over all that is kept at full resolution.

    It needs no right to write anything, waits for no writer, and no writer waits for it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._until = math.inf
        connection.set_progress_handler(lambda: time.monotonic() > self._until, _STEPS_BETWEEN_LOOKS)

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
            connection.text_factory = lenient_text
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
                connection.execute("PRAGMA temp_store = MEMORY")  # first of all: it drops what is temporary
                if ledger.exists():
                    connection.execute("ATTACH ? AS ledger", (_uri(ledger),))
                    connection.create_function("unpacked_items", 1, unpacked_items, deterministic=True)
                    connection.execute(_ACTION_ITEMS)
                connection.create_function("chunk_values", 2, _chunk_values, deterministic=True)
                connection.execute(_SAMPLES)
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
        self._until = time.monotonic() + READ_DEADLINE_S
        try:
            cursor = self._connection.execute(query, parameters)
            rows = cursor.fetchall()
        except sqlite3.Error as error:
            raise StoreError(f'cannot run "{query}": {_why(error)}') from error
        return [column[0] for column in cursor.description or ()], rows

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
        """Every series that meets all matchers, with its points in the closed interval, in seconds.

        Where samples are no longer kept at full resolution there is one point a minute, before that one an hour: the
        last of each, at its end. :meth:`tiers` tells from when on.
        """
        from agent.promql.nodes import NAME  # most commands ask in SQL, and PromQL's types take long to make

        columns = {
            number: _Column(tuple(sorted(((NAME, one.metric), *one.labels)))) for number, one in self._series(matchers)
        }
        wanted: dict[int, list[tuple[int, _Column]]] = {}
        for number, column in columns.items():
            for layout, position in self._rows(_SLOTS, (number,)):
                wanted.setdefault(layout, []).append((position, column))
        self._roll_ups(wanted, start, end)
        first_ms, last_ms = math.ceil(start * 1000), math.floor(end * 1000)
        # One statement, so that rows which become a chunk meanwhile are seen once.
        rows = self._stream(
            "SELECT 0, id, layout, data FROM chunk WHERE id BETWEEN ?1 AND ?2 AND layout IN ({0}) UNION ALL "
            "SELECT 1, id, layout, vals FROM tick WHERE id BETWEEN ?3 AND ?4 AND layout IN ({0}) ORDER BY 1, 2".format(
                ",".join(map(str, wanted))
            ),
            (
                first_ms // _WINDOW_MS * _WINDOW_MS,
                last_ms // _WINDOW_MS * _WINDOW_MS + _WINDOW_MS - 1,
                first_ms * 1000,
                last_ms * 1000 + 999,
            ),
        )
        with closing(rows):  # an error here must not leave a statement open
            for hot, number, layout, data in rows:
                try:
                    if not hot:
                        _unpack(data, wanted[layout], first_ms, last_ms)
                        continue
                    values = decode_values(data)
                    for position, column in wanted[layout]:
                        column.values.append(values[position])
                        column.times.append(number // 1000 / 1000)
                except (struct.error, ValueError, IndexError) as error:
                    what, seconds = ("row", number / 1_000_000) if hot else ("chunk", number / 1000)
                    begun = datetime.fromtimestamp(seconds, UTC)
                    raise StoreError(f"cannot read the {what} of {begun:%Y-%m-%dT%H:%M:%SZ}: it is damaged") from error
        return [column.points() for column in columns.values() if column.times]

    def tiers(self) -> list[Tier]:
        """What is kept, finest first; each answers for the time before the finer one begins."""
        [(raw, minute, hour)] = self._rows(_OLDEST, ())
        found: list[Tier] = []
        for name, step_s, oldest in (("samples", 0.0, raw), ("minutes", 60.0, minute), ("hours", 3600.0, hour)):
            if oldest is not None and (not found or oldest + step_s <= found[-1].since):
                found.append(Tier(name, step_s, float(oldest)))
        return found

    def _roll_ups(self, wanted: dict[int, list[tuple[int, _Column]]], start: float, end: float) -> None:
        """Add what only minutes and hours tell, oldest first."""
        finer_from = math.inf
        stretches = []
        for tier in self.tiers():
            if tier.step_s and start < finer_from:
                stretches.append((tier, min(end, finer_from)))
            finer_from = tier.since
        for tier, until in reversed(stretches):
            # A point stands at the end of its minute (hour), and the finer tier begins within one of them.
            span = (math.ceil(start - tier.step_s), math.floor(until - tier.step_s))
            table, layouts = tier.name.removesuffix("s"), ",".join(map(str, wanted))
            rows = self._stream(
                f"SELECT id, layout, vals FROM {table} WHERE id BETWEEN ? AND ? AND layout IN ({layouts}) ORDER BY id",
                span,
            )
            with closing(rows):
                for begun, layout, vals in rows:
                    lasts = decode_last(vals)
                    for position, column in wanted[layout]:
                        if not is_stale(lasts[position]) or (column.values and not is_stale(column.values[-1])):
                            column.times.append(begun + tier.step_s)
                            column.values.append(lasts[position])

    def actions(self, *, since: float = 0.0, until: float = math.inf) -> list[Action]:
        """The actions requested in the closed interval, newest first."""
        rows = self._rows(
            f"SELECT {ACTION} FROM action WHERE requested_at BETWEEN ? AND ? ORDER BY id DESC", (since, until)
        )
        return [action_of(row, self._items(row[0])) for row in rows]

    def action(self, number: int) -> Action | None:
        """One action."""
        rows = self._rows(f"SELECT {ACTION} FROM action WHERE id = ?", (number,))
        return action_of(rows[0], self._items(number)) if rows else None

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
            try:
                named = {NAME: name, **json.loads(labels)}
            except ValueError as error:
                raise StoreError(f'cannot read the labels of series {number} of "{name}": they are damaged') from error
            if all(matcher.matches(named.get(matcher.name, "")) for matcher in matchers):
                found.append((number, Series(name, decode_labels(labels))))
        return found

    def _items(self, action: int) -> list[Row]:
        rows = self._rows(ITEMS, (action,))
        return items_of(rows, self._rows(PACKED_ITEMS, (action,)))

    def _stream(self, sql: str, parameters: Sequence[object]) -> Generator[Row, None, None]:
        """Rows as they are read, by a statement of our own."""
        self._until = time.monotonic() + READ_DEADLINE_S
        try:
            yield from self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise StoreError(f"cannot read samples: {_why(error)}") from error

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        return self.sql(sql, parameters)[1]


def _why(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
        return "the store is only read here"
    if code == sqlite3.SQLITE_INTERRUPT:
        return f"it took more than {READ_DEADLINE_S:g} s, and would keep the writer's log from being emptied"
    return str(error)


def _unpack(data: bytes, wanted: Iterable[tuple[int, _Column]], first_ms: int, last_ms: int) -> None:
    """Add what a chunk holds of some columns between two instants, both included."""
    instants = chunk.decode_integers(chunk.part(data, 0))
    low, high = bisect_left(instants, first_ms), bisect_right(instants, last_ms)
    times = array("d", map(truediv, instants[low:high], repeat(1000)))
    for position, column in wanted:
        column.times.extend(times)
        column.values.extend(chunk.decode_values(chunk.part(data, position + 1), len(instants))[low:high])


def _chunk_values(data: bytes, position: int) -> str:
    """One series of a chunk as a JSON object from its instants, in milliseconds, to its values."""
    instants = chunk.decode_integers(chunk.part(data, 0))
    values = chunk.decode_values(chunk.part(data, position + 1), len(instants))
    pairs = zip(instants, values, strict=True)
    return "{" + ",".join([f'"{instant}":{encode_value(value)}' for instant, value in pairs]) + "}"


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _only_reading(action: int, first: str | None, second: str | None, database: str | None, inner: str | None) -> int:
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
