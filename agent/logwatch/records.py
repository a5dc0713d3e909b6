"""Records of several lines: a match opens one, and the lines behind it that belong to it are its rest.

Nothing is kept between two readings. What is read ends before a record that is not complete, and so does the committed
offset: the record is read again from its first line when more has come, after a crash too. So each is given once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MOST_LINES = 100
MOST_BYTES = 16 * 1024
LONGEST_BYTES = 64 * 1024
LONGEST_LINES = 1000
WAIT_S = 2.0
LONGEST_WAIT_S = 60.0
JOINT = " ⏎ "
"""Stands for the newline in a stored record: one event is one line wherever it is shown."""


class RecordMode(StrEnum):
    """Which lines behind the first belong to a record, by one regex."""

    START = "start"
    """All before the next line that matches: that one begins another record."""
    END = "end"
    """All up to the line that matches, it included; the first line may be it."""
    CONTINUE = "continue"
    """All that match, up to the first that does not."""
    UNTIL = "until"
    """All that match and the first that does not: a traceback's indented lines and its last."""


@dataclass(frozen=True, slots=True)
class Multiline:
    """How a record goes on behind its first line, and where it ends whatever its lines say.

    Attributes
    ----------
    most_lines, most_bytes
        Bounds of the whole record, its first line included.
    wait_s
        How long the rest is waited for once the first line is read.
    """

    mode: RecordMode
    regex: str
    most_lines: int = MOST_LINES
    most_bytes: int = MOST_BYTES
    wait_s: float = WAIT_S


def record_end(
    rule: Multiline, is_hit: Callable[[bytes], bool], data: bytes | bytearray, start: int, line_end: int, stop: int
) -> tuple[int, bool]:
    """Where the record ends whose first line is ``data[start:line_end]``, and whether it surely ends there.

    Parameters
    ----------
    is_hit
        Whether a line matches the rule's regex.
    stop
        The end of what has been read.
    """
    if rule.mode is RecordMode.END and is_hit(bytes(data[start:line_end])):
        return line_end, True
    end, lines = line_end, 1
    while lines < rule.most_lines:
        at = end + 1
        if at >= stop:
            return min(end, stop), False
        next_end = data.find(b"\n", at, stop)
        next_end = stop if next_end < 0 else next_end
        if next_end - start > rule.most_bytes:
            return end, True
        hit = is_hit(bytes(data[at:next_end]))
        if hit if rule.mode is RecordMode.START else (not hit and rule.mode is RecordMode.CONTINUE):
            return end, True
        end, lines = next_end, lines + 1
        if hit if rule.mode is RecordMode.END else (not hit and rule.mode is RecordMode.UNTIL):
            return end, True
    return end, True
