"""From the store to a document, and from a document to files: the page and its text twin."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from agent.store.read import Reader
from reports.form import render
from reports.history import first_sample
from reports.overview import Overview, overview
from reports.period import Kind, Period
from reports.sections import SECTIONS
from reports.words import clean

LONGEST_SUBJECT = 150

_TITLES: Mapping[Kind, str] = {
    "daily": "Daily report",
    "weekly": "Weekly report",
    "monthly": "Monthly report",
    "last": "Report",
}


@dataclass(frozen=True, slots=True)
class ReportDocument:
    """A whole report as data; ``subject`` is its verdict with the host, for a mail."""

    title: str
    host: str
    period: Period
    made_at: float
    subject: str
    overview: Overview
    sections: Mapping[str, object]

    @property
    def verdict(self) -> str:
        return self.overview.verdict


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report lies."""

    html: Path
    text: Path


def build(reader: Reader, period: Period, *, title: str | None, host: str, at: float) -> ReportDocument:
    """Read everything a report tells.

    Parameters
    ----------
    period
        What it covers, in the time zone of its readers.
    title
        What it is called; None: by its kind.
    host
        The name of this host.
    at
        Now, in seconds since the epoch.
    """
    known = _known(reader, period)
    sections = {section.name: section.build(reader, known) for section in SECTIONS}
    summed_up = overview(sections)
    subject = clean(f"{host}: {summed_up.verdict}", LONGEST_SUBJECT)
    return ReportDocument(title or _TITLES[period.kind], host, period, at, subject, summed_up, sections)


def _known(reader: Reader, period: Period) -> Period:
    """The part of the period since the agent's first sample: before it was installed there are no gaps."""
    began = first_sample(reader)
    if began is None or not period.start < began < period.end:
        return period
    return replace(period, start=began)


def write(document: ReportDocument, folder: Path) -> Written:
    """Write both files whole or not at all; a report of the same name is replaced.

    Raises
    ------
    OSError
        Nothing was written.
    """
    page, text = render(document)
    name = _file_name(document)
    folder.mkdir(parents=True, exist_ok=True)
    written = Written(folder / f"{name}.html", folder / f"{name}.txt")
    _put(written.text, text)
    _put(written.html, page)
    return written


def _file_name(document: ReportDocument) -> str:
    """``weekly-2026-11-22``, by the last day covered; a report with a title of its own is named by that."""
    period = document.period
    last = datetime.fromtimestamp(period.end - 1, period.zone).date().isoformat()
    if document.title == _TITLES[period.kind]:
        return f"{period.kind}-{last}"
    words = re.findall(r"[a-z0-9]+", document.title.lower())
    return "-".join([*words[:8], last])


def _put(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
