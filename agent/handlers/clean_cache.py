"""``clean_cache``: bring a cache back under its limit, oldest use first, and touch nothing that is in use.

Everything on disk is seen and done by the hands (agent/ops): the agent itself may not even be able to read the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from agent import specs
from agent.model import ItemResult, Outcome, Plan, PlanItem, Skipped
from agent.ops.client import OpsClient, SurveyResult
from agent.ops.protocol import Item, RefusedError, Tally, quote

MOST_ITEMS = 100_000
"""Files of one plan; the rest is the next run's."""

_WORDS = {
    "in_use_unknown": "perhaps open",
    "hard_link": "hard-linked",
    "symlink": "symbolic",
    "young": "in recent use",
    "special_file": "no plain file",
    "other_device": "on another device",
    "implausible_time": "with impossible times",
    "locked": "under a lock",
    "protected": "the system's",
}


class CleanCache:
    """One cache and its goal."""

    idempotent: ClassVar[bool] = True
    harmless: ClassVar[bool] = False
    waits_for_idle_host: ClassVar[bool] = False  # whether a file is in use is asked for each file

    def __init__(self, spec: specs.CleanCache, ops: OpsClient, paused: Callable[[], bool]) -> None:
        self._spec = spec
        self._ops = ops
        self._paused = paused

    def resource(self) -> str:
        return f"path:{self._spec.path}"

    async def plan(self, at: float) -> Plan:
        spec = self._spec
        try:
            survey = await self._ops.survey(
                spec.path,
                older_than_s=spec.older_than,
                down_to_bytes=spec.down_to,
                use=spec.use,
                keep_used_within_s=spec.keep_used_within,
                limit=MOST_ITEMS,
            )
        except RefusedError as error:
            return Plan("clean_cache", self.resource(), str(error), refused=error.reason)
        unknown = spec.use == "atime" and survey.totals.last_use == "unknown"
        return Plan(
            "clean_cache",
            self.resource(),
            _summary(spec, survey),
            items=tuple(_planned(self._prefix, item) for item in survey.items),
            skipped=tuple(Skipped(self._prefix + left.path, left.reason, left.bytes) for left in survey.left),
            considered_items=survey.totals.files,
            considered_bytes=survey.totals.bytes,
            refused="use_unknown" if unknown else "",
        )

    async def apply(self, plan: Plan) -> Outcome:
        if plan.refused or not plan.items:
            return Outcome()
        items = [_wanted(self._prefix, item) for item in plan.items]
        done = await self._ops.prune(
            self._spec.path,
            items,
            use=self._spec.use,
            keep_used_within_s=self._spec.keep_used_within,
            stop=self._paused,
        )
        return Outcome(
            items=tuple(ItemResult(self._prefix + each.path, each.result, each.bytes) for each in done.results),
            bytes_freed=done.bytes_freed,
            bytes_removed=done.bytes_removed,
            error=done.error,
        )

    @property
    def _prefix(self) -> str:
        """What turns the hands' relative paths into the plan's full ones: printable text, like them."""
        return quote(self._spec.path.encode("utf-8", "surrogateescape")) + "/"


def _planned(prefix: str, item: Item) -> PlanItem:
    return PlanItem("remove", prefix + item.path, item.bytes, (item.device, item.inode, item.mtime_ns, item.atime_ns))


def _wanted(prefix: str, item: PlanItem) -> Item:
    return Item(item.target.removeprefix(prefix), item.bytes, *item.identity)


def _summary(spec: specs.CleanCache, survey: SurveyResult) -> str:
    totals = survey.totals
    if spec.use == "atime" and totals.last_use == "unknown":
        return (
            f"last use unknown: the mount of {spec.path} keeps no access times; use: mtime would go by the last write"
        )
    removed = sum(item.bytes for item in survey.items)
    words = f"remove {_count(len(survey.items))} of {_count(totals.files)} files from {spec.path}, "
    words += f"{_size(removed)} of {_size(totals.bytes)}"
    if spec.use == "atime" and totals.last_use == "relatime":
        words += ", oldest use first (known to within a day)"
    else:
        words += ", oldest use first" if spec.use == "atime" else ", oldest write first"
    if spec.down_to is not None and totals.bytes - removed > spec.down_to:
        words += f"; {_size(totals.bytes - removed)} would stay, more than {_size(spec.down_to)}"
    if totals.partial:
        words += "; not all of it could be read"
    return words + _left(totals.left)


def _left(tallies: Sequence[Tally]) -> str:
    if not tallies:
        return ""
    return "; left alone: " + ", ".join(_tally_words(tallies))


def _tally_words(tallies: Iterable[Tally]) -> Iterable[str]:
    for tally in tallies:
        yield f"{_count(tally.count)} {_WORDS.get(tally.reason, tally.reason.replace('_', ' '))}"


def _count(number: int) -> str:
    return f"{number:,}"


def _size(size_bytes: int) -> str:
    """Bytes for a person: three figures at most, powers of 1024."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
