"""Sizes and ages of whole trees, measured by a child process of low priority."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from agent.fs import walk
from agent.model import Reading, Series

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long one tree may take; the walk's own budget of processor time is shorter unless the disk is slow."""

REST_ROUNDS = 10
"""Readings for which a tree that did not answer is left alone."""

_WHOLE = ("directory_size_bytes", "directory_files")
_AGES = ("directory_oldest_timestamp_seconds", "directory_newest_timestamp_seconds")
_WALK = ("directory_verified_timestamp_seconds", "directory_scan_seconds")


@dataclass(frozen=True, slots=True)
class Size:
    """A tree as measured: the names of what is known of it, and the values."""

    metrics: tuple[str, ...]
    values: tuple[float, ...]


def parse(line: bytes) -> Size | str:
    """What a line of the walk says: a size, or why there is none.

    Parameters
    ----------
    line
        ``BYTES FILES OLDEST NEWEST VERIFIED SECONDS`` or ``absent REASON``.
    """
    word, _, rest = line.decode().strip().partition(" ")
    if word == "absent":
        return rest
    files, *times = rest.split()
    counts = (int(word), int(files))
    if times[0] == "-":
        return Size((*_WHOLE, *_WALK), (*counts, *map(float, times[2:])))
    return Size((*_WHOLE, *_AGES, *_WALK), (*counts, *map(float, times)))


class DirectoriesCollector:
    """Trees by path. A tree that cannot be read whole is absent, with one line in the log that says why.

    What a walk learned of a tree is kept in memory without a name, for the next one: a folder that did not change is
    then not listed (docs/decisions/046).

    A tree that hangs costs its patience once: its child is killed, and the tree rests for :data:`REST_ROUNDS` readings,
    or for as long as the kernel holds that child back.

    Parameters
    ----------
    paths
        The roots of the trees.
    patience_s
        How long one tree may take.
    """

    name = "directories"

    def __init__(self, paths: Sequence[str], patience_s: float = PATIENCE_S) -> None:
        self._paths = tuple(paths)
        self._patience_s = patience_s
        self._memories: dict[str, int] = {}
        self._stuck: dict[str, asyncio.subprocess.Process] = {}
        self._rests: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._layout: list[tuple[str, tuple[str, ...]]] = []
        self._series: tuple[Series, ...] = ()

    @property
    def longest_s(self) -> float:
        """The longest a whole reading can take."""
        return len(self._paths) * (self._patience_s + 1.0)

    async def close(self) -> None:
        """Forget what walks learned."""
        while self._memories:
            os.close(self._memories.popitem()[1])

    async def collect(self, at: float) -> Reading:
        answers = await self._measure([path for path in self._paths if self._rest_over(path)])
        sizes = {path: answer for path, answer in answers.items() if isinstance(answer, Size)}
        self._tell({path: answer for path, answer in answers.items() if isinstance(answer, str)})
        layout = [(path, size.metrics) for path, size in sizes.items()]
        if layout != self._layout:
            self._layout = layout
            self._series = tuple(Series(metric, (("path", path),)) for path, metrics in layout for metric in metrics)
        return Reading(at, self._series, [value for size in sizes.values() for value in size.values])

    def _rest_over(self, path: str) -> bool:
        if path not in self._stuck:
            return True
        self._rests[path] -= 1
        if self._rests[path] >= 0 or self._stuck[path].returncode is None:
            return False
        del self._stuck[path]
        return True

    async def _measure(self, paths: list[str]) -> dict[str, Size | str]:
        answers: dict[str, Size | str] = {}
        while len(answers) < len(paths):  # a child that is given up leaves the rest to the next one
            await self._ask_child(paths[len(answers) :], answers)
        return answers

    async def _ask_child(self, paths: list[str], answers: dict[str, Size | str]) -> None:
        memories = {path: self._memory(path) for path in paths}
        words = [word for path, memory in memories.items() for word in (str(memory), path)]
        process = await asyncio.create_subprocess_exec(
            *walk.command(*words), stdout=asyncio.subprocess.PIPE, pass_fds=tuple(memories.values())
        )
        assert process.stdout is not None
        path = paths[0]
        try:
            for path in paths:
                line = await asyncio.wait_for(process.stdout.readline(), self._patience_s)
                answers[path] = parse(line) if line else "the walk ended early"
                if not line:
                    break
        except TimeoutError:
            answers[path] = f"no answer within {self._patience_s:g} s"
            self._stuck[path], self._rests[path] = process, REST_ROUNDS
        finally:
            await _end(process)

    def _memory(self, path: str) -> int:
        if path not in self._memories:
            self._memories[path] = os.memfd_create("upkeep-walk")
        return self._memories[path]

    def _tell(self, reasons: dict[str, str]) -> None:
        for path, reason in reasons.items():
            if self._reasons.get(path) != reason:
                log.info("directory_absent path=%r reason=%r", path, reason)
        self._reasons = reasons


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs; a process the kernel holds back is left behind after a second."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 1.0)
