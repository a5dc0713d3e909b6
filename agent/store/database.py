"""One SQLite file and its one writer: opening it, setting aside what is damaged, transactions, room on a full disk."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
import struct
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiosqlite

from agent.errors import StoreError
from agent.store.statement import BUSY_S, Many, Row, Statement, lenient_text

BALLAST_BYTES = 1 << 20
PAGE_BYTES = 4096
WAL_KEPT_BYTES = 16 << 20
CHECKED_WHOLE_BYTES = 64 << 20
"""Up to this size a file is checked page by page at start (60 ms); beyond, only its header, schema and ends are."""

_HEADER = b"SQLite format 3\0"
_COMPANIONS = ("", "-wal", "-shm", "-journal")
_FOLDER = Path(__file__).parent / "schema"

T = TypeVar("T")


class StoreBusyError(StoreError):
    """Another agent holds this state directory; the command ends with exit status 75 (EX_TEMPFAIL)."""


class StoreFullError(StoreError):
    """There is no room for a commit, not even after the ballast was given up."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What kind of file this is: the name of its SQL texts, its mark in the SQLite header, how commits are synced."""

    name: str
    version: int
    """A file of a later version is refused and not touched; one of an earlier version is brought forward."""
    application_id: int
    synchronous: str
    checked_whole: bool
    """Check every page at start however large the file is."""
    names: tuple[str, ...] = ()
    """Tables that say what all others are about: they are held against their indexes at every start."""

    def script(self) -> str:
        """The SQL that makes a new file; auto_vacuum must be chosen before the first table, and before WAL."""
        return "\n".join(
            [
                f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL;",
                f"BEGIN; PRAGMA application_id = {self.application_id}; PRAGMA user_version = {self.version};",
                self._text(f"{self.name}.sql"),
                *self._additions(1),
                self._text(f"{self.name}_views.sql"),
                "COMMIT;",
            ]
        )

    def forward(self, version: int, views: Sequence[str]) -> str:
        """The SQL that brings a file of an earlier version to this one, in one transaction.

        Parameters
        ----------
        views
            Those that the file has: they are made anew, since they may read what the new version lays out otherwise.
        """
        return "\n".join(
            [
                "BEGIN IMMEDIATE;",
                *(f'DROP VIEW "{view}";' for view in views),
                *self._additions(version),
                self._text(f"{self.name}_views.sql"),
                f"PRAGMA user_version = {self.version}; COMMIT;",
            ]
        )

    def _additions(self, version: int) -> list[str]:
        """What each version after this one added."""
        return [self._text(f"{self.name}_{later}.sql") for later in range(version + 1, self.version + 1)]

    @staticmethod
    def _text(name: str) -> str:
        return (_FOLDER / name).read_text(encoding="utf-8")


METRICS = Schema("metrics", 3, 0x55504B4D, "NORMAL", checked_whole=False, names=("series",))
LEDGER = Schema("ledger", 3, 0x55504B4C, "FULL", checked_whole=True)


class Damaged(Exception):
    """Why a file cannot be used as a store."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A file that was brought from one version to another, and where it lies as it was."""

    version: int
    now: int
    copy: Path


class Database:
    """One file through one connection, whose thread is the only writer.

    A transaction is given as data and carried out whole: the caller may be cancelled, the transaction may not.
    """

    def __init__(
        self, connection: aiosqlite.Connection, path: Path, set_aside: Path | None, why: str, forward: Forward | None
    ) -> None:
        self.path = path
        self.set_aside = set_aside
        """Where the damaged file that was found here is now."""
        self.why_set_aside = why
        self.forward = forward
        """What was done to a file of an earlier version."""
        self._connection = connection
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._ballast = path.with_suffix(".ballast")

    @classmethod
    async def open(cls, path: Path, schema: Schema, at: float) -> Database:
        """Open or make the file; a damaged one is renamed to ``*.corrupt-<time>`` first.

        Raises
        ------
        StoreError
            The file is from a newer version, or of an earlier one and there is no room to copy it (it is left
            untouched), or its folder cannot be written.
        """
        aside: list[tuple[Path, str]] = []
        forward: list[Forward] = []
        failed: list[Exception] = []

        def open_or_begin() -> sqlite3.Connection:
            try:
                try:
                    return connect(path, schema, forward)
                except sqlite3.OperationalError as error:
                    # A start writes a little, and what makes room on a full disk may be what is to start.
                    if not _no_room(error):
                        raise
                    path.with_suffix(".ballast").unlink(missing_ok=True)
                except Damaged as damage:
                    aside.append((set_aside(path, f"corrupt-{stamp(at)}"), str(damage)))
                return connect(path, schema, forward)
            except (OSError, sqlite3.Error, Damaged, StoreError) as error:
                failed.append(error)
                # aiosqlite's thread outlives the loop when connecting fails: let it connect, and close it in order.
                return sqlite3.connect(":memory:")

        connection = await aiosqlite.Connection(open_or_begin, iter_chunk_size=64)
        if failed:
            await connection.close()
            if isinstance(failed[0], StoreError):
                raise failed[0]
            raise StoreError(f'cannot open "{path}": {failed[0]}') from failed[0]
        found, why = aside[0] if aside else (None, "")
        database = cls(connection, path, found, why, forward[0] if forward and not aside else None)
        database.restore_ballast()
        return database

    def frozen_s(self) -> float:
        """How long the file system has taken no writes by now, in seconds; 0 while it does, or nobody asked."""
        raw = self._connection._conn
        assert isinstance(raw, _Patient), "as it was opened"
        since = raw.waits_since
        return 0.0 if since is None else time.monotonic() - since

    async def read(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Rows as committed: never those of a transaction under way."""
        return await self._whole(self._read(sql, parameters))

    async def write(self, *statements: Statement) -> list[list[Row]]:
        """Carry out the statements in one transaction; each single statement's rows are returned in order.

        Raises
        ------
        StoreFullError
            No room on the disk. Nothing was changed.
        StoreError
            The file cannot be written. Nothing was changed.
        """
        return await self._whole(self._transact(statements))

    async def write_one(self, sql: str, parameters: Sequence[object]) -> None:
        """Carry out one statement as its own transaction, in one hop to the thread: the tick's own way."""
        if self._lock.locked():
            async with self._lock:  # a transaction is under way, and must not take this statement in
                pass
        try:
            # The thread takes one after the other: whatever locks from here on comes behind this statement.
            await self._connection.execute_fetchall(sql, parameters)
        except (sqlite3.Error, ValueError) as error:
            raise self._named(error) from error

    async def checkpoint(self) -> None:
        """Move the write-ahead log into the file as far as readers allow, so that the log can start over."""
        await self.read("PRAGMA wal_checkpoint(PASSIVE)")

    def release_ballast(self) -> bool:
        """Give the reserved space back to the disk; false when it was given already."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        return True

    def restore_ballast(self) -> bool:
        """Reserve the space again, when there is plenty; whether it is reserved."""
        if self._ballast.exists():
            return True
        if free_bytes(self.path.parent) < 4 * BALLAST_BYTES:
            return False
        try:
            with _private_file(self._ballast) as descriptor:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        except OSError:
            self.release_ballast()  # a half reserve would hide that there is none
            return False
        return True

    async def close(self) -> None:
        """Finish what is under way and close, leaving one plain file that a reader without write access can open."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        async with self._lock:
            try:
                await self._connection.execute_fetchall("PRAGMA journal_mode = DELETE")
            except sqlite3.Error:
                pass  # a reader holds the log: it stays, and stays readable beside its file
            await self._connection.close()

    async def _whole(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _read(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        async with self._lock:
            try:
                return await self._rows(sql, parameters)
            except (sqlite3.Error, ValueError) as error:
                raise self._named(error) from error

    async def _rows(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        return [tuple(row) for row in await self._connection.execute_fetchall(sql, parameters)]

    async def _transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        async with self._lock:
            try:
                try:
                    return await self._attempt(statements)
                except UnicodeEncodeError:
                    return await self._attempt([_as_unicode(statement) for statement in statements])
                except sqlite3.OperationalError as error:
                    if not _no_room(error) or not self.release_ballast():
                        raise
                    return await self._attempt(statements)
            except (sqlite3.Error, ValueError) as error:
                raise self._named(error) from error

    async def _attempt(self, statements: Sequence[Statement]) -> list[list[Row]]:
        run = self._connection
        await run.execute_fetchall("BEGIN IMMEDIATE")
        try:
            results: list[list[Row]] = []
            for statement in statements:
                if isinstance(statement, Many):
                    await (await run.executemany(statement.sql, statement.rows)).close()
                else:
                    results.append(await self._rows(*statement))
            await run.execute_fetchall("COMMIT")
        except BaseException:
            if run.in_transaction:  # some errors, a full disk among them, roll back by themselves
                await run.rollback()
            raise
        return results

    def _named(self, error: Exception) -> StoreError:
        """What is raised for an SQLite error, or for aiosqlite's ValueError on a closed connection."""
        kind = StoreFullError if isinstance(error, sqlite3.Error) and _no_room(error) else StoreError
        return kind(f'cannot use "{self.path}": {error}')


class _Patient(sqlite3.Connection):
    """A connection that waits before a statement, not within it, while its file system is frozen.

    SQLite would wait in a page fault on the memory that it shares with readers, and whoever waits there keeps all
    other threads of the process from mapping memory and from starting children (docs/decisions/027).
    """

    absent = ""
    """A name beside the file that nobody has."""

    waits_since: float | None = None
    """When a statement began to wait, on the clock of :func:`time.monotonic`."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self._await_thaw()
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        self._await_thaw()
        return super().executemany(sql, parameters)

    def _await_thaw(self) -> None:
        """To remove what is not there waits as a write would, writes nothing, and takes two microseconds."""
        self.waits_since = time.monotonic()
        try:
            os.rmdir(self.absent)
        except OSError:
            pass
        self.waits_since = None


class StateLock:
    """The right to write a state directory: one agent, or one command while no agent runs."""

    def __init__(self, state_dir: Path) -> None:
        """Take the lock.

        Raises
        ------
        StoreBusyError
            Another process holds it; the text names its pid.
        StoreError
            The folder cannot be made or written.
        """
        path = state_dir / "lock"
        try:
            make_folder(state_dir)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise StoreError(f'cannot use the state directory "{state_dir}": {error.strerror}') from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            who = f" (pid {holder})" if holder else ""
            raise StoreBusyError(
                f'cannot use the state directory "{state_dir}": another agent runs there{who}'
            ) from None
        os.fchmod(self._descriptor, 0o640)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def free_bytes(folder: Path) -> int:
    """What an unprivileged process may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def make_folder(folder: Path) -> None:
    """Make a folder that the group may read and that hands its group down, unless it is there."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    folder.chmod(0o2750)  # set apart from mkdir, which drops the setgid bit and honours the umask


@contextmanager
def _private_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        os.fchmod(descriptor, 0o640)
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path, schema: Schema, forward: list[Forward] | None = None) -> sqlite3.Connection:
    """A writer's connection to a file that is checked, and brought to this version; a file that is not there is made.

    The caller holds the state lock. What was done to a file of an earlier version is added to ``forward``.

    Raises
    ------
    Damaged
        The file cannot be used.
    StoreError
        The file is from a newer version, or there is no room to bring it forward.
    sqlite3.OperationalError
        The disk is full or fails, or somebody holds a lock: the file may be sound.
    """
    if not os.path.lexists(path):
        if any(os.path.lexists(f"{path}{companion}") for companion in _COMPANIONS[1:]):
            raise Damaged("it is gone and left its log behind")  # a new file would take that log for its own
        _create(path, schema)
    _check_files(path, schema)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, factory=_Patient)
    connection.absent = f"{path}.absent"
    connection.text_factory = lenient_text
    try:
        _check_content(connection, path, schema)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < schema.version:
            copy = _copy_before(connection, path, schema, version)
            connection.execute("PRAGMA journal_mode = WAL")
            _bring_forward(connection, schema, version)
            if forward is not None:
                forward.append(Forward(version, schema.version, copy))
        connection.execute("PRAGMA journal_mode = WAL")
        for pragma in (
            f"synchronous = {schema.synchronous}",
            f"journal_size_limit = {WAL_KEPT_BYTES}",
            "temp_store = MEMORY",  # sorting must work when no disk has room
            "secure_delete = OFF",  # Debian builds it on: it would write every pruned page once more
            # A first commit makes the log: without one, a reader who may not write could not open what a killed agent
            # leaves.
            f"user_version = {schema.version}",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and not _damage(error):
            raise
        raise Damaged(str(error)) from error
    except UnicodeDecodeError as error:
        connection.close()
        raise Damaged("a name in it is not UTF-8") from error  # SQLite's own message would have quoted it
    except BaseException:
        connection.close()
        raise
    return connection


def snapshot(connection: sqlite3.Connection, target: Path) -> None:
    """A copy of a whole file, what is in its log included, under a name that it has only when it is complete."""
    new = _fresh(target)
    with _private_file(new) as descriptor, closing(sqlite3.connect(new, isolation_level=None)) as copy:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        os.fsync(descriptor)
    settle(new, target)


def settle(new: Path, target: Path) -> None:
    """Give a file that is written and synced its name, for good."""
    new.rename(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def copies_before(path: Path) -> list[Path]:
    """The copies that were made of a file before it was brought forward."""
    found = path.parent.glob(f"{path.name}.schema-*")
    return sorted(one for one in found if one.name.rpartition("-")[2].isdigit())


def _copy_before(connection: sqlite3.Connection, path: Path, schema: Schema, version: int) -> Path:
    """The file as it is, beside it, to go back to with the program that wrote it."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    needed = 2 * pages * PAGE_BYTES + BALLAST_BYTES  # the copy, and a log that may hold every page once
    free = free_bytes(path.parent)
    if free < needed:
        raise StoreError(
            f'cannot bring "{path}" from schema {version} to {schema.version}: that takes {needed >> 20} MiB beside it '
            f"and {free >> 20} MiB are free; it was left as it is"
        )
    copy = path.with_name(f"{path.name}.schema-{version}")
    snapshot(connection, copy)
    return copy


def _bring_forward(connection: sqlite3.Connection, schema: Schema, version: int) -> None:
    views = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
    try:
        connection.executescript(schema.forward(version, views))
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.rollback()
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            raise Damaged(f"it is not laid out as schema {version} is: {error}") from error
        raise


def _create(path: Path, schema: Schema) -> None:
    """Make the file under another name first: a crash leaves no half-made store."""
    new = _fresh(path)
    with _private_file(new), closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.executescript(schema.script())
    settle(new, path)


def _fresh(target: Path) -> Path:
    """The name under which a file is made; what a killed process left there goes."""
    new = Path(f"{target}.new")
    for leftover in _COMPANIONS:
        Path(f"{new}{leftover}").unlink(missing_ok=True)
    return new


def _check_files(path: Path, schema: Schema) -> None:
    """Look at the file and its companions without SQLite, which would already touch those of a newer version."""
    for companion in _COMPANIONS:
        one = Path(f"{path}{companion}")
        if companion and not os.path.lexists(one):
            continue
        what = f"its {companion} file" if companion else "it"
        if not stat.S_ISREG(one.lstat().st_mode):
            raise Damaged(f"{what} is not a regular file")
        if not os.access(one, os.R_OK | os.W_OK):
            raise Damaged(f"{what} belongs to another user")
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_HEADER):
        raise Damaged("it is not an SQLite file")
    version, application_id = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    _check_kind(path, schema, version, application_id)
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        salt, _, moved = _log_index(path)
        _check_kind(path, schema, *_in_log(path))
        salt_now, frames, _ = _log_index(path)
        if salt == salt_now and frames < moved:
            raise Damaged(f"the log beside it lost {moved - frames} of the {moved} pages that it already has")


def _check_kind(path: Path, schema: Schema, version: int, application_id: int) -> None:
    if application_id != schema.application_id:
        raise Damaged(f"it is not a {schema.name} file of this program")
    if version > schema.version:
        raise StoreError(
            f'cannot open "{path}": it was written by a newer version (schema {version}, this one knows '
            f"{schema.version}); it was left as it is"
        )


def _in_log(path: Path) -> tuple[int, int]:
    """Version and kind as of the last commit in the log, where a killed agent leaves them, read without moving it."""
    try:
        with closing(sqlite3.connect(read_only(path), uri=True, timeout=BUSY_S)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    except UnicodeDecodeError as error:
        raise Damaged("a name in it is not UTF-8") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not _damage(error):
            raise
        raise Damaged(str(error)) from error
    return version, application_id


def _log_index(path: Path) -> tuple[bytes, int, int]:
    """Which log it is, how many pages of it are whole, and how many of those the file has (sqlite.org/walformat.html).

    Only while this process has the file not open: closing the index would drop SQLite's locks on it.
    """
    try:
        with Path(f"{path}-shm").open("rb") as file:
            head = file.read(100)
        frames, salt, moved = struct.unpack("=16xI12x8s56xI", head)
    except (FileNotFoundError, struct.error):
        return b"", 0, 0
    return salt, frames, moved


def read_only(path: Path) -> str:
    """The URI under which SQLite opens a file for reading alone."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _check_content(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if schema.checked_whole or path.stat().st_size <= CHECKED_WHOLE_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(verdict)
    else:
        connection.execute("SELECT min(id), max(id) FROM tick").fetchone()
    for table in schema.names:
        (verdict,) = connection.execute(f"PRAGMA integrity_check({table})").fetchone()
        if verdict != "ok":
            raise Damaged(f"what its rows belong to is in doubt: {verdict}")


def stamp(at: float) -> str:
    """An instant as part of a file name."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def set_aside(path: Path, suffix: str, *, leave: bool = False) -> Path:
    """Rename a file and its companions, the log first: a crash between must not leave one to a file that comes.

    With ``leave`` a regular file also keeps its name, for another one to take its place in one step.
    """
    target, number = Path(f"{path}.{suffix}"), 1
    while any(os.path.lexists(f"{target}{companion}") for companion in _COMPANIONS):
        target, number = Path(f"{path}.{suffix}-{number}"), number + 1
    for companion in reversed(_COMPANIONS):
        if not os.path.lexists(f"{path}{companion}"):
            continue
        if not companion and leave and stat.S_ISREG(path.lstat().st_mode):
            os.link(path, target)
        else:
            os.rename(f"{path}{companion}", f"{target}{companion}")
    return target


def _as_unicode(statement: Statement) -> Statement:
    """The statement with lone surrogates written out: a file name need not be UTF-8, SQLite's text must."""

    def mended(row: Sequence[object]) -> list[object]:
        return [
            value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value for value in row
        ]

    if isinstance(statement, Many):
        return Many(statement.sql, [mended(row) for row in statement.rows])
    sql, parameters = statement
    return sql, mended(parameters)


def _no_room(error: sqlite3.Error) -> bool:
    # The shared memory beside the log is a file too: on a full tmpfs it cannot grow.
    code = getattr(error, "sqlite_errorcode", 0)
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE)


def _damage(error: sqlite3.Error) -> bool:
    # An ordinary error at opening is a table that is missing.
    codes = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
