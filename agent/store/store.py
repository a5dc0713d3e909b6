"""Both files of a state directory as one: opened, looked after and closed together."""

from __future__ import annotations

from pathlib import Path

from agent.clock import Clock
from agent.model import Event, Severity, make_labels
from agent.store.database import LEDGER, METRICS, Database, StateLock
from agent.store.ledger import Ledger
from agent.store.metrics import Metrics
from agent.store.retention import Retention, used_bytes


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
    """

    def __init__(self, lock: StateLock, files: tuple[Database, Database], metrics: Metrics, ledger: Ledger) -> None:
        self.metrics, self.ledger = metrics, ledger
        self.notices: list[Event] = []
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
        store = cls(lock, (opened[0], opened[1]), metrics, Ledger(opened[1], clock=clock))
        store.notices = [_notice(file, clock.wall()) for file in opened if file.set_aside is not None]
        return store

    async def maintain(self, at: float) -> None:
        """Roll-ups, packing, pruning, ballast: to be called about once a minute, with the wall clock."""
        ledger = self._files[1]
        await self.metrics.maintain(at, beside_bytes=await used_bytes(ledger))
        ledger.restore_ballast()

    async def close(self) -> None:
        """Commit what waits and leave two plain files that readers without write access can open."""
        await self.metrics.close()
        for file in self._files:
            await file.close()
        self._lock.release()


def _notice(file: Database, at: float) -> Event:
    lost_ledger = file.path.name == "ledger.db"
    return Event(
        kind="store_damaged",
        severity=Severity.CRITICAL if lost_ledger else Severity.ERROR,
        message=f'cannot use "{file.path}": {file.why_set_aside}; it is now "{file.set_aside}" and a new one was begun',
        source="store",
        at=at,
        labels=make_labels(file=file.path.name, set_aside=str(file.set_aside)),
    )
