"""Brakes that are files in the state directory, so that they hold without the agent too: the pause, which ``touch``
makes as well, and observing, which follows a restore until a person has looked.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

INHIBIT = "inhibit"
OBSERVE = "observe"


def paused(state_dir: Path, now: float) -> bool:
    """Whether acting is paused. A file that cannot be understood pauses: the brake errs on the safe side."""
    try:
        text = (state_dir / INHIBIT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        until = json.loads(text)["until"] if text.strip() else None
        return until is None or now < float(until)
    except (ValueError, KeyError, TypeError):
        return True


def pause(state_dir: Path, until: float | None, by: str) -> None:
    """Pause until an instant, or until resumed."""
    scratch = state_dir / f".{INHIBIT}.new"
    scratch.write_text(json.dumps({"until": until, "by": by}) + "\n", encoding="utf-8")
    scratch.rename(state_dir / INHIBIT)


def resume(state_dir: Path) -> None:
    (state_dir / INHIBIT).unlink(missing_ok=True)


def observing(state_dir: Path) -> bool:
    """Whether every rule and job is to be planned and recorded only, whatever its mode is."""
    return os.path.lexists(state_dir / OBSERVE)


def observe(state_dir: Path, why: str) -> None:
    """Observe until a person says otherwise; the file is on the disk when this returns."""
    descriptor = os.open(state_dir / OBSERVE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        os.write(descriptor, f"{why}\n".encode("utf-8", "backslashreplace"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def accept(state_dir: Path) -> None:
    """Go on in the mode that is configured."""
    (state_dir / OBSERVE).unlink(missing_ok=True)
