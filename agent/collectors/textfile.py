"""Samples that other programs write to ``*.prom`` files, by the convention of node_exporter's textfile collector.

A file is read again only when it changed. One that cannot be read whole gives nothing at all; the others go on.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from agent.errors import Fault, FaultyFilesError, UpkeepError
from agent.metrics import METRICS
from agent.model import Reading, Series, make_labels
from agent.store.openmetrics import untimed
from agent.told import States, Tell, nobody

MOST_BYTES = 2 * 1024**2
MOST_FILES = 200
MOST_SAMPLES = 10_000
"""Beyond these a file, or what is left of the folder, is an error: what is written here is stored for good."""

FOREIGN = ("updates", "audit", "backups")
"""Families of the metric table that scripts have long been writing, and may go on to."""

_ERROR = Series("node_textfile_scrape_error")


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file held when it was as ``state`` says: its series and values, or why there are none."""

    state: tuple[int, int, int, int]
    series: tuple[Series, ...] = ()
    values: tuple[float, ...] = ()
    fault: str = ""


def parse(raw: bytes, path: str) -> tuple[tuple[Series, ...], tuple[float, ...]]:
    """Series and values of one file's text.

    Raises
    ------
    FaultyFilesError
        With every faulty line: what is no sample, has an instant of its own, comes twice, or bears a name that the
        agent itself makes.
    """
    series: dict[Series, float] = {}
    faults: list[Fault] = []
    for line, one, value in untimed(raw, path):
        if one in series:
            faults.append(Fault(path, line, 1, f"{one} is there already"))
        elif one.metric in METRICS and METRICS[one.metric].source not in FOREIGN:
            faults.append(Fault(path, line, 1, f'cannot take "{one.metric}": the agent makes it itself'))
        else:
            series[one] = value
    if faults:
        raise FaultyFilesError(faults)
    return tuple(series), tuple(series.values())


class TextfileCollector:
    """A folder of ``*.prom`` files. What is no plain file is an error and never opened for longer than to see that.

    Parameters
    ----------
    directory
        The folder; one that does not exist is no error, for nobody may have written yet.
    tell
        Records an event, with file and line, when a file goes wrong, and when it is mended.
    """

    name = "textfile"

    def __init__(self, directory: str, tell: Tell = nobody) -> None:
        self._directory = directory
        self._states = States("textfile", tell)
        self._files: dict[str, _Read] = {}
        self._fault = ""
        self._series: tuple[Series, ...] = (_ERROR,)
        self._values: list[float] = [0.0]

    async def collect(self, at: float) -> Reading:
        files, fault = self._look()
        if fault != self._fault or files != self._files:
            self._files, self._fault = files, fault
            await self._merge(at)
        return Reading(at, self._series, self._values)

    def _look(self) -> tuple[dict[str, _Read], str]:
        """Every file as it is now, by its path, in order; and what is wrong with the folder."""
        try:
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(".prom"))
        except FileNotFoundError:
            return {}, ""
        except OSError as error:
            return {}, f'cannot read "{self._directory}": {(error.strerror or str(error)).lower()}'
        fault = f"there are more than {MOST_FILES} files: the rest is left out" if len(names) > MOST_FILES else ""
        paths = [os.path.join(self._directory, name) for name in names[:MOST_FILES]]
        found = {path: _read(path, self._files.get(path)) for path in paths}
        return {path: read for path, read in found.items() if read is not None}, fault

    async def _merge(self, at: float) -> None:
        """Lay out what the files hold; a file that says again what an earlier one said is left out whole."""
        merged: dict[Series, float] = {}
        times: dict[Series, float] = {}
        faults = {self._directory: self._fault} if self._fault else {}
        for path, read in self._files.items():
            fault = read.fault
            if not fault and (twice := next(filter(merged.__contains__, read.series), None)) is not None:
                fault = f"{path}: {twice} is in another file already"
            if not fault and len(merged) + len(read.series) > MOST_SAMPLES:
                fault = f"{path}: the folder holds more than {MOST_SAMPLES} samples"
            if fault:
                faults[path] = fault
                continue
            merged.update(zip(read.series, read.values, strict=True))
            times[Series("node_textfile_mtime_seconds", make_labels(file=path))] = read.state[0] / 1e9
        self._series = (_ERROR, *times, *merged)
        self._values = [float(bool(faults)), *times.values(), *merged.values()]
        self._states.forget({self._directory, *self._files})
        for what in (self._directory, *self._files):
            if what in faults:
                await self._states.wrong(what, faults[what], faults[what], at)
            else:
                await self._states.right(what, f'"{what}" can be read again', at)


def _read(path: str, before: _Read | None) -> _Read | None:
    """A file, read only where it changed; None where it is gone."""
    try:
        # Not waiting: a pipe of that name would hold the agent up until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _Read((0, 0, 0, 0), fault=f'cannot read "{path}": {(error.strerror or str(error)).lower()}')
    try:
        status = os.fstat(descriptor)
        state = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
        if before is not None and before.state == state:
            return before
        if not stat.S_ISREG(status.st_mode):
            return _Read(state, fault=f'cannot read "{path}": it is no plain file')
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        return _Read((0, 0, 0, 0), fault=f'cannot read "{path}": {(error.strerror or str(error)).lower()}')
    finally:
        os.close(descriptor)
    if len(raw) > MOST_BYTES:
        return _Read(state, fault=f'cannot read "{path}": it is larger than {MOST_BYTES >> 20} MiB')
    try:
        return _Read(state, *parse(raw, path))
    except UpkeepError as error:
        return _Read(state, fault=str(error).splitlines()[0])
