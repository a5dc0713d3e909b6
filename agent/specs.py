"""What each handler may be told, as frozen dataclasses: the schema of a step in a rule file and of its reference page.

A field's metadata holds its words for docs/reference. A value out of range, or two that do not go together, is a
``ValueError`` of the constructor: a step from a file, from the ledger and from the command line is checked alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.located import AbsPath, Duration, Size


@dataclass(frozen=True, slots=True)
class CleanCache:
    """Remove files of a cache: all unused for ``older_than``, then the longest unused until ``down_to`` is reached.

    Never removed: a file that somebody has open, that has a second name (hard link), is on another device, was used or
    written within ``keep_used_within``, or whose times cannot be true; anything that is no plain file; anything under a
    folder that somebody holds a lock on.
    """

    path: AbsPath = field(metadata={"help": "the cache's folder, at or below one of `remediation.roots`"})
    older_than: Duration | None = field(
        default=None, metadata={"help": "files not used for this long are removed, whatever the size"}
    )
    down_to: Size | None = field(
        default=None,
        metadata={"help": "then the longest unused go until the folder holds no more than this on disk"},
    )
    use: Literal["atime", "mtime"] = field(
        default="atime",
        metadata={
            "help": "what counts as use: `atime`, the last read or write (to within a day on a relatime mount; on a "
            "noatime mount nothing is removed), or `mtime`, the last write"
        },
    )
    keep_used_within: Duration = field(
        default=600.0, metadata={"help": "files read or written this recently are never removed"}
    )

    def __post_init__(self) -> None:
        if self.older_than is None and self.down_to is None:
            raise ValueError('cannot clean a cache without a goal: give "older_than", "down_to" or both')
        if self.older_than is not None and self.older_than <= 0:
            raise ValueError('cannot use 0 as "older_than": it would remove everything')
        if self.down_to is not None and self.down_to <= 0:
            raise ValueError('cannot use 0 as "down_to": it would remove everything')


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell a person: the message goes to the journal and becomes an event."""

    message: str = field(metadata={"help": "what to say; one line"})

    def __post_init__(self) -> None:
        if not self.message.strip():
            raise ValueError('cannot send an empty "message"')


@dataclass(frozen=True, slots=True)
class Report:
    """Write a report."""

    period: Literal["daily", "weekly", "monthly"] = field(default="weekly", metadata={"help": "which days it covers"})


Spec = CleanCache | Notify | Report

HANDLERS: Mapping[str, type[Spec]] = {"clean_cache": CleanCache, "notify": Notify, "report": Report}
"""Every handler a step or a job may name."""
