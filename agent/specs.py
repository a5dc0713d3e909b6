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
class CleanLogs:
    """Put old logs into gzip files and remove older ones, by their last write.

    A file counts as a log when its name is `NAME.log`, or one that a rotation gives it, `.gz` included. Never touched:
    a file that somebody has open (Upkeep's own tailer lets go of a log that was still for an hour), that has a second
    name (hard link), that is no plain file, or that changed since it was looked at. An archive is read back and
    compared before its file goes, keeps owner, mode and times, and is never written over what is there.
    """

    directory: AbsPath = field(
        metadata={"help": "the logs' folder with all below it, at or below one of `remediation.roots`"}
    )
    compress_after: Duration | None = field(
        default=7 * 86400.0, metadata={"help": "logs not written for this long are put into `NAME.gz`"}
    )
    delete_after: Duration | None = field(
        default=30 * 86400.0, metadata={"help": "logs, archives included, not written for this long are removed"}
    )

    def __post_init__(self) -> None:
        if self.compress_after is None and self.delete_after is None:
            raise ValueError('cannot clean logs without a goal: give "compress_after", "delete_after" or both')
        if self.delete_after is not None and self.delete_after <= 0:
            raise ValueError('cannot use 0 as "delete_after": it would remove everything')
        if self.compress_after is not None and self.compress_after <= 0:
            raise ValueError('cannot use 0 as "compress_after": a log in use would be compressed')


@dataclass(frozen=True, slots=True)
class RotateLogs:
    """Rotate logs that are large, or whose last rotation is long ago; keep some archives, compressed.

    An empty log is never rotated, and no archive is ever written over: where its name is taken, the log waits. The new
    log keeps owner and mode. Archives count towards `keep` and `delete_after` when they are named as `naming` says.
    """

    directory: AbsPath = field(
        metadata={"help": "the logs' folder with all below it, at or below one of `remediation.roots`"}
    )
    names: str = field(default="*.log", metadata={"help": "which names of logs, as a glob; each ends in `.log`"})
    larger_than: Size | None = field(default=100_000_000, metadata={"help": "logs of this size or larger are rotated"})
    every: Duration | None = field(
        default=None,
        metadata={"help": "logs whose newest archive was written longer ago than this, or that have none, are too"},
    )
    how: Literal["copytruncate", "rename"] = field(
        default="copytruncate",
        metadata={
            "help": "`copytruncate` copies the log and empties it in place: for writers that keep it open; lines "
            "written in the instant between are lost. `rename` puts a new file in its place and loses nothing: for "
            "writers that open it anew, or are told to by `signal`"
        },
    )
    signal: str = field(
        default="",
        metadata={
            "help": "a service whose main process is sent SIGHUP after a `rename`; the hands' policy must name it in "
            "`units`"
        },
    )
    naming: Literal["stamp", "number", "date"] = field(
        default="stamp",
        metadata={"help": "`NAME_20260131_235959.log` (UTC), `NAME.log.1` (the newest) or `NAME.log-20260131`"},
    )
    keep: int = field(default=30, metadata={"help": "how many archives of a log are kept, at least 1"})
    delete_after: Duration | None = field(
        default=30 * 86400.0, metadata={"help": "archives not written for this long are removed"}
    )
    compress: Literal["at_once", "next_time", "never"] = field(
        default="at_once",
        metadata={
            "help": "when an archive is put into gzip: with its own rotation, with the next (logrotate's "
            "delaycompress), or not. One that its writer still has open waits in any case"
        },
    )

    def __post_init__(self) -> None:
        if self.larger_than is None and self.every is None:
            raise ValueError('cannot tell which logs to rotate: give "larger_than", "every" or both')
        if self.larger_than is not None and self.larger_than <= 0:
            raise ValueError('cannot use 0 as "larger_than": every log is that large')
        if self.every is not None and self.every <= 0:
            raise ValueError('cannot use 0 as "every"')
        if self.keep < 1:
            raise ValueError(f'cannot use "{self.keep}" as "keep": a rotation that keeps nothing destroys the log')
        if self.delete_after is not None and self.delete_after <= 0:
            raise ValueError('cannot use 0 as "delete_after": it would remove every archive')
        if self.signal and self.how != "rename":
            raise ValueError('cannot use "signal" with copytruncate: the writer keeps its file')
        if not self.names.endswith(".log") or "/" in self.names:
            raise ValueError(f'cannot use "{self.names}" as "names": a glob of file names that ends in ".log"')


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


Spec = CleanCache | CleanLogs | RotateLogs | Notify | Report

HANDLERS: Mapping[str, type[Spec]] = {
    "clean_cache": CleanCache,
    "clean_logs": CleanLogs,
    "rotate_logs": RotateLogs,
    "notify": Notify,
    "report": Report,
}
"""Every handler a step or a job may name."""
