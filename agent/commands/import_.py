"""``upkeep import``: samples of a text file, or of another agent's metrics.db, into this agent's history."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import BinaryIO

from agent.commands.common import as_owner_of, bar, clear_bar, loaded, print_json, size, span
from agent.config import LoadedConfig
from agent.errors import StoreError, UpkeepError
from agent.model import Event, Series, Severity, make_labels
from agent.store.cap import first_start
from agent.store.copies import copies_bytes
from agent.store.database import (
    BALLAST_BYTES,
    METRICS,
    Damaged,
    StateLock,
    StoreBusyError,
    connect,
    free_bytes,
    read_only,
    snapshot,
)
from agent.store.metrics import MINUTES_SPAN_S
from agent.store.openmetrics import AHEAD_S, TextReader
from agent.store.read import Reader
from agent.store.transfer import Imported, RollUp, roll_ups_of, samples_of_all, take_in

_SQLITE = b"SQLite format 3\0"
_SCRATCH = ".import-"

Samples = Iterator[tuple[Series, int, float]]


def run(arguments: Namespace) -> int:
    """All of the file or nothing; exit status 1 when it cannot be used, or an agent is running."""
    settings = loaded(arguments)
    folder, now = Path(settings.config.state_dir), time.time()
    with ExitStack() as stack:
        file, theirs = _opened(arguments.file, stack)
        as_owner_of(folder)
        try:
            stack.callback(StateLock(folder).release)
        except StoreBusyError as busy:
            raise UpkeepError(f"{busy}; stop it first, history cannot be imported beside it") from None
        if theirs is None:
            done = _import(_of_text(file, arguments.file, now), (), settings, arguments.file, now)
        else:
            reader = _of_store(theirs, arguments.file, folder, stack)
            done = _import(_samples(reader, now), _roll_ups(reader, settings, now), settings, arguments.file, now)
    clear_bar()
    _tell(arguments, settings, done)
    return 0


def _opened(name: str, stack: ExitStack) -> tuple[BinaryIO, sqlite3.Connection | None]:
    """The file, and a connection to it when it is a store; both before the rights of its reader may be given up."""
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed by the stack
    except OSError as error:
        raise UpkeepError(f'cannot read "{name}": {(error.strerror or str(error)).lower()}') from None
    stack.callback(file.close)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise UpkeepError(f'cannot read "{name}": it is not a regular file')
    if file.read(len(_SQLITE)) != _SQLITE:
        return file, None
    try:
        connection = stack.enter_context(closing(sqlite3.connect(read_only(Path(name)), uri=True)))
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise UpkeepError(f'cannot read "{name}": {error}') from None
    return file, connection


def _of_text(file: BinaryIO, name: str, now: float) -> Samples:
    whole = os.fstat(file.fileno()).st_size
    for number, sample in enumerate(TextReader(file, name, now).samples()):
        if not number % 10_000:
            bar(file.tell(), whole, size(whole))
        yield sample


def _of_store(theirs: sqlite3.Connection, name: str, folder: Path, stack: ExitStack) -> Reader:
    """Another store: a copy of it, which is checked and brought to this version first."""
    for leftover in folder.glob(f"{_SCRATCH}*"):
        _forget(leftover)
    (pages,), (page_bytes,) = (theirs.execute(f"PRAGMA {word}").fetchone() for word in ("page_count", "page_size"))
    if free_bytes(folder) < pages * page_bytes + BALLAST_BYTES:
        raise UpkeepError(f'cannot import "{name}": its copy takes {size(pages * page_bytes)} in "{folder}"')
    # Its name goes as soon as it is open: a killed import leaves nothing that takes room.
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
        copy = Path(scratch, "metrics.db")
        try:
            snapshot(theirs, copy)
            with closing(connect(copy, METRICS)) as connection:
                connection.execute("PRAGMA journal_mode = DELETE")
        except (Damaged, sqlite3.Error) as error:
            raise UpkeepError(f'cannot import "{name}": {error}') from None
        except StoreError as error:
            raise UpkeepError(str(error).replace(str(copy), name)) from None
        return stack.enter_context(Reader.open(copy.parent))


def _samples(theirs: Reader, now: float) -> Samples:
    return samples_of_all(theirs, now + AHEAD_S, lambda done, whole: bar(done, whole, f"{whole} series"))


def _roll_ups(theirs: Reader, settings: LoadedConfig, now: float) -> Iterator[RollUp]:
    """Minutes and hours as long as they are kept, but not those that rules look back on."""
    kept = settings.config.retention
    for table, age_s in (("minute", kept.minutes), ("hour", kept.hours)):
        yield from roll_ups_of(theirs, table, now - age_s, now - MINUTES_SPAN_S)


def _forget(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()


def _import(samples: Samples, roll_ups: Iterable[RollUp], settings: LoadedConfig, name: str, now: float) -> Imported:
    folder, kept = Path(settings.config.state_dir), settings.config.retention
    ledger = folder / "ledger.db"
    beside = copies_bytes(folder) + (ledger.stat().st_size if ledger.exists() else 0)

    def event(done: Imported) -> Event:
        message = f"imported {done.samples} samples of {done.series} series from {name}{_rest(done)}"
        return Event("history_imported", Severity.INFO, message, "store", now, make_labels(file=name))

    try:
        connection = connect(folder / "metrics.db", METRICS)
    except (Damaged, sqlite3.Error) as error:
        raise UpkeepError(f'cannot open "{folder / "metrics.db"}": {error}; nothing was imported') from None
    try:
        return take_in(
            connection,
            samples,
            roll_ups,
            oldest_s=now - kept.raw,
            room_bytes=first_start(folder, now).most(kept.max_size) - beside,
            max_series=kept.max_series,
            event=event,
        )
    finally:
        with suppress(sqlite3.Error):  # a reader holds the log: it stays, and stays readable beside its file
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()


def _rest(done: Imported) -> str:
    parts = [
        f"{count} {words}"
        for count, words in ((done.already_there, "were there already"), (done.too_old, "are older than retention.raw"))
        if count
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _tell(arguments: Namespace, settings: LoadedConfig, done: Imported) -> None:
    if arguments.json:
        print_json(
            {
                "samples": done.samples,
                "series": done.series,
                "already_there": done.already_there,
                "too_old": done.too_old,
                "roll_ups": done.roll_ups,
            }
        )
        return
    print(f"imported {done.samples} samples of {done.series} series{_rest(done)}")
    if done.roll_ups:
        print(f"and {done.roll_ups} minutes and hours")
    if done.too_old:
        print(f"to take those in too, raise retention.raw, which is {span(settings.config.retention.raw)}")
