"""How a reading becomes a row: the text of its values, and the layout that says which series they belong to."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence

from agent.model import STALE, Labels, Series, is_stale
from agent.store.statement import Many, Statement

_NAN_BITS = 0x7FF8000000000000
_SPECIAL = {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}


def encode_values(values: Sequence[float]) -> str:
    """Values as a JSON array that :func:`decode_values` gives back bit by bit.

    NaN and the infinities are strings, with a NaN's bits where they are not the usual ones; the stale marker is null.
    """
    text = repr(values if type(values) is list else list(values))
    if "n" in text:  # nan, inf
        return "[" + ",".join(map(encode_value, values)) + "]"
    if "-0.0" not in text:  # the sign of zero is lost in an integer
        text = text.replace(".0, ", ",")
    return text.replace(", ", ",")


def encode_value(value: float) -> str:
    """One value as JSON."""
    if value != value:
        if is_stale(value):
            return "null"
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        return '"NaN"' if bits == _NAN_BITS else f'"NaN(0x{bits:016x})"'
    if value in (math.inf, -math.inf):
        return '"+Inf"' if value > 0 else '"-Inf"'
    return repr(value)


def decode_values(text: str) -> list[float]:
    """The values of a row's JSON array; those that were whole come back as integers, which are equal to them."""
    values = json.loads(text)
    if '"' in text or "null" in text:
        return [decode_value(value) for value in values]
    return values  # type: ignore[no-any-return]


def decode_value(value: float | str | None) -> float:
    """One value as the JSON reader gave it."""
    if value is None:
        return STALE
    if isinstance(value, str):
        if value.startswith("NaN("):
            bits: float = struct.unpack("<d", struct.pack("<Q", int(value[4:-1], 16)))[0]
            return bits
        return _SPECIAL[value]
    return value


def encode_labels(labels: Labels) -> str:
    """Labels as a JSON object, in their order."""
    return json.dumps(dict(labels), ensure_ascii=False, separators=(",", ":"))


def decode_labels(text: str) -> Labels:
    """The labels of a JSON object, sorted by name."""
    return tuple(sorted(json.loads(text).items()))


class Layout:
    """The series of a row by position; stored once, in the transaction of the first row that names it."""

    __slots__ = ("id", "series", "series_ids", "stored")

    def __init__(self, number: int, series: tuple[Series, ...], series_ids: tuple[int, ...], stored: bool) -> None:
        self.id, self.series, self.series_ids, self.stored = number, series, series_ids, stored


class Layouts:
    """Finds the layout of a reading: by the identity of its series tuple, and only when that is new by its content."""

    def __init__(self, series: Mapping[Series, int], next_layout: int) -> None:
        self._series_ids = dict(series)
        self._series = {number: one for one, number in series.items()}
        self._next_series = max(self._series_ids.values(), default=0) + 1
        self._next_layout = next_layout
        self._by_identity: dict[int, Layout] = {}
        self._by_content: dict[tuple[Series, ...], Layout] = {}

    def of(self, series: tuple[Series, ...]) -> Layout:
        """The layout of these series, made when it is new."""
        layout = self._by_identity.get(id(series))
        if layout is not None and layout.series is series:
            return layout
        layout = self._by_content.get(series)
        if layout is None:
            if len(set(series)) != len(series):
                raise ValueError("a reading holds the same series twice")
            layout = Layout(self._next_layout, series, tuple(map(self.series_id, series)), stored=False)
            self._next_layout += 1
        self._remember(layout, series)
        return layout

    def combined(self, series_ids: Iterable[int]) -> Layout:
        """A layout of its own for a roll-up, whose rows no reading shares."""
        layout = self.kept(self._next_layout, series_ids)
        layout.stored = False
        self._next_layout += 1
        return layout

    def kept(self, number: int, series_ids: Iterable[int]) -> Layout:
        """A layout as the file holds it."""
        ids = tuple(series_ids)
        return Layout(number, tuple(self._series[one] for one in ids), ids, stored=True)

    def series_id(self, series: Series) -> int:
        """The number of a series in the file, given when it is new."""
        number = self._series_ids.get(series)
        if number is None:
            number = self._series_ids[series] = self._next_series
            self._series[number] = series
            self._next_series += 1
        return number

    def adopt(self, number: int, series_ids: Iterable[int]) -> Layout:
        """A layout that the file holds, for readings to come."""
        layout = self.kept(number, series_ids)
        self._remember(layout, layout.series)
        return layout

    def forget(self, layouts: Iterable[Layout]) -> None:
        """Drop layouts without rows in memory; should their series come back, a new layout is made."""
        for layout in layouts:
            self._by_content.pop(layout.series, None)
            self._by_identity.pop(id(layout.series), None)

    def ids(self) -> list[int]:
        """The layouts that new rows may name at any moment: they must stay in the file."""
        return [layout.id for layout in self._by_content.values()]

    def _remember(self, layout: Layout, series: tuple[Series, ...]) -> None:
        # A source that makes a new tuple each time moves its layout's identity along instead of piling up.
        self._by_identity.pop(id(layout.series), None)
        layout.series = series
        self._by_identity[id(series)] = layout
        self._by_content[series] = layout


def layout_statements(layouts: Iterable[Layout]) -> list[Statement]:
    """What stores these layouts; doing it twice changes nothing."""
    statements: list[Statement] = []
    for layout in layouts:
        named = zip(layout.series_ids, layout.series, strict=True)
        rows = [(number, series.metric, encode_labels(series.labels)) for number, series in named]
        slots = [(layout.id, position, number) for position, number in enumerate(layout.series_ids)]
        statements.append(Many("INSERT OR IGNORE INTO series (id, metric, labels) VALUES (?, ?, ?)", rows))
        statements.append(Many("INSERT OR IGNORE INTO slot (layout, position, series) VALUES (?, ?, ?)", slots))
    return statements
