"""The reports that were written: which there are, and one of them. A name that is not listed is not there."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".eml": "message/rfc822",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
}
LARGEST_BYTES = 16 << 20

_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Archived:
    """One file of the folder ``reports`` and when it was written."""

    name: str
    at: float
    size_bytes: int


def archived(state_dir: Path) -> list[Archived]:
    """Every report, newest first; what is no plain file or of no known kind is left out."""
    found = []
    try:
        with os.scandir(state_dir / "reports") as entries:
            for entry in entries:
                if not entry.name.startswith(".") and os.path.splitext(entry.name)[1] in KINDS:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_BYTES:
                        found.append(Archived(entry.name, status.st_mtime, status.st_size))
    except OSError:
        return []  # no report yet, or one that was just replaced
    return sorted(found, key=lambda report: (-report.at, report.name))


def content(state_dir: Path, name: str) -> bytes | None:
    """A listed report; None for any other name."""
    if all(report.name != name for report in archived(state_dir)):
        return None
    try:
        # The folder may change between the two looks: still no link is followed, and nothing waits for a FIFO.
        descriptor = os.open(state_dir / "reports" / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(LARGEST_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def style_source(page: bytes) -> str:
    """What a page's own style sheet is called in ``style-src``: by its hash, so that no other one is applied."""
    found = _STYLE.search(page)
    if found is None:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
