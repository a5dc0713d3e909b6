"""What a host's agent knows and was told, as one file: the ledger, the configuration, the rule files.

A gzipped tar: ``manifest.json`` first, then exactly the files that it names, each with its size and SHA-256. Tail
offsets are not in it, for they point into files of one host at one instant; metrics travel by ``upkeep export``;
secrets lie in files of their own, which the configuration only names.
"""

from __future__ import annotations

import gzip  # noqa: F401 - tarfile would import it late, when the rights to read it may have been given up
import hashlib
import io
import json
import os
import re
import socket
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from agent import __version__
from agent.errors import StoreError
from agent.model import done_by_person
from agent.store.copies import copy_checked
from agent.store.database import (
    LEDGER,
    PAGE_BYTES,
    Damaged,
    connect,
    free_bytes,
    make_folder,
    set_aside,
    settle,
    stamp,
)
from agent.store.rows import insert_action

FORMAT = 1
MANIFEST = "manifest.json"
LEDGER_NAME = "ledger.db"
CONFIGURATION = "configuration/"
MANIFEST_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_SAFE = re.compile(r"(?!\.)[^/\0]+(?:/(?!\.\.?(?:/|$))[^/\0]+)*")
_HEADER = b"SQLite format 3\0"
_CLOSE_OPEN = (
    "UPDATE action SET status = 'interrupted', reason = 'ledger_restored', finished_at = ? "
    "WHERE status IN ('requested', 'awaiting_approval', 'running', 'verifying')"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds and where it came from; ``config`` is where the configuration lay."""

    format: int
    version: str
    host: str
    saved_at: float
    config: str
    files: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, or would do."""

    host: str
    saved_at: float
    actions: int
    alerts: int
    replaces: Path | None
    """The ledger that is there now and will be, or was, set aside."""


# -- saving ----------------------------------------------------------------------------------------------------------


def save(target: Path, state_dir: Path, config: str, files: Mapping[str, Path], at: float) -> Manifest:
    """Write an archive, beside a running agent or without one.

    Parameters
    ----------
    target
        A file that does not exist yet; it is readable by its owner alone.
    config
        The path of the configuration.
    files
        Configuration and rule files by their names in the archive, below :data:`CONFIGURATION`.

    Raises
    ------
    StoreError
        The target exists or cannot be written, the ledger or a file cannot be read, or the ledger's copy is not good.
    """
    if os.path.lexists(target):
        raise StoreError(f'cannot save to "{target}": it exists')
    try:
        with tempfile.TemporaryDirectory(prefix=".upkeep-save-", dir=target.absolute().parent) as scratch:
            ledger = Path(scratch, LEDGER_NAME)
            copy_checked(state_dir / LEDGER_NAME, LEDGER, ledger)
            sources = {LEDGER_NAME: ledger, **files}
            members = tuple(_member(name, path) for name, path in sources.items())
            manifest = Manifest(FORMAT, __version__, socket.gethostname(), at, config, members)
            new = Path(scratch, "archive")
            with open(new, "xb", opener=_private) as file:
                _write(file, manifest, sources)
                file.flush()
                os.fsync(file.fileno())
            settle(new, target.absolute())
    except OSError as error:
        raise StoreError(f'cannot save to "{target}": {error.strerror or error}') from error
    return manifest


def _write(file: IO[bytes], manifest: Manifest, sources: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        text = json.dumps(asdict(manifest), indent=2).encode()
        archive.addfile(_entry(MANIFEST, len(text), manifest.saved_at), io.BytesIO(text))
        for member in manifest.files:
            with sources[member.name].open("rb") as source:
                archive.addfile(_entry(member.name, member.bytes, manifest.saved_at), source)


def _member(name: str, path: Path) -> Member:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            digest.update(piece)
            size += len(piece)
    return Member(name, size, digest.hexdigest())


def _entry(name: str, size: int, at: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, int(at), 0o600
    return entry


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(file: IO[bytes], name: str) -> Manifest:
    """What an archive says that it holds.

    Raises
    ------
    StoreError
        It is no archive of this program, is damaged, or names a file that lies outside of it.
    """
    with _opened(file, name) as archive:
        return _manifest(archive, name)


def extract(file: IO[bytes], name: str, wanted: Mapping[str, IO[bytes]]) -> Manifest:
    """Read an archive to its end and write out some of its files; each is compared with the manifest.

    Raises
    ------
    StoreError
        As :func:`read_manifest`; or a file is missing, not named, named twice, no plain file, or not what the manifest
        says. What was written by then is not to be used.
    """
    with _opened(file, name) as archive:
        manifest = _manifest(archive, name)
        missing = {member.name: member for member in manifest.files}
        for entry in archive:
            if entry.name == MANIFEST and entry.offset == 0:
                continue
            member = missing.pop(entry.name, None)
            source = archive.extractfile(entry) if entry.isreg() else None
            if member is None or source is None:
                raise StoreError(f'cannot use "{name}": it holds "{entry.name}", which its manifest does not name')
            if _copied(source, wanted.get(entry.name), member.bytes) != member.sha256:
                raise StoreError(f'cannot use "{name}": "{entry.name}" is not what was saved')
        if missing:
            raise StoreError(f'cannot use "{name}": "{next(iter(missing))}" is missing')
    return manifest


def unpack(file: IO[bytes], name: str, paths: Mapping[str, Path]) -> None:
    """Write files of an archive to paths that do not exist; those that were written go again when it is not whole.

    Raises
    ------
    StoreError
        As :func:`extract`, or a file cannot be written.
    """
    made: list[Path] = []
    with ExitStack() as stack:
        stack.callback(_remove, made)
        wanted: dict[str, IO[bytes]] = {}
        try:
            for member, path in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                wanted[member] = stack.enter_context(path.open("xb"))
                made.append(path)
            extract(file, name, wanted)
        except OSError as error:
            raise StoreError(f'cannot write what is in "{name}": {error}') from error
        made.clear()


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StoreError(f'cannot use "{name}": it is no whole archive of upkeep state save ({error})') from error


def _manifest(archive: tarfile.TarFile, name: str) -> Manifest:
    entry = archive.next()
    source = archive.extractfile(entry) if entry is not None and entry.isreg() else None
    if entry is None or source is None or entry.name != MANIFEST or entry.size > MANIFEST_BYTES:
        raise StoreError(f'cannot use "{name}": it does not begin with a manifest')
    try:
        facts = json.loads(source.read())
        members = tuple(Member(str(each["name"]), int(each["bytes"]), str(each["sha256"])) for each in facts["files"])
        manifest = Manifest(
            int(facts["format"]),
            str(facts["version"]),
            str(facts["host"]),
            float(facts["saved_at"]),
            str(facts["config"]),
            members,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f'cannot use "{name}": its manifest cannot be read') from error
    if manifest.format != FORMAT:
        raise StoreError(f'cannot use "{name}": it was saved by another version (format {manifest.format})')
    for member in members:
        if member.name != LEDGER_NAME and not (member.name.startswith(CONFIGURATION) and _SAFE.fullmatch(member.name)):
            raise StoreError(f'cannot use "{name}": it names "{member.name}", which lies outside')
    if len({member.name for member in members}) != len(members):
        raise StoreError(f'cannot use "{name}": it names a file twice')
    return manifest


def _copied(source: IO[bytes], target: IO[bytes] | None, at_most: int) -> str:
    """The digest of what was copied; a file that is longer than it should be is not read to its end."""
    digest, left = hashlib.sha256(), at_most + 1
    while left and (piece := source.read(min(_PIECE_BYTES, left))):
        left -= len(piece)
        digest.update(piece)
        if target is not None:
            target.write(piece)
    return digest.hexdigest()


# -- restoring -------------------------------------------------------------------------------------------------------


def restore(
    file: IO[bytes], name: str, state_dir: Path, who: str, at: float, *, observe: Callable[[], None] | None
) -> Restored:
    """Put a saved ledger in the place of the one that is there, which is set aside.

    The caller holds the state lock. The restored ledger says who restored it and when, as an action; actions that were
    open when it was saved are closed, for nobody waits for them any more.

    Parameters
    ----------
    file, name
        An archive, or a nightly copy of the ledger as it is; and its name for messages.
    observe
        Called just before the ledger is replaced: what makes the agent observe from then on. None: look at the file,
        say what would be done, and change nothing that is there.

    Raises
    ------
    StoreError
        The file cannot be used, or there is no room. The ledger that was there stays.
    """
    make_folder(state_dir)
    new, ledger = state_dir / "ledger.db.restoring", state_dir / LEDGER_NAME
    _forget(new)
    try:
        host, saved_at = _take_ledger(file, name, new)
        with closing(_checked(new, name)) as connection:
            [(actions,)] = connection.execute("SELECT count(*) FROM action").fetchall()
            [(alerts,)] = connection.execute("SELECT count(*) FROM alert WHERE ended_at IS NULL").fetchall()
            there = ledger if os.path.lexists(ledger) else None
            if observe is None:
                return Restored(host, saved_at, actions, alerts, there)
            connection.execute(_CLOSE_OPEN, (at,))
            record = done_by_person("state_restore", f"from {name}, saved {stamp(saved_at)}", who, at)
            statement = insert_action(record)
            assert isinstance(statement, tuple)
            connection.execute(*statement)
            connection.execute("PRAGMA journal_mode = DELETE")
        _sync(new)
        observe()
        if there is not None:
            there = set_aside(ledger, f"before-{stamp(at)}", leave=True)
        settle(new, ledger)
        return Restored(host, saved_at, actions, alerts, there)
    except OSError as error:
        raise StoreError(f'cannot restore "{name}" to "{state_dir}": {error.strerror or error}') from error
    finally:
        _forget(new)


def _take_ledger(file: IO[bytes], name: str, new: Path) -> tuple[str, float]:
    """Write the ledger of an archive, or a copy of it, to a new file; return the host and the instant of saving."""
    file.seek(0, os.SEEK_END)
    whole = file.tell()
    file.seek(0)
    bare = file.read(len(_HEADER)) == _HEADER
    file.seek(0)
    manifest = None if bare else read_manifest(file, name)
    size = whole if manifest is None else sum(each.bytes for each in manifest.files if each.name == LEDGER_NAME)
    if manifest is not None and not size:
        raise StoreError(f'cannot use "{name}": it holds no ledger')
    if free_bytes(new.parent) < 2 * size + 256 * PAGE_BYTES:
        raise StoreError(f'cannot restore "{name}": that takes {2 * size >> 20} MiB in "{new.parent}"')
    with open(new, "xb", opener=_private) as out:
        os.fchmod(out.fileno(), 0o640)
        if manifest is not None:
            extract(file, name, {LEDGER_NAME: out})
            return manifest.host, manifest.saved_at
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            out.write(piece)
    return socket.gethostname(), os.fstat(file.fileno()).st_mtime


def _checked(new: Path, name: str) -> sqlite3.Connection:
    try:
        connection = connect(new, LEDGER)
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            connection.close()
            raise Damaged(verdict)
    except (Damaged, sqlite3.Error) as error:
        raise StoreError(f'cannot use the ledger in "{name}": {error}') from error
    except StoreError as error:
        raise StoreError(str(error).replace(str(new), name)) from None
    return connection


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(new: Path) -> None:
    for leftover in (new, *new.parent.glob(f"{new.name}[-.]*")):
        leftover.unlink(missing_ok=True)
