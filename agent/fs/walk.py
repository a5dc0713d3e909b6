"""Measure trees: blocks on disk, each inode once, never across a device.

Run as a program it measures its arguments one after the other, at low priority, and prints a line for each:
``BYTES FILES OLDEST NEWEST SECONDS`` (``-`` for the ages of a tree without files) or ``absent REASON``. A tree that
cannot be read whole is absent: a part of a size is a wrong size.
"""

from __future__ import annotations

import os
import resource
import stat
import sys
import time
from contextlib import suppress

NICENESS = 10
"""Low enough to stand back, high enough to finish on a host whose every core evaluates; I/O priority follows it."""

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the block size of the file system."""

_KIND = 0o170000
"""The bits of a mode that say what a file is: compared with, since a call for each file is a tenth of its price."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


class OverBudgetError(Exception):
    """The tree is too large for the processor time it may cost."""


class Tally:
    """What a tree holds so far. Sizes in blocks of 512 bytes, ages as seconds since the epoch."""

    __slots__ = ("_linked", "blocks", "files", "newest", "oldest")

    def __init__(self) -> None:
        self.blocks = self.files = 0
        self.oldest, self.newest = float("inf"), float("-inf")
        self._linked: set[int] = set()

    @property
    def bytes(self) -> int:
        return self.blocks * BLOCK_BYTES

    def list(self, directory: int, device: int) -> list[str]:
        """Count what lies directly in an open directory; returns the names of the directories in it, of its device."""
        below: list[str] = []
        linked, folder, regular = self._linked, stat.S_IFDIR, stat.S_IFREG
        blocks, files, oldest, newest = self.blocks, self.files, self.oldest, self.newest
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                kind = status.st_mode & _KIND
                if kind == folder:
                    if status.st_dev == device:
                        below.append(entry.name)
                    continue
                if status.st_nlink > 1:
                    if status.st_ino in linked:
                        continue
                    linked.add(status.st_ino)
                blocks += status.st_blocks
                if kind == regular:
                    files += 1
                    modified = status.st_mtime
                    if modified < oldest:
                        oldest = modified
                    if modified > newest:
                        newest = modified
        self.blocks, self.files, self.oldest, self.newest = blocks, files, oldest, newest
        return below


def measure(path: str, budget_s: float = 60.0) -> Tally:
    """The whole tree below ``path``; a link named as the root is followed, none below it.

    Parameters
    ----------
    path
        The root of the tree.
    budget_s
        The processor time, of this process, that the walk may cost.

    Raises
    ------
    OSError
        The root does not exist, or some part may not be read.
    OverBudgetError
        The walk cost more than its budget.
    """
    until = time.process_time() + budget_s
    tally = Tally()
    root = os.open(path, _DIRECTORY)
    above: list[tuple[int, list[str]]] = []
    try:
        device = os.fstat(root).st_dev
        _enter(root, device, tally, above)
        while above:
            directory, names = above[-1]
            if not names:
                os.close(directory)
                above.pop()
                continue
            if time.process_time() > until:
                raise OverBudgetError(f"over its budget of {budget_s:g} s")
            try:
                below = os.open(names.pop(), _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone, or replaced by something else, since the directory was listed
            _enter(below, device, tally, above)
    finally:
        for directory, _ in above:
            os.close(directory)
    return tally


def _enter(directory: int, device: int, tally: Tally, above: list[tuple[int, list[str]]]) -> None:
    names: list[str] = []
    above.append((directory, names))
    status = os.fstat(directory)
    if status.st_dev == device:  # else something was mounted over it since it was listed
        tally.blocks += status.st_blocks
        names += tally.list(directory, device)


def report(path: str) -> str:
    """The line this program prints for one tree."""
    start = time.monotonic()
    try:
        tally = measure(path)
    except OSError as error:
        return f"absent {error.strerror}"
    except OverBudgetError as error:
        return f"absent {error}"
    ages = f"{tally.oldest!r} {tally.newest!r}" if tally.files else "- -"
    return f"{tally.bytes} {tally.files} {ages} {time.monotonic() - start:.6f}"


def main(paths: list[str]) -> None:
    """Measure each path in turn; each line is out before the next tree is touched."""
    with suppress(
        PermissionError
    ):  # under systemd the unit's own weights hold, and a change of priority is not allowed
        os.nice(NICENESS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one open directory for each level of depth
    for path in paths:
        print(report(path), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
