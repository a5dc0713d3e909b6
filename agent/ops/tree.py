"""Directory descriptors instead of paths: nothing below a root is ever reached by a name that can be swapped meanwhile.

Every step down is one ``openat2`` with RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV; a kernel or a sandbox
without that call gets the same answer from O_NOFOLLOW and a comparison of mount ids. (CVE-2018-6954 is what happens
otherwise.)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import re
import signal
import stat
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from agent.ops.protocol import MAX_DEPTH, MAX_PATH_BYTES, RefusedError, quote

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# Not the cache's own, wherever they are found (tmpfiles.d/x11.conf, tmp.conf; mke2fs).
PROTECTED = frozenset(
    {b"lost+found", b".X11-unix", b".ICE-unix", b".XIM-unix", b".font-unix", b".Test-unix", b"snap-private-tmp"}
)
PROTECTED_PREFIX = b"systemd-private-"

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system's own block size is (stat(2))."""

_OPENAT2 = 437  # the same number on every architecture: it is younger than the unified table
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08

_REASONS = {
    errno.ENOENT: "gone",
    errno.ELOOP: "symlink",
    errno.EXDEV: "other_device",
    errno.ENOTDIR: "changed",
    errno.EISDIR: "changed",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EAGAIN: "open",
    errno.EBUSY: "open",
    errno.ETXTBSY: "open",
    errno.ENXIO: "special_file",
    errno.EROFS: "read_only",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EEXIST: "target_exists",
    errno.ENAMETOOLONG: "bad_path",
}


def reason_of(error: OSError) -> str:
    """The named reason for what the kernel refused."""
    number = error.errno or 0
    return _REASONS.get(number, f"failed_{errno.errorcode.get(number, 'unknown').lower()}")


def protected(name: bytes) -> bool:
    """Whether a name belongs to the system wherever it is found."""
    return name in PROTECTED or name.startswith(PROTECTED_PREFIX)


# -- opening ---------------------------------------------------------------------------------------------------------


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(directory: int, way: bytes, flags: int, resolve: int) -> int:
    # With O_NOFOLLOW a link under O_DIRECTORY would be "not a directory"; RESOLVE_NO_SYMLINKS says what it is.
    how = _OpenHow(flags & ~os.O_NOFOLLOW, 0, resolve)
    while True:
        fd: int = _libc.syscall(_OPENAT2, directory, way, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), way)


@functools.cache
def has_openat2() -> bool:
    """Whether the kernel has the call and nothing filters it (Docker's older profiles answer EPERM)."""
    try:
        os.close(_openat2(_AT_FDCWD, b"/", os.O_PATH | os.O_CLOEXEC, _NO_MAGICLINKS))
    except OSError:
        return False
    return True


_AT_FDCWD = -100


def open_beneath(directory: int, name: bytes, flags: int) -> int:
    """Open one entry of an open directory: no link is followed, no mount entered.

    Raises
    ------
    OSError
        ELOOP for a symbolic link, EXDEV for a mount point, else what open(2) says.
    """
    if has_openat2():
        return _openat2(directory, name, flags, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV)
    fd = _open_no_link(directory, name, flags)
    if _mount_id(fd) != _mount_id(directory):
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    return fd


def _open_no_link(directory: int, name: bytes, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except NotADirectoryError:
        # O_DIRECTORY on a link says "not a directory" before O_NOFOLLOW gets to say "a link".
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def _mount_id(fd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        found = re.search(rb"^mnt_id:\s*(\d+)", file.read(), re.MULTILINE)
    if not found:
        raise OSError(errno.ENOSYS, "cannot tell mounts apart without openat2 and fdinfo")
    return found[1]


def open_root(path: bytes) -> int:
    """Open a root by its absolute path. Mounts are entered on the way (/data may be one), links never.

    Raises
    ------
    OSError
        ELOOP where any component is a symbolic link.
    """
    if has_openat2():
        return _openat2(_AT_FDCWD, path, DIRECTORY, _NO_SYMLINKS | _NO_MAGICLINKS)
    fd = os.open(b"/", DIRECTORY)
    for name in path.split(b"/")[1:]:
        parent = fd
        try:
            fd = _open_no_link(parent, name, DIRECTORY)
        finally:
            os.close(parent)
    return fd


def locked(directory: int) -> bool:
    """Whether somebody holds a flock on a directory: its owner asks cleaners to stay out (systemd's convention)."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks: then nobody holds one
    fcntl.flock(directory, fcntl.LOCK_UN)
    return False


def descend(base: int, way: Sequence[bytes]) -> int:
    """Walk down from an open directory; a new descriptor of the last one (of ``base`` itself for an empty way).

    Raises
    ------
    RefusedError
        ``protected`` or ``locked`` for a folder on the way that cleaners must leave alone.
    OSError
        As :func:`open_beneath`.
    """
    current = os.dup(base)
    for name in way:
        above = current
        try:
            if protected(name):
                raise RefusedError("protected", f'cannot go into "{quote(name)}": it belongs to the system')
            current = open_beneath(above, name, DIRECTORY)
        finally:
            os.close(above)
        if locked(current):
            os.close(current)
            raise RefusedError("locked", f'cannot go into "{quote(name)}": somebody holds a lock on it')
    return current


def lease(fd: int) -> str:
    """Make sure that nobody else has an open file open: ``open``, ``in_use_unknown``, or nothing.

    A write lease (fcntl(2), F_SETLEASE) is granted only when no other descriptor and no mapping of the inode exists,
    wherever on the host; it ends when ``fd`` is closed. It needs the file's owner or CAP_LEASE: where that, or the file
    system, does not give an answer, the file counts as possibly in use.
    """
    try:
        # Whoever opens the file meanwhile makes the kernel signal us, by default with SIGIO, which ends a process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return "open" if error.errno == errno.EAGAIN else "in_use_unknown"
    return ""


def create(directory: int, name: bytes) -> int:
    """Make a new file in an open directory, for its owner alone; never one that is there, never through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=directory)


def rename_new(directory: int, name: bytes, to: bytes) -> None:
    """Rename within a directory, never over what is there."""
    _renameat2(directory, name, to, _NOREPLACE)


def exchange(directory: int, name: bytes, other: bytes) -> None:
    """Swap two names of a directory in one step."""
    _renameat2(directory, name, other, _EXCHANGE)


_NOREPLACE, _EXCHANGE = 1, 2


def _renameat2(directory: int, name: bytes, to: bytes, flags: int) -> None:
    if _libc.renameat2(directory, name, directory, to, ctypes.c_uint(flags)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), to)


def lease_is_whole(fd: int) -> bool:
    """Whether a lease still stands and nobody waits for it to end."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK


# -- walking ---------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One thing of a tree. ``reason`` says why a folder was not gone into, or why the rest was not seen."""

    path: bytes
    status: os.stat_result | None
    reason: str = ""


UNSEEN = frozenset({"unreadable", "too_deep", "budget"})
"""Reasons that make a total partial. Another device, a lock or a protected name are not part of the tree."""


def walk(base: int, max_entries: int) -> Generator[Entry, None, None]:
    """Everything beneath an open directory, folders included, depth first, by descriptors, on one mount.

    At most one descriptor a level is open, so :data:`MAX_DEPTH` bounds them. What vanishes meanwhile is left out.
    """
    levels: list[tuple[int, bytes, list[bytes]]] = []
    fd, way, seen = os.dup(base), b"", 0
    try:
        while fd >= 0:
            folders: list[bytes] = []
            levels.append((fd, way, folders))
            for entry in _list(fd, way, folders):
                seen += 1
                yield entry
            if seen > max_entries:
                yield Entry(way[:-1], None, "budget")
                return
            fd = -1
            while levels and fd < 0:
                parent, above, waiting = levels[-1]
                if not waiting:
                    os.close(levels.pop()[0])
                    continue
                name = waiting.pop()
                fd, reason = _enter(parent, name, above + name, len(levels))
                if reason:
                    yield Entry(above + name, None, reason)
                way = above + name + b"/"
    finally:
        for level in levels:
            os.close(level[0])


def _enter(parent: int, name: bytes, path: bytes, depth: int) -> tuple[int, str]:
    """A subfolder's descriptor, or -1 and why not; -1 and nothing for one that has vanished."""
    if protected(name):
        return -1, "protected"
    if depth >= MAX_DEPTH or len(path) > MAX_PATH_BYTES:
        return -1, "too_deep"
    try:
        fd = open_beneath(parent, name, DIRECTORY)
    except OSError as error:
        reason = reason_of(error)
        return -1, "" if reason in ("gone", "changed") else {"denied": "unreadable"}.get(reason, reason)
    if locked(fd):
        os.close(fd)
        return -1, "locked"
    return fd, ""


def _list(directory: int, way: bytes, folders: list[bytes]) -> Iterator[Entry]:
    """The entries of one directory; the names of its folders go to ``folders`` as well."""
    try:
        with os.scandir(directory) as found:
            for item in found:
                try:
                    status = item.stat(follow_symlinks=False)
                except OSError:
                    continue  # vanished between getdents and stat
                name = os.fsencode(item.name)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(name)
                yield Entry(way + name, status)
    except OSError as error:
        yield Entry(way[:-1], None, "unreadable" if error.errno in (errno.EACCES, errno.EPERM) else reason_of(error))
