"""Numbers, times and strange text in words. Whatever comes from logs, labels or file names passes :func:`clean`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Literal

Unit = Literal["percent", "bytes", "number"]

NBSP = "\u00a0"
LONGEST_TEXT = 400

_ANSI = re.compile(r"\x1b(?:\[[0-9;:<=>?]*[ -/]*[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)|[@-Z\\-_])")
_MARK = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_MARKS = re.compile(f"({_MARK}{{2}}){_MARK}+")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_IEC = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """One calm line of text that came from elsewhere.

    Terminal sequences go; control, format (bidirectional and zero-width ones included), surrogate, private and
    unassigned characters become spaces; stacks of combining marks are cut to two; runs of spaces shrink to one; what
    is longer than ``longest`` characters ends in an ellipsis. Markup is left as it is: escaping is the form's task.
    """
    if len(text) <= longest and text.isascii() and text.isprintable():
        return text.strip()
    head = text[: longest * 4]  # a line of a megabyte must not cost a megabyte's work
    head = _ANSI.sub("", head)
    head = "".join(" " if unicodedata.category(c) in _UNSEEN else c for c in head)
    head = _MARKS.sub(r"\1", head)
    line = re.sub(r"[^\S\u00a0]+", " ", head).strip()
    if len(line) > longest or len(text) > longest * 4:
        return line[: longest - 1].rstrip() + "…"
    return line


def cut_middle(text: str, longest: int) -> str:
    """A path or name that keeps its beginning and its telling end."""
    line = clean(text, max(longest * 8, LONGEST_TEXT))
    if len(line) <= longest:
        return line
    head = (longest - 1) // 3
    return f"{line[:head]}…{line[len(line) - (longest - 1 - head) :]}"


def count(number: int, one: str, many: str = "") -> str:
    """``1 alert``, ``3 alerts``: a number and its noun, kept on one line."""
    return f"{number:,}{NBSP}{one if number == 1 else many or one + 's'}"


def size(number: float) -> str:
    """Bytes in binary units, as ``down_to: 8GiB`` is written."""
    if not math.isfinite(number):
        return "unknown"
    value, unit = abs(float(number)), 0
    while value >= 1023.95 and unit < len(_IEC) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1
    sign = "−" if number < 0 else ""
    return f"{sign}{value:.{digits}f}{NBSP}{_IEC[unit]}"


def percent(number: float, digits: int | None = None) -> str:
    """A share given in percent; small ones keep a decimal, and only nothing at all is 0 %, only all of it 100 %.

    With ``digits``, so many decimals, rounded down: how much is known is never overstated.
    """
    if not math.isfinite(number):
        return "unknown"
    if digits is not None and number < 100:
        return f"{math.floor(number * 10**digits) / 10**digits:.{digits}f}{NBSP}%"
    if 0 < number < 0.1:
        return f"<{NBSP}0.1{NBSP}%"
    if 99 < number < 100:
        return percent(number, 1)
    return f"{number:.{0 if number >= 9.95 or number == 0 else 1}f}{NBSP}%"


def plain_number(number: float) -> str:
    if not math.isfinite(number):
        return "unknown"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def quantity(number: float, unit: Unit) -> str:
    """A value of a chart in the unit of that chart."""
    if unit == "percent":
        return percent(number)
    return size(number) if unit == "bytes" else plain_number(number)


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f}{NBSP}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, length)
        if number or parts:
            parts.append((number, unit))
    return NBSP.join(f"{number}{NBSP}{unit}" for number, unit in parts[:2] if number)


def local(at: float, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(at, zone)


def instant(at: float, zone: tzinfo) -> str:
    """A day and a minute on the reader's clock."""
    moment = local(at, zone)
    return f"{moment:%a}{NBSP}{moment.day}{NBSP}{moment:%b}, {moment:%H:%M}"


def minute(at: float, zone: tzinfo) -> str:
    return f"{local(at, zone):%H:%M}"


def second(at: float, zone: tzinfo) -> str:
    return f"{local(at, zone):%H:%M:%S}"


def day(at: float, zone: tzinfo) -> str:
    moment = local(at, zone)
    return f"{moment:%a}{NBSP}{moment.day}{NBSP}{moment:%b}"


def span(start: float, end: float, zone: tzinfo) -> str:
    """A stretch of time, whole days as days."""
    first, last = local(start, zone), local(end, zone)
    whole = first.time() == last.time() == first.time().min
    if whole:
        final = local(end - 1, zone)
        if first.date() == final.date():
            return f"{day(start, zone)}{NBSP}{first.year}"
        return f"{day(start, zone)} to {day(end - 1, zone)}{NBSP}{final.year}"
    if first.date() == last.date():
        return f"{day(start, zone)}{NBSP}{first.year}, {first:%H:%M} to {last:%H:%M}"
    return f"{instant(start, zone)} to {instant(end, zone)}, {last.year}"


def zone_name(at: float, zone: tzinfo) -> str:
    """The zone's name and its offset at ``at``: ``Europe/Berlin, UTC+02:00``."""
    moment = local(at, zone)
    offset = moment.strftime("%z")
    key = getattr(zone, "key", None)
    name = moment.tzname() if key in (None, "local") else key  # "local" says nothing to who reads it elsewhere
    return "UTC" if name == "UTC" else f"{name}, UTC{offset[:3]}:{offset[3:5]}"


def machine_time(at: float) -> str:
    """An instant for the ``datetime`` attribute."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sql_time(at: float) -> str:
    """An instant as the views' ``time`` columns hold it, to compare with."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def listing(items: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
