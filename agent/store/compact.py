"""Hot rows become chunks: window by window, oldest first, each layout of one in one transaction."""

from __future__ import annotations

import asyncio
import json
from array import array

from agent.store import chunk
from agent.store.chunk import WINDOW_S
from agent.store.database import Database
from agent.store.series import decode_values
from agent.store.statement import Row

_WINDOW_KEYS = WINDOW_S * 1_000_000
_DECODED_AT_ONCE = 64 << 10
"""Rows of so many characters are decoded at a time, half a millisecond, for ticks and log lines to come between."""

_INSERT = (
    "INSERT INTO chunk (id, layout, data) "
    "VALUES ((SELECT coalesce(max(id) + 1, ?) FROM chunk WHERE id >= ? AND id < ?), ?, ?)"
)


async def compact_oldest(database: Database, until: float) -> list[int]:
    """Move the oldest window of hot rows into chunks.

    The rows that went into a chunk, and only those, are deleted in the transaction that stores it: whenever the
    process ends, each sample is in one place.

    Returns
    -------
    list of int
        The size of each row that went, in characters; none when the window is not over before ``until``.
    """
    [(oldest,)] = await database.read("SELECT min(id) FROM tick")
    if oldest is None:
        return []
    start = oldest // _WINDOW_KEYS * _WINDOW_KEYS
    if start + _WINDOW_KEYS > until * 1_000_000:
        return []
    within = (start, start + _WINDOW_KEYS)
    first, after = within[0] // 1000, within[1] // 1000
    sizes: list[int] = []
    for (layout,) in await database.read("SELECT DISTINCT layout FROM tick WHERE id >= ? AND id < ?", within):
        rows = await database.read(
            "SELECT id, vals FROM tick WHERE id >= ? AND id < ? AND layout = ? ORDER BY id", (*within, layout)
        )
        packed = json.dumps([number for number, _ in rows])
        await database.write(
            (_INSERT, (first, first, after, layout, await _packed(rows))),
            ("DELETE FROM tick WHERE id IN (SELECT value FROM json_each(?))", (packed,)),
        )
        sizes += [len(vals) for _, vals in rows]
    return sizes


async def _packed(rows: list[Row]) -> bytes:
    """The chunk of the rows of one layout."""
    flat = array("d")
    at_once = max(1, _DECODED_AT_ONCE // len(rows[0][1]))
    for at in range(0, len(rows), at_once):
        for _, vals in rows[at : at + at_once]:
            flat.extend(decode_values(vals))
        await asyncio.sleep(0)
    width = len(flat) // len(rows)
    parts = [chunk.encode_integers([number // 1000 for number, _ in rows])]
    for position in range(width):
        parts.append(chunk.encode_values(flat[position::width]))
        await asyncio.sleep(0)
    return chunk.pack(parts)
