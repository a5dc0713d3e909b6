"""What each table of metrics.db takes, counted row by row in small steps, and which layouts its rows name."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent.store.database import PAGE_BYTES, Database
from agent.store.statement import Row

PAYLOADS = {
    "tick": "length(vals)",
    "chunk": "length(data)",
    "minute": "length(vals) + length(counts)",
    "hour": "length(vals) + length(counts)",
    "relived": "length(vals)",
    "event": "length(kind) + length(source) + length(message) + length(labels) + 50",
}
"""What a row holds, in bytes, for each table that grows; the event's 50 are its index and its other columns.

Ticks come first: whoever walks the tables in this order meets a row that is packed or moved meanwhile, if not twice.
"""

STEP_BYTES = 512 << 10
"""A step reads so much, half a millisecond: a tick that comes meanwhile waits for no longer."""

_FIRST_ROWS, _MOST_ROWS = 64, 500
_BEFORE_ALL = -(1 << 63)
_ROW_BYTES = 13
"""Of a row beside its content: lengths, key, types, and its entry in the page's index of cells."""

# https://www.sqlite.org/fileformat2.html, "B-tree pages": what a page has room for, and what of a larger row stays.
_ROOM = PAGE_BYTES - 8
_MOST_LOCAL = PAGE_BYTES - 35
_LEAST_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
_OVERFLOW_ROOM = PAGE_BYTES - 4


def on_pages(payload: int) -> int:
    """The bytes of pages that a row takes among others of its size: its share of a leaf, and its overflow pages.

    A page holds a whole number of rows, so one of 2,100 bytes takes as much as one of 4,000.
    """
    if payload <= _MOST_LOCAL:
        return PAGE_BYTES // (_ROOM // (payload + _ROW_BYTES))
    local = _LEAST_LOCAL + (payload - _LEAST_LOCAL) % _OVERFLOW_ROOM
    if local > _MOST_LOCAL:
        local = _LEAST_LOCAL
    overflow = -((local - payload) // _OVERFLOW_ROOM)
    return PAGE_BYTES // (_ROOM // (local + _ROW_BYTES)) + PAGE_BYTES * overflow


class Survey:
    """Rows and bytes by table. Whoever deletes says so; what comes is met by its key at the next look.

    A row that comes with an earlier key, after the clock stepped back, is met by the next whole look.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen = dict.fromkeys(PAYLOADS, _BEFORE_ALL)
        self._rows = dict.fromkeys(PAYLOADS, 0)
        self._bytes = dict.fromkeys(PAYLOADS, 0)

    def held(self, table: str) -> int:
        """About how many bytes of pages the rows of a table take."""
        return self._bytes[table]

    def rows_in(self, table: str, size: int) -> int:
        """About how many of the table's rows take so many bytes; at least one."""
        if not self._rows[table]:
            return _FIRST_ROWS
        return max(1, size * self._rows[table] // max(1, self._bytes[table]))

    def lost(self, table: str, payloads: list[int]) -> None:
        """Rows with these payloads were deleted."""
        self._rows[table] = max(0, self._rows[table] - len(payloads))
        self._bytes[table] = max(0, self._bytes[table] - sum(map(on_pages, payloads)))

    async def look(self, *, again: bool = False) -> set[int]:
        """Count what came since the last look, or everything; return the layouts of the rows that were counted."""
        named: set[int] = set()
        for table in PAYLOADS:
            if again:
                self._seen[table], self._rows[table], self._bytes[table] = _BEFORE_ALL, 0, 0
            async for rows in self._steps(table):
                named.update(layout for _, layout, _ in rows)
                self._rows[table] += len(rows)
                self._bytes[table] += sum(on_pages(payload) for *_, payload in rows)
        return named

    async def _steps(self, table: str) -> AsyncIterator[list[Row]]:
        layout, most = "0" if table == "event" else "layout", _FIRST_ROWS
        statement = f"SELECT rowid, {layout}, {PAYLOADS[table]} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
        while rows := await self._database.read(statement, (self._seen[table], most)):
            self._seen[table] = rows[-1][0]
            yield rows
            if len(rows) < most:
                return
            most = min(_MOST_ROWS, max(1, STEP_BYTES * len(rows) // sum(payload for *_, payload in rows)))
