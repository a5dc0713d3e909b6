"""What a rotated log is called, and whose it is: the one reading of such names for the planner and the hands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Naming = Literal["stamp", "number", "date"]

PACKED = ".gz"

_ARCHIVE = re.compile(
    r"(?P<log>.+\.log)(?:\.(?P<number>[1-9][0-9]{0,5})|-(?P<date>[0-9]{8}))(?P<packed>\.gz)?"
    r"|(?P<stem>.+)_(?P<stamp>[0-9]{8}_[0-9]{6})\.log(?P<packed_stamp>\.gz)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A rotated log: ``x.log.3``, ``x.log-20260131`` or ``x_20260131_235959.log``, each perhaps with ``.gz``.

    Attributes
    ----------
    log
        The name of the log that it was.
    mark
        The number, date or stamp.
    """

    log: str
    naming: Naming
    mark: str
    packed: bool

    @property
    def age_key(self) -> int:
        """Sorts archives of one naming, the newest first."""
        return int(self.mark) if self.naming == "number" else -int(self.mark.replace("_", ""))

    def name(self) -> str:
        """The file name."""
        end = PACKED if self.packed else ""
        if self.naming == "stamp":
            return f"{self.log.removesuffix('.log')}_{self.mark}.log{end}"
        return f"{self.log}{'.' if self.naming == 'number' else '-'}{self.mark}{end}"


def archive(name: str) -> Archive | None:
    """What an archive's name says; None for the name of anything else."""
    found = _ARCHIVE.fullmatch(name)
    if found is None:
        return None
    if found["stamp"]:
        return Archive(f"{found['stem']}.log", "stamp", found["stamp"], bool(found["packed_stamp"]))
    if found["number"]:
        return Archive(found["log"], "number", found["number"], bool(found["packed"]))
    return Archive(found["log"], "date", found["date"], bool(found["packed"]))


def is_archive_of(name: str, log: str) -> bool:
    """Whether a log of this name may be rotated to ``name``."""
    found = archive(name)
    return found is not None and found.log == log
