"""Read the kernel's text files at the price of one system call, and learn where in them the wanted values stand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import mul
from typing import Protocol

from agent.model import Series

_READ_BYTES = 65536
_LAST_CHUNK_BYTES = 3072
"""The kernel hands a table out in whole lines, a page (4096 bytes) at most at a time: a chunk this much shorter was
the last. A second read to learn that would double the price of the small files."""


class PinnedFile:
    """A file under /proc or /sys that is kept open between ticks.

    A file that goes away (a module unloaded, a device removed) is closed, and opened afresh at the next read.

    Parameters
    ----------
    path
        The file; it need not exist yet.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def read(self) -> bytes:
        """The whole content as it is now.

        Raises
        ------
        OSError
            The file does not exist, may not be read, or its device is gone.
        """
        fd = self.fileno()
        try:
            chunk = os.pread(fd, _READ_BYTES, 0)
            return chunk if len(chunk) < _LAST_CHUNK_BYTES else self._rest(fd, chunk)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """The open descriptor, for ``poll``; opens the file where it is not open."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Let go of the descriptor; a later read opens the file again."""
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    @staticmethod
    def _rest(fd: int, first: bytes) -> bytes:
        chunks, length = [first], len(first)
        while len(chunks[-1]) >= _LAST_CHUNK_BYTES:
            chunks.append(os.pread(fd, _READ_BYTES, length))
            length += len(chunks[-1])
        return b"".join(chunks)


class Parser(Protocol):
    """Turns a file's text into values. ``series`` names them and is the same object while the layout holds."""

    @property
    def series(self) -> tuple[Series, ...]: ...

    def parse(self, raw: bytes) -> Sequence[float]: ...


class NamedNumbers:
    """Parses files of one name and one number a line, such as /proc/meminfo and /proc/vmstat.

    The order of the lines does not change while a kernel runs: the places of the wanted names are learned from the
    first text and only compared from then on.

    Parameters
    ----------
    wanted
        For each name as it stands in the file (``b"MemTotal:"``) the series it makes and the factor to its base unit.
        A name that the file lacks makes no series.
    """

    def __init__(self, wanted: Mapping[bytes, tuple[Series, int]]) -> None:
        self._wanted = wanted
        self._count = -1
        self._names: list[bytes] = []
        self._places: list[int] = []
        self._next: list[int] = []
        self._factors: list[int] = []
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """The wanted numbers in base units, as ``series`` names them."""
        words = raw.split()
        if len(words) != self._count or list(map(words.__getitem__, self._places)) != self._names:
            self._learn(words)
        numbers = map(int, map(words.__getitem__, self._next))
        return list(map(mul, numbers, self._factors))

    def _learn(self, words: Sequence[bytes]) -> None:
        wanted = self._wanted
        self._count = len(words)
        self._places = [place for place, word in enumerate(words[:-1]) if word in wanted]
        self._next = [place + 1 for place in self._places]
        self._names = [words[place] for place in self._places]
        self._factors = [wanted[name][1] for name in self._names]
        self.series = tuple(wanted[name][0] for name in self._names)


class Files:
    """Several files read at one instant as one list of values.

    A file that cannot be read makes no values at that instant; the others go on.
    """

    def __init__(self, parsers: Mapping[str, Parser]) -> None:
        self._parts = [(PinnedFile(path), parser) for path, parser in parsers.items()]
        self._layout: list[tuple[Series, ...]] = []
        self.series: tuple[Series, ...] = ()

    def read(self) -> list[float]:
        """The values of all files, as ``series`` names them afterwards."""
        values: list[float] = []
        layout: list[tuple[Series, ...]] = []
        for file, parser in self._parts:
            try:
                raw = file.read()
            except OSError:
                layout.append(())
                continue
            values += parser.parse(raw)
            layout.append(parser.series)
        if layout != self._layout:  # tuples compare by identity first: nothing is hashed or compared while all hold
            self._layout = layout
            self.series = tuple(series for part in layout for series in part)
        return values
