"""Blocking work in a thread that can be left behind: name look-ups and TLS handshakes know no cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from agent.errors import DeliveryError

T = TypeVar("T")


class Aside:
    """One piece of work at a time, each in a daemon thread of its own.

    A thread that does not come back within its deadline is left alone, and nothing new is begun until it has ended: one
    receiver that hangs costs one thread, however long it hangs, and never holds up the agent's end. A thread of an
    executor would: the interpreter waits for those.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T], deadline_s: float) -> T:
        """What ``work`` returns or raises.

        Raises
        ------
        DeliveryError
            When it took longer, or the piece before it hangs still.
        """
        if self._thread is not None and self._thread.is_alive():
            raise DeliveryError("the attempt before this one hangs still")
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if ended.done():
                return
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(result)  # type: ignore[arg-type]

        def body() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:  # whatever it is belongs to whoever waits
                error = caught
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # the loop has closed: nobody waits any more

        self._thread = threading.Thread(target=body, name=f"upkeep-{self._name}", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(deadline_s):
                return await ended
        except TimeoutError:
            raise DeliveryError(f"no end within {deadline_s:g} s") from None
