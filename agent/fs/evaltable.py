"""Read the newest rows of an evaluation framework's ``performance_metrics`` table: one JSON object on standard output.

Run as a program, ``PATH CURSOR``: the file is another program's and may be locked, huge, damaged or made to hurt, so it
is opened in a child with bounds on memory and time, read-only, and only a plain table is asked.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import stat
import sys

MOST_ROWS = 5000
"""The newest that are read at once; older ones of a larger backlog are passed over."""

MEMORY_BYTES = 256 * 1024**2
PROCESSOR_S = 5
BUSY_S = 1.0
COLUMNS = ("timestamp", "domain", "avg_latency", "throughput", "error_rate")


class StateError(Exception):
    """Why nothing can be read: a name for the state, and words."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def read(path: str, cursor: int) -> dict[str, object]:
    """Rows after ``cursor`` (a rowid), oldest first, and the cursor for the next time.

    Raises
    ------
    StateError
        ``absent``, ``unreadable``, ``locked``, ``schema`` or ``damaged``.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        reason = "absent" if isinstance(error, FileNotFoundError) else "unreadable"
        raise StateError(reason, (error.strerror or str(error)).lower()) from None
    if not stat.S_ISREG(status.st_mode):
        raise StateError("unreadable", "it is no plain file")
    try:
        return _rows(path, cursor)
    except sqlite3.Error as error:
        raise _state(error) from None


def _rows(path: str, cursor: int) -> dict[str, object]:
    link = _open(path)
    try:
        link.execute("PRAGMA query_only = 1")
        link.execute("PRAGMA trusted_schema = 0")
        kind = link.execute("SELECT type FROM sqlite_master WHERE name = 'performance_metrics'").fetchone()
        if kind != ("table",):
            raise StateError("schema", "there is no table performance_metrics")
        found = {str(row[1]) for row in link.execute("PRAGMA table_info(performance_metrics)")}
        if missing := [name for name in COLUMNS if name not in found]:
            raise StateError("schema", f"performance_metrics has no column {missing[0]}")
        newest = link.execute("SELECT max(rowid) FROM performance_metrics").fetchone()[0] or 0
        if newest < cursor:  # the table was made anew
            cursor = 0
        rows = link.execute(
            f"SELECT {', '.join(COLUMNS)} FROM performance_metrics WHERE rowid > ? AND rowid <= ? "
            f"ORDER BY rowid DESC LIMIT {MOST_ROWS}",
            (cursor, newest),
        ).fetchall()
    finally:
        link.close()
    return {"cursor": newest, "rows": [row for row in reversed(rows) if not any(isinstance(v, bytes) for v in row)]}


def _open(path: str) -> sqlite3.Connection:
    place = "file:" + "".join(
        c if c.isalnum() or c in "/._-" else "".join(f"%{b:02x}" for b in os.fsencode(c)) for c in path
    )
    link = sqlite3.connect(f"{place}?mode=ro", uri=True, timeout=BUSY_S)
    link.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1024**2)
    try:
        link.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        link.close()
        wal = f"{path}-wal"
        # A file in WAL mode that was closed cleanly wants an index beside it, which a reader may not make. It has no
        # log then, and nobody has it open: it stands still.
        if error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN or (os.path.exists(wal) and os.path.getsize(wal)):
            raise
        link = sqlite3.connect(f"{place}?mode=ro&immutable=1", uri=True)
    return link


def _state(error: sqlite3.Error) -> StateError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StateError("locked", "somebody holds it locked")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
        return StateError("unreadable", str(error))
    if code == sqlite3.SQLITE_ERROR and "no such column: rowid" in str(error):
        return StateError("schema", "performance_metrics has no rowid")
    return StateError("damaged", str(error))


def main() -> None:
    """Answer the arguments; a state is an answer too."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = read(sys.argv[1], int(sys.argv[2]))
    except StateError as state:
        answer = {"reason": state.reason, "words": str(state)}
    except MemoryError:
        answer = {"reason": "damaged", "words": "it needs too much memory to read"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
