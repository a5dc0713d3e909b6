"""The journal, through ``journalctl``: followed from a cursor, or asked for what was wrong in the last day.

Its JSON is read as it comes; a message that is not UTF-8 is a list of bytes, one that is too long is null.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import subprocess
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

COMMAND = ("journalctl",)
ERROR = 3
"""The syslog priority ``err``; less is worse."""
ERROR_LINES = 20
ASK_S = 20.0
DAY_S = 86400.0
MOST_BYTES = 256 * 1024 * 1024
"""How much JSON of a day is read; a unit that wrote more is told as not whole."""

_LINE_BYTES = 1 << 20
_FIELDS = "MESSAGE,__CURSOR,__REALTIME_TIMESTAMP,PRIORITY,_SYSTEMD_UNIT"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message: when it was logged (seconds since the epoch), its place, its syslog priority (6 where it has none)
    and the unit it came from (empty: none).
    """

    text: str
    at: float
    cursor: str
    priority: int = 6
    unit: str = ""


def parse_entry(raw: bytes) -> Entry | None:
    """One line of ``journalctl -o json``; None for what is no message."""
    try:
        found = json.loads(raw)
        message, at = found["MESSAGE"], int(found["__REALTIME_TIMESTAMP"]) / 1e6
        text = bytes(message).decode("utf-8", "replace") if isinstance(message, list) else message
        cursor, unit = found["__CURSOR"], found.get("_SYSTEMD_UNIT", "")
        priority = int(found.get("PRIORITY", 6))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str) or not isinstance(cursor, str):
        return None
    return Entry(text, at, cursor, priority, unit if isinstance(unit, str) else "")


async def follow(
    filters: Sequence[str], where: Sequence[str], command: Sequence[str] = COMMAND
) -> AsyncGenerator[Entry, None]:
    """Entries as they are logged, until the command ends.

    Parameters
    ----------
    filters
        Options that choose entries: ``-k``, ``-u UNIT`` …
    where
        Options that say where to begin: ``--after-cursor CURSOR``, ``--no-tail`` or ``--lines=0``.

    Raises
    ------
    OSError
        The command cannot be started.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        *filters,
        *("-o", "json", f"--output-fields={_FIELDS}", "--follow", "--quiet", "--no-pager"),
        *where,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_LINE_BYTES,
    )
    assert child.stdout is not None
    try:
        while raw := await _line(child.stdout):
            if (entry := parse_entry(raw)) is not None:
                yield entry
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; one that is over a megabyte is passed over."""
    while True:
        try:
            return await stream.readline()
        except ValueError:
            continue


@dataclass(frozen=True, slots=True)
class Errors:
    """What a unit had to complain of: how many entries, and the last of them, oldest first.

    ``whole`` is false where the journal could not be read to the end of the time asked for.
    """

    unit: str
    total: int
    last: tuple[Entry, ...]
    whole: bool = True


def errors_of_the_day(
    unit: str, at: float, *, most: int = ERROR_LINES, command: Sequence[str] = COMMAND, deadline_s: float = ASK_S
) -> Errors:
    """The errors of a unit in the 24 hours before an instant.

    An entry counts when its priority is ``err`` or worse, or its text holds ``ERROR``: what a service prints to its
    standard output has the priority ``info`` whatever it says.

    Raises
    ------
    OSError
        ``journalctl`` cannot be started.
    """
    last: deque[Entry] = deque(maxlen=most)
    total, whole = 0, True
    argv = [
        *command, "-u", unit, "-o", "json", f"--output-fields={_FIELDS}", "--quiet", "--no-pager",
        f"--since=@{at - DAY_S:.0f}", f"--until=@{at:.0f}",
    ]  # fmt: skip
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:  # fmt: skip
        try:
            for raw in _lines_within(child, deadline_s):
                entry = parse_entry(raw)
                if entry is not None and (entry.priority <= ERROR or "ERROR" in entry.text):
                    total += 1
                    last.append(entry)
            whole = child.wait(deadline_s) == 0
        except (TimeoutError, subprocess.TimeoutExpired):
            whole = False
        finally:
            child.kill()
    return Errors(unit, total, tuple(last), whole)


def _lines_within(child: subprocess.Popen[bytes], deadline_s: float) -> Iterator[bytes]:
    """Whole lines until the end; TimeoutError at the deadline or after too many bytes."""
    assert child.stdout is not None
    until, rest, read = time.monotonic() + deadline_s, b"", 0
    while True:
        left_s = until - time.monotonic()
        if left_s <= 0 or read > MOST_BYTES or not select.select([child.stdout], [], [], left_s)[0]:
            raise TimeoutError
        data = child.stdout.read1(_LINE_BYTES)  # type: ignore[attr-defined]
        if not data:
            return
        read += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _LINE_BYTES:
            rest = b"{"  # what follows of it is no entry
