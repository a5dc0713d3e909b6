"""Counters of one file, and the bounds that keep log text from making series or rows without end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from agent.logwatch.patterns import Rate
from agent.model import Labels, Reading, Series, make_labels

MOST_LABEL_SETS = 100
OTHER = "other"
Matched = tuple[tuple[str, Labels], ...]
"""Patterns, each with the labels under which it was counted."""


class LabelBound:
    """At most :data:`MOST_LABEL_SETS` sets of captured labels for each pattern; all further ones are ``other``."""

    def __init__(self, most: int = MOST_LABEL_SETS) -> None:
        self._most = most
        self._known: dict[str, set[Labels]] = {}

    def admit(self, pattern: str, groups: Labels) -> Labels:
        """The labels under which a match is counted."""
        if not groups:
            return groups
        known = self._known.setdefault(pattern, set())
        if groups not in known:
            if len(known) >= self._most:
                return tuple((name, OTHER) for name, _ in groups)
            known.add(groups)
        return groups


class FileCounts:
    """What was read of one path and matched in it, since it was first seen; restarts do not reset it."""

    def __init__(self, file: str, patterns: Sequence[str], bound: LabelBound, stored: Mapping[str, Any]) -> None:
        self.file = file
        self._bound = bound
        self._series: tuple[Series, ...] = tuple(
            Series(metric, make_labels(file=file))
            for metric in ("log_lines_total", "log_bytes_total", "log_gaps_total")
        )
        self._values: list[int] = [stored.get(key, 0) for key in ("lines", "bytes", "gaps")]
        self._places: dict[tuple[str, Labels], int] = {}
        for pattern, groups, count in stored.get("matches", ()):
            labels = bound.admit(pattern, _labels(groups))
            self._values[self._place(pattern, labels)] += count
        self._announced: int = stored.get("announced", 0)
        self.last: Matched = tuple((pattern, _labels(groups)) for pattern, groups in stored.get("last", ()))
        """What the last line read matched: "last message repeated 3 times" may follow it."""
        self._recent: dict[tuple[str, Labels], deque[float]] = {
            (pattern, _labels(groups)): deque(times) for pattern, groups, times in stored.get("recent", ())
        }
        for pattern in patterns:
            self._place(pattern, ())
        self.emitted_at = float("-inf")
        """When a reading was last made, on the boot clock."""

    def read(self, lines: int, size_bytes: int) -> None:
        self._values[0] += lines
        self._values[1] += size_bytes

    def gap(self) -> None:
        self._values[2] += 1

    def match(self, pattern: str, groups: Labels, times: int = 1) -> None:
        self._values[self._place(pattern, self._bound.admit(pattern, groups))] += times

    def reached(self, pattern: str, groups: Labels, rate: Rate, at: float, times: int = 1) -> bool:
        """Whether this match is the last of as many within the span as the rate asks for; the next one counts anew."""
        recent = self._recent.setdefault((pattern, groups), deque())
        recent.extend([at] * min(times, rate.count))
        # A clock that was set back leaves instants that have yet to come.
        while recent and not at - rate.per_s < recent[0] <= at:
            recent.popleft()
        if len(recent) < rate.count:
            return False
        del self._recent[pattern, groups]
        return True

    def readings(self, at: float) -> list[Reading]:
        """The counters now, and a 0 one millisecond before for each series that was never sampled: ``increase()`` sees
        only a rise from something.
        """
        readings = [Reading(at, self._series, [float(value) for value in self._values])]
        new = self._series[self._announced :]
        if new:
            readings.insert(0, Reading(at - 0.001, new, [0.0] * len(new)))
        self._announced = len(self._series)
        return readings

    def to_json(self) -> dict[str, Any]:
        matches = [[pattern, groups, self._values[place]] for (pattern, groups), place in self._places.items()]
        lines, size_bytes, gaps = self._values[:3]
        return {
            "lines": lines,
            "bytes": size_bytes,
            "gaps": gaps,
            "matches": matches,
            "announced": self._announced,
            **({"last": self.last} if self.last else {}),
            **({"recent": [[*key, list(times)] for key, times in self._recent.items()]} if self._recent else {}),
        }

    def _place(self, pattern: str, groups: Labels) -> int:
        place = self._places.get((pattern, groups))
        if place is None:
            place = self._places[pattern, groups] = len(self._values)
            self._values.append(0)
            labels = make_labels(dict(groups), pattern=pattern, file=self.file)
            self._series = (*self._series, Series("log_matches_total", labels))
        return place


class Throttle:
    """How many events of a pattern are stored each second; the rest are counted."""

    def __init__(self, most_per_s: int) -> None:
        self._most = most_per_s
        self._windows: dict[str, list[float]] = {}

    def admit(self, pattern: str, boot: float) -> bool:
        """Whether this match becomes a row of its own."""
        window = self._windows.setdefault(pattern, [boot, 0, 0])
        if window[1] < self._most:
            window[1] += 1
            return True
        window[2] += 1
        return False

    def due(self, boot: float) -> list[tuple[str, int]]:
        """Ends the seconds that have passed; (pattern, matches folded) of those that folded any."""
        ended = [(pattern, window) for pattern, window in self._windows.items() if boot - window[0] >= 1.0]
        for pattern, _ in ended:
            del self._windows[pattern]
        return [(pattern, int(window[2])) for pattern, window in ended if window[2]]

    @property
    def folding(self) -> bool:
        return any(window[2] for window in self._windows.values())


def _labels(written: Sequence[Sequence[str]]) -> Labels:
    """Labels as JSON gives them back."""
    return tuple((name, value) for name, value in written)
