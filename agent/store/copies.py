"""Copies beside the store: the ledger's of each night, and each file as it was before it was brought forward.

A copy has its name only when it is whole, synced and found good. All count in the size that the store may have, and
give way to it before any row does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import StoreError
from agent.model import Event, Series, Severity, make_labels
from agent.store.database import (
    BALLAST_BYTES,
    LEDGER,
    METRICS,
    Schema,
    copies_before,
    free_bytes,
    make_folder,
    read_only,
    settle,
    stamp,
)
from agent.store.statement import BUSY_S

FOLDER = "copies"
KEPT = 7
EVERY_S = 86400.0
AGAIN_AFTER_S = 3600.0
"""A copy that failed is tried again so much later."""

FORWARD_KEPT_S = 7 * 86400.0
"""How long the file as it was before a new schema stays: long enough to see that the new version is to be kept."""

_NAME = re.compile(r"ledger-(\d{8}T\d{6}Z)\.db")
_FIGURES = (
    Series("upkeep_ledger_copy_failures_total"),
    Series("upkeep_ledger_copy_last_success_timestamp_seconds"),
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the ledger that was found good when it was made."""

    path: Path
    at: float
    bytes: int


def ledger_copies(state_dir: Path) -> list[Copy]:
    """The copies of a state directory's ledger, newest first."""
    found = []
    with contextlib.suppress(OSError), os.scandir(state_dir / FOLDER) as entries:
        for entry in entries:
            named = _NAME.fullmatch(entry.name)
            if named and entry.is_file(follow_symlinks=False):
                at = datetime.strptime(named[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
                found.append(Copy(Path(entry.path), at, entry.stat().st_size))
    return sorted(found, key=lambda copy: copy.at, reverse=True)


def copies_bytes(state_dir: Path) -> int:
    """What all copies in a state directory take."""
    return sum(copy.bytes for copy in ledger_copies(state_dir)) + sum(map(_size, _before(state_dir)))


def copy_ledger(state_dir: Path, at: float, begun: Callable[[sqlite3.Connection], None] = lambda _: None) -> Copy:
    """Copy the ledger as it is now, check the copy page by page, and only then drop the oldest above :data:`KEPT`.

    It reads through a connection of its own, on whatever thread it is called: a writer's commits do not wait for it.

    Parameters
    ----------
    begun
        Called with the connection that copies: to interrupt it.

    Raises
    ------
    StoreError
        There is no room, the ledger cannot be read, or the copy is not good. Earlier copies stay.
    """
    folder = state_dir / FOLDER
    target = folder / f"ledger-{stamp(at)}.db"
    try:
        make_folder(folder)
        copy_checked(state_dir / "ledger.db", LEDGER, target, begun)
    except OSError as error:
        raise StoreError(f'cannot copy the ledger to "{target}": {error.strerror or error}') from error
    for older in ledger_copies(state_dir)[KEPT:]:
        older.path.unlink(missing_ok=True)
    return Copy(target, at, target.stat().st_size)


def copy_checked(
    source: Path, schema: Schema, target: Path, begun: Callable[[sqlite3.Connection], None] = lambda _: None
) -> None:
    """A copy of a file as its last commit left it, under a name that it has only when it was found good.

    Raises
    ------
    StoreError
        There is no room, the file cannot be read, or the copy is not good.
    """
    new = Path(f"{target}.new")
    new.unlink(missing_ok=True)
    needed = source.stat().st_size + 4 * BALLAST_BYTES
    if free_bytes(target.parent) < needed:
        raise StoreError(f'cannot copy "{source}": that takes {needed >> 20} MiB in "{target.parent}"')
    try:
        with closing(sqlite3.connect(read_only(source), uri=True, timeout=BUSY_S, check_same_thread=False)) as whole:
            begun(whole)
            # Made by us, for SQLite would make it with the umask's mode.
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))
            whole.execute("VACUUM INTO ?", (str(new),))
        with closing(sqlite3.connect(read_only(new), uri=True, check_same_thread=False)) as copy:
            begun(copy)
            verdict = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
            kind = copy.execute("PRAGMA application_id").fetchone()[0]
        if verdict != "ok" or kind != schema.application_id:
            raise StoreError(f'cannot use the copy of "{source}": {verdict if verdict != "ok" else "another kind"}')
        descriptor = os.open(new, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o640)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        settle(new, target)
    except sqlite3.Error as error:
        raise StoreError(f'cannot copy "{source}": {error}') from error
    finally:
        new.unlink(missing_ok=True)


class Copies:
    """When copies are made, and when they go.

    Parameters
    ----------
    state_dir
        Whose ledger.
    max_size_bytes
        What the store and its copies may take together.
    """

    def __init__(self, state_dir: Path, max_size_bytes: int) -> None:
        self._state_dir, self._max_size_bytes = state_dir, max_size_bytes
        self._failures = 0
        self._due = 0.0
        newest = ledger_copies(state_dir)[:1]
        self._newest = newest[0].at if newest else None

    def figures(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        """How often copying failed, and when it last did not, as series and values."""
        if self._newest is None:
            return _FIGURES[:1], [float(self._failures)]
        return _FIGURES, [float(self._failures), self._newest]

    def bytes(self) -> int:
        """What all copies take."""
        return copies_bytes(self._state_dir)

    async def maintain(self, at: float, store_bytes: int) -> list[Event]:
        """Copy the ledger when that is due, drop what is too old or too much; return what people should know.

        Parameters
        ----------
        at
            The wall clock.
        store_bytes
            What both files of the store take without their copies.
        """
        for copy in _before(self._state_dir):
            if at - _changed(copy) > FORWARD_KEPT_S or store_bytes + self.bytes() > self._max_size_bytes:
                copy.unlink(missing_ok=True)
        events = await self._copy(at) if self._is_due(at) else []
        copies = ledger_copies(self._state_dir)
        while len(copies) > 1 and store_bytes + self.bytes() > self._max_size_bytes:
            copies.pop().path.unlink(missing_ok=True)
        return events

    def _is_due(self, at: float) -> bool:
        if self._newest is not None and self._newest <= at < self._newest + EVERY_S:
            return False
        # The clock may have been set back: what is due then is not later than an hour from now.
        return not at < self._due <= at + AGAIN_AFTER_S

    async def _copy(self, at: float) -> list[Event]:
        at = float(int(at))
        self._due = at + AGAIN_AFTER_S
        copying: list[sqlite3.Connection] = []
        work = asyncio.get_running_loop().run_in_executor(None, copy_ledger, self._state_dir, at, copying.append)
        try:
            self._newest = (await asyncio.shield(work)).at
        except asyncio.CancelledError:
            for connection in copying:
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed meanwhile
                    connection.interrupt()
            with contextlib.suppress(StoreError):
                await work  # a few milliseconds: the thread must not outlive the loop
            raise
        except StoreError as error:
            self._failures += 1
            labels = make_labels(file="ledger.db")
            return [Event("ledger_copy_failed", Severity.ERROR, str(error), "store", at, labels)]
        return []


def _before(state_dir: Path) -> list[Path]:
    return [copy for schema in (METRICS, LEDGER) for copy in copies_before(state_dir / f"{schema.name}.db")]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
