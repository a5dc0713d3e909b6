"""Ten minutes of readings of one layout as one compressed value, from which every float64 comes back bit by bit.

A column becomes integers (its values times a power of ten where that is exact, else the bits of the floats), those
their differences, those what they are above the least one in units of their common divisor, those planes of bytes,
and the planes are deflated. Each step is undone exactly; the smallest of three orders of difference is kept. Each
column carries a checksum: what a disk changed is an error, never a value.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, repeat
from operator import add, mul, truediv
from zlib import crc32

WINDOW_S = 600
"""A chunk holds readings of one stretch of so many seconds since the epoch."""

_BITS = 255
"""In place of a power of ten: the integers are the bits of the floats."""

_DIGITS = 9
_PROBES = 8
_ORDERS = 3
_FITS = 1 << 63
_OFFSET = _CHECKSUM = struct.Struct("<I")
_PLACE = struct.Struct("<II")


def pack(parts: Sequence[bytes]) -> bytes:
    """Parts as one value that begins with the offset of each, so that one is read without the others."""
    head = _OFFSET.size * (len(parts) + 1)
    offsets = list(accumulate((len(data) + _CHECKSUM.size for data in parts), initial=head))
    summed = [data + _checksum(data, *place) for data, place in zip(parts, pairwise(offsets), strict=True)]
    return b"".join((*map(_OFFSET.pack, offsets), *summed))


def part(packed: bytes, position: int) -> bytes:
    """One of the parts that :func:`pack` put together.

    Raises
    ------
    ValueError
        It is not what was packed.
    """
    low, high = _PLACE.unpack_from(packed, _OFFSET.size * position)
    data = packed[low : high - _CHECKSUM.size]
    if packed[high - _CHECKSUM.size : high] != _checksum(data, low, high):
        raise ValueError("the checksum is not that of the data")
    return data


def _checksum(data: bytes, low: int, high: int) -> bytes:
    """Of a part and its place: an offset that changed leads to other bytes, which may hold a sum of their own."""
    return _CHECKSUM.pack(crc32(data, crc32(_PLACE.pack(low, high))))


def encode_values(values: Sequence[float]) -> bytes:
    """A column of at least one value, in the order of time."""
    raw = struct.pack(f"<{len(values)}d", *values)
    if raw == raw[:8] * len(values):
        values, raw = values[:1], raw[:8]  # a constant needs no more than its first value
    digits, numbers = _as_integers(values, raw)
    return bytes((digits,)) + encode_integers(numbers)


def decode_values(encoded: bytes, count: int) -> Sequence[float]:
    """The ``count`` values that :func:`encode_values` was given."""
    numbers = decode_integers(encoded[1:])
    if encoded[0] == _BITS:
        found: Sequence[float] = struct.unpack(f"<{len(numbers)}d", struct.pack(f"<{len(numbers)}q", *numbers))
    else:
        found = list(map(truediv, numbers, repeat(10 ** encoded[0])))
    return found if len(found) == count else [found[0]] * count


def encode_integers(numbers: Sequence[int]) -> bytes:
    """Integers of 64 bits, at least one: the shortest of their differences of the lowest orders."""
    heads: list[int] = []
    shortest = _framed(heads, numbers)
    for _ in range(min(_ORDERS, len(numbers)) - 1):
        heads.append(numbers[0])
        numbers = [after - before for before, after in pairwise(numbers)]
        if max(numbers) - min(numbers) >= 2 * _FITS:
            break
        shortest = min(shortest, _framed(heads, numbers), key=len)
    return shortest


def decode_integers(encoded: bytes) -> list[int]:
    """What :func:`encode_integers` was given."""
    (order, width), at = encoded[:2], 2
    heads = []
    for _ in range(order):
        head, at = _read_varint(encoded, at)
        heads.append(head)
    low, at = _read_varint(encoded, at)
    divisor, at = _read_varint(encoded, at)
    planes = zlib.decompress(encoded[at:], wbits=-zlib.MAX_WBITS)
    count = len(planes) // width
    if order == 1 and low and not any(planes):
        return list(range(heads[0], heads[0] + low * (count + 1), low))  # as the instants of most chunks are
    numbers: Iterable[int] = planes  # a plane alone is its numbers
    if width > 1:
        words = bytearray(8 * count)
        for plane in range(width):
            words[plane::8] = planes[plane * count : (plane + 1) * count]
        numbers = struct.unpack(f"<{count}Q", words)
    if divisor != 1:
        numbers = map(mul, numbers, repeat(divisor))
    if low:
        numbers = map(add, numbers, repeat(low))
    for head in reversed(heads):
        numbers = accumulate(numbers, initial=head)
    return list(numbers)


def _as_integers(values: Sequence[float], raw: bytes) -> tuple[int, Sequence[int]]:
    """The fewest decimal digits that hold all values exactly, and the values as integers of that many."""
    probes = values[:: max(1, len(values) // _PROBES)]
    if all(map(math.isfinite, values)):
        for digits in range(_DIGITS + 1):
            scale = 10**digits
            if any(round(value * scale) / scale != value for value in probes if abs(value) * scale < _FITS):
                continue
            numbers = [round(value * scale) for value in values]
            if max(map(abs, numbers)) >= _FITS:
                break
            # The bytes are compared, not the numbers: -0.0 equals 0.0.
            if struct.pack(f"<{len(numbers)}d", *[number / scale for number in numbers]) == raw:
                return digits, numbers
    return _BITS, struct.unpack(f"<{len(values)}q", raw)


def _framed(heads: Sequence[int], numbers: Sequence[int]) -> bytes:
    """One order of difference: the numbers that the sums begin with, then the differences as deflated planes."""
    low = min(numbers)
    above = [number - low for number in numbers]
    divisor = math.gcd(*above) or 1
    if divisor > 1:
        above = [number // divisor for number in above]
    words = struct.pack(f"<{len(above)}Q", *above)
    width = max(1, (max(above).bit_length() + 7) // 8)
    planes = b"".join(words[plane::8] for plane in range(width))
    header = b"".join(map(_varint, (*heads, low, divisor)))
    deflated = zlib.compress(planes, zlib.Z_BEST_COMPRESSION, wbits=-zlib.MAX_WBITS)
    return bytes((len(heads), width)) + header + deflated


def _varint(number: int) -> bytes:
    """A signed integer, seven bits a byte, its sign in the lowest bit (as Protocol Buffers write them)."""
    left = number << 1 if number >= 0 else ~number << 1 | 1
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


def _read_varint(encoded: bytes, at: int) -> tuple[int, int]:
    """The integer that begins there, and where the next one does."""
    shift = left = 0
    while True:
        byte = encoded[at]
        left |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (~(left >> 1) if left & 1 else left >> 1), at
