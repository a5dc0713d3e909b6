"""How large the store may become on this disk: a tenth of what was free there when the agent first started, at most.

The figure is remembered in a file beside the databases. Who gives the store another disk, or makes room for good,
deletes that file: the next start measures anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "first-start.json"
SHARE = 0.1
LEAST_BYTES = 4 << 20
"""However full the disk was: in less, a megabyte of matched lines has no room, and would be tried again for ever."""

_FILES = ("metrics.db", "ledger.db")


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What was free on the disk, the store's own files counted as free, and when."""

    free_bytes: int
    at: float

    def most(self, configured_bytes: int) -> int:
        """What the store may hold: the configured size where that is less than the tenth."""
        return min(configured_bytes, max(LEAST_BYTES, int(self.free_bytes * SHARE)))


def remembered(state_dir: Path) -> FirstStart | None:
    """What the first start found; None before it, or where the file cannot be read."""
    try:
        found = json.loads((state_dir / NAME).read_text(encoding="utf-8"))
        return FirstStart(int(found["free_bytes"]), float(found["at"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def first_start(state_dir: Path, at: float) -> FirstStart:
    """What the first start found, measured now when this is it."""
    from agent.store.database import free_bytes  # ``upkeep status`` asks what is remembered, and loads no writer

    found = remembered(state_dir)
    if found is None:
        own = sum(os.stat(path).st_blocks * 512 for path in map(state_dir.joinpath, _FILES) if path.exists())
        found = FirstStart(free_bytes(state_dir) + own, at)
    return found


def remember(state_dir: Path, found: FirstStart) -> None:
    """Write it down, once; where the disk cannot take it, the next start measures again."""
    if remembered(state_dir) == found:
        return
    path = state_dir / NAME
    new = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            os.fchmod(descriptor, 0o640)
            os.write(descriptor, (json.dumps(asdict(found)) + "\n").encode("utf-8"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.rename(path)
