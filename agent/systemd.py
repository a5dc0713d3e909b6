"""The few words the agent says to systemd (sd_notify(3)): ready, reloading, stopping, alive. Silent elsewhere."""

from __future__ import annotations

import os
import socket
import time


def notify(*assignments: str) -> bool:
    """Send assignments such as ``READY=1`` to ``$NOTIFY_SOCKET``; whether there was one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A leading @ is an abstract address; systemd writes it so because a NUL cannot stand in a variable.
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send("\n".join(assignments).encode())
    return True


def reloading() -> None:
    """Tell that a reload begins; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_interval_s() -> float | None:
    """How often the watchdog wants to hear from us: half of ``$WATCHDOG_USEC``, or None when it is off."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdigit() and int(usec) else None


def started() -> bool:
    """Whether systemd started this process as a unit of its own (and not as a child of somebody's shell)."""
    return "INVOCATION_ID" in os.environ and "NOTIFY_SOCKET" in os.environ
