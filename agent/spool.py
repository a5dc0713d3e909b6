"""What waits on disk for one receiver: files that are there whole or not at all, bounded in bytes and age.

An entry outlives kill -9 and a power cut from the moment :meth:`Spool.put` returns. Entries of one key are one: the
later takes the place of the earlier, or is joined with it. A key that was remembered as sent is never taken again, so
that whoever makes a report twice sends it once. Between a receiver's yes and the removal of the file lies an instant
that no sender can close; who must not be told twice is given the same identity again (``Message-ID``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REMEMBERED_S = 40 * 86400.0
"""Longer than the longest report's period."""
SCRATCH_S = 3600.0
LEAST_BYTES = 4096
"""What a file takes on disk, however small."""

_NAME = re.compile(r"(\d{15})-([0-9a-f]{32})\.entry")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that waits: the name of its file, when it was first put there, and what it takes on disk."""

    name: str
    digest: str
    put_at: float
    bytes: int


class Spool:
    """One receiver's queue; only one process sends from it, several may put.

    Parameters
    ----------
    folder
        Made when something is first put there.
    max_bytes, max_age_s
        Beyond either, the oldest goes.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age_s: float) -> None:
        self._folder = folder
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._held = ""

    def put(
        self,
        key: str,
        content: bytes,
        at: float,
        *,
        join: Callable[[bytes, bytes], bytes] = lambda older, newer: newer,
    ) -> list[Entry]:
        """Make something wait; on disk when this returns.

        Parameters
        ----------
        key
            What waits under the same key, and is not being sent at this instant, is replaced.
        join
            Makes one content of the older and the newer one.

        Returns
        -------
        list of Entry
            What had to go to make room.

        Raises
        ------
        OSError
            When it cannot be written: nothing has changed.
        """
        digest = _digest(key)
        if (self._folder / "sent" / digest).exists():
            return []
        earlier = [entry for entry in self.entries() if entry.digest == digest and entry.name != self._held]
        put_at = at
        for entry in earlier:
            content = join(self.read(entry), content)
            put_at = min(put_at, entry.put_at)
        name = f"{round(put_at * 1000):015d}-{digest}.entry"
        if name == self._held:  # the one that is being sent stays what it is
            name = f"{round(put_at * 1000) + 1:015d}-{digest}.entry"
        self._write(name, content)
        for entry in earlier:
            if entry.name != name:
                self._remove(entry)
        return self.trim(at, keep=name)

    def entries(self) -> list[Entry]:
        """Everything that waits, the oldest first."""
        return sorted(self._scan(), key=lambda entry: entry.name)

    def read(self, entry: Entry) -> bytes:
        return (self._folder / entry.name).read_bytes()

    def hold(self, entry: Entry | None) -> None:
        """Say which entry is being sent: it is not joined with what comes meanwhile, nor does it make room."""
        self._held = entry.name if entry else ""

    def done(self, entry: Entry, *, remember: bool = False) -> None:
        """Take an entry away; with ``remember``, its key is never taken again for a while.

        Raises
        ------
        OSError
            When it cannot be taken away; one that cannot be remembered is, for on a full disk that alone makes room.
        """
        sent = self._folder / "sent"
        try:
            if remember:
                sent.mkdir(mode=0o750, exist_ok=True)
                (sent / entry.digest).touch(mode=0o640)
                _sync(sent)
        finally:
            self._remove(entry)

    def trim(self, at: float, *, keep: str = "") -> list[Entry]:
        """Let go of what is too old or too much; also of the memory of what was sent long ago."""
        waiting = self.entries()
        room = self._max_bytes - sum(entry.bytes for entry in waiting)
        gone = []
        for entry in waiting:
            if entry.name in (self._held, keep):
                continue
            if room < 0 or at - entry.put_at > self._max_age_s:
                room += entry.bytes
                gone.append(entry)
                self._remove(entry)
        self._forget(at)
        return gone

    def _scan(self) -> Iterator[Entry]:
        try:
            with os.scandir(self._folder) as found:
                for file in found:
                    if match := _NAME.fullmatch(file.name):
                        size = max(LEAST_BYTES, file.stat(follow_symlinks=False).st_size)
                        yield Entry(file.name, match[2], int(match[1]) / 1000, size)
        except (FileNotFoundError, NotADirectoryError):
            return

    def _write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        scratch = self._folder / f".{name}.{os.getpid()}"
        try:
            with open(scratch, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(self._folder / name)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        _sync(self._folder)

    def _remove(self, entry: Entry) -> None:
        (self._folder / entry.name).unlink(missing_ok=True)

    def _forget(self, at: float) -> None:
        """Remove what is remembered no longer, and what a crash left half written."""
        for folder, kept_s in ((self._folder / "sent", REMEMBERED_S), (self._folder, SCRATCH_S)):
            try:
                with os.scandir(folder) as found:
                    old = [file.path for file in found if at - file.stat(follow_symlinks=False).st_mtime > kept_s]
            except FileNotFoundError:
                continue
            for path in old:
                if folder.name == "sent" or os.path.basename(path).startswith("."):
                    os.unlink(path)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
