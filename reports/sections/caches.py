"""Directories that are measured: how large, how old, how they moved, and when they were cleaned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.store.read import Reader
from reports.charts import Chart
from reports.history import Track, latest, tracks
from reports.marks import Happenings, labelled
from reports.period import Period
from reports.sections.host import LEAST_POINTS

MOST_CHARTS = 4
MOST_ROWS = 15
MOVED_SHARE = 0.02

_SIZE = "directory_size_bytes"


@dataclass(frozen=True, slots=True)
class Directory:
    """One measured tree: bytes on disk, files, age of its ends in seconds since the epoch, change over the period."""

    path: str
    size_bytes: float
    peak_bytes: float
    files: float | None
    oldest: float | None
    newest: float | None
    change_bytes: float | None
    cleaned: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Caches:
    """``directories`` largest first."""

    directories: tuple[Directory, ...]
    left_out: int
    charts: tuple[Chart, ...]


class CachesSection:
    name = "caches"

    def build(self, read: Reader, period: Period) -> Caches:
        history = {
            dict(series.labels).get("path", ""): track
            for series, track in tracks(read, {_SIZE: {}}, period.start, period.end).items()
        }
        happened = Happenings.of(read, period)
        figures: dict[str, dict[str, float]] = {}
        for each in latest(read, "directory_"):
            figures.setdefault(each.labels.get("path", ""), {})[each.metric] = each.value
        known = [
            _directory(path, values, history.get(path), happened) for path, values in figures.items() if _SIZE in values
        ]
        known.sort(key=lambda directory: (-directory.size_bytes, directory.path))
        return Caches(tuple(known[:MOST_ROWS]), len(known) - len(known[:MOST_ROWS]), _charts(history, period, happened))


def _directory(path: str, values: Mapping[str, float], track: Track | None, happened: Happenings) -> Directory:
    cleanings = [a for a in happened.actions if a.carried_out and a.touched == path]
    return Directory(
        path,
        values[_SIZE],
        max(track.high) if track else values[_SIZE],
        values.get("directory_files"),
        values.get("directory_oldest_timestamp_seconds"),
        values.get("directory_newest_timestamp_seconds"),
        values[_SIZE] - track.mean[0] if track else None,
        len(cleanings),
        sum(action.bytes_freed for action in cleanings),
    )


def _charts(history: Mapping[str, Track], period: Period, happened: Happenings) -> tuple[Chart, ...]:
    """Trees that moved or that something happened to; those with marks first, then the largest."""
    found = []
    for path, track in history.items():
        marks = happened.marks(labelled("path", path))
        top, bottom = max(track.high), min(track.low)
        if len(track.times) >= LEAST_POINTS and (marks or top - bottom > MOVED_SHARE * top):
            found.append((not marks, -top, Chart(path, "bytes", period.start, period.end, track.line(), None, marks)))
    found.sort(key=lambda each: each[:2])
    return tuple(chart for *_, chart in found[:MOST_CHARTS])
