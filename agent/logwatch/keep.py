"""What of a matching line is stored: all of it, without its secrets, or nothing but that it matched."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from agent.logwatch import redact
from agent.logwatch.linetime import time_of
from agent.logwatch.patterns import Match, legible, shortened
from agent.logwatch.records import JOINT
from agent.model import Event, Labels, make_labels

LONGEST_MESSAGE = 2048
LONGEST_RECORD = 8192
RECORD_END = 2048
"""Of a record that is too long its end is kept too: there a traceback says what it is about."""
LOOKED_AROUND_BYTES = 4096
"""A secret that began further before a captured group is not seen to reach into it."""
NOT_STORED = "(not stored)"


class StoreLines(StrEnum):
    FULL = "full"
    REDACTED = "redacted"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Place:
    """Where and when a line was read: ``at`` on the wall clock, ``booted_at`` the instant at which the host booted."""

    file: str
    line: int
    at: float
    booted_at: float
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """How lines of one file are stored."""

    lines: StoreLines = StoreLines.REDACTED
    emails: bool = False

    def groups(self, match: Match, text: bytes) -> Labels:
        """The captured labels; one that overlaps a secret of its line is redacted with it."""
        if self.lines is StoreLines.FULL or not match.groups:
            return match.groups
        line = text.partition(b"\n")[0]
        if not match.pattern.regex.isascii():
            line = line.decode("utf-8", "replace").encode()
        # One character a byte, so that places in the line are places in the text.
        first = max(0, min(start for start, _ in match.places) - LOOKED_AROUND_BYTES)
        last = max(end for _, end in match.places) + LOOKED_AROUND_BYTES
        found = redact.spans(line[first:last].decode("latin-1"), emails=self.emails)
        secrets = [(start + first, end + first) for start, end in found]
        return tuple(
            (name, redact.REDACTED if _meets(place, secrets) else self._redacted(value))
            for (name, value), place in zip(match.groups, match.places, strict=True)
        )

    def event(self, match: Match, text: bytes, groups: Labels, place: Place, times: int = 1) -> Event:
        """The event of a match.

        Parameters
        ----------
        text
            The line, or the lines of its record.
        groups
            What :meth:`groups` gave.
        times
            How many lines this one says that it stands for.
        """
        pattern = match.pattern
        labels = dict(groups)
        labels.update(pattern=pattern.name, file=place.file, line=str(place.line))
        if place.truncated:
            labels["truncated"] = "true"
        if times > 1:
            labels["repeated"] = str(times)
        if pattern.rate is not None:
            labels["matches"] = str(pattern.rate.count)
        if b"\n" in text:
            labels["lines"] = str(text.count(b"\n") + 1)
        stated = time_of(text, place.at, booted_at=place.booted_at)
        if stated is not None and (written := _iso(stated)):
            labels["logged_at"] = written
        return Event("log_match", pattern.severity, self.message(text), "logwatch", place.at, make_labels(labels))

    def message(self, text: bytes) -> str:
        """The text of an event: a line, or the lines of a record joined."""
        if self.lines is StoreLines.NONE:
            return NOT_STORED
        first, *more = text.split(b"\n")
        if not more:
            return shortened(self._redacted(legible(first[: 4 * LONGEST_MESSAGE + 1024])), LONGEST_MESSAGE)
        # As one text: a private key goes over many lines.
        joined = self._redacted(JOINT.join(filter(None, (legible(line) for line in (first, *more)))))
        if len(joined) <= LONGEST_RECORD:
            return joined
        return shortened(joined, LONGEST_RECORD - RECORD_END) + joined[-RECORD_END:]

    def _redacted(self, text: str) -> str:
        return text if self.lines is StoreLines.FULL else redact.redact(text, emails=self.emails)


class Keeping:
    """How lines are stored, by file.

    Parameters
    ----------
    entries
        Globs, each with how lines of its files are stored. A file of several gets the strictest of them.
    """

    def __init__(self, entries: Sequence[tuple[str, Stored]] = ()) -> None:
        self._entries = tuple(entries)
        self._known: dict[str, Stored] = {}

    def of(self, path: str) -> Stored:
        stored = self._known.get(path)
        if stored is None:
            if len(self._known) >= 4096:
                self._known.clear()
            stored = self._known[path] = self._find(path)
        return stored

    def _find(self, path: str) -> Stored:
        mine = [stored for glob, stored in self._entries if covers(glob, path)]
        if not mine:
            return Stored()
        return Stored(max((each.lines for each in mine), key=list(StoreLines).index), any(each.emails for each in mine))


def covers(glob: str, path: str) -> bool:
    """Whether a path is one that a glob finds: ``*`` stays within a folder, ``**`` is any number of them."""
    return _covers(glob.split("/"), path.split("/"))


def _covers(parts: Sequence[str], names: Sequence[str]) -> bool:
    for index, part in enumerate(parts):
        if part == "**":
            return any(_covers(parts[index + 1 :], names[skip:]) for skip in range(index, len(names) + 1))
        if index >= len(names) or not fnmatch.fnmatchcase(names[index], part):
            return False
    return len(parts) == len(names)


def _meets(place: tuple[int, int], secrets: Sequence[tuple[int, int]]) -> bool:
    return any(start < place[1] and place[0] < end for start, end in secrets)


def _iso(at: float) -> str:
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
