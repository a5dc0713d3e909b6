"""Stretches in which the wall clock ran evenly, and what becomes of time that is lived twice.

Rows are keyed by the wall clock. Set back, it passes instants again that rows are stored under. As it passes them, and
no sooner, the rows of the first run move into a table of their own: whoever asks finds each instant once, nothing is
lost, and a clock that was only wrong for a minute, or begins at 1970 until the network is there, moves next to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from agent.clock import Clock, boot_id
from agent.errors import StoreError
from agent.store.database import Database
from agent.store.statement import Statement

log = logging.getLogger(__name__)

_AHEAD = """
SELECT min(at_ms), max(at_ms) FROM (
    SELECT min(id) / 1000 AS at_ms FROM tick WHERE id >= (?1 + 1) * 1000 UNION ALL
    SELECT max(id) / 1000 FROM tick UNION ALL
    SELECT min(id) FROM chunk WHERE id > ?1 UNION ALL
    SELECT max(id) FROM chunk
) WHERE at_ms > ?1
"""
_TICKS = "tick WHERE id >= ? * 1000 AND id < (? + 1) * 1000"
_CHUNKS = "chunk WHERE id BETWEEN ? AND ?"


class Way(NamedTuple):
    """What moves the rows of the first run that lie before an instant, which is in milliseconds."""

    statements: Sequence[Statement]
    until_ms: int


class Epochs:
    """What ``Metrics`` asks before it stores rows.

    Parameters
    ----------
    clock
        The wall clock that rows are keyed by.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._number = 0
        self._passed_ms = self._until_ms = 0

    async def begin(self, why: str, seconds: float = 0.0) -> None:
        """Begin a stretch: the agent ``started``, the clock was ``stepped`` by, or the host ``resumed`` after, so long.

        Instants that the file already holds rows for count as lived before from now on. A file that cannot take the
        row of the stretch itself keeps nobody from going on.
        """
        now_ms = self._now_ms()
        [(first_ms, last_ms)] = await self._database.read(_AHEAD, (now_ms,))
        self._passed_ms, self._until_ms = (now_ms, now_ms) if first_ms is None else (first_ms - 1, last_ms)
        try:
            [[(self._number,)]] = await self._database.write(
                (
                    "INSERT INTO epoch (why, seconds, at_ms, boot_id, boot_ms) VALUES (?, ?, ?, ?, ?) RETURNING id",
                    (why, round(seconds, 3), now_ms, boot_id(), round(self._clock.boot() * 1000)),
                )
            )
        except StoreError as error:
            log.warning("epoch_not_stored why=%s error=%s", why, error)

    def make_way(self) -> Way:
        """What moves rows of the first run out of the way up to this moment; nothing unless time is lived again.

        To be carried out in the transaction that stores the next rows, and then told to :meth:`passed`.
        """
        now_ms = self._now_ms()
        if self._passed_ms >= min(self._until_ms, now_ms):
            return Way((), self._passed_ms)
        span = (self._passed_ms + 1, now_ms)
        return Way(
            (
                (f"INSERT INTO relived SELECT ?, id / 1000, layout, vals FROM {_TICKS}", (self._number, *span)),
                (f"INSERT INTO relived SELECT ?, id, layout, data FROM {_CHUNKS}", (self._number, *span)),
                (f"DELETE FROM {_TICKS}", span),
                (f"DELETE FROM {_CHUNKS}", span),
            ),
            now_ms,
        )

    def passed(self, way: Way) -> None:
        """What :meth:`make_way` gave was carried out."""
        self._passed_ms = way.until_ms

    async def prune(self, relived_s: float, epochs_s: float) -> None:
        """Drop what is older than its age: rows of time that was lived again, and the stretches themselves."""
        for table, age_s in (("relived", relived_s), ("epoch", epochs_s)):
            await self._database.write((f"DELETE FROM {table} WHERE at_ms < ?", (self._now_ms() - age_s * 1000,)))

    def _now_ms(self) -> int:
        return round(self._clock.wall() * 1000)
