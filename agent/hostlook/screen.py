"""The lines of the first screen, for a terminal or without one."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from agent.commands.common import size
from agent.fs.survey import FolderLook
from agent.hostlook.seen import GpuLook, Look, MountLook, UnitLook, age, percent

LABEL_CELLS = 10
BAR_CELLS = 20
MOST_MOUNTS, MOST_GPUS, MOST_FOLDERS, MOST_LINES_EACH = 4, 2, 5, 3

_BOLD, _DIM, _RED, _YELLOW = "1", "2", "31", "33"


def lines(seen: Look, width: int, colour: bool) -> Iterator[str]:
    """The screen: 24 lines at most, none wider than ``width`` cells.

    Parameters
    ----------
    seen
        What was found.
    width
        Cells of a line; below 40 counts as 40.
    colour
        Whether a terminal is there: colours, and a bar for each mount. Without it, plain text.
    """
    room = max(40, width)
    sections = (
        ("host", [(seen.host, "")]),
        ("mounts", list(_mount_rows(seen.mounts, room - LABEL_CELLS, colour))),
        ("GPUs", list(_gpu_rows(seen.gpus))),
        ("folders", list(_folder_rows(seen.folders, seen.at, room - LABEL_CELLS))),
        ("Redis", [(f"{seen.redis.address}  {seen.redis.state}", "" if seen.redis.info else _DIM)]),
        ("units", [_unit_row(seen.units)]),
    )
    for label, rows in sections:
        yield from _section(label, rows, room, colour)
    yield ""
    for number, finding in enumerate(seen.findings, 1):
        text = f"{finding.text} → would {finding.would}"
        parts = textwrap.wrap(
            printable(text), room - 3, max_lines=MOST_LINES_EACH, placeholder=" …", break_long_words=True
        )
        style = _RED if finding.urgency == 3 else _YELLOW if finding.urgency == 2 else ""
        for place, part in enumerate(parts):
            lead = _paint(f"{number}  ", _BOLD, colour) if place == 0 else "   "
            yield lead + _paint(cut(part, room - 3), style, colour)


def _section(label: str, rows: Sequence[tuple[str, str]], room: int, colour: bool) -> Iterator[str]:
    for place, (text, style) in enumerate(rows):
        lead = (label if place == 0 else "").ljust(LABEL_CELLS)
        row = cut(printable(text), room - LABEL_CELLS).rstrip()
        yield _paint(lead, _BOLD if place == 0 else "", colour) + _paint(row, style, colour)


def _mount_rows(mounts: Sequence[MountLook], room: int, bars: bool) -> Iterator[tuple[str, str]]:
    if not mounts:
        yield "no file system could be read", _DIM
    shown = mounts if len(mounts) <= MOST_MOUNTS else mounts[: MOST_MOUNTS - 1]
    column = _column([mount.path for mount in shown], room // 3)
    for mount in shown:
        path = pad(mount.path, column)
        if not mount.answered:
            yield f"{path}  does not answer", _RED
            continue
        used = size(mount.size_bytes - mount.free_bytes)
        figures = f"{used:>10} of {size(mount.size_bytes):>10}  {size(mount.avail_bytes):>10} left  {mount.kind}"
        row = f"{percent(mount.fill):>5}  {figures}"
        bar = _bar(mount.fill, min(BAR_CELLS, room - column - cells(row) - 4)) if bars else ""
        style = _RED if mount.fill >= 0.9 else _YELLOW if mount.fill >= 0.8 else ""
        yield f"{path}  {bar}{row}", style
    if rest := mounts[len(shown) :]:
        yield f"and {len(rest)} more, none above {percent(max(mount.fill for mount in rest))}", _DIM


def _bar(fill: float, room: int) -> str:
    full = round(fill * room)
    return f"{'█' * full}{'░' * (room - full)}  " if room >= 5 else ""


def _gpu_rows(gpus: tuple[GpuLook, ...] | str) -> Iterator[tuple[str, str]]:
    if isinstance(gpus, str):
        yield gpus, _DIM
        return
    if len(gpus) > MOST_GPUS:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
        yield f"{len(gpus)} × {names}  {_gpu_figures(gpus)}", ""
        return
    for gpu in gpus:
        yield f"{gpu.index}  {gpu.name}  {_gpu_figures([gpu])}", ""


def _gpu_figures(gpus: Sequence[GpuLook]) -> str:
    busy = [gpu.busy_percent for gpu in gpus if gpu.busy_percent is not None]
    memory = [(gpu.used_bytes, gpu.total_bytes) for gpu in gpus if gpu.used_bytes is not None and gpu.total_bytes]
    hot = [gpu.celsius for gpu in gpus if gpu.celsius is not None]
    words = []
    if busy:
        words.append(f"{sum(busy) / len(busy):.0f} % busy")
    if memory:
        words.append(f"{size(sum(used for used, _ in memory))} of {size(sum(total for _, total in memory))}")
    if hot:
        words.append(f"{max(hot):.0f} °C")
    return " · ".join(words) or "tells nothing of itself"


def _folder_rows(trees: Sequence[FolderLook], at: float, room: int) -> Iterator[tuple[str, str]]:
    known = sorted((tree for tree in trees if tree.answered and not _empty(tree)), key=lambda tree: -tree.bytes)
    silent = [tree for tree in trees if not tree.answered]
    if not known and not silent:
        yield "none of the known caches and logs is here", _DIM
    most = MOST_FOLDERS - bool(silent)
    shown = known[:most]
    column = _column([tree.path for tree in shown], room // 2)
    for tree in shown:
        notes = [f"{tree.files:,} files" if tree.files != 1 else "1 file"]
        if tree.newest_at is not None:
            notes.append(f"last {'written' if tree.by_writing else 'used'} {age(at - tree.newest_at)} ago")
        if tree.unreadable:
            notes.append("partly readable")
        if not tree.whole:
            notes.append("unfinished")
        least = "≥ " if tree.partial else ""
        yield f"{pad(tree.path, column)}  {least + size(tree.bytes):>12}  {', '.join(notes)}", ""
    if silent:
        yield f"not measured in time: {', '.join(tree.path for tree in silent)}", _YELLOW


def _empty(tree: FolderLook) -> bool:
    return tree.files == 0 and not tree.partial


def _unit_row(units: tuple[UnitLook, ...] | str) -> tuple[str, str]:
    if isinstance(units, str):
        return units, _DIM
    words = [f"{unit.name} {unit.state}{f' ({unit.restarts} restarts)' if unit.restarts else ''}" for unit in units]
    return " · ".join(words), _RED if any(unit.state == "failed" for unit in units) else ""


def _paint(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style and text else text


def printable(text: str) -> str:
    """One line, whatever a file's name or a server's answer holds."""
    return "".join(character if character.isprintable() else "�" for character in text)


def cells(text: str) -> int:
    """Columns of a terminal that a printable text takes."""
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, room: int) -> str:
    """At most ``room`` columns of a text, with a sign where something is missing."""
    if cells(text) <= room:
        return text
    kept, left = [], room - 1
    for character in text:
        left -= _cells_of(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def pad(text: str, column: int) -> str:
    """A text in a column of its own: cut or filled to its width."""
    text = cut(printable(text), column)
    return text + " " * (column - cells(text))


def _column(texts: Iterable[str], most: int) -> int:
    return min(max(8, most), max((cells(printable(text)) for text in texts), default=0))
