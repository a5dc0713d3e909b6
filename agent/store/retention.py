"""How long what is kept, and how metrics.db keeps its size: always in small steps, so that a tick never waits long."""

from __future__ import annotations

from dataclasses import dataclass

from agent.store.chunk import WINDOW_S
from agent.store.compact import compact_oldest
from agent.store.database import PAGE_BYTES, Database
from agent.store.survey import PAYLOADS, Survey

DAY_S = 86400.0
HOT_S = DAY_S
"""Full resolution stays in hot rows for so long at most, then in chunks."""

HOT_AT_LEAST_S = 2 * 3600.0
"""Nor for less: a start reads the last hour from hot rows."""

HOT_CROWDED_S = 1200.0
"""But where two hours fill half of the size, packing them is better than dropping them."""

STEP_BYTES = 256 << 10
"""What one transaction drops, about: some milliseconds of SQLite's thread, after which a tick's commit comes first.

Where the size is small it is less, so that a step is a small part of every share.
"""

STEPS = 64
"""For each table and call: sixteen megabytes, more than any host writes from one call to the next."""

CHECKPOINT_BYTES = 8 << 20
"""The log goes into the file at this size, or at a quarter of what the file may hold. Pages that many commits change
are written there once for all of them: with twice of what SQLite does by itself, a tenth less is written in a day."""

WINDOWS = 3
"""Windows that become chunks in one call: there is one in ten minutes, more after the agent was off."""

_SPARE_PAGES = 512
"""Free pages up to here stay in the file, to be used again; what is more goes back to the disk."""

_VACUUMED_AT_ONCE = 64
_LAYOUTS_AT_ONCE, _LAYOUTS_DROPPED_AT_ONCE, _SERIES_AT_ONCE = 500, 4, 500

# Each step of the recursion is a look-up of the next number: DISTINCT would read all slots.
_LAYOUTS = """
WITH RECURSIVE found (layout) AS (
    SELECT min(layout) FROM slot WHERE layout > ?
    UNION ALL
    SELECT (SELECT min(layout) FROM slot WHERE slot.layout > found.layout) FROM found WHERE layout IS NOT NULL
)
SELECT layout FROM found WHERE layout IS NOT NULL LIMIT ?
"""
_DROP_SERIES = """
DELETE FROM series WHERE id >= ? AND id < ? AND NOT EXISTS (SELECT 1 FROM slot WHERE slot.series = series.id)
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, by age in seconds and by the size of both files in bytes."""

    raw_s: float = 7 * DAY_S
    hot_s: float = HOT_S
    minutes_s: float = 30 * DAY_S
    hours_s: float = 730 * DAY_S
    events_s: float = 90 * DAY_S
    max_size_bytes: int = 1 << 30
    max_series: int = 20_000


@dataclass(frozen=True, slots=True)
class Tier:
    """What loses its oldest rows together: its tables, the oldest rows' first, and its sixteenths of the size.

    A tier may fill what others leave free. When room is needed, the one that is furthest above its share gives it, so
    that none can push out another one: neither a flood of events the samples, nor minutes the hours.
    """

    tables: tuple[str, ...]
    sixteenths: int


TIERS = (
    Tier(("relived", "chunk", "tick"), 8),
    Tier(("minute",), 3),
    Tier(("event",), 2),
    Tier(("hour",), 1),
)
"""The other two sixteenths are the ledger's and the names'."""

LEDGER_SIXTEENTHS = 1
LEDGER_LEAST_BYTES = 512 << 10


class Keeper:
    """Packs, drops and gives back, so that metrics.db holds what it should and no more.

    Parameters
    ----------
    database
        metrics.db.
    limits
        What is kept.
    """

    def __init__(self, database: Database, limits: Retention) -> None:
        self._database = database
        self._limits = limits
        self._survey = Survey(database)
        self._begun = False

    async def maintain(self, at: float, *, beside_bytes: int = 0) -> None:
        """Pack old rows, drop what is too old, then the oldest of what is too much; to be called once a minute.

        Parameters
        ----------
        at
            The wall clock.
        beside_bytes
            What else counts in the size: the other file.
        """
        # However much is beside: of what the copies take they give back themselves.
        beside_bytes = min(beside_bytes, self._limits.max_size_bytes // 2)
        await self._survey.look(again=not self._begun)
        self._begun = True
        await self.fence(beside_bytes)
        await self._compact(at)
        await self._drop_old(at)
        await self._drop_above(self._limits.max_size_bytes * 15 // 16 - beside_bytes)
        spare = min(_SPARE_PAGES, self._limits.max_size_bytes // PAGE_BYTES // 32)
        await shrink(self._database, spare_pages=spare)

    async def begin(self) -> None:
        """Set the bounds that SQLite itself keeps."""
        log_bytes = min(CHECKPOINT_BYTES, self._limits.max_size_bytes // 4)
        await self._database.read(f"PRAGMA wal_autocheckpoint = {max(log_bytes // PAGE_BYTES, 1)}")
        await self.fence()

    async def fence(self, beside_bytes: int = 0) -> None:
        """Forbid the file to grow beyond its size, come what may; SQLite takes no less than it has now."""
        pages = (self._limits.max_size_bytes - beside_bytes) // PAGE_BYTES
        await self._database.read(f"PRAGMA max_page_count = {max(pages, 1)}")

    async def make_room(self) -> bool:
        """One step, when the disk or the file is full; false when there is nothing to drop."""
        return await self._drop_from_fullest(min(STEP_BYTES, self._limits.max_size_bytes // 8))

    async def used_layouts(self) -> set[int]:
        """The layouts that rows name: counts everything anew."""
        self._begun = True
        return await self._survey.look(again=True)

    async def drop_names(self, in_use: set[int], made_later: int) -> list[int]:
        """Drop the layouts that are not in use, and the series that no layout names then.

        Parameters
        ----------
        in_use
            The layouts that rows name, or may come to name.
        made_later
            Layouts from this number on are newer than that set, and stay.

        Returns
        -------
        list of int
            The numbers of the series that went.
        """
        layout = -1
        while found := await self._database.read(_LAYOUTS, (layout, _LAYOUTS_AT_ONCE)):
            layout = found[-1][0]
            unused = [number for (number,) in found if number not in in_use and number < made_later]
            for first in range(0, len(unused), _LAYOUTS_DROPPED_AT_ONCE):
                await self._database.write(_delete_slots(unused[first : first + _LAYOUTS_DROPPED_AT_ONCE]))
        gone: list[int] = []
        [(last,)] = await self._database.read("SELECT coalesce(max(id), 0) FROM series")
        for first in range(0, last + 1, _SERIES_AT_ONCE):
            [dropped] = await self._database.write((_DROP_SERIES, (first, first + _SERIES_AT_ONCE)))
            gone += [number for (number,) in dropped]
        return gone

    def hot_bytes(self) -> int:
        """About what the hot rows take."""
        return self._survey.held("tick")

    def held_bytes(self, tier: Tier) -> int:
        """About what a tier takes."""
        return sum(map(self._survey.held, tier.tables))

    async def _compact(self, at: float) -> None:
        """Pack hot rows that are too old, or the oldest of those that fill more than half of the size."""
        limits = self._limits
        for _ in range(WINDOWS):
            crowded = self.hot_bytes() > limits.max_size_bytes // 2
            until = at - (HOT_AT_LEAST_S if crowded else limits.hot_s)
            sizes = await compact_oldest(self._database, until)
            if not sizes and crowded:
                sizes = await compact_oldest(self._database, at - HOT_CROWDED_S)
            if not sizes:
                break
            self._survey.lost("tick", sizes)

    async def _drop_old(self, at: float) -> None:
        limits = self._limits
        oldest_kept = {
            "chunk": int((at - limits.raw_s) // WINDOW_S * WINDOW_S) * 1000,
            "tick": int((at - limits.raw_s) * 1_000_000),
            "minute": int(at - limits.minutes_s),
            "hour": int(at - limits.hours_s),
            "event": int((at - limits.events_s) * 1000),
        }
        for table, before in oldest_kept.items():
            for _ in range(STEPS):
                if not await self._drop(table, before):
                    break

    async def _drop_above(self, most_bytes: int) -> None:
        for _ in range(STEPS):
            if await used_bytes(self._database) <= most_bytes or not await self._drop_from_fullest():
                break

    async def _drop_from_fullest(self, step_bytes: int = 0) -> bool:
        """A step from the tier that is furthest above its share; from the next one where it has no rows."""
        for tier in sorted(TIERS, key=lambda each: self.held_bytes(each) / each.sixteenths, reverse=True):
            for table in tier.tables:
                if await self._drop(table, step_bytes=step_bytes):
                    return True
        return False

    async def _drop(self, table: str, before: int | None = None, *, step_bytes: int = 0) -> bool:
        """Drop a step's worth of a table's oldest rows, those before a key if given; whether there were any."""
        key = "at_ms" if table in ("event", "relived") else "id"
        rows = self._survey.rows_in(table, step_bytes or min(STEP_BYTES, self._limits.max_size_bytes // 512))
        limit, parameters = (f"WHERE {key} < ?", (before, rows)) if before is not None else ("", (rows,))
        if before is not None and not await self._database.read(f"SELECT 1 FROM {table} {limit} LIMIT ?", (before, 1)):
            return False
        oldest = f"SELECT rowid FROM {table} {limit} ORDER BY {key} LIMIT ?"
        [dropped] = await self._database.write(
            (f"DELETE FROM {table} WHERE rowid IN ({oldest}) RETURNING {PAYLOADS[table]}", parameters)
        )
        self._survey.lost(table, [payload for (payload,) in dropped])
        return bool(dropped)


async def shrink(database: Database, *, spare_pages: int, steps: int = STEPS) -> None:
    """Give free pages back to the disk, a few at a time: each is filled with the file's last page."""
    [(free,)] = await database.read("PRAGMA freelist_count")
    steps = min(steps, (free - spare_pages) // _VACUUMED_AT_ONCE)
    for _ in range(steps):
        await database.read(f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})")
    if steps > 0:
        await database.checkpoint()  # until then the file is as long as it was


def ledger_share(limits: Retention) -> int:
    """Beyond this the ledger packs items at once, and drops the oldest."""
    return max(LEDGER_LEAST_BYTES, limits.max_size_bytes * LEDGER_SIXTEENTHS // 16)


async def used_bytes(database: Database) -> int:
    """What the file's content takes; pages kept free for use again are not counted."""
    [(pages,)] = await database.read("PRAGMA page_count")
    [(free,)] = await database.read("PRAGMA freelist_count")
    return int(pages - free) * PAGE_BYTES


async def file_bytes(database: Database) -> int:
    """What the file takes, free pages included."""
    [(pages,)] = await database.read("PRAGMA page_count")
    return int(pages) * PAGE_BYTES


def _delete_slots(layouts: list[int]) -> tuple[str, list[int]]:
    return f"DELETE FROM slot WHERE layout IN ({','.join('?' * len(layouts))})", layouts
