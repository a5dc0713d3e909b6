"""What commands share: the configuration, times as people write them, tables and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from agent import config
from agent.errors import UpkeepError
from agent.located import parse_duration
from agent.model import Labels


def loaded(arguments: Namespace) -> config.LoadedConfig:
    """The configuration a command works on: the caller's own rights and own time, so it is parsed where it stands."""
    return config.load(arguments.config, apart=False)


def state_dir(arguments: Namespace) -> Path:
    return Path(loaded(arguments).config.state_dir)


def as_owner_of(folder: Path) -> None:
    """Go on as the owner of a folder, when root asks: what is made in it must stay the agent's own."""
    if os.geteuid() != 0 or not folder.exists():
        return
    owner = folder.stat()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)


def parse_time(text: str, now: float) -> float:
    """An instant as people write it: ISO time (UTC unless it says otherwise), epoch seconds, or an age such as ``5m``.

    Raises
    ------
    UpkeepError
        Naming ``text``.
    """
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return float(text)
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UpkeepError(f'cannot read "{text}" as a time: write 2026-11-23T12:00:00Z, 1700000000 or 5m') from None
    if moment.tzinfo is None:
        moment = datetime.fromisoformat(text + "+00:00") if "T" in text or " " in text else moment.astimezone()
    return moment.timestamp()


def clock_time(at: float | None) -> str:
    """An instant for people: local time, with seconds."""
    return "-" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str | None:
    """An instant for machines: UTC."""
    if at is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"


def words(labels: Labels) -> str:
    """Labels for people."""
    return ", ".join(f"{name}={value}" for name, value in labels) or "-"


def duration(text: str) -> float:
    """Seconds of a duration given on the command line.

    Raises
    ------
    UpkeepError
        Naming ``text``.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UpkeepError(str(error)) from None


def print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, default=str, allow_nan=False)
    print()


def json_number(value: float | str) -> float | str:
    """A value as JSON can hold it: NaN and the infinities as their names."""
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their widest cell, numbers to the right; the last column is left as long as it is."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        return
    numeric = [all(_is_number(row[index]) for row in cells) for index in range(len(columns))]
    widths = [max(len(name), *(len(row[index]) for row in cells)) for index, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    # One row is one line, whatever a name or a log line holds.
    return "".join(character if character.isprintable() else "�" for character in str(value))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-|-?\d+(\.\d+)?(e[+-]?\d+)?", text))


def size(value: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def bar(done: int, whole: int, of: str) -> None:
    """How far a command is, on a terminal; call it as often as you like."""
    if not sys.stderr.isatty():
        return
    share = done / whole if whole else 1.0
    filled = round(share * 30)
    print(f"\r{'█' * filled}{'·' * (30 - filled)} {share:4.0%} of {of}", end="", file=sys.stderr, flush=True)


def clear_bar() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def span(seconds: float) -> str:
    """A length of time for people: its two largest units."""
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count:.0f}{unit}")
    return "".join(parts[:2]) or "0s"
