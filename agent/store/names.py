"""The series of the file by name: those in use as they are, those that ended as a few bytes each."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from hashlib import blake2b

from agent.model import Series


class Names:
    """Which number each series has.

    A series that ended keeps its number for as long as any row names it, which may be years. Of those that rest only a
    digest is kept here, sixteen bytes with the number instead of half a kilobyte; the file has the name.

    Parameters
    ----------
    series
        Those of the file, with their numbers; all are awake.
    """

    def __init__(self, series: Mapping[Series, int]) -> None:
        self._numbers = dict(series)
        self._series = {number: one for one, number in series.items()}
        self._of_metric = Counter(one.metric for one in series)
        self._next = max(self._series, default=0) + 1
        self._digests, self._resting = array("Q"), array("Q")
        """The digests of those that rest, rising, and their numbers; the metric of each is found by the latter."""
        self._metrics: dict[str, int] = {}
        self._metric_of = array("L")

    def __len__(self) -> int:
        """How many series are known."""
        return len(self._numbers) + len(self._digests)

    def __contains__(self, series: Series) -> bool:
        return series in self._numbers or self._place(series) is not None

    def count(self, metric: str) -> int:
        """How many series of a metric are known."""
        return self._of_metric[metric]

    def series(self, number: int) -> Series:
        """The series with a number, which must be awake."""
        return self._series[number]

    def resting(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers whose names only the file has."""
        return [number for number in numbers if number not in self._series]

    def number(self, series: Series) -> int:
        """The number of a series, which is given when it is new; it is awake then."""
        number = self._numbers.get(series)
        if number is not None:
            return number
        place = self._place(series)
        if place is not None:
            number = self._resting[place]
            self._drop([place])
        else:
            number, self._next = self._next, self._next + 1
            self._of_metric[series.metric] += 1
        self._numbers[series], self._series[number] = number, series
        return number

    def rest(self, awake: Container[Series]) -> None:
        """Let all others rest."""
        resting = [one for one in self._numbers if one not in awake]
        if not resting:
            return
        kept = dict(zip(self._digests, zip(self._resting, self._metric_of, strict=True), strict=True))
        for one in resting:
            kept[_digest(one)] = self._numbers[one], self._metrics.setdefault(one.metric, len(self._metrics))
        # New ones: a dictionary that has shrunk keeps the room it had.
        self._numbers = {one: number for one, number in self._numbers.items() if one in awake}
        self._series = {number: one for one, number in self._numbers.items()}
        self._digests = array("Q", sorted(kept))
        self._resting = array("Q", [kept[digest][0] for digest in self._digests])
        self._metric_of = array("L", [kept[digest][1] for digest in self._digests])

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop series that the file dropped."""
        gone = set(numbers)
        for number in gone & self._series.keys():
            series = self._series.pop(number)
            del self._numbers[series]
            self._of_metric[series.metric] -= 1
        places = [place for place, number in enumerate(self._resting) if number in gone]
        names = list(self._metrics)
        for place in places:
            self._of_metric[names[self._metric_of[place]]] -= 1
        self._drop(places)

    def _place(self, series: Series) -> int | None:
        """Where a series that rests is."""
        digest = _digest(series)
        place = bisect_left(self._digests, digest)
        return place if place < len(self._digests) and self._digests[place] == digest else None

    def _drop(self, places: Iterable[int]) -> None:
        for place in sorted(places, reverse=True):
            del self._digests[place], self._resting[place], self._metric_of[place]


def _digest(series: Series) -> int:
    """Eight bytes: that two of twenty thousand series share them is one chance in ten to the eleventh."""
    text = "\0".join((series.metric, *(part for pair in series.labels for part in pair)))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
