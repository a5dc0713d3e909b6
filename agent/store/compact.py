"""Hot rows become chunks: window by window, oldest first, each in one transaction."""

from __future__ import annotations

import asyncio
from array import array

from agent.store import chunk
from agent.store.chunk import WINDOW_S
from agent.store.database import Database
from agent.store.series import decode_values
from agent.store.statement import Many, Row, Statement

_WINDOW_KEYS = WINDOW_S * 1_000_000
_ROWS_AT_ONCE = 50
"""Rows are decoded so many at a time, half a millisecond, for ticks and log lines to come between."""

_INSERT = (
    "INSERT INTO chunk (id, layout, data) "
    "VALUES ((SELECT coalesce(max(id) + 1, ?) FROM chunk WHERE id >= ? AND id < ?), ?, ?)"
)


async def compact_oldest(database: Database, until: float) -> bool:
    """Move the oldest window of hot rows into chunks; false when it is not over before ``until``.

    The rows that went into the chunks, and only those, are deleted in the transaction that stores the chunks: whenever
    the process ends, each sample is in one place.
    """
    [(oldest,)] = await database.read("SELECT min(id) FROM tick")
    if oldest is None:
        return False
    start = oldest // _WINDOW_KEYS * _WINDOW_KEYS
    if start + _WINDOW_KEYS > until * 1_000_000:
        return False
    within = (start, start + _WINDOW_KEYS)
    layouts = await database.read("SELECT DISTINCT layout FROM tick WHERE id >= ? AND id < ?", within)
    inserts: list[Statement] = []
    packed: list[tuple[int]] = []
    first, after = within[0] // 1000, within[1] // 1000
    for (layout,) in layouts:
        rows = await database.read(
            "SELECT id, vals FROM tick WHERE id >= ? AND id < ? AND layout = ? ORDER BY id", (*within, layout)
        )
        inserts.append((_INSERT, (first, first, after, layout, await _packed(rows))))
        packed += [(number,) for number, _ in rows]
    await database.write(*inserts, Many("DELETE FROM tick WHERE id = ?", packed))
    return True


async def hot_bytes(database: Database) -> int:
    """About what the hot rows take: the density of the newest ten minutes over the time they span."""
    [(oldest, newest)] = await database.read("SELECT min(id), max(id) FROM tick")
    if oldest is None:
        return 0
    [(recent,)] = await database.read("SELECT sum(length(vals)) FROM tick WHERE id > ?", (newest - _WINDOW_KEYS,))
    return int(recent * max(1.0, (newest - oldest) / _WINDOW_KEYS))


async def _packed(rows: list[Row]) -> bytes:
    """The chunk of the rows of one layout."""
    flat = array("d")
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        for _, vals in rows[at : at + _ROWS_AT_ONCE]:
            flat.extend(decode_values(vals))
        await asyncio.sleep(0)
    width = len(flat) // len(rows)
    parts = [chunk.encode_integers([number // 1000 for number, _ in rows])]
    for position in range(width):
        parts.append(chunk.encode_values(flat[position::width]))
        await asyncio.sleep(0)
    return chunk.pack(parts)
