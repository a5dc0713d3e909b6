"""Following a source that has no end: what comes together is taken together, and what breaks off is begun again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

log = logging.getLogger(__name__)

GATHER_S = 0.02
"""How long a first entry waits for more: a storm shares its commits."""

MOST_AT_ONCE = 2000
"""Entries of one batch, and those that wait for their turn."""

T = TypeVar("T")


async def follow_again(
    name: str, follow: Callable[[], Awaitable[None]], position: Callable[[], str], *, again_s: float, most_s: float
) -> None:
    """Follow until cancelled.

    Parameters
    ----------
    name
        What is followed, for the program's own log.
    follow
        Returns when the source has ended; may raise OSError.
    position
        Up to where the source was read. One that brings nothing, as one that this user may not read, is asked ever
        more seldom.
    again_s, most_s
        The first pause before it is followed again, and the longest.
    """
    pause_s = again_s
    while True:
        before = position()
        try:
            await follow()
        except OSError as error:
            log.warning("%s_unreadable error=%s", name, error)
        pause_s = again_s if position() != before else min(2 * pause_s, most_s)
        await asyncio.sleep(pause_s)


async def in_batches(
    source: AsyncGenerator[T, None], take: Callable[[Sequence[T]], Awaitable[None]], *, quiet_s: float
) -> None:
    """Hand on what a source gives, until it ends.

    ``take`` gets what came together, at most :data:`MOST_AT_ONCE`, and nothing after each ``quiet_s`` without any.
    Nothing more than as many again is read before it has returned.
    """
    queue: asyncio.Queue[T | None] = asyncio.Queue(MOST_AT_ONCE)

    async def read() -> None:
        try:
            async with aclosing(source):
                async for entry in source:
                    await queue.put(entry)
        finally:
            await queue.put(None)

    reading = asyncio.create_task(read())
    try:
        ended = False
        while not ended:
            batch, ended = await _gather(queue, quiet_s)
            await take(batch)
        await reading
    finally:
        reading.cancel()
        while not queue.empty():
            queue.get_nowait()  # the reader may be waiting for room
        await asyncio.wait({reading})


async def _gather(queue: asyncio.Queue[T | None], quiet_s: float) -> tuple[list[T], bool]:
    """The entries that come together, and whether they were the last; none after a while without any."""
    try:
        async with asyncio.timeout(quiet_s):
            entry = await queue.get()
    except TimeoutError:
        return [], False
    batch: list[T] = []
    if entry is not None:
        await asyncio.sleep(GATHER_S)
    while entry is not None:
        batch.append(entry)
        if queue.empty() or len(batch) == MOST_AT_ONCE:
            return batch, False
        entry = queue.get_nowait()
    return batch, True
