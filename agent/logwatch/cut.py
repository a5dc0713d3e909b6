"""Where to stop before what is not complete, and the position in the file that this is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from agent.logwatch.tailer import WINDOW_BYTES, Block, Position, digest


def cut_before(spans: Iterable[tuple[int, int]], at: int) -> int:
    """The last place at or before ``at`` that lies inside no span: what is read again from there reads the same."""
    for start, end in sorted(spans, key=lambda span: -span[1]):
        if start < at < end:
            at = start
    return at


def position_before(fd: int, at: Position, block: Block, lines: int) -> Position | None:
    """The position so many lines before the end of a block that was read from ``at``.

    Returns
    -------
    Position or None
        None: the file is no longer what was read, or so many lines are the whole block.
    """
    base = max(0, at.offset - WINDOW_BYTES)
    raw = os.pread(fd, block.after.offset - base, base)
    # As in reading itself: a truncation in between must not lend this place the hashes of other text.
    if len(raw) < block.after.offset - base or digest(raw[-WINDOW_BYTES:]) != block.after.window:
        return None
    end = len(raw) - 1  # the last line's newline
    for _ in range(lines):
        end = raw.rfind(b"\n", at.offset - base, end)
        if end < 0:
            return None
    window = digest(raw[max(0, end + 1 - WINDOW_BYTES) : end + 1])
    return replace(block.after, offset=base + end + 1, window=window, line=block.after.line - lines)
