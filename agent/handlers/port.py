"""What a handler is, and the edges it works through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from agent.model import Outcome, Plan
from agent.notifiers import Notifier
from agent.ops.client import OpsClient


@dataclass(frozen=True, slots=True)
class Tools:
    """The edges. A handler touches the world through these and nothing else.

    ``write_report`` takes a period (``weekly`` …), writes the report in a process of its own, and returns where it is.
    """

    ops: OpsClient
    notifier: Notifier
    write_report: Callable[[str], Awaitable[str]]


class Handler(Protocol):
    """One way to repair. ``plan`` only reads; ``apply`` is the only place that changes anything."""

    idempotent: ClassVar[bool]
    """Planned afresh after a crash; else the ladder goes on to the next rung."""
    harmless: ClassVar[bool]
    """Changes nothing on the host: it works in observe mode, and nothing is verified."""
    waits_for_idle_host: ClassVar[bool]
    """Put off while an evaluation runs."""

    def resource(self) -> str:
        """The key of its lock, cooldown and circuit, such as ``path:/tmp/evaluation_cache``."""

    async def plan(self, at: float) -> Plan:
        """The whole intent as data. Raises :class:`agent.errors.OpsError` when it cannot be known."""

    async def apply(self, plan: Plan) -> Outcome:
        """Carry out a plan, each item only if it is still what the plan saw."""
