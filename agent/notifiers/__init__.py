"""Ways to tell a person something."""

from __future__ import annotations

from typing import Protocol


class Notifier(Protocol):
    async def notify(self, message: str) -> None:
        """Deliver one message, or raise."""
