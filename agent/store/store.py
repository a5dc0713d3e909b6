"""Both files of a state directory as one: opened, looked after and closed together."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from agent.clock import Clock
from agent.errors import StoreError
from agent.model import Event, Severity, make_labels
from agent.store.cap import first_start, remember
from agent.store.copies import FORWARD_KEPT_S, Copies, ledger_copies
from agent.store.database import LEDGER, METRICS, Database, StateLock
from agent.store.forget import Forgotten, forget
from agent.store.ledger import Ledger
from agent.store.metrics import Metrics
from agent.store.retention import DAY_S, Retention, file_bytes, ledger_share, used_bytes
from agent.store.wal import Wal
from agent.store.watch import Watch

log = logging.getLogger(__name__)

_UNTOLD = 100
"""Events that wait while the file takes none."""


class Store:
    """Both files of a state directory, held by this process alone.

    Attributes
    ----------
    metrics, ledger
        What is measured; what is judged and done.
    notices
        What was found wrong at opening and mended: events to record, once there is somebody to tell.
    ledger_lost
        The ledger was damaged and a new one begun: nothing may act until a person has looked.
    copies
        What is copied of the files, and how that went.
    watch
        What is said of the store's own limits.
    """

    def __init__(
        self,
        lock: StateLock,
        files: tuple[Database, Database],
        metrics: Metrics,
        ledger: Ledger,
        copies: Copies,
        limits: Retention,
    ) -> None:
        self.metrics, self.ledger, self.copies = metrics, ledger, copies
        self.watch = Watch(metrics, Wal(files[1]))
        self.notices: list[Event] = []
        self._limits = limits
        self._tidied = float("-inf")
        self._untold: list[Event] = []
        self.ledger_lost = files[1].set_aside is not None
        self._lock, self._files = lock, files

    @classmethod
    async def open(cls, state_dir: Path, *, clock: Clock, limits: Retention) -> Store:
        """Take the state directory, open both files or make them, and read the last hour into memory.

        Raises
        ------
        StoreBusyError
            Another agent holds the directory.
        StoreError
            A file is from a newer version, or cannot be opened or made.
        """
        lock = StateLock(state_dir)
        cap = first_start(state_dir, clock.wall())
        limits = replace(limits, max_size_bytes=cap.most(limits.max_size_bytes))
        opened: list[Database] = []
        try:
            for schema in (METRICS, LEDGER):
                opened.append(await Database.open(state_dir / f"{schema.name}.db", schema, clock.wall()))
            metrics = await Metrics.open(opened[0], clock=clock, limits=limits)
        except BaseException:
            for file in opened:
                await file.close()
            lock.release()
            raise
        remember(state_dir, cap)
        copies = Copies(state_dir, limits.max_size_bytes)
        store = cls(lock, (opened[0], opened[1]), metrics, Ledger(opened[1], clock=clock), copies, limits)
        store.notices = [notice for file in opened for notice in _notices(file, clock.wall())]
        if metrics.damaged_rows:
            message = f"{metrics.damaged_rows} rows of metrics.db are not what was written, and were passed over"
            store.notices.append(Event("rows_damaged", Severity.ERROR, message, "store", clock.wall()))
        return store

    async def maintain(self, at: float) -> None:
        """Roll-ups, packing, pruning, copies, ballast: to be called about once a minute, with the wall clock."""
        ledger = self._files[1]
        store_bytes = await used_bytes(ledger) + await self.metrics.size_bytes()
        self._untold += await self.watch.look(at, store_bytes)
        try:
            if not self._tidied <= at < self._tidied + DAY_S:
                self._tidied = at
                await self.metrics.tidy()
            await self.ledger.maintain(at, share_bytes=ledger_share(self._limits))
        except StoreError as error:
            log.warning("store_not_tidied error=%s", error)  # a full disk: what makes room comes next
        self._untold += await self.copies.maintain(at, store_bytes)
        await self.metrics.maintain(at, beside_bytes=await file_bytes(ledger) + self.copies.bytes())
        ledger.restore_ballast()
        await self._tell()

    async def forget(self, pattern: str) -> Forgotten:
        """Erase the stored lines of a pattern from both files; see :func:`agent.store.forget.forget`."""
        metrics, ledger = self._files
        return await forget(metrics, ledger, pattern)

    async def _tell(self) -> None:
        try:
            await self.metrics.add_events(self._untold)
        except StoreError as error:
            log.error("events_wait count=%d error=%s", len(self._untold), error)
            del self._untold[:-_UNTOLD]
        else:
            self._untold = []

    def frozen_s(self) -> float:
        """How long the state directory's file system has taken no writes by now, in seconds; 0 while it does."""
        return max(file.frozen_s() for file in self._files)

    async def close(self) -> None:
        """Commit what waits and leave two plain files that readers without write access can open."""
        await self.metrics.close()
        for file in self._files:
            await file.close()
        self._lock.release()


def _notices(file: Database, at: float) -> list[Event]:
    name = file.path.name
    if file.set_aside is not None:
        lost_ledger = name == "ledger.db"
        message = (
            f'cannot use "{file.path}": {file.why_set_aside}; it is now "{file.set_aside}" and a new one was begun'
        )
        severity = Severity.CRITICAL if lost_ledger else Severity.ERROR
        labels = make_labels(file=name, set_aside=str(file.set_aside))
        return [
            Event("store_damaged", severity, message + _remedy(file.path.parent) * lost_ledger, "store", at, labels)
        ]
    if file.forward is not None:
        message = (
            f'brought "{file.path}" from schema {file.forward.version} to {file.forward.now}; as it was it is '
            f'"{file.forward.copy}" for {FORWARD_KEPT_S / 86400:.0f} days, or until its room is needed'
        )
        labels = make_labels(file=name, copy=str(file.forward.copy))
        return [Event("store_brought_forward", Severity.INFO, message, "store", at, labels)]
    return []


def _remedy(state_dir: Path) -> str:
    """What a person can do about a lost ledger: never done unasked, for it may undo what was done since."""
    copies = ledger_copies(state_dir)
    if not copies:
        return "; there is no copy of it"
    made = datetime.fromtimestamp(copies[0].at, UTC)
    return (
        f"; its newest good copy is of {made:%Y-%m-%d %H:%M} UTC: stop the agent, then upkeep state restore "
        f"{copies[0].path}"
    )
