"""``rotate_logs``: logs that grew too large become archives, and a few archives are kept.

A plan names every step in its order: what goes, which archive gets the next number, which log is rotated, what is
compressed. Where a name is taken, or a log is another by then, that step is left and the next run goes on.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import ClassVar

from agent import specs
from agent.errors import OpsError
from agent.model import ItemResult, Outcome, Plan, PlanItem, Skipped
from agent.ops.client import OpsClient
from agent.ops.lognames import Archive, archive
from agent.ops.planned import MOST_LOGS, age_s, identity, joined, prefix_of, wanted
from agent.ops.protocol import Item, LogFile, Move, RefusedError

_ArchiveFile = tuple[Archive, LogFile]


class RotateLogs:
    """The logs of one folder."""

    idempotent: ClassVar[bool] = True
    harmless: ClassVar[bool] = False
    waits_for_idle_host: ClassVar[bool] = False  # a log is rotated while it is written

    def __init__(self, spec: specs.RotateLogs, ops: OpsClient, paused: Callable[[], bool]) -> None:
        self._spec = spec
        self._ops = ops
        self._paused = paused

    def resource(self) -> str:
        return f"path:{self._spec.directory}"

    async def plan(self, at: float) -> Plan:
        spec = self._spec
        try:
            found = await self._ops.logs(spec.directory, limit=MOST_LOGS)
        except RefusedError as error:
            return Plan("rotate_logs", self.resource(), str(error), refused=error.reason)
        prefix = prefix_of(spec.directory)
        items = tuple(_steps(spec, found.files, prefix, at))
        count = {change: sum(item.change == change for item in items) for change in ("rotate", "remove", "compress")}
        summary = f"rotate {count['rotate']:,} logs in {spec.directory}"
        if count["remove"] or count["compress"]:
            summary += f"; remove {count['remove']:,} archives, compress {count['compress']:,}"
        return Plan(
            "rotate_logs",
            self.resource(),
            summary,
            items=items,
            skipped=tuple(Skipped(prefix + left.path, left.reason, left.bytes) for left in found.left),
            considered_items=len(found.files),
            considered_bytes=sum(file.bytes for file in found.files),
        )

    async def apply(self, plan: Plan) -> Outcome:
        outcome, prefix = Outcome(), prefix_of(self._spec.directory)
        for change, group in groupby(() if plan.refused else plan.items, lambda item: _verb(item.change)):
            outcome = await self._change(outcome, change, list(group), prefix)
            if outcome.error:
                break
        return outcome

    async def _change(self, outcome: Outcome, change: str, items: Sequence[PlanItem], prefix: str) -> Outcome:
        directory = self._spec.directory
        if change == "remove":
            gone = [wanted(item, prefix) for item in items]
            done = await self._ops.prune(directory, gone, use="mtime", keep_used_within_s=0.0, stop=self._paused)
            return joined(outcome, done, prefix)
        if change == "move":
            moves = [self._move(item, prefix) for item in items]
            outcome = joined(outcome, await self._ops.rotate(directory, moves, stop=self._paused), prefix)
            return await self._signalled(outcome) if self._spec.signal and not outcome.error else outcome
        known, missing = await self._as_rotated(items, prefix)
        done = await self._ops.compress(directory, known, stop=self._paused)
        return joined(Outcome((*outcome.items, *missing), outcome.bytes_freed, outcome.bytes_removed), done, prefix)

    def _move(self, item: PlanItem, prefix: str) -> Move:
        path = item.target.removeprefix(prefix)
        device, inode, *rest = item.identity
        if item.change == "shift":
            return Move(path, os.path.basename(_next(path)), "shift", device, inode)
        return Move(path, _target(self._spec, path, rest[-1]), self._spec.how, device, inode)

    async def _signalled(self, outcome: Outcome) -> Outcome:
        """A log that was rotated and whose writer does not know is told as an error: it goes on in the archive."""
        try:
            await self._ops.signal(self._spec.directory, self._spec.signal)
        except OpsError as error:
            return Outcome(outcome.items, outcome.bytes_freed, outcome.bytes_removed, str(error))
        return outcome

    async def _as_rotated(
        self, items: Sequence[PlanItem], prefix: str
    ) -> tuple[list[Item], list[ItemResult]]:  # fmt: skip
        """What is to be compressed, with the identity that a rotation of this plan gave it."""
        fresh: Mapping[str, LogFile] = {}
        if any(not item.identity for item in items):
            found = await self._ops.logs(self._spec.directory, limit=MOST_LOGS)
            fresh = {file.path: file for file in found.files}
        known, missing = [], []
        for item in items:
            path = item.target.removeprefix(prefix)
            if item.identity:
                known.append(wanted(item, prefix))
            elif path in fresh:
                known.append(Item(path, 0, *identity(fresh[path])))
            else:
                missing.append(ItemResult(item.target, "gone"))
        return known, missing


def _verb(change: str) -> str:
    return "move" if change in ("shift", "rotate") else change


def _steps(spec: specs.RotateLogs, files: Sequence[LogFile], prefix: str, at: float) -> Iterator[PlanItem]:
    """Every step: all that goes, then the moves of each log, then all that is compressed."""
    archives: dict[str, list[_ArchiveFile]] = {}
    logs = []
    for file in files:
        folder, name = os.path.split(file.path)
        found = archive(name)
        if found is not None and found.naming == spec.naming:
            archives.setdefault(os.path.join(folder, found.log), []).append((found, file))
        elif name.endswith(".log"):
            logs.append(file)
    removed: list[PlanItem] = []
    moved: list[PlanItem] = []
    packed: list[PlanItem] = []
    for log in sorted(logs, key=lambda file: file.path):
        if fnmatch.fnmatchcase(os.path.basename(log.path), spec.names):
            mine = sorted(archives.get(log.path, ()), key=lambda each: each[0].age_key)
            _steps_of(spec, log, mine, at, removed, moved, packed)
    for item in (*removed, *moved, *packed):
        yield PlanItem(item.change, prefix + item.target, item.bytes, item.identity)


def _steps_of(
    spec: specs.RotateLogs,
    log: LogFile,
    archives: Sequence[_ArchiveFile],
    at: float,
    removed: list[PlanItem],
    moved: list[PlanItem],
    packed: list[PlanItem],
) -> None:
    """The steps of one log; ``archives`` are its own, the newest first."""
    due = _is_due(spec, log, archives, at)
    kept: list[_ArchiveFile] = []
    for each, file in archives:
        old = spec.delete_after is not None and age_s(file, at) > spec.delete_after
        if old or len(kept) + due >= spec.keep:
            removed.append(PlanItem("remove", file.path, file.bytes, identity(file)))
        else:
            kept.append((each, file))
    if due:
        if spec.naming == "number":
            moved += _shifts(kept)
        moved.append(PlanItem("rotate", log.path, 0, (*identity(log), int(at))))
    if spec.compress == "never":
        return
    for each, file in kept:
        if not each.packed and (spec.compress == "at_once" or due or each is not kept[0][0]) and file.size_bytes:
            path = _next(file.path) if due and _is_shifted(spec, file, moved) else file.path
            packed.append(PlanItem("compress", path, 0, () if path != file.path else identity(file)))
    if due and spec.compress == "at_once":
        packed.append(PlanItem("compress", _beside(log.path, _target(spec, log.path, int(at))), 0, ()))


def _is_due(spec: specs.RotateLogs, log: LogFile, archives: Sequence[_ArchiveFile], at: float) -> bool:
    if not log.size_bytes:
        return False
    if spec.larger_than is not None and log.size_bytes >= spec.larger_than:
        return True
    return spec.every is not None and not any(age_s(file, at) <= spec.every for _, file in archives)


def _shifts(archives: Sequence[_ArchiveFile]) -> Iterator[PlanItem]:
    """The next number for those that are in the way, the highest first: a gap in the numbers ends the row."""
    row = []
    for expected in range(1, len(archives) + 2):
        here = [file for each, file in archives if int(each.mark) == expected]
        if not here:
            break
        row += here
    for file in reversed(row):
        yield PlanItem("shift", file.path, 0, identity(file))


def _is_shifted(spec: specs.RotateLogs, file: LogFile, moved: Sequence[PlanItem]) -> bool:
    return spec.naming == "number" and any(item.change == "shift" and item.target == file.path for item in moved)


def _next(path: str) -> str:
    """The archive of the next number: a full path of a path, a name of a name."""
    folder, name = os.path.split(path)
    here = archive(name)
    assert here is not None
    return os.path.join(folder, Archive(here.log, here.naming, str(int(here.mark) + 1), here.packed).name())


def _target(spec: specs.RotateLogs, path: str, at: int) -> str:
    """The archive's name of a log that is rotated now."""
    form = {"stamp": "%Y%m%d_%H%M%S", "date": "%Y%m%d", "number": "1"}[spec.naming]
    return Archive(os.path.basename(path), spec.naming, time.strftime(form, time.gmtime(at)), packed=False).name()


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)
