"""The store: metrics.db for what was measured, ledger.db for what was judged and done. One writer, any readers.

Each name is imported when it is first asked for: a command that reads needs neither the writer nor an event loop, and
``upkeep status`` would spend half of its time on importing them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.errors import StoreError
    from agent.store.database import StoreBusyError, StoreFullError
    from agent.store.ledger import Circuit, JobRun, Ledger, Past, ReportRecord, Silence
    from agent.store.metrics import Metrics
    from agent.store.read import Reader
    from agent.store.recent import Recent
    from agent.store.retention import Retention
    from agent.store.store import Store

__all__ = [
    "Circuit",
    "JobRun",
    "Ledger",
    "Metrics",
    "Past",
    "Reader",
    "Recent",
    "ReportRecord",
    "Retention",
    "Silence",
    "Store",
    "StoreBusyError",
    "StoreError",
    "StoreFullError",
]

_HOMES = {
    "agent.errors": ("StoreError",),
    "agent.store.database": ("StoreBusyError", "StoreFullError"),
    "agent.store.ledger": ("Circuit", "JobRun", "Ledger", "Past", "ReportRecord", "Silence"),
    "agent.store.metrics": ("Metrics",),
    "agent.store.read": ("Reader",),
    "agent.store.recent": ("Recent",),
    "agent.store.retention": ("Retention",),
    "agent.store.store": ("Store",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            found: object = getattr(importlib.import_module(home), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
