"""Logs of the hands as items of a plan, and back: full paths as printable text, what identifies each."""

from __future__ import annotations

from agent.model import ItemResult, Outcome, PlanItem
from agent.ops.client import PruneResult
from agent.ops.protocol import Item, LogFile, quote

MOST_LOGS = 100_000
"""Logs of one plan; the rest is the next run's."""


def prefix_of(directory: str) -> str:
    """What turns the hands' relative paths into the plan's full ones."""
    return quote(directory.encode("utf-8", "surrogateescape")) + "/"


def identity(file: LogFile) -> tuple[int, int, int, int]:
    """What must still be so just before acting."""
    return file.device, file.inode, file.mtime_ns, file.atime_ns


def age_s(file: LogFile, at: float) -> float:
    """Seconds since the last write."""
    return at - file.mtime_ns / 1e9


def wanted(item: PlanItem, prefix: str) -> Item:
    """A planned item as the hands know it."""
    return Item(item.target.removeprefix(prefix), item.bytes, *item.identity)


def joined(outcome: Outcome, done: PruneResult, prefix: str) -> Outcome:
    """One outcome of two changes."""
    return Outcome(
        items=(*outcome.items, *(ItemResult(prefix + each.path, each.result, each.bytes) for each in done.results)),
        bytes_freed=outcome.bytes_freed + done.bytes_freed,
        bytes_removed=outcome.bytes_removed + done.bytes_removed,
        error=done.error,
    )
