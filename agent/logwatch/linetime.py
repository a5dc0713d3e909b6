"""The time that a line says of itself, kept beside the time at which it was read.

It is a claim: whoever writes the log writes it too. So it is a label of the event and never its place in time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

LOOKED_AT_BYTES = 128
JSON_LOOKED_AT_BYTES = 4096

# Each is tried at one place and holds no repetition inside another: nothing here grows faster than its few bytes.
_ISO = re.compile(
    rb"[\[(\"<]?(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))? ?(Z|[+-]\d\d:?\d\d)?(?![\d:])"
)
_SYSLOG = re.compile(rb"(?:<\d{1,3}>)?([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)(?![\d:])")
_KERNEL = re.compile(rb"(?:<\d{1,3}>)?(?:kernel: )?\[ {0,6}(\d{1,10})\.(\d{6})\]")
_JSON = re.compile(
    rb'"(?:@timestamp|timestamp|time|ts|datetime|asctime)"[ \t]{0,4}:[ \t]{0,4}'
    rb'(?:"([^"\\]{1,40})"|(\d{9,19}(?:\.\d{1,9})?))'
)
_MONTHS = {name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_HALF_A_YEAR = timedelta(days=183)


def time_of(line: bytes, at: float, *, booted_at: float = 0.0, zone: tzinfo | None = None) -> float | None:
    """Seconds since the epoch that a line states, or None.

    Read are ISO 8601 (RFC 5424 among it), the syslog of RFC 3164, the kernel's seconds since boot, and in a JSON line
    the first key named ``time``, ``timestamp``, ``@timestamp``, ``ts``, ``datetime`` or ``asctime``: ISO or epoch in
    seconds, milliseconds, microseconds or nanoseconds.

    Parameters
    ----------
    line
        The line; its first 128 bytes are looked at, 4 KiB of JSON.
    at
        Now. A syslog line has no year: the one is taken that brings it nearest.
    booted_at
        When this host was booted, for the kernel's count.
    zone
        Of times that name none; None: this host's.
    """
    if line.lstrip()[:1] == b"{":
        return _of_json(line[:JSON_LOOKED_AT_BYTES], zone)
    head = line[:LOOKED_AT_BYTES]
    try:
        if iso := _ISO.match(head):
            return _of_iso(iso, zone)
        if syslog := _SYSLOG.match(head):
            return _of_syslog(syslog, at, zone)
        if kernel := _KERNEL.match(head):
            return booted_at + int(kernel[1]) + int(kernel[2]) / 1e6
    except (ValueError, OverflowError):  # 30 February, the year 0
        pass
    return None


def _of_iso(found: re.Match[bytes], zone: tzinfo | None) -> float:
    *numbers, fraction, offset = found.groups()
    year, month, day, hour, minute, second = map(int, numbers)
    micros = int((fraction or b"0")[:6].ljust(6, b"0"))
    # A leap second is the one after it.
    moment = datetime(year, month, day, hour, minute, min(second, 59), micros, tzinfo=_zone(offset) or zone)
    return moment.timestamp() + (second == 60)


def _zone(offset: bytes | None) -> tzinfo | None:
    if offset is None:
        return None
    if offset == b"Z":
        return UTC
    minutes = int(offset[1:3]) * 60 + int(offset[-2:])
    return timezone(timedelta(minutes=-minutes if offset[:1] == b"-" else minutes))


def _of_syslog(found: re.Match[bytes], at: float, zone: tzinfo | None) -> float | None:
    month = _MONTHS.get(found[1])
    if month is None:
        return None
    now = datetime.fromtimestamp(at, zone)
    day, hour, minute, second = (int(found[number]) for number in (2, 3, 4, 5))
    best: datetime | None = None
    for year in (now.year - 1, now.year, now.year + 1):
        try:
            moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=now.tzinfo)
        except ValueError:  # 29 February in this year
            continue
        if best is None or abs(moment - now) < abs(best - now):
            best = moment
    return best.timestamp() if best is not None and abs(best - now) <= _HALF_A_YEAR else None


def _of_json(head: bytes, zone: tzinfo | None) -> float | None:
    found = _JSON.search(head)
    if found is None:
        return None
    text, number = found.groups()
    try:
        if number is not None or text.isdigit():
            return _of_epoch(float(number or text))
        iso = _ISO.match(text)
        return _of_iso(iso, zone) if iso else None
    except (ValueError, OverflowError):
        return None


def _of_epoch(value: float) -> float:
    """Seconds, whatever the unit: 1e11 seconds are the year 5138, 1e11 milliseconds 1973."""
    while value >= 1e11:
        value /= 1000
    return value
