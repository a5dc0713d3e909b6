"""How long what is kept, and how the file keeps its size: always in small steps, so that a tick never waits long."""

from __future__ import annotations

from dataclasses import dataclass

from agent.store.chunk import WINDOW_S
from agent.store.compact import compact_oldest, hot_bytes
from agent.store.database import PAGE_BYTES, Database

DAY_S = 86400.0
HOT_S = DAY_S
"""Full resolution stays in hot rows for so long at most, then in chunks."""

HOT_AT_LEAST_S = 2 * 3600.0
"""Nor for less: a start reads the last hour from hot rows."""

BATCH_ROWS = 500
BATCH_CHUNKS = 20
BATCHES = 20
WINDOWS = 3
"""Windows that become chunks in one call: there is one in ten minutes, more after the agent was off."""

_SPARE_PAGES = 512
"""Free pages up to here stay in the file, to be used again; what is more goes back to the disk."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, by age in seconds and by the size of both files in bytes."""

    raw_s: float = 7 * DAY_S
    hot_s: float = HOT_S
    minutes_s: float = 30 * DAY_S
    hours_s: float = 730 * DAY_S
    events_s: float = 90 * DAY_S
    max_size_bytes: int = 1 << 30


async def compact(database: Database, limits: Retention, at: float) -> None:
    """Pack hot rows that are too old, or the oldest of those that fill more than half of the size; a few windows."""
    for _ in range(WINDOWS):
        crowded = await hot_bytes(database) > limits.max_size_bytes / 2
        if not await compact_oldest(database, at - (HOT_AT_LEAST_S if crowded else limits.hot_s)):
            break


async def prune(database: Database, limits: Retention, at: float, *, beside_bytes: int = 0) -> int:
    """Drop what is older than its age, then the oldest of what is over the size; at most a few thousand rows a call.

    Parameters
    ----------
    beside_bytes
        What else counts in the size: the other file.

    Returns
    -------
    int
        How many rows went.
    """
    oldest_kept = {
        "chunk": int((at - limits.raw_s) // WINDOW_S * WINDOW_S) * 1000,
        "tick": int((at - limits.raw_s) * 1_000_000),
        "minute": int(at - limits.minutes_s),
        "hour": int(at - limits.hours_s),
        "event": int((at - limits.events_s) * 1000),
    }
    gone = 0
    for table, before in oldest_kept.items():
        for _ in range(BATCHES):
            dropped = await drop_oldest(database, table, before)
            gone += dropped
            if not dropped:
                break
    for _ in range(BATCHES):
        if await used_bytes(database) + beside_bytes <= limits.max_size_bytes:
            break
        gone += await drop_something(database)
    await _shrink(database)
    return gone


async def drop_oldest(database: Database, table: str, before: int | None = None, rows: int = BATCH_ROWS) -> int:
    """Drop the oldest rows of one table, those before a key if given; return how many."""
    key = "at_ms" if table == "event" else "id"
    rows = min(rows, BATCH_CHUNKS) if table == "chunk" else rows
    limit, parameters = (f"WHERE {key} < ?", (before, rows)) if before is not None else ("", (rows,))
    [[], [(dropped,)]] = await database.write(
        (f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} {limit} ORDER BY {key} LIMIT ?)", parameters),
        ("SELECT changes()", ()),
    )
    return int(dropped)


async def drop_something(database: Database, rows: int = BATCH_ROWS) -> int:
    """Drop the oldest of what is cheapest to lose: full resolution first, then minutes, events, hours."""
    for table in ("chunk", "tick", "minute", "event", "hour"):
        dropped = await drop_oldest(database, table, rows=rows)
        if dropped:
            return dropped
    return 0


async def used_bytes(database: Database) -> int:
    """What the file's content takes; pages kept free for use again are not counted."""
    [(pages,)] = await database.read("PRAGMA page_count")
    [(free,)] = await database.read("PRAGMA freelist_count")
    return int(pages - free) * PAGE_BYTES


async def fence(database: Database, limits: Retention) -> None:
    """Forbid the file to grow beyond its size by more than a sixteenth, come what may."""
    await database.read(f"PRAGMA max_page_count = {limits.max_size_bytes * 17 // 16 // PAGE_BYTES}")


async def drop_unused_layouts(database: Database, in_use: list[int]) -> None:
    """Drop the layouts that no row names any more, and the series that no layout names.

    Parameters
    ----------
    in_use
        Layouts that rows to come may name.
    """
    marks = ",".join("?" * len(in_use))
    named = " UNION ".join(f"SELECT layout FROM {table}" for table in ("tick", "chunk", "minute", "hour"))
    await database.write(
        (f"DELETE FROM slot WHERE layout NOT IN ({named}) AND layout NOT IN ({marks})", in_use),
        ("DELETE FROM series WHERE id NOT IN (SELECT series FROM slot)", ()),
    )


async def _shrink(database: Database) -> None:
    [(free,)] = await database.read("PRAGMA freelist_count")
    if free > _SPARE_PAGES:
        await database.read(f"PRAGMA incremental_vacuum({min(free - _SPARE_PAGES, 4 * _SPARE_PAGES)})")
