"""SQL as data: what writers hand to a file's one thread, and what rows come back as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BUSY_S = 5.0
"""How long a reader or a writer waits for another process's lock."""

Row = tuple[Any, ...]


def lenient_text(raw: bytes) -> str:
    """Text as SQLite holds it: what a disk changed need not be UTF-8, and must not keep the rest from being read."""
    return raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Many:
    """One statement carried out for each row of parameters."""

    sql: str
    rows: Sequence[Sequence[object]]


Statement = Many | tuple[str, Sequence[object]]
