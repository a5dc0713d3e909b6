"""What a handler is, and the handlers by name.

A new one is a file here that takes its parameters and the edges it needs, a line in :data:`_FACTORIES`, and its
parameters in agent/specs.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from agent import specs
from agent.errors import UpkeepError
from agent.handlers.clean_cache import CleanCache
from agent.handlers.clean_logs import CleanLogs
from agent.handlers.notify import Notify
from agent.handlers.report import Report
from agent.handlers.rotate_logs import RotateLogs
from agent.model import Outcome, Plan
from agent.notifiers import Notifier
from agent.ops.client import OpsClient


@dataclass(frozen=True, slots=True)
class Tools:
    """The edges. A handler touches the world through these and nothing else.

    ``write_report`` takes a period (``weekly`` …), writes the report in a process of its own, and returns where it is.
    ``paused`` is asked while a long change is under way: a pause stops it between two of its steps.
    """

    ops: OpsClient
    notifier: Notifier
    write_report: Callable[[str], Awaitable[str]]
    paused: Callable[[], bool] = lambda: False


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


_FACTORIES: Mapping[str, Callable[[Any, Tools], Handler]] = {
    "clean_cache": lambda spec, tools: CleanCache(spec, tools.ops, tools.paused),
    "clean_logs": lambda spec, tools: CleanLogs(spec, tools.ops, tools.paused),
    "rotate_logs": lambda spec, tools: RotateLogs(spec, tools.ops, tools.paused),
    "notify": lambda spec, tools: Notify(spec, tools.notifier),
    "report": lambda spec, tools: Report(spec, tools.write_report),
}


def make(name: str, params: Mapping[str, object], tools: Tools) -> Handler:
    """A handler from its name and its parameters as the ledger keeps them.

    Raises
    ------
    UpkeepError
        For a name or parameters that this version does not know or would not accept.
    """
    if name not in _FACTORIES:
        raise UpkeepError(f'unknown handler "{name}"')
    try:
        cls: Any = specs.HANDLERS[name]
        spec = cls(**params)
    except (TypeError, ValueError) as error:
        raise UpkeepError(f"cannot use the parameters of {name}: {error}") from error
    return _FACTORIES[name](spec, tools)
