"""Hot rows become chunks: window by window, oldest first, each in one transaction."""

from __future__ import annotations

import asyncio
import json
import logging
from array import array

from agent.store import chunk
from agent.store.chunk import WINDOW_S
from agent.store.database import Database
from agent.store.series import decode_values
from agent.store.statement import Row, Statement

log = logging.getLogger(__name__)

_WINDOW_KEYS = WINDOW_S * 1_000_000
_DECODED_AT_ONCE = 64 << 10
"""Rows of so many characters are decoded at a time, half a millisecond, for ticks and log lines to come between."""

_INSERT = (
    "INSERT INTO chunk (id, layout, data) "
    "VALUES ((SELECT coalesce(max(id) + 1, ?) FROM chunk WHERE id >= ? AND id < ?), ?, ?)"
)


async def compact_oldest(database: Database, until: float) -> list[int]:
    """Move the oldest window of hot rows into chunks.

    The rows that went into chunks, and only those, are deleted in the transaction that stores the chunks: whenever the
    process ends, each sample is in one place. Layouts share pages, so that one transaction for each of them would
    write every page of the window as often.

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
    inserts: list[Statement] = []
    packed: list[int] = []
    sizes: list[int] = []
    for (layout,) in await database.read("SELECT DISTINCT layout FROM tick WHERE id >= ? AND id < ?", within):
        rows = await database.read(
            "SELECT id, vals FROM tick WHERE id >= ? AND id < ? AND layout = ? ORDER BY id", (*within, layout)
        )
        [(width,)] = await database.read("SELECT count(*) FROM slot WHERE layout = ?", (layout,))
        if data := await _packed(rows, width):
            inserts.append((_INSERT, (first, first, after, layout, data)))
        packed += [number for number, _ in rows]
        sizes += [len(vals) for _, vals in rows]
    gone = json.dumps(sorted(packed))
    await database.write(*inserts, ("DELETE FROM tick WHERE id IN (SELECT value FROM json_each(?))", (gone,)))
    return sizes


async def _packed(rows: list[Row], width: int) -> bytes | None:
    """The chunk of those rows of one layout, of so many series, that can be read."""
    flat, instants = array("d"), list[int]()
    at_once = max(1, _DECODED_AT_ONCE // len(rows[0][1]))
    for at in range(0, len(rows), at_once):
        for number, vals in rows[at : at + at_once]:
            try:
                values = decode_values(vals)
                if len(values) != width:
                    raise ValueError(f"{len(values)} values for {width} series")
            except ValueError as error:
                # It goes with the others, which must not wait for it for ever.
                log.error("row_damaged at=%s error=%s", number / 1_000_000, error)
                continue
            flat.extend(values)
            instants.append(number // 1000)
        await asyncio.sleep(0)
    if not instants:
        return None
    parts = [chunk.encode_integers(instants)]
    for position in range(width):
        parts.append(chunk.encode_values(flat[position::width]))
        await asyncio.sleep(0)
    return chunk.pack(parts)
