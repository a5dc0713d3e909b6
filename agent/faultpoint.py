"""Labelled instants at which a test may kill the process, as ``kill -9`` or a power cut would.

Armed only by ``UPKEEP_FAULTPOINT=<name>`` and never under systemd, so a stray variable in a unit cannot hurt a host.
In the hands (started by hand as a child of the agent) the parent is killed in the same instant.
"""

from __future__ import annotations

import os
import signal
from typing import Literal

Point = Literal[
    "sample_before",
    "sample_after",
    "alert_before",
    "alert_after",
    "intent_before",
    "intent_after",
    "unlink_first",
    "unlink_last",
    "pack_written",
    "pack_named",
    "rotate_made",
    "outcome_after",
    "verify_before",
]
POINTS: tuple[str, ...] = Point.__args__  # type: ignore[attr-defined]

_UNDER_SYSTEMD = "INVOCATION_ID" in os.environ and "NOTIFY_SOCKET" in os.environ
_ARMED = "" if _UNDER_SYSTEMD else os.environ.get("UPKEEP_FAULTPOINT", "")


def reach(point: Point, *, kill_parent: bool = False) -> None:
    """Die here when this point is armed; otherwise nothing.

    Parameters
    ----------
    point
        The instant reached.
    kill_parent
        Kill the parent first: the hands' points use it, so that agent and hands die together.
    """
    if point == _ARMED:
        if kill_parent:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
