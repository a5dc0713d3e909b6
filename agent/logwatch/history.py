"""Past logs, plain and compressed, through the same patterns: counts, first and last, and what was said most."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from io import BufferedReader
from typing import BinaryIO, cast

from agent.logwatch.patterns import Match, Matcher, readable
from agent.logwatch.tailer import BLOCK_BYTES, LINE_BYTES, open_regular

TOP_LINES = 5
LONGEST_SHOWN = 200
MOST_TEMPLATES = 10_000
"""Distinct lines counted for each pattern; a log that never repeats itself must not fill the memory."""

Progress = Callable[[int, int], None]
"""Told the bytes of files on disk that are done, and of all."""

_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}\b|\d+(?:[.,:]\d+)*")


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
        Files, and folders whose ``*.log*`` files are taken, folders within included. ``.gz`` and ``.xz`` are unpacked.
    since
        Only files changed at or after this instant; None: all.

    Returns
    -------
    Summary
        A file that breaks off (a cut archive) counts up to there, and is named.
    """
    summary = Summary({pattern.name: PatternSummary(pattern.name) for pattern in matcher.patterns})
    chosen = _choose(paths, since, summary)
    whole = sum(size for _, size in chosen)
    done = 0
    for path, size in chosen:
        progress(done, whole)
        try:
            _scan_file(path, matcher, summary)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
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


def _scan_file(path: str, matcher: Matcher, summary: Summary) -> None:
    summary.files += 1
    line = 1
    with os.fdopen(open_regular(path), "rb") as raw, _unpacked(raw) as file:
        for data in _whole_lines(file):
            counted_to = 0
            for match in matcher.scan(data):
                line += data.count(b"\n", counted_to, match.start)
                counted_to = match.start
                summary.patterns[match.pattern.name].add(_found(path, line, data, match))
            line += data.count(b"\n", counted_to)
            summary.lines += data.count(b"\n")
            summary.bytes += len(data)


def _unpacked(raw: BufferedReader) -> AbstractContextManager[BinaryIO]:
    head = raw.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return cast(AbstractContextManager[BinaryIO], gzip.GzipFile(fileobj=raw))
    if head.startswith(b"\xfd7zXZ"):
        return cast(AbstractContextManager[BinaryIO], lzma.LZMAFile(raw))
    return nullcontext(raw)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
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
