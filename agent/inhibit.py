"""The pause: a file in the state directory, so that acting stops without the agent too, and by ``touch``."""

from __future__ import annotations

import json
from pathlib import Path

INHIBIT = "inhibit"


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
