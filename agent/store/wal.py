"""The write-ahead log: how large it may grow while another program's reader keeps it from being emptied.

SQLite cannot start its log over while anybody reads a state of the file that the log still explains, and a foreign
``sqlite3`` shell may hold a read transaction for hours. Three levels: try to empty the log; then name who holds it,
commit samples once a minute and put off what rewrites pages; then let samples wait in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.store.database import Database, StoreFullError
from agent.store.statement import BUSY_S

SPACED_BYTES = 20 << 20
"""A log that is larger and cannot be emptied is held by somebody. (One of 16 MiB is kept for use again.)"""

WAITING_BYTES = 48 << 20
"""From here on samples wait in memory; events, log offsets and roll-ups have the rest."""

REFUSED_BYTES = 60 << 20
"""From here on nothing is committed: with the largest single commit the log stays below 64 MiB."""

SPACED_S = 60.0
"""How often samples are committed while the log is held: a page is written once for a minute, not twelve times."""

_READ_LOCKS = range(123, 128)
"""The bytes of the ``-shm`` file that a reader locks: https://www.sqlite.org/walformat.html, "WAL locks"."""

_COMMAND_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that reads a database at this moment."""

    pid: int
    command: str


class Wal:
    """The log of one database.

    Attributes
    ----------
    path
        The log's file.
    held
        At the last look it was large and could not be emptied.
    """

    def __init__(self, database: Database) -> None:
        self.held = False
        self._database = database
        self.path = f"{database.path}-wal"

    def size_bytes(self) -> int:
        """What the log takes on the disk."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    async def look(self) -> bool:
        """Whether it is held; it is emptied where that can be."""
        self.held = self.size_bytes() > SPACED_BYTES and not await self._empty(SPACED_BYTES)
        return self.held

    async def empty(self) -> None:
        """Give the disk back what the log takes, as far as readers allow."""
        await self._empty(0)

    async def full_for_samples(self) -> str:
        """Why samples must wait; nothing while the log takes them."""
        if self.size_bytes() < WAITING_BYTES or await self._empty(WAITING_BYTES):
            return ""
        return self._why()

    async def admit(self) -> None:
        """Pass while the log may take a commit that is not of samples.

        Raises
        ------
        StoreFullError
            It may not; the text names who holds it.
        """
        if self.size_bytes() >= REFUSED_BYTES and not await self._empty(REFUSED_BYTES):
            raise StoreFullError(self._why())

    def _why(self) -> str:
        return f'cannot write "{self._database.path}": its log holds {self.size_bytes() >> 20} MiB, {self.holders()}'

    def holders(self) -> str:
        """Who keeps the log from being emptied, in words."""
        found = holders(self._database.path)
        if not found:
            return "kept by a reader that cannot be seen from here"
        return "kept by " + ", ".join(f'pid {each.pid} ("{each.command}")' for each in found)

    async def _empty(self, below_bytes: int) -> bool:
        """Move all of the log into the file and cut it; whether it is below a size then."""
        # TRUNCATE would wait for readers as long as a statement may. Nobody else writes, so no statement that comes
        # in between misses that wait.
        await self._database.read("PRAGMA busy_timeout = 0")
        try:
            await self._database.read("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            await self._database.read(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        return self.size_bytes() < below_bytes


def holders(database: Path) -> list[Holder]:
    """The other processes that read a database in WAL mode at this moment, as far as this one may see them."""
    try:
        shm = os.stat(f"{database}-shm")
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return []
    pids = sorted(set(reading_pids(locks, shm.st_ino)) - {os.getpid()})
    return [Holder(pid, _command(pid)) for pid in pids]


def reading_pids(locks: str, inode: int) -> list[int]:
    """The processes that hold a read lock of WAL mode on a ``-shm`` file.

    Parameters
    ----------
    locks
        The text of /proc/locks (proc(5)): ``1: POSIX  ADVISORY  READ 4711 fe:00:131 124 124``.
    inode
        The file's. Its device is not compared: overlay and btrfs show another one to stat(2) than to the lock.
    """
    found = []
    for line in locks.splitlines():
        words = line.split()
        if len(words) != 8 or words[1] != "POSIX":  # a waiter has an arrow more
            continue
        pid, place, first, last = words[4:]
        if int(place.rpartition(":")[2]) != inode or int(first) >= _READ_LOCKS.stop:
            continue
        if last == "EOF" or int(last) >= _READ_LOCKS.start:
            found.append(int(pid))
    return found


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    text = raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:_COMMAND_CHARACTERS]
