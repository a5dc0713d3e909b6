"""``clean_logs``: old logs go into gzip files, older ones go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from agent import specs
from agent.model import Outcome, Plan, PlanItem, Skipped
from agent.ops.client import OpsClient
from agent.ops.lognames import PACKED, archive
from agent.ops.planned import MOST_LOGS, age_s, identity, joined, prefix_of, wanted
from agent.ops.protocol import LogFile, RefusedError


class CleanLogs:
    """The logs of one folder."""

    idempotent: ClassVar[bool] = True
    harmless: ClassVar[bool] = False
    waits_for_idle_host: ClassVar[bool] = False  # whether a log is in use is asked for each

    def __init__(self, spec: specs.CleanLogs, ops: OpsClient, paused: Callable[[], bool]) -> None:
        self._spec = spec
        self._ops = ops
        self._paused = paused

    def resource(self) -> str:
        return f"path:{self._spec.directory}"

    async def plan(self, at: float) -> Plan:
        try:
            found = await self._ops.logs(self._spec.directory, limit=MOST_LOGS)
        except RefusedError as error:
            return Plan("clean_logs", self.resource(), str(error), refused=error.reason)
        prefix = prefix_of(self._spec.directory)
        items = tuple(_chosen(self._spec, found.files, prefix, at))
        removed = [item for item in items if item.change == "remove"]
        return Plan(
            "clean_logs",
            self.resource(),
            f"remove {len(removed):,} logs and compress {len(items) - len(removed):,} of {len(found.files):,} in "
            f"{self._spec.directory}",
            items=items,
            skipped=tuple(Skipped(prefix + left.path, left.reason, left.bytes) for left in found.left),
            considered_items=len(found.files),
            considered_bytes=sum(file.bytes for file in found.files),
        )

    async def apply(self, plan: Plan) -> Outcome:
        prefix = prefix_of(self._spec.directory)
        outcome = Outcome()
        # What goes makes room for what is compressed.
        for change in ("remove", "compress"):
            items = [wanted(item, prefix) for item in plan.items if item.change == change]
            if not items or outcome.error or plan.refused:
                continue
            if change == "remove":
                done = await self._ops.prune(
                    self._spec.directory, items, use="mtime", keep_used_within_s=0.0, stop=self._paused
                )
            else:
                done = await self._ops.compress(self._spec.directory, items, stop=self._paused)
            outcome = joined(outcome, done, prefix)
        return outcome


def _chosen(spec: specs.CleanLogs, files: Sequence[LogFile], prefix: str, at: float) -> Iterator[PlanItem]:
    """What is to be removed, then what is to be compressed, each the oldest first."""
    oldest_first = sorted(files, key=lambda file: (file.mtime_ns, file.path))
    removed = set()
    for file in oldest_first:
        if _is_log(file) and spec.delete_after is not None and age_s(file, at) > spec.delete_after:
            removed.add(file.path)
            yield PlanItem("remove", prefix + file.path, file.bytes, identity(file))
    present = {file.path for file in files} - removed
    for file in oldest_first:
        old = spec.compress_after is not None and age_s(file, at) > spec.compress_after
        if old and file.path in present and _is_log(file) and not file.path.endswith(PACKED) and file.size_bytes:
            # An archive may be there from a crash just before the log was removed: the hands compare the two.
            yield PlanItem("compress", prefix + file.path, 0, identity(file))


def _is_log(file: LogFile) -> bool:
    """``x.log``, ``x.log.gz``, or an archive by any naming."""
    name = file.path.rpartition("/")[2]
    return name.removesuffix(PACKED).endswith(".log") or archive(name) is not None
