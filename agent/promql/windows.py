"""One series over one range, and what is carried from one such window to the next.

A rule asks for the same hour every fifteen seconds, and three samples of seven hundred differ. :class:`Window` finds
everything out from its samples. :class:`CarriedWindow` answers the same questions from what :class:`Memory` keeps:
samples that enter are added, those that leave are taken away, and whenever that is not certain to give the same answer,
all samples are asked again. Sums are kept as whole numbers, which can be taken back without a trace
(docs/decisions/014).
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeVar, cast

from agent.model import Labels
from agent.promql.arithmetic import largest, mean, smallest, total
from agent.promql.values import Points


class Window:
    """One series over one range: seconds, without stale markers, never empty; the bounds in milliseconds."""

    __slots__ = ("at_ms", "cut_early", "end_ms", "start_ms", "times", "values")

    def __init__(
        self,
        times: Sequence[float],
        values: Sequence[float],
        start_ms: int,
        end_ms: int,
        at_ms: int,
        cut_early: bool,
    ) -> None:
        self.times = times
        self.values = values
        self.start_ms = start_ms
        self.end_ms = end_ms
        self.at_ms = at_ms
        """The instant of evaluation, which offsets and ``@`` do not move."""
        self.cut_early = cut_early
        """Extrapolate a counter towards zero by half a sampling interval at most (Prometheus 3)."""

    def milliseconds(self, index: int) -> int:
        return round(self.times[index] * 1000)

    def total(self) -> float:
        """The sum of the values, rounded once."""
        return total(self.values)

    def mean(self) -> float:
        return mean(self.values)

    def largest(self) -> float:
        return largest(self.values)

    def smallest(self) -> float:
        return smallest(self.values)

    def lost(self) -> float:
        """What a counter had reached before each of its resets."""
        # That it never fell, sorting finds out many times faster than a loop: it leaves a rising run as it is.
        values = list(self.values)
        return 0.0 if sorted(values) == values else sum([value for _, value in _resets(self.times, values)])

    def falls(self) -> int:
        """How often a value is less than the one before it."""
        return sum(map(operator.lt, self.values[1:], self.values))

    def changes(self) -> int:
        """How often a value differs from the one before it; NaN does not differ from NaN."""
        return sum([now != before and (now == now or before == before) for before, now in pairwise(self.values)])

    def line(self, origin_ms: int) -> tuple[float, float]:
        """Slope per second and value at ``origin_ms`` of the least-squares line; NaN where a value is not finite."""
        values, count, sum_y = self.values, len(self.values), total(self.values)
        if not math.isfinite(sum_y):
            return math.nan, math.nan
        if values.count(values[0]) == count:
            return 0.0, values[0]
        base = origin_ms + _TO_WHOLE
        seconds = [(time * 1000.0 + _TO_WHOLE - base) / 1000.0 for time in self.times]
        sum_x = total(seconds)
        sum_xy = total(list(map(operator.mul, seconds, values)))
        sum_xx = total(list(map(operator.mul, seconds, seconds)))
        slope = (sum_xy - sum_x * sum_y / count) / (sum_xx - sum_x * sum_x / count)
        return slope, sum_y / count - slope * sum_x / count


_TO_WHOLE = 1.5 * 2**52
"""Added to a number of milliseconds, it leaves no bits for a fraction: ``round``, three times as fast."""


def _resets(times: Iterable[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The last instant and value before each fall."""
    return [(time, before) for time, before, after in zip(times, values, values[1:], strict=False) if after < before]


WORTH_CARRYING = 128
"""In a window with fewer samples it costs no less to find out what changed than to look at them all."""

# --- what is carried ---------------------------------------------------------------------------------------------


class _Fold(Protocol):
    """Something known about the samples of a window. What returns False knows it no longer."""

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        """Samples from ``low`` to before ``high`` come in after those that are in, or as the first."""

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        """The samples from ``low`` to before ``high`` go, and the one at ``high`` is the first."""


F = TypeVar("F", bound=_Fold)


class _Nothing:
    """Stands in the place of what could not be known, until no sample is left of those it was tried on."""

    __slots__ = ("_until",)

    def __init__(self, until: float) -> None:
        self._until = until

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return True

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._until >= times[high]


_GRID = 1 << 128
"""Values are kept in units of 2^-128: a float is a whole number of them unless it has digits below 1e-38."""
_TO_GRID = float(_GRID)


def _on_grid(values: Sequence[float]) -> list[int] | None:
    """The values as whole numbers, exactly; None where one is not finite, or too small or too large for that."""
    scaled = [value * _TO_GRID for value in values]  # a power of two: nothing is rounded
    return list(map(int, scaled)) if all(map(float.is_integer, scaled)) else None


class _Sum:
    __slots__ = ("_total",)

    def __init__(self) -> None:
        self._total = 0

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._add(values[low:high], 1)

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._add(values[low:high], -1)

    def total(self) -> float:
        return self._total / _GRID

    def _add(self, values: Sequence[float], sign: int) -> bool:
        whole = _on_grid(values)
        if whole is None:
            return False
        self._total += sign * sum(whole)
        return True


class _Line:
    """The sums of the least-squares line, x in milliseconds from the first sample that came in."""

    __slots__ = ("_base_ms", "_count", "_x", "_xx", "_xy", "_y")

    def __init__(self) -> None:
        self._base_ms: int | None = None
        self._count = self._x = self._xx = self._xy = self._y = 0

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._add(times[low:high], values[low:high], 1)

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._add(times[low:high], values[low:high], -1)

    def line(self, origin_ms: int) -> tuple[float, float]:
        assert self._base_ms is not None
        spread = self._count * self._xx - self._x * self._x
        common = self._count * self._xy - self._x * self._y
        at_origin = self._y * spread + common * (self._count * (origin_ms - self._base_ms) - self._x)
        return common * 1000 / (spread * _GRID), at_origin / (self._count * spread * _GRID)

    def _add(self, times: Sequence[float], values: Sequence[float], sign: int) -> bool:
        ys = _on_grid(values)
        if ys is None:
            return False
        xs = [round(time * 1000) for time in times]
        if self._base_ms is None:
            self._base_ms = xs[0]
        base_ms = self._base_ms
        xs = [x - base_ms for x in xs]
        self._count += sign * len(xs)
        self._x += sign * sum(xs)
        self._xx += sign * sum(map(operator.mul, xs, xs))
        self._y += sign * sum(ys)
        self._xy += sign * sum(map(operator.mul, xs, ys))
        return True


class _Lost:
    __slots__ = ("_resets",)

    MOST = 64
    """A counter is reset a few times an hour; what falls more often is none, and its falls would fill the memory."""

    def __init__(self) -> None:
        self._resets: list[tuple[float, float]] = []

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        low = max(low - 1, 0)
        run = list(values[low:high])
        if sorted(run) != run:
            self._resets += _resets(times[low:high], run)
        return len(self._resets) <= self.MOST

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        if self._resets and self._resets[0][0] < times[high]:
            self._resets = [reset for reset in self._resets if reset[0] >= times[high]]
        return True

    def total(self) -> float:
        return sum([value for _, value in self._resets])


class _Pairs:
    """How many values have something to the one before them."""

    __slots__ = ("_holds", "count")

    def __init__(self, holds: Callable[[float, float], bool]) -> None:
        self._holds = holds
        self.count = 0

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        run = values[max(low - 1, 0) : high]
        self.count += sum(map(self._holds, run[1:], run))
        return True

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        run = values[low : high + 1]
        self.count -= sum(map(self._holds, run[1:], run))
        return True


class _Best:
    """The largest or smallest value, as long as it stays; when it leaves, another must be searched for."""

    __slots__ = ("_at", "_choose", "value")

    def __init__(self, choose: Callable[[Iterable[float]], float]) -> None:
        self._choose = choose
        self.value = self._at = math.nan

    def enter(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        run = values[low:high]
        best = self._choose(run)
        if self.value != self.value or self._choose((best, self.value)) == best:
            # The last of equals stays longest.
            self.value, self._at = best, times[high - 1 - run[::-1].index(best)]
        return True

    def leave(self, times: Sequence[float], values: Sequence[float], low: int, high: int) -> bool:
        return self._at >= times[high]


_FALLS = partial(_Pairs, operator.lt)
_CHANGES = partial(_Pairs, operator.ne)
_LARGEST = partial(_Best, max)
_SMALLEST = partial(_Best, min)


class Carry:
    """What is known about one series' window, which samples that was learned from, and nothing of them in between."""

    __slots__ = ("_count", "_first", "_last", "folds")

    def __init__(self) -> None:
        self._first = self._last = (math.nan, math.nan)
        self._count = 0
        self.folds: dict[Callable[[], _Fold], _Fold] = {}

    def move(self, points: Points, low: int, high: int) -> bool:
        """Follow the window to the points from ``low`` to before ``high``; False when a NaN is among those new to it.

        Where the samples it was learned from are not there any more, or not as they were, all is forgotten.
        """
        times, values = points.times, points.values
        first = bisect_left(times, self._first[0], 0, low + 1)
        last = first + self._count
        if not (first <= low < last <= high) or self._differs(times, values, first, last - 1):
            self.folds.clear()
            first, last = low, low
        if last < high:
            checksum = sum(values[last:high])
            if checksum != checksum:
                return False
        self._first, self._last = (times[low], values[low]), (times[high - 1], values[high - 1])
        self._count = high - low
        for kind, fold in list(self.folds.items()):
            stays = first == low or fold.leave(times, values, first, low)
            if not (stays and (last == high or fold.enter(times, values, last, high))):
                del self.folds[kind]
        return True

    def _differs(self, times: Sequence[float], values: Sequence[float], first: int, last: int) -> bool:
        return self._first != (times[first], values[first]) or self._last != (times[last], values[last])


class CarriedWindow(Window):
    """A window that knows about its samples what was known before, and remembers what it is asked for."""

    __slots__ = ("carry",)

    carry: Carry

    def total(self) -> float:
        fold = self._fold(_Sum)
        return super().total() if fold is None else fold.total()

    def mean(self) -> float:
        fold = self._fold(_Sum)
        return super().mean() if fold is None else fold.total() / len(self.values)

    def largest(self) -> float:
        fold = self._fold(_LARGEST)
        return super().largest() if fold is None else fold.value

    def smallest(self) -> float:
        fold = self._fold(_SMALLEST)
        return super().smallest() if fold is None else fold.value

    def lost(self) -> float:
        fold = self._fold(_Lost)
        return super().lost() if fold is None else fold.total()

    def falls(self) -> int:
        fold = self._fold(_FALLS)
        return super().falls() if fold is None else fold.count

    def changes(self) -> int:
        fold = self._fold(_CHANGES)
        return super().changes() if fold is None else fold.count

    def line(self, origin_ms: int) -> tuple[float, float]:
        fold = self._fold(_Line) if len(self.values) > 1 else None
        return super().line(origin_ms) if fold is None else fold.line(origin_ms)

    def _fold(self, kind: Callable[[], F]) -> F | None:
        """What is carried of that kind, from now on where it was not yet; None where the samples do not allow it."""
        folds = self.carry.folds
        fold = folds.get(kind)
        if fold is None:
            fold = kind()
            if not fold.enter(self.times, self.values, 0, len(self.values)):
                fold = _Nothing(self.times[-1])
            folds[kind] = fold
        return None if isinstance(fold, _Nothing) else cast(F, fold)


@dataclass(frozen=True, slots=True)
class Turn:
    """The windows of one range selector, at one evaluation after another."""

    start_ms: int
    before: Mapping[Labels, Carry] = field(default_factory=dict)
    now: dict[Labels, Carry] = field(default_factory=dict)

    def carry(self, points: Points, low: int, high: int) -> Carry | None:
        """What is carried for the window from ``low`` to before ``high``; None when it must be looked at afresh."""
        if high - low < WORTH_CARRYING:
            return None
        carry = self.before.get(points.labels) or Carry()
        if not carry.move(points, low, high):
            return None
        self.now[points.labels] = carry
        return carry


class Memory:
    """What the windows of range selectors carry from one evaluation to the next.

    Whoever evaluates the same expressions again and again on the same source keeps one and gives it to
    :func:`agent.promql.evaluate.evaluate` each time. Results do not depend on it. Equal selectors share what they
    carry; series that were not there the last time are forgotten.

    Samples may come late, go or be missing: a window whose number of samples, first or last is not as it was is looked
    at afresh. Whoever gives other values to instants in between, as after a clock was set back, calls :meth:`clear`.
    """

    def __init__(self) -> None:
        self._turns: dict[Hashable, Turn] = {}

    def since_ms(self, selector: Hashable, start_ms: int, range_ms: int) -> int:
        """From when samples are needed for windows that begin at ``start_ms``: those that leave are needed, too."""
        last = self._near(selector, start_ms, range_ms)
        return last.start_ms if last else start_ms

    def turn(self, selector: Hashable, start_ms: int, range_ms: int) -> Turn | None:
        """The next turn of a selector's windows; None where they have too little in common with the last ones."""
        last = self._near(selector, start_ms, range_ms)
        self._turns[selector] = turn = Turn(start_ms, last.now if last else {})
        return turn if last else None

    def clear(self) -> None:
        """Forget everything."""
        self._turns.clear()

    def _near(self, selector: Hashable, start_ms: int, range_ms: int) -> Turn | None:
        last = self._turns.get(selector)
        return last if last and 0 <= start_ms - last.start_ms <= range_ms // 2 else None
