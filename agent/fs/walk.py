"""Measure trees: blocks on disk, each inode once, never across a device.

Run as a program it measures trees one after the other, at low priority. Its arguments are pairs: an open descriptor
that holds what the last walk learned (``-`` for none) and a path. It prints a line for each tree:
``BYTES FILES OLDEST NEWEST VERIFIED SECONDS`` (``-`` for the ages of a tree without files) or ``absent REASON``. A tree
that cannot be read whole is absent: a part of a size is a wrong size.

A folder whose modification time stands has the same names as before, so its files are not looked at again, with the
exceptions that :data:`Folder` and :func:`_due` tell of. ``VERIFIED`` bounds the error: whatever was written before
that instant is in the figures.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import resource
import stat
import sys
import time

NICENESS = 10
"""Low enough to stand back, high enough to finish on a host whose every core evaluates; I/O priority follows it."""

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the block size of the file system."""

ROUNDS = 240
"""Each folder is listed again at least once in so many walks: four hours at the default pace of a minute."""

FRESH_S = 2.0
"""A folder changed so shortly before it was listed may have changed again within one grain of its file system's clock:
FAT's is two seconds."""

WRITTEN_S = 600.0
"""A file written so lately is taken to grow: its folder is listed at each walk."""

FOLDERS_KEPT = 100_000
"""Larger trees are walked whole each time: what is kept of a folder is about a hundred bytes."""

PATH_BYTES = 3500
"""The kernel takes no path of a page or more; a tree with deeper folders is walked whole each time."""

_KIND = 0o170000
"""The bits of a mode that say what a file is: compared with, since a call for each file is a tenth of its price."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_HEADER_BYTES = 8
_NEVER = -1


class OverBudgetError(Exception):
    """The tree is too large for the processor time it may cost."""


class _RelinkedError(Exception):
    """A file has a new name: a folder that counted it as its own may have been passed over."""


Link = tuple[int, int, bool, float]
"""A file with several names: inode, blocks, whether it is a regular file, modification time."""


Folder = tuple[int, int, int, float, int, int, float, float, tuple[Link, ...]]
"""What lies directly in a folder: [0] inode, [1] ``modified_ns``, [2] its change time, [3] when it was listed,
[4] blocks (its own included) and [5] regular files, [6] the oldest and [7] the newest modification among them, and
[8] files with several names, which are in none of these. Plain, since it is written and read in C: a class would cost
more than all the rest of an unchanged walk.

``modified_ns`` is the folder's modification time where that can be trusted to tell of the next change, else -1: it was
changed a moment ago, a file in it was written lately, or something is mounted in it. The change time tells of programs
that set the modification time back, as ``rsync`` and ``tar`` do."""

Memory = dict[str, Folder]
"""Folders by their path below the root (the root's is empty); each stands behind the one it lies in."""


class Tally:
    """What a tree holds, from what its folders do. Sizes in blocks of 512 bytes, ages as seconds since the epoch."""

    __slots__ = ("blocks", "files", "newest", "oldest", "verified_at")

    def __init__(self, folders: Memory) -> None:
        _, _, _, listed, blocks, files, oldest, newest, linked = zip(*folders.values(), strict=True)
        self.blocks, self.files, self.oldest, self.newest = sum(blocks), sum(files), min(oldest), max(newest)
        self.verified_at = min(listed)
        for _, blocks_of, regular, modified in {link[0]: link for links in linked for link in links}.values():
            self.blocks += blocks_of
            if regular:
                self.files += 1
                self.oldest, self.newest = min(self.oldest, modified), max(self.newest, modified)

    @property
    def bytes(self) -> int:
        size_bytes: int = self.blocks * BLOCK_BYTES
        return size_bytes


class Walk:
    """One walk of one tree.

    Parameters
    ----------
    root
        An open directory: the tree's root.
    at
        Now, in seconds since the epoch.
    budget_s
        The processor time, of this process, that the walk may cost.
    """

    def __init__(self, root: int, at: float, budget_s: float) -> None:
        self.folders: Memory = {}
        self._root = root
        self._device = os.fstat(root).st_dev
        self._at = at
        self._budget_s = budget_s
        self._until = time.process_time() + budget_s
        self._known_links: set[int] | None = None

    def whole(self) -> None:
        """List every folder."""
        self._known_links = None
        self.folders.clear()
        self._descend("", os.dup(self._root))

    def again(self, before: Memory) -> None:
        """List what changed since the last walk, and those folders whose turn it is."""
        try:
            self._known_links = {link[0] for folder in before.values() for link in folder[8]}
            self._revisit(before)
        except _RelinkedError:
            self.whole()

    def _revisit(self, before: Memory) -> None:
        due, device, folders, root = _due(before), self._device, self.folders, self._root
        some_gone = False
        for path, folder in before.items():
            if some_gone and path.rpartition("/")[0] not in folders:
                continue  # what it lay in is gone; a link in its place may lead to what is counted elsewhere
            try:
                status = os.stat(path or ".", dir_fd=root, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                some_gone = True
                continue
            same = status.st_ctime_ns == folder[2] and status.st_mtime_ns == folder[1] and status.st_ino == folder[0]
            if same and path not in due:
                if status.st_dev == device:
                    folders[path] = folder
                else:
                    some_gone = True
                continue
            directory = _open(path or ".", root)
            if directory >= 0:
                self._list_again(path, directory, before)
            some_gone = some_gone or path not in folders

    def _list_again(self, path: str, directory: int, before: Memory) -> None:
        """List a folder that was known, and all below those that are new in it; closes ``directory``."""
        try:
            for name in self._enter(path, directory):
                if _join(path, name) in before:
                    continue  # its own turn comes
                below = _open(name, directory)
                if below >= 0:
                    self._descend(_join(path, name), below)
        finally:
            os.close(directory)

    def _descend(self, path: str, directory: int) -> None:
        """List a folder and all below it; closes ``directory``."""
        above: list[tuple[str, int, list[str]]] = [(path, directory, [])]
        try:
            above[0][2].extend(self._enter(path, directory))
            while above:
                path, directory, names = above[-1]
                if not names:
                    os.close(directory)
                    above.pop()
                    continue
                name = names.pop()
                below = _open(name, directory)
                if below >= 0:
                    above.append((_join(path, name), below, []))
                    above[-1][2].extend(self._enter(above[-1][0], below))
        finally:
            for _, directory, _ in above:
                os.close(directory)

    def _enter(self, path: str, directory: int) -> list[str]:
        """Count what lies directly in an open directory; the names of the directories in it, of its device."""
        if time.process_time() > self._until:
            raise OverBudgetError(f"over its budget of {self._budget_s:g} s")
        status = os.fstat(directory)
        device = self._device
        if status.st_dev != device:
            return []  # something was mounted over it since it was listed
        below: list[str] = []
        links: list[Link] = []
        kinds, folder, regular, mounted = _KIND, stat.S_IFDIR, stat.S_IFREG, False
        blocks, files, oldest, newest = status.st_blocks, 0, float("inf"), float("-inf")
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                kind = found.st_mode & kinds
                if kind == regular and found.st_nlink < 2:
                    files += 1
                    blocks += found.st_blocks
                    modified = found.st_mtime
                    if modified < oldest:
                        oldest = modified
                    if modified > newest:
                        newest = modified
                elif kind == folder:
                    if found.st_dev == device:
                        below.append(entry.name)
                    else:
                        mounted = True
                elif found.st_nlink > 1:
                    links.append((found.st_ino, found.st_blocks, kind == regular, found.st_mtime))
                else:
                    blocks += found.st_blocks
        self._check_links(links)
        written = max([newest, *(link[3] for link in links)])
        settled = status.st_mtime + FRESH_S < self._at and written + WRITTEN_S < self._at
        modified_ns = status.st_mtime_ns if settled and not mounted else _NEVER
        own = (status.st_ino, modified_ns, status.st_ctime_ns, self._at)
        self.folders[path] = (*own, blocks, files, oldest, newest, tuple(links))
        return below

    def _check_links(self, links: list[Link]) -> None:
        if self._known_links is not None and any(link[0] not in self._known_links for link in links):
            raise _RelinkedError


def _open(name: str, above: int) -> int:
    """An open directory below another; -1 where it is gone, or replaced by something else, since it was listed."""
    try:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _due(folders: Memory) -> set[str]:
    """Those that were not listed for longest: what is written in place does not change a folder's time."""
    return set(sorted(folders, key=lambda path: folders[path][3])[: -(-len(folders) // ROUNDS)])


def measure(path: str, before: Memory | None = None, budget_s: float = 60.0) -> tuple[Tally, Memory]:
    """The whole tree below ``path``; a link named as the root is followed, none below it.

    Parameters
    ----------
    path
        The root of the tree.
    before
        What the last walk learned of it; None makes a whole walk.
    budget_s
        The processor time, of this process, that the walk may cost.

    Returns
    -------
    tuple[Tally, Memory]
        What the tree holds, and what to give to the next walk.

    Raises
    ------
    OSError
        The root does not exist, or some part may not be read.
    OverBudgetError
        The walk cost more than its budget.
    """
    root = os.open(path, _DIRECTORY)
    try:
        walk = Walk(root, time.time(), budget_s)
        if before and before[""][0] == os.fstat(root).st_ino:
            walk.again(before)
        else:
            walk.whole()
    finally:
        os.close(root)
    if not walk.folders:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)  # removed since it was opened
    return Tally(walk.folders), walk.folders


def recall(memory: int) -> Memory:
    """What an earlier walk kept in a file; empty where it kept nothing, or did not get to the end of it."""
    size = int.from_bytes(os.pread(memory, _HEADER_BYTES, 0), "little")
    if not size:
        return {}
    folders: Memory = marshal.loads(os.pread(memory, size, _HEADER_BYTES))
    return folders


def keep(memory: int, folders: Memory) -> None:
    """Replace what a file keeps; its length is written last, so that an interrupted write keeps nothing."""
    os.pwrite(memory, bytes(_HEADER_BYTES), 0)
    if len(folders) > FOLDERS_KEPT or any(len(path) > PATH_BYTES for path in folders):
        os.ftruncate(memory, 0)
        return
    raw = marshal.dumps(folders)
    os.ftruncate(memory, _HEADER_BYTES + len(raw))
    if os.pwrite(memory, raw, _HEADER_BYTES) == len(raw):
        os.pwrite(memory, len(raw).to_bytes(_HEADER_BYTES, "little"), 0)


def report(path: str, memory: int | None = None) -> str:
    """The line this program prints for one tree; what was learned is kept in ``memory``."""
    start = time.monotonic()
    try:
        tally, folders = measure(path, recall(memory) if memory is not None else None)
    except OSError as error:
        return f"absent {error.strerror}"
    except OverBudgetError as error:
        return f"absent {error}"
    if memory is not None:
        keep(memory, folders)
    ages = f"{tally.oldest!r} {tally.newest!r}" if tally.files else "- -"
    return f"{tally.bytes} {tally.files} {ages} {tally.verified_at!r} {time.monotonic() - start:.6f}"


def main(words: list[str]) -> None:
    """Measure each tree in turn; each line is out before the next tree is touched."""
    try:
        os.nice(NICENESS)
    except PermissionError:
        pass  # under systemd the unit's own weights hold, and a change of priority is not allowed
    gc.disable()  # there are no cycles here, and looking for them costs a tenth of an unchanged walk
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one open directory for each level of depth
    for memory, path in zip(words[::2], words[1::2], strict=True):
        print(report(path, None if memory == "-" else int(memory)), flush=True)


def command(*words: str) -> list[str]:
    """The command line of this program: as a module, for a script is compiled at each start."""
    above = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    start = "import sys; sys.path[:0] = sys.argv[1:2]; from agent.fs.walk import main; main(sys.argv[2:])"
    return [sys.executable, "-I", "-S", "-c", start, above, *words]
