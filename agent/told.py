"""Say what a source is in when that changes, and not at each reading."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agent.model import Event, Severity, make_labels

Tell = Callable[[Event], Awaitable[None]]


async def nobody(event: Event) -> None:
    """Where nobody wants to hear it."""


class States:
    """The last state of each thing that one source reads; all are in order at first.

    Parameters
    ----------
    source
        The family of collectors; events are of kind ``SOURCE_state``.
    tell
        Records an event.
    """

    def __init__(self, source: str, tell: Tell) -> None:
        self._source = source
        self._tell = tell
        self._known: dict[str, str] = {}

    async def wrong(
        self, what: str, reason: str, message: str, at: float, severity: Severity = Severity.WARNING
    ) -> None:
        """``what`` is in the state named ``reason``; an event, unless it was already."""
        if self._known.get(what) != reason:
            self._known[what] = reason
            await self._say(what, reason, message, at, severity)

    async def right(self, what: str, message: str, at: float) -> None:
        """``what`` is in order; an event, unless it was already."""
        if self._known.pop(what, None) is not None:
            await self._say(what, "", message, at, Severity.INFO)

    def forget(self, still: set[str]) -> None:
        """Things that are gone are in no state."""
        self._known = {what: reason for what, reason in self._known.items() if what in still}

    async def _say(self, what: str, reason: str, message: str, at: float, severity: Severity) -> None:
        labels = make_labels(name=what, reason=reason)
        await self._tell(Event(f"{self._source}_state", severity, message, self._source, at, labels))
