"""Letting go of the driver on request: a file in the state directory, so that it holds across restarts."""

from __future__ import annotations

import json
from pathlib import Path

RELEASED = "gpu-released"


def released_until(state_dir: Path, now: float) -> float:
    """Until when, in seconds since the epoch, nobody may touch the driver; 0 where that is not asked for.

    A file that cannot be understood asks for nothing: a GPU that nobody watches is the worse mistake.
    """
    try:
        until = float(json.loads((state_dir / RELEASED).read_text(encoding="utf-8"))["until"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return until if until > now else 0.0


def release(state_dir: Path, until: float, by: str) -> None:
    """Ask for it until an instant; an instant in the past ends it."""
    scratch = state_dir / f".{RELEASED}.new"
    scratch.write_text(json.dumps({"until": until, "by": by}) + "\n", encoding="utf-8")
    scratch.rename(state_dir / RELEASED)
