"""Past logs, plain and compressed, through the same patterns: counts, first and last, and what was said most."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Protocol

from agent.logwatch.linetime import time_of
from agent.logwatch.patterns import Match, Matcher, readable
from agent.logwatch.tailer import BLOCK_BYTES, LINE_BYTES, open_regular

TOP_LINES = 5
LONGEST_SHOWN = 200
MOST_TEMPLATES = 10_000
"""Distinct lines counted for each pattern; a log that never repeats itself must not fill the memory."""

Progress = Callable[[int, int], None]
"""Told the bytes of files on disk that are done, and of all."""

MOST_DAYS = 4000
"""Days of which errors are summed: lines may claim any time."""
MEMORY_BYTES = 128 * 1024**2
"""What an archive may ask for to be unpacked: more is a hostile one, or was made with ``--ultra``."""
UNPACKED_BYTES, UNPACKED_TIMES = 1024**3, 250
"""An archive is read up to the greater of this size and this many times its own: a log is rarely packed 100 times
smaller, a bomb a thousand times and more."""

_VARIABLE = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}\b|\d+(?:[.,:]\d+)*"
)


class TooLargeError(Exception):
    """An archive that unpacks to more than a log does."""


@dataclass(frozen=True, slots=True)
class Found:
    """A matching line: where it is and what it says, made readable."""

    path: str
    line: int
    text: str


@dataclass(slots=True)
class PatternSummary:
    """One pattern over all files: its first and last line in the order read (oldest file first), its top lines."""

    pattern: str
    count: int = 0
    first: Found | None = None
    last: Found | None = None
    _templates: Counter[str] = field(default_factory=Counter)

    def add(self, found: Found) -> None:
        self.count += 1
        self.first = self.first or found
        self.last = found
        template = _VARIABLE.sub("#", found.text)
        if template in self._templates or len(self._templates) < MOST_TEMPLATES:
            self._templates[template] += 1

    def top(self, most: int = TOP_LINES) -> list[tuple[str, int]]:
        """The lines seen most, numbers and addresses folded to ``#``."""
        return self._templates.most_common(most)


@dataclass(slots=True)
class Summary:
    """What a scan read and found. ``unreadable`` holds each file that could not be read to its end, with the reason."""

    patterns: dict[str, PatternSummary] = field(default_factory=dict)
    files: int = 0
    lines: int = 0
    bytes: int = 0
    days: dict[str, Counter[str]] = field(default_factory=dict)
    """Matches of each pattern by the day (local) that their lines name, or that their file was written on."""
    unreadable: dict[str, str] = field(default_factory=dict)


def scan(
    paths: Sequence[str],
    matcher: Matcher,
    since: float | None = None,
    progress: Progress = lambda done, whole: None,
) -> Summary:
    """Read logs from beginning to end.

    Parameters
    ----------
    paths
        Files, and folders whose ``*.log*`` files are taken, folders within included. What is gzip, xz or
        zstd by its first bytes is unpacked, whatever it is called.
    since
        Only files changed at or after this instant; None: all.

    Returns
    -------
    Summary
        A file that breaks off (a cut archive, one that unpacks to far more than a log would) counts up to there, and is
        named.
    """
    summary = Summary({pattern.name: PatternSummary(pattern.name) for pattern in matcher.patterns})
    chosen = _choose(paths, since, summary)
    whole = sum(size for _, size in chosen)
    done = 0
    for path, size in chosen:
        progress(done, whole)
        try:
            _scan_file(path, matcher, summary, lambda read, before=done: progress(before + read, whole))  # type: ignore[misc]
        except (OSError, EOFError, TooLargeError, zlib.error, lzma.LZMAError) as error:
            summary.unreadable[path] = getattr(error, "strerror", None) or str(error)
        done += size
    progress(done, whole)
    return summary


def _choose(paths: Sequence[str], since: float | None, summary: Summary) -> list[tuple[str, int]]:
    """(path, size) of the files to read, the oldest first."""
    found: dict[str, os.stat_result] = {}
    for path in paths:
        for each in _files_in(path) if os.path.isdir(path) else [path]:
            try:
                found[each] = os.stat(each)
            except OSError as error:
                summary.unreadable[each] = error.strerror or str(error)
    recent = [(path, info) for path, info in found.items() if since is None or info.st_mtime >= since]
    recent.sort(key=lambda pair: (pair[1].st_mtime_ns, pair[0]))
    return [(path, info.st_size) for path, info in recent]


def _files_in(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in sorted(names) if ".log" in name)


def _scan_file(path: str, matcher: Matcher, summary: Summary, progress: Callable[[int], None]) -> None:
    summary.files += 1
    line = 1
    with os.fdopen(open_regular(path), "rb") as raw, _unpacked(raw) as file:
        written_at = os.fstat(raw.fileno()).st_mtime
        for data in _whole_lines(file):
            counted_to = 0
            for match in matcher.scan(data):
                line += data.count(b"\n", counted_to, match.start)
                counted_to = match.start
                summary.patterns[match.pattern.name].add(_found(path, line, data, match))
                _count_day(summary.days, match, data[match.start : match.start + _TIME_BYTES], written_at)
            line += data.count(b"\n", counted_to)
            summary.lines += data.count(b"\n")
            summary.bytes += len(data)
            progress(os.lseek(raw.fileno(), 0, os.SEEK_CUR))


_TIME_BYTES = 256


def _count_day(days: dict[str, Counter[str]], match: Match, line: bytes, written_at: float) -> None:
    at = time_of(line.partition(b"\n")[0], written_at) or written_at
    try:
        day = time.strftime("%Y-%m-%d", time.localtime(at))
    except (ValueError, OverflowError, OSError):
        day = time.strftime("%Y-%m-%d", time.localtime(written_at))
    if day in days or len(days) < MOST_DAYS:
        days.setdefault(day, Counter())[match.pattern.name] += 1


@contextmanager
def _unpacked(raw: BufferedReader) -> Iterator[_Readable]:
    head = raw.peek(6)
    most = max(UNPACKED_BYTES, UNPACKED_TIMES * os.fstat(raw.fileno()).st_size)
    if head.startswith(b"\x1f\x8b"):
        yield _Bounded(gzip.GzipFile(fileobj=raw).read, most)
    elif head.startswith(b"\xfd7zXZ"):
        yield _Bounded(_Xz(raw).read, most)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        with _zstd(raw) as read:
            yield _Bounded(read, most)
    else:
        yield raw


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """An archive that is read no further than a log could reach."""

    def __init__(self, read: Callable[[int], bytes], most: int) -> None:
        self._read = read
        self._left = self._most = most

    def read(self, size: int, /) -> bytes:
        if self._left <= 0:
            raise TooLargeError(f"it unpacks to over {self._most} bytes, more than a log would")
        data = self._read(min(size, self._left))
        self._left -= len(data)
        return data


class _Xz:
    """xz with a bound on what it may take: :class:`lzma.LZMAFile` has none. Concatenated archives are read on."""

    def __init__(self, raw: BufferedReader) -> None:
        self._raw = raw
        self._begin(b"")

    def _begin(self, rest: bytes) -> None:
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)
        self._rest = rest

    def read(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                rest = (self._unpacker.unused_data or self._raw.read(BLOCK_BYTES)).lstrip(b"\0")
                if not rest:
                    return b""
                self._begin(rest)
            if self._unpacker.needs_input and not self._rest:
                self._rest = self._raw.read(BLOCK_BYTES)
                if not self._rest:
                    raise EOFError("it breaks off")
            data, self._rest = self._unpacker.decompress(self._rest, size), b""
            if data:
                return data


@contextmanager
def _zstd(raw: BufferedReader) -> Iterator[Callable[[int], bytes]]:
    """zstd by its own program: neither the standard library of Python 3.11 nor a locked package reads it."""
    argv = ["zstd", "-dcq", f"--memory={MEMORY_BYTES}"]
    os.lseek(raw.fileno(), 0, os.SEEK_SET)  # what was peeked at is the child's to read
    try:
        child = subprocess.Popen(argv, stdin=raw.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise OSError("zstd is not installed (Debian: apt-get install zstd)") from None
    with child:
        assert child.stdout is not None

        def read(size: int) -> bytes:
            assert child.stdout is not None
            assert child.stderr is not None
            data = child.stdout.read(size)
            if not data and child.wait() != 0:
                raise EOFError(_last_words(child.stderr.read(4096)))
            return data

        try:
            yield read
        finally:
            child.kill()


def _last_words(said: bytes) -> str:
    return readable(said, LONGEST_SHOWN) or "zstd cannot unpack it"


def _whole_lines(file: _Readable) -> Iterator[bytes]:
    """Blocks of whole lines with CRLF as LF; a line over 64 KiB is cut there, its rest left out."""
    rest, skipping = b"", False
    while block := file.read(BLOCK_BYTES):
        data = rest + block
        if skipping:
            newline = data.find(b"\n")
            if newline < 0:
                rest = b""
                continue
            data, skipping = data[newline + 1 :], False
        end = data.rfind(b"\n") + 1
        yield from _capped(data[:end])
        rest = data[end:]
        if len(rest) > LINE_BYTES:
            yield rest[:LINE_BYTES] + b"\n"
            rest, skipping = b"", True
    if rest and not skipping:
        yield rest + b"\n"


def _capped(data: bytes) -> Iterator[bytes]:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    start = 0
    while start < len(data):
        stop = data.rfind(b"\n", start, start + LINE_BYTES + 1) + 1
        if stop:
            yield data[start:stop]
            start = stop
        else:
            yield data[start : start + LINE_BYTES] + b"\n"
            start = data.find(b"\n", start) + 1


def _found(path: str, line: int, data: bytes, match: Match) -> Found:
    return Found(path, line, readable(data[match.start : match.end], LONGEST_SHOWN))
