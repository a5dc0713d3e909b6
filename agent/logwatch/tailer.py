"""Files that grow, are renamed, copied, truncated, deleted and made anew; each of their lines once.

A file is known by its device, its inode and a hash of its head; a place in it by the hash of the bytes before it. So a
file truncated and filled again, even to the same size, is seen, and so is a new file on a freed inode (ext4 gives the
same inode 1000 times in 1000). A descriptor is held until a renamed file has been still for a while, because its writer
may go on for minutes. What a truncation took away is looked for in the copies beside the file.

Nothing here commits or matches: :meth:`Tailer.read` gives a block of whole lines and the position after it, and the
caller decides when that position holds.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from time import time_ns
from typing import Any

LINE_BYTES = 64 * 1024
HEAD_BYTES = 1024
WINDOW_BYTES = 256
BLOCK_BYTES = 256 * 1024
"""One turn of one file: it stays in the second-level cache, and no file keeps another waiting."""

DRAIN_S = 300.0
"""A renamed file is held until it has been still this long."""
IDLE_NS = 3600 * 1_000_000_000
"""A file that was read to its end and not written for this long is not held: only what nobody has open is compressed
or removed by those who care for logs, Upkeep among them."""
DRAIN_DELETED_S = 10.0
"""A deleted one shorter: holding it keeps its space from being freed."""
SETTLED_NS = 2_000_000_000
"""A modification time younger than this may hide a second change."""
MOST_OPEN = 512
MOST_PAST = 8
MOST_SIBLINGS = 256
MOST_UNPACKED_BYTES = 256 * 1024 * 1024
"""What is read of a compressed file's unread end; more is a gap."""
MOST_PACKED_BYTES = 4 * 1024**3
"""How far a compressed file is unpacked to find the place."""

_COMPRESSED_NAMES = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z")
_COMPRESSED_HEADS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")

Key = tuple[int, int]
_ROTATED = re.compile(r"[-_.]\d")


class TruncatedError(Exception):
    """The bytes before a position are no longer what they were."""


def digest(data: bytes | bytearray | memoryview) -> str:
    return blake2b(data, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file, as plain data.

    Attributes
    ----------
    head, head_bytes
        Hash of the first bytes seen, at most 1 KiB.
    window
        Hash of the up to 256 bytes before ``offset``.
    line
        Lines read so far: from the file's beginning, or from where reading it began.
    skipping
        The rest of the line at ``offset`` belongs to one already counted.
    """

    device: int
    inode: int
    offset: int = 0
    head: str = ""
    head_bytes: int = 0
    window: str = ""
    line: int = 0
    skipping: bool = False

    @property
    def key(self) -> Key:
        return self.device, self.inode

    def to_json(self) -> list[Any]:
        return [
            self.device, self.inode, self.offset, self.head, self.head_bytes, self.window, self.line, self.skipping,
        ]  # fmt: skip

    @staticmethod
    def from_json(fields: Sequence[Any]) -> Position:
        return Position(*fields)


@dataclass(frozen=True, slots=True)
class Block:
    """Lines as read: ``data[start:stop]`` holds ``lines`` lines with CRLF as LF; valid until the next read.

    ``truncated`` marks a single line cut at 64 KiB; ``bytes`` is how far the file was read, ``nul_bytes`` how much of
    that was a run of NULs that a truncation left.
    """

    after: Position
    data: bytes | bytearray
    start: int
    stop: int
    lines: int
    bytes: int
    truncated: bool = False
    nul_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something an operator should know of a file: ``gap`` (lines may be missing) or ``refused``."""

    kind: str
    path: str
    message: str


@dataclass(slots=True, eq=False)
class Tail:
    """One file being read. ``origin`` is the path under which it was found and is counted."""

    origin: str
    position: Position
    fd: int = -1
    path: str | None = None
    """The watched path that leads to it now; None: it drains, or is past."""
    past: bool = False
    """Read to its end and let go; remembered so that it is not read again under another name."""
    seen: tuple[int, int] = (-1, -1)
    """Size and modification time when last read."""
    grew_at: float = 0.0
    held_bytes: int = 0
    """Length of the unfinished line at the end."""
    peeked_bytes: int = 0
    """How much of it has already been looked at without success."""
    idle: bool = False
    """Closed because all of it was read long ago: when it goes, nothing is missing."""


def read_block(fd: int, at: Position, buffer: bytearray, *, flush: bool = False) -> Block | None:
    """The next whole lines after ``at``.

    Parameters
    ----------
    fd
        A regular file.
    at
        Where to read on.
    buffer
        Room for the bytes; its length less 256 is the most that is read.
    flush
        Give an unfinished last line too; what follows it later counts as its rest.

    Returns
    -------
    Block or None
        None: nothing but perhaps an unfinished line.

    Raises
    ------
    TruncatedError
        The file is shorter than ``at`` or was filled anew.
    """
    before = min(at.offset, WINDOW_BYTES)
    base = at.offset - before
    # One read for the check and the data: a truncation between two reads could not slip in.
    end = os.preadv(fd, [buffer], base)
    if not before and not fits(fd, at):
        raise TruncatedError
    if end < before or (before and digest(memoryview(buffer)[:before]) != at.window):
        raise TruncatedError
    start, skipping, nul_bytes = before, at.skipping, 0
    if skipping:
        newline = buffer.find(b"\n", start, end)
        start, skipping = (end, True) if newline < 0 else (newline + 1, False)
    if start < end and not skipping and buffer[start] == 0:
        text = end - len(buffer[start:end].lstrip(b"\0"))
        if text == end and end < len(buffer) and end - start < LINE_BYTES:
            return None  # preallocated, or a page the writer has yet to fill
        nul_bytes, start = text - start, text
    stop = _whole_lines_end(buffer, start, end)
    if stop > start:
        lines = buffer.count(b"\n", start, stop)
        after = _after(fd, at, buffer, base, stop, lines, skipping=False)
        return _block(after, at, buffer, start, stop, lines, nul_bytes, truncated=False)
    if end - start > LINE_BYTES:
        stop = start + LINE_BYTES
        after = _after(fd, at, buffer, base, stop, 1, skipping=True)
        return _block(after, at, buffer, start, stop, 1, nul_bytes, truncated=True)
    if flush and start < end:
        after = _after(fd, at, buffer, base, end, 1, skipping=True)
        return _block(after, at, buffer, start, end, 1, nul_bytes, truncated=False)
    if start == before:
        return None
    after = _after(fd, at, buffer, base, start, 0, skipping=skipping)
    if nul_bytes and start == end:
        after = _past_hole(fd, after)
    return _block(after, at, buffer, start, start, 0, nul_bytes, truncated=False)


def _whole_lines_end(buffer: bytearray, start: int, end: int) -> int:
    """Where the last line ends that is whole and, like all before it, within the cap."""
    while True:
        newline = buffer.rfind(b"\n", start, min(start + LINE_BYTES + 1, end))
        if newline < 0:
            return start
        start = newline + 1


def _after(
    fd: int, at: Position, buffer: bytearray, base: int, stop: int, lines: int, *, skipping: bool
) -> Position:  # fmt: skip
    offset = base + stop
    head, head_bytes = at.head, at.head_bytes
    if head_bytes < min(HEAD_BYTES, offset):
        first = buffer[: min(HEAD_BYTES, offset)] if base == 0 else os.pread(fd, min(HEAD_BYTES, offset), 0)
        head, head_bytes = digest(first), len(first)
    window = digest(memoryview(buffer)[max(0, stop - WINDOW_BYTES) : stop])
    return replace(
        at, offset=offset, head=head, head_bytes=head_bytes, window=window, line=at.line + lines, skipping=skipping
    )


def _past_hole(fd: int, at: Position) -> Position:
    """A writer that was not told of the truncation leaves a hole of its old length: jump, do not read gigabytes."""
    try:
        offset = os.lseek(fd, at.offset, os.SEEK_DATA)
    except OSError:  # nothing but hole to the end
        return at
    return at_offset(fd, replace(at, offset=offset))


def _block(
    after: Position, at: Position, buffer: bytearray, start: int, stop: int, lines: int, nul_bytes: int, *,
    truncated: bool,
) -> Block:  # fmt: skip
    read = after.offset - at.offset
    if buffer.find(b"\r", start, stop) < 0:
        return Block(after, buffer, start, stop, lines, read, truncated, nul_bytes)
    data = bytes(buffer[start:stop]).replace(b"\r\n", b"\n")
    if not data.endswith(b"\n"):
        data = data.rstrip(b"\r")
    return Block(after, data, 0, len(data), lines, read, truncated, nul_bytes)


def at_offset(fd: int, at: Position) -> Position:
    """``at`` with the hashes that its offset has in this file."""
    window = os.pread(fd, min(WINDOW_BYTES, at.offset), max(0, at.offset - WINDOW_BYTES))
    return replace(_with_head(fd, at), window=digest(window))


def _with_head(fd: int, at: Position) -> Position:
    head = os.pread(fd, HEAD_BYTES, 0)
    return replace(at, head=digest(head), head_bytes=len(head))


def end_of(fd: int, device: int, inode: int) -> Position:
    """The beginning of the last, perhaps unfinished, line."""
    size = os.fstat(fd).st_size
    base = max(0, size - LINE_BYTES)
    last = os.pread(fd, LINE_BYTES, base)
    newline = last.rfind(b"\n")
    offset = base + newline + 1 if newline >= 0 else (0 if base == 0 else size)
    return at_offset(fd, Position(device, inode, offset, skipping=newline < 0 < base))


def fits(fd: int, at: Position) -> bool:
    """Whether this file holds, up to ``at``, what was read there: it is the file, or a copy of it."""
    head = os.pread(fd, at.head_bytes, 0) if at.head_bytes else b""
    before = min(at.offset, WINDOW_BYTES)
    window = os.pread(fd, before, at.offset - before)
    return (
        len(window) == before
        and (not at.head_bytes or digest(head) == at.head)
        and (not before or digest(window) == at.window)
    )


def open_regular(path: str) -> int:
    """Open for reading; a FIFO, socket or device is refused and never waited for. Symbolic links are followed.

    Raises
    ------
    OSError
        It cannot be opened, or is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f'cannot read "{path}": not a regular file')
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f'cannot read "{path}": not a regular file')
    return fd


class Tailer:
    """All files that match the globs, and those that did.

    Parameters
    ----------
    globs
        Absolute patterns, ``**`` included. Compressed files are never tailed.
    stored
        What :meth:`entry` gave, by path, when it was last committed.
    known_globs
        Globs that were watched before. Files of a new one are read from their end, later ones from their beginning.
    most_open
        Descriptors held at once; the ones used least are closed and opened again when their file changes.
    """

    def __init__(
        self,
        globs: Sequence[str],
        stored: Mapping[str, Sequence[Sequence[Any]]] | None = None,
        known_globs: Sequence[str] = (),
        *,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._globs = tuple(globs)
        self._known_globs = set(known_globs)
        self._most_open = most_open
        self._buffer = bytearray(BLOCK_BYTES + WINDOW_BYTES)
        self._tails: dict[Key, Tail] = {}
        self._origins: dict[str, list[Tail]] = {}
        self._open_tails: dict[Tail, None] = {}  # least recently used first
        self._links: dict[str, Tail] = {}
        self._paths: dict[str, Tail] = {}
        self._refused: dict[str, str] = {}
        self._lost: list[Tail] = []
        self._notices: list[Notice] = []
        for origin, positions in (stored or {}).items():
            for past, *fields in positions:
                tail = self._add(Tail(origin, Position.from_json(fields), past=bool(past)))
                if not past:
                    self._lost.append(tail)

    @property
    def tails(self) -> list[Tail]:
        """Files that are read: those of watched paths, and those that drain."""
        return [tail for tail in self._tails.values() if not tail.past]

    def at(self, path: str) -> Tail | None:
        """The file that a watched path leads to, directly or as the target of a symbolic link."""
        return self._paths.get(path) or self._links.get(path)

    def link_targets(self) -> list[str]:
        """Where files lie that are watched through symbolic links."""
        return list(self._links)

    def draining(self) -> list[Tail]:
        return [tail for tail in self._tails.values() if tail.path is None and not tail.past]

    def entry(self, origin: str) -> list[list[Any]]:
        """What to store for a path: its files, the past ones so that they are not read again; plain JSON."""
        mine = self._origins.get(origin, [])
        past = [tail for tail in mine if tail.past]
        for forgotten in past[:-MOST_PAST]:
            self._remove(forgotten)
        return [[int(tail.past), *tail.position.to_json()] for tail in mine]

    def forget(self, origin: str) -> None:
        """Drop the memory of a path's past files."""
        for tail in list(self._origins.get(origin, ())):
            self._remove(tail)
        self._origins.pop(origin, None)

    def take_notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def sweep(self, boot: float) -> list[Tail]:
        """Look at every path: the truth that events only hint at. Returns the files worth reading, oldest names first.

        Parameters
        ----------
        boot
            Now, on the boot clock.
        """
        paths = self._expand()
        changed: list[Tail] = []
        self._links.clear()
        # Known paths first: a truncation must be seen before the copy that was made of the file.
        for path in sorted(paths, key=lambda path: (path not in self._paths, path)):
            from_end = paths[path]
            tail = self._follow(path, from_end=from_end, boot=boot)
            if tail is not None and self._is_changed(tail):
                changed.append(tail)
        for path in [path for path in self._paths if path not in paths]:
            self._leave(path, boot)
        self._close_idle()
        self._find_lost(boot)
        self._known_globs.update(self._globs)
        return self.draining() + [tail for tail in changed if tail.path is not None]

    def read(self, tail: Tail, boot: float, *, flush: bool = False) -> Block | None:
        """The next lines of a file; the caller sets ``tail.position = block.after`` once it has them."""
        if not self._open(tail, boot):
            return None
        info = os.fstat(tail.fd)
        try:
            block = read_block(tail.fd, tail.position, self._buffer, flush=flush)
        except TruncatedError:
            self._restart(tail, boot, "truncated")
            block = read_block(tail.fd, tail.position, self._buffer, flush=flush)
        except OSError as error:
            self._refuse(tail.origin, f"cannot read it: {error.strerror}")
            return None
        if block is not None:
            tail.grew_at, tail.held_bytes = boot, 0
        else:
            tail.seen = info.st_size, info.st_mtime_ns
            held = info.st_size - tail.position.offset
            if held != tail.held_bytes:
                tail.grew_at, tail.held_bytes = boot, held
        return block

    def is_drained(self, tail: Tail, boot: float) -> bool:
        """Whether a renamed or deleted file has been still long enough; its last line should then be flushed."""
        if tail.path is not None or tail.past:
            return False
        deleted = tail.fd >= 0 and os.fstat(tail.fd).st_nlink == 0
        return boot - tail.grew_at >= (DRAIN_DELETED_S if deleted else DRAIN_S)

    def let_go(self, tail: Tail) -> None:
        """Close a drained file and remember that it was read."""
        self._close(tail)
        tail.past = True

    def close(self) -> None:
        for tail in self._tails.values():
            self._close(tail)

    def _expand(self) -> dict[str, bool]:
        """Watched paths, each with whether its first reading starts at the end."""
        paths: dict[str, bool] = {}
        for pattern in self._globs:
            from_end = pattern not in self._known_globs
            for path in glob.iglob(pattern, recursive=True):
                if not path.endswith(_COMPRESSED_NAMES):
                    paths[path] = paths.get(path, True) and from_end
        return paths

    def _follow(self, path: str, *, from_end: bool, boot: float) -> Tail | None:
        """The file behind a path: known, renamed, new, or none."""
        try:
            info = os.stat(path)
        except OSError:
            return None
        if stat.S_ISDIR(info.st_mode):
            return None
        if not stat.S_ISREG(info.st_mode):
            self._refuse(path, "not a regular file")
            return None
        key = info.st_dev, info.st_ino
        before = self._paths.get(path)
        if before is not None and before.position.key != key:
            self._drain(before, boot)  # first: opening the new file must not close the old one
        tail = self._tails.get(key)
        if tail is not None and tail.past and not self._is_same(path, tail):
            self._remove(tail)  # a new file on a freed inode
            tail = None
        if tail is None:
            tail = self._begin(path, from_end=from_end, boot=boot)
            if tail is None:
                return None
        elif tail.path not in (None, path) and self._leads_to(tail.path, key):
            return None  # a second name of a file that is read under its first
        if tail.path is not None and tail.path != path:
            self._paths.pop(tail.path, None)
        tail.path, tail.past = path, False
        self._paths[path] = tail
        if os.path.islink(path):
            self._links[os.path.realpath(path)] = tail
        self._refused.pop(path, None)
        if len(self._open_tails) < self._most_open and not (
            tail.idle and (info.st_size, info.st_mtime_ns) == tail.seen
        ):
            self._open(tail, boot)  # held from now on, a rename or a deletion takes nothing away
        if tail.fd >= 0 and (info.st_size, info.st_mtime_ns) != tail.seen and not fits(tail.fd, tail.position):
            self._restart(tail, boot, "truncated")
        if tail.fd >= 0 and tail.position.head_bytes < min(HEAD_BYTES, info.st_size):
            # Before it is read: a file rotated away unread is then known by its head.
            tail.position = _with_head(tail.fd, tail.position)
        return tail

    @staticmethod
    def _leads_to(path: str | None, key: Key) -> bool:
        try:
            info = os.stat(path or "")
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == key

    def _begin(self, path: str, *, from_end: bool, boot: float) -> Tail | None:
        try:
            fd = open_regular(path)
        except OSError as error:
            self._refuse(path, error.strerror or "not a regular file")
            return None
        info = os.fstat(fd)
        key = info.st_dev, info.st_ino
        if os.pread(fd, 6, 0).startswith(_COMPRESSED_HEADS):
            os.close(fd)
            self._refuse(path, "compressed")
            return None
        original = "" if from_end else self._copied_from(path, fd, info.st_size, boot)
        if original:
            os.close(fd)
            self._refuse(path, f"so far a copy of {os.path.basename(original)}")
            return None
        position = end_of(fd, *key) if from_end else self._read_before(path, fd, key) or Position(*key)
        tail = self._add(Tail(path, position, grew_at=boot))
        self._hold(tail, fd)
        return tail

    @staticmethod
    def _is_same(path: str, tail: Tail) -> bool:
        fd = _open_if_fits(path, tail.position)
        if fd >= 0:
            os.close(fd)
        return fd >= 0

    def _copied_from(self, path: str, fd: int, size: int, boot: float) -> str:
        """The file of which this is the copy that a copytruncate is making; empty if of none.

        Until the original is truncated both hold the same lines; afterwards only what was lost of it is read from here.
        """
        for tail in self.tails:
            if not _are_related(tail.origin, path) or not tail.position.head_bytes or not self._open(tail, boot):
                continue
            shared = min(size, tail.position.offset)
            if 0 < size <= os.fstat(tail.fd).st_size and _agree(fd, tail.fd, shared):
                return tail.origin
        return ""

    def _read_before(self, path: str, fd: int, key: Key) -> Position | None:
        """Where reading stopped, if this is a past file under a new inode: copied, or its mount came back."""
        for tail in self._tails.values():
            unseen = tail.past or (tail.path is None and tail.fd < 0)
            if unseen and tail.position.head_bytes and _are_related(tail.origin, path) and fits(fd, tail.position):
                if tail in self._lost:
                    self._lost.remove(tail)
                tail.past = True
                return replace(tail.position, device=key[0], inode=key[1])
        return None

    def _is_changed(self, tail: Tail) -> bool:
        try:
            info = os.stat(tail.path or "")
        except OSError:
            return tail.fd >= 0
        now = (info.st_size, info.st_mtime_ns)
        return now != tail.seen or time_ns() - info.st_mtime_ns < SETTLED_NS or tail.held_bytes > 0

    def _leave(self, path: str, boot: float) -> None:
        """A path is gone: what it led to drains."""
        tail = self._paths.pop(path)
        if tail.path == path:
            self._drain(tail, boot)

    def _drain(self, tail: Tail, boot: float) -> None:
        if tail.path is not None and self._paths.get(tail.path) is tail:
            del self._paths[tail.path]
        tail.path = None
        tail.grew_at = boot
        if tail.fd < 0:
            self._lost.append(tail)

    def _find_lost(self, boot: float) -> None:
        """Files that were being read and are at no watched path: renamed while nobody looked, or gone."""
        lost, self._lost = self._lost, []
        for tail in lost:
            if tail.path is not None or tail.past:
                continue
            if self._reopen_beside(tail) or self._unpack_beside(tail, tail.position) is not None:
                tail.grew_at = boot
                continue
            if tail.idle:
                tail.past = True
                continue
            self._notices.append(Notice("gap", tail.origin, "it went away while it was not open; its end is unread"))
            tail.past = True

    def _reopen_beside(self, tail: Tail) -> bool:
        """Find a lost file among its siblings: under another name, or as a copy."""
        for path, info in _siblings(tail.origin):
            key = info.st_dev, info.st_ino
            known = self._tails.get(key)
            if known is not None and known is not tail:
                continue
            if not tail.position.head_bytes and not (known is tail and _are_related(tail.origin, path)):
                continue  # of a file that was empty only the inode is known
            fd = _open_if_fits(path, tail.position)
            if fd >= 0:
                self._remove(tail)
                tail.position = replace(tail.position, device=key[0], inode=key[1])
                self._add(tail)
                self._hold(tail, fd)
                return True
        return False

    def _restart(self, tail: Tail, boot: float, reason: str) -> None:
        """The file was emptied under us: find its old end in a copy, count the gap, begin anew."""
        old = tail.position
        ending = self._adopt_copy(tail, boot)
        if not (tail.idle and reason == "replaced"):
            self._notices.append(Notice("gap", tail.origin, f"{reason} after {old.offset} bytes were read; {ending}"))
        tail.position = Position(*old.key)
        tail.grew_at, tail.held_bytes, tail.idle = boot, 0, False

    def _close_idle(self) -> None:
        """Let go of what has long been read and still."""
        for tail in list(self._open_tails):
            if tail.path is None or tail.held_bytes or tail.seen[0] != tail.position.offset:
                continue
            info = os.fstat(tail.fd)
            if (info.st_size, info.st_mtime_ns) == tail.seen and time_ns() - info.st_mtime_ns > IDLE_NS:
                self._close(tail)
                tail.idle = True

    def _unpack_beside(self, tail: Tail, at: Position) -> Tail | None:
        """Read on in the ``.gz`` that was made of a file before it was read to its end."""
        if not at.head_bytes:
            return None
        for path, info in _siblings(tail.origin, packed=True):
            key = info.st_dev, info.st_ino
            if self._tails.get(key, tail) is not tail or not _are_related(tail.origin, path):
                continue
            fd = unpack_rest(path, at)
            if fd < 0:
                continue
            if tail.position is at and tail.path is None:
                self._remove(tail)
            else:
                tail = Tail(tail.origin, at)
            tail.position = replace(at, device=key[0], inode=key[1])
            self._add(tail)
            self._hold(tail, fd)
            return tail
        return None

    def _adopt_copy(self, tail: Tail, boot: float) -> str:
        for path, info in _siblings(tail.origin):
            key = info.st_dev, info.st_ino
            if key in self._tails:
                continue
            at = replace(tail.position, device=key[0], inode=key[1])
            fd = _open_if_fits(path, at) if at.head_bytes else -1
            if fd >= 0:
                self._hold(self._add(Tail(tail.origin, at, grew_at=boot)), fd)
                return f"its end is read from {os.path.basename(path)}"
            if info.st_size < at.offset and _are_related(tail.origin, path):
                self._remember_shorter_copy(tail.origin, path, at, info.st_size)
        unpacked = self._unpack_beside(Tail(tail.origin, tail.position, path=tail.path), tail.position)
        if unpacked is not None:
            unpacked.grew_at = boot
            return "its end is read from its .gz"
        return "no copy holds its end"

    def _remember_shorter_copy(self, origin: str, path: str, at: Position, size: int) -> None:
        """A copy that ends before what was read holds nothing new; it must not be read as a new file."""
        if size < at.head_bytes:
            return
        try:
            fd = open_regular(path)
        except OSError:
            return
        if digest(os.pread(fd, at.head_bytes, 0)) == at.head:
            self._add(Tail(origin, at_offset(fd, replace(at, offset=size)), past=True))
        os.close(fd)

    def _open(self, tail: Tail, boot: float) -> bool:
        if tail.fd >= 0:
            self._open_tails[tail] = self._open_tails.pop(tail)
            return True
        if tail.path is None:
            return False
        try:
            fd = open_regular(tail.path)
        except OSError as error:
            self._refuse(tail.path, error.strerror or "not a regular file")
            return False
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != tail.position.key:
            os.close(fd)  # switched since it was looked at; the next sweep follows it
            return False
        self._hold(tail, fd)
        if not fits(fd, tail.position):
            self._restart(tail, boot, "replaced")
        tail.idle = False
        return True

    def _hold(self, tail: Tail, fd: int) -> None:
        tail.fd = fd
        self._open_tails[tail] = None
        spare = len(self._open_tails) - self._most_open
        if spare > 0:
            # A draining file has no path to open it by again.
            for idle in [each for each in self._open_tails if each.path is not None and each is not tail][:spare]:
                self._close(idle)

    def _close(self, tail: Tail) -> None:
        if tail.fd >= 0:
            del self._open_tails[tail]
            os.close(tail.fd)
            tail.fd = -1

    def _add(self, tail: Tail) -> Tail:
        self._tails[tail.position.key] = tail
        self._origins.setdefault(tail.origin, []).append(tail)
        return tail

    def _remove(self, tail: Tail) -> None:
        if self._tails.get(tail.position.key) is tail:
            del self._tails[tail.position.key]
        self._origins[tail.origin].remove(tail)

    def _refuse(self, path: str, reason: str) -> None:
        if self._refused.get(path) != reason:
            self._refused[path] = reason
            self._notices.append(Notice("refused", path, reason))


def _agree(fd: int, other: int, size: int) -> bool:
    """Whether two files have the same first and the same last bytes within ``size``."""
    head, window = min(size, HEAD_BYTES), min(size, WINDOW_BYTES)
    return os.pread(fd, head, 0) == os.pread(other, head, 0) and os.pread(fd, window, size - window) == os.pread(
        other, window, size - window
    )


def _are_related(one: str, other: str) -> bool:
    """Whether two names look like rotations of each other: ``x.log`` and ``x.log.1``, ``x.log-…``, ``x_2026….log``."""
    folder, name = os.path.split(one)
    other_folder, other_name = os.path.split(other)
    stem = name.split(".", 1)[0]
    return folder == other_folder and (
        other_name.startswith(name)
        or (other_name.startswith(stem) and _ROTATED.match(other_name, len(stem)) is not None)
    )


def unpack_rest(path: str, at: Position) -> int:
    """What a ``.gz`` holds from ``at`` on, as a file in which it lies at its own place; -1 if it is not of that file.

    The file has no name, and between its head and the bytes before ``at`` a hole. More than
    :data:`MOST_UNPACKED_BYTES`, or what a cut archive breaks off, is not there.
    """
    try:
        with open(open_regular(path), "rb") as raw, gzip.GzipFile(fileobj=raw) as file:
            head = file.read(max(at.head_bytes, 1))
            if digest(head) != at.head or at.offset > MOST_PACKED_BYTES:
                return -1
            before = min(at.offset, WINDOW_BYTES)
            file.seek(at.offset - before)
            window = file.read(before)
            if len(window) < before or (before and digest(window) != at.window):
                return -1
            return _with_hole(head, window, file, at.offset)
    except (OSError, EOFError, zlib.error):
        return -1


def _with_hole(head: bytes, window: bytes, rest: gzip.GzipFile, offset: int) -> int:
    with tempfile.TemporaryFile() as made:
        made.write(head)
        made.seek(offset - len(window))
        made.write(window)
        left = MOST_UNPACKED_BYTES
        with contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile):
            while left > 0 and (data := rest.read(min(BLOCK_BYTES, left))):
                made.write(data)
                left -= len(data)
        made.flush()
        return os.dup(made.fileno())


def _siblings(path: str, *, packed: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files in the folder of a file, newest first: the plain ones, or those of gzip."""
    folder = os.path.dirname(os.path.realpath(path))
    found: list[tuple[str, os.stat_result]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_file(follow_symlinks=False) and (
                    name.endswith(".gz") if packed else not name.endswith(_COMPRESSED_NAMES)
                ):
                    found.append((entry.path, entry.stat(follow_symlinks=False)))
    except OSError:
        return
    found.sort(key=lambda pair: pair[1].st_mtime_ns, reverse=True)
    yield from found[:MOST_SIBLINGS]


def _open_if_fits(path: str, at: Position) -> int:
    """A descriptor of ``path`` if it holds what was read up to ``at``; else -1."""
    try:
        fd = open_regular(path)
    except OSError:
        return -1
    if fits(fd, at):
        return fd
    os.close(fd)
    return -1
