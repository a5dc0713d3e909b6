"""Counters of the kernel's log, as its watcher keeps them."""

from __future__ import annotations

from agent.kernel.book import Book
from agent.model import Reading


class KernelCollector:
    """Trouble that the kernel told, and Xids."""

    name = "kernel"

    def __init__(self, book: Book) -> None:
        self._book = book

    async def collect(self, at: float) -> Reading:
        series, values = self._book.readings()
        return Reading(at, series, values)
