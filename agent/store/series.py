"""How a reading becomes a row: the text of its values, and the layout that says which series they belong to."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from agent.model import STALE, Labels, Reading, Series, is_stale
from agent.store.names import Names
from agent.store.statement import Many, Statement

_NAN_BITS = 0x7FF8000000000000

SLOTS_AT_ONCE, SLOTS_AN_HOUR = 50_000, 10_000
"""What layouts of whole readings may cost; a slot takes some 25 bytes of the file."""

_PLANS = 64
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


def seal(text: str) -> str:
    """A JSON array with its checksum as one more element, which no slot names: views pass it over."""
    comma = "," if len(text) > 2 else ""
    return f'{text[:-1]}{comma}"#{crc32(text.encode()):08x}"]'


def unseal(text: str) -> str:
    """What :func:`seal` was given; an array without a checksum, of an earlier version, is taken as it is.

    Raises
    ------
    ValueError
        It is not what was sealed.
    """
    if text[-11:-10] != "#":
        return text
    array = text[:-12].removesuffix(",") + "]"
    if text[-10:-2] != f"{crc32(array.encode()):08x}":
        raise ValueError("the checksum is not that of the values")
    return array


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
    """The values of a row's JSON array; those that were whole come back as integers, which are equal to them.

    Raises
    ------
    ValueError
        The row is damaged.
    """
    text = unseal(text)
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
        if value not in _SPECIAL:
            raise ValueError(f'"{value}" is no value')
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


class Budget:
    """How many slots may be made: some at once, and so many an hour for good."""

    def __init__(self, slots: int = SLOTS_AT_ONCE, an_hour: int = SLOTS_AN_HOUR) -> None:
        self._most, self._a_second = float(slots), an_hour / 3600
        self._left, self._at = self._most, 0.0

    def take(self, slots: int, at: float) -> bool:
        """Whether so many may be made at an instant; they count if so."""
        self._left = min(self._most, self._left + max(0.0, at - self._at) * self._a_second)
        self._at = at
        if slots > self._left:
            return False
        self._left -= slots
        return True


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a reading is cut: the series of each part, and where its values are; the last place stands for no value."""

    series: tuple[Series, ...]
    parts: tuple[tuple[tuple[Series, ...], tuple[int, ...]], ...]
    refused: int


class Layouts:
    """Finds the layout of a reading: by the identity of its series tuple, and only when that is new by its content.

    Series that come and go must not cost a layout of all series each time. While changes are rare, they do. Beyond a
    budget a reading is cut: layouts that hold most of its series go on, with the stale marker for those that ended,
    and new series get a small layout, which the next new ones join as long as that is the larger part. So each series
    is written into a few layouts in its life, however many others come and go.

    Parameters
    ----------
    series
        Those of the file, with their numbers.
    next_layout
        The first number that is free.
    max_series
        A new series is refused when there are so many, or half as many of its metric.
    """

    def __init__(self, series: Mapping[Series, int], next_layout: int, max_series: int = 20_000) -> None:
        self._names = Names(series)
        self._max_series = max_series
        self._next_layout = next_layout
        self._by_identity: dict[int, Layout] = {}
        self._by_content: dict[tuple[Series, ...], Layout] = {}
        self._homes: dict[Series, Layout] = {}
        self._plans: dict[int, _Plan] = {}
        self._budget = Budget()
        self.refused_values = 0
        """Values of series that were refused."""
        self.refused_metric = ""
        """The metric of the last one."""

    def __len__(self) -> int:
        """How many series are known."""
        return len(self._names)

    @property
    def next_layout(self) -> int:
        """The number of the next layout: those made from now on have it or a later one."""
        return self._next_layout

    def parts(self, reading: Reading) -> Sequence[Reading]:
        """The reading, or what it is cut into: each part has a layout, and no series that is refused."""
        series = reading.series
        if len(reading.values) != len(series):
            raise ValueError(f"a reading has {len(reading.values)} values for {len(series)} series")
        layout = self._by_identity.get(id(series))
        if (layout is not None and layout.series is series) or series in self._by_content:
            return (reading,)
        plan = self._plans.get(id(series))
        if plan is None or plan.series is not series:
            plan = self._planned(reading)
            if plan is None:
                return (reading,)
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[id(series)] = plan
        self.refused_values += plan.refused
        values = [*reading.values, STALE]
        return [Reading(reading.at, part, [values[place] for place in places]) for part, places in plan.parts]

    def of(self, series: tuple[Series, ...]) -> Layout:
        """The layout of these series, made when it is new."""
        layout = self._by_identity.get(id(series))
        if layout is not None and layout.series is series:
            return layout
        layout = self._by_content.get(series)
        if layout is None:
            layout = Layout(self._next_layout, series, tuple(map(self._names.number, series)), stored=False)
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
        return Layout(number, tuple(map(self._names.series, ids)), ids, stored=True)

    def series_id(self, series: Series) -> int:
        """The number of a series in the file, given when it is new."""
        return self._names.number(series)

    def resting(self, series_ids: Iterable[int]) -> list[int]:
        """Those whose names are only in the file: :meth:`series_id` of the name wakes each."""
        return self._names.resting(series_ids)

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
            for series in layout.series:
                if self._homes.get(series) is layout:
                    del self._homes[series]
            self._plans.clear()

    def forget_series(self, numbers: Iterable[int], kept: Iterable[Layout]) -> None:
        """Drop series that the file dropped, but for those that came back meanwhile, into layouts in use."""
        named = {number for layout in (*self._by_content.values(), *kept) for number in layout.series_ids}
        self._names.forget(number for number in numbers if number not in named)
        self._plans.clear()  # there may be room for what they refuse

    def rest(self) -> None:
        """Keep the names only of series that may be read at any moment."""
        self._names.rest(self._homes)

    def ids(self) -> list[int]:
        """The layouts that new rows may name at any moment: they must stay in the file."""
        return [layout.id for layout in self._by_content.values()]

    def _remember(self, layout: Layout, series: tuple[Series, ...]) -> None:
        # A source that makes a new tuple each time moves its layout's identity along instead of piling up.
        self._by_identity.pop(id(layout.series), None)
        layout.series = series
        self._by_identity[id(series)] = layout
        if series not in self._by_content:
            self._by_content[series] = layout
            self._homes.update(dict.fromkeys(series, layout))

    def _planned(self, reading: Reading) -> _Plan | None:
        """How to cut a reading whose series are new in this mix; None to take it whole."""
        series = reading.series
        if len(set(series)) != len(series):
            raise ValueError("a reading holds the same series twice")
        refused = self._refused(series)
        taken = [one for one in series if one not in refused] if refused else series
        if not refused and (all(map(is_stale, reading.values)) or self._budget.take(len(series), reading.at)):
            return None  # markers alone end these series and say nothing of others
        places = {one: place for place, one in enumerate(series)}
        gone = len(series)
        parts = [
            (part, tuple(places[one] if one in members else gone for one in part)) for part, members in self._cut(taken)
        ]
        return _Plan(series, tuple(parts), len(refused))

    def _cut(self, series: Sequence[Series]) -> list[tuple[tuple[Series, ...], frozenset[Series]]]:
        """The series in parts: layouts that go on, each with those whose home it is, and one of new series.

        The new part takes in layouts that are mostly ended, or not much larger than it. The oldest layout comes first:
        a reader who finds a series twice in an instant goes by the last row.
        """
        joined = [one for one in series if one not in self._homes]
        living: dict[Layout, list[Series]] = {}
        for one in series:
            if (home := self._homes.get(one)) is not None:
                living.setdefault(home, []).append(one)
        going_on = []
        for home in sorted(living, key=lambda each: len(each.series)):
            members = living[home]
            if len(home.series) <= 2 * len(joined) or len(home.series) > 2 * len(members):
                joined += members
            else:
                going_on.append(home)
        parts = [(home.series, frozenset(living[home])) for home in sorted(going_on, key=lambda each: each.id)]
        return [*parts, (tuple(joined), frozenset(joined))] if joined else parts

    def _refused(self, series: Iterable[Series]) -> frozenset[Series]:
        """Those that are new and too many."""
        new = [one for one in series if one not in self._names]
        left, coming = self._max_series - len(self._names), Counter[str]()
        refused = []
        for one in new:
            if coming.total() >= left or self._names.count(one.metric) + coming[one.metric] >= self._max_series // 2:
                refused.append(one)
                self.refused_metric = one.metric
            else:
                coming[one.metric] += 1
        return frozenset(refused)


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
