"""What the hands do with logs: name them, rotate them, put them into gzip files, tell a writer to open its log again.

Nothing is ever written over: what is made is made new (O_EXCL), and gets its name only if nothing has it
(RENAME_NOREPLACE). Only a plain file with one name, on the root's own device, is touched, and only under the names that
:mod:`agent.ops.lognames` knows. What is half made lies under a name that begins with a dot and ends in ``.upkeep``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from hashlib import blake2b
from typing import TypeVar

from agent import faultpoint
from agent.ops import lognames, tree
from agent.ops.protocol import (
    Item,
    LeftAlone,
    Listed,
    LogFile,
    Logs,
    Move,
    Progress,
    Pruned,
    RefusedError,
    Reply,
    Result,
    Results,
    Surveyed,
    batches,
    quote,
    split,
    unquote,
)
from agent.ops.verbs import Caps, LeftTally, Sizes, free_bytes, freed, last_use, walked

CHUNK_BYTES = 256 * 1024
"""Whoever opens a file that is being compressed waits for one of these at most."""
LEVEL = 6
SPARE_BYTES = 16 * 1024**2
"""What stays free on the file system whatever is made."""
SIGNAL_TIMEOUT_S = 10

_TEMPORARY = b".upkeep"
_GZIP = 31  # zlib's window bits for a gzip header and trailer

Work = Generator[Progress, None, int]
"""Tells that it is alive about once a second; returns by how many bytes on disk the file became smaller."""
A = TypeVar("A", Item, Move)


# -- listing ---------------------------------------------------------------------------------------------------------


def listing(base: int, request: Logs) -> Iterator[Reply]:
    """The logs and archives of a tree, and what has such a name and is none. Changes nothing."""
    sizes, left, device = Sizes(base), LeftTally(), os.fstat(base).st_dev
    files: list[LogFile] = []
    for entry in walked(base):
        if isinstance(entry, Progress):
            yield entry
            continue
        sizes.add(entry)
        status, name = entry.status, entry.path.rpartition(b"/")[2]
        if status is None:
            left.add(entry.path, entry.reason, 0)
        elif b".log" in name and not name.endswith(_TEMPORARY) and not stat.S_ISDIR(status.st_mode):
            reason = _unfit(status, device) or ("budget" if len(files) >= request.limit else "")
            if reason:
                left.add(entry.path, reason, status.st_blocks * tree.BLOCK_BYTES)
            else:
                files.append(_log_file(entry.path, status))
    for batch in batches(files):
        yield Listed(batch)
    for examples in batches(left.examples):
        yield LeftAlone(examples)
    yield Surveyed(sizes.files, sizes.bytes, left.tallies(), last_use(base), sizes.partial)


def _log_file(path: bytes, status: os.stat_result) -> LogFile:
    blocks_bytes = status.st_blocks * tree.BLOCK_BYTES
    times = (status.st_mtime_ns, status.st_atime_ns)
    return LogFile(quote(path), status.st_size, blocks_bytes, status.st_dev, status.st_ino, *times)


def _unfit(status: os.stat_result, device: int) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "symlink"
    if not stat.S_ISREG(status.st_mode):
        return "special_file"
    if status.st_dev != device:
        return "other_device"
    return "hard_link" if status.st_nlink != 1 else ""


# -- changing --------------------------------------------------------------------------------------------------------


def compress(base: int, requested: Iterator[tuple[Item, ...]], caps: Caps) -> Iterator[Reply]:
    """Put files into gzip files beside them, each only if it is still what was listed and nobody has it open.

    The archive gets the file's owner, mode and times; it is read back and compared before the file goes. Items over the
    policy's bytes are left as ``over_byte_cap``.
    """
    room = caps.bytes

    def act(item: Item) -> Work:
        nonlocal room
        with _parent(base, item.path) as (parent, name):
            size_bytes = os.stat(name, dir_fd=parent, follow_symlinks=False).st_size
            if size_bytes > room:
                raise RefusedError("over_byte_cap", "cannot compress more: the policy's bytes are used up")
            saved_bytes = yield from _compress(parent, name, item, caps.gone)
            room -= size_bytes
            return saved_bytes

    return _each(base, requested, act, caps)


def rotate(base: int, requested: Iterator[tuple[Move, ...]], caps: Caps) -> Iterator[Reply]:
    """Carry out moves in their order; none ever takes a name that is in use."""

    def act(move: Move) -> Work:
        with _parent(base, move.path) as (parent, name):
            to = _checked_target(move)
            if move.step == "shift":
                _look(parent, name, move.device, move.inode)
                tree.rename_new(parent, name, to)
            elif move.step == "rename":
                _rename(parent, name, to, move)
            else:
                yield from _copy_and_truncate(parent, name, to, move, caps.gone)
            os.fsync(parent)
        return 0

    return _each(base, requested, act, caps)


def _each(
    base: int, requested: Iterator[tuple[A, ...]], act: Callable[[A], Work], caps: Caps
) -> Iterator[Reply]:  # fmt: skip
    free_before = free_bytes(base)
    done = done_bytes = 0
    for things in requested:
        results: list[Result] = []
        for thing in things:
            if caps.gone():
                return
            try:
                size_bytes = yield from act(thing)
            except RefusedError as error:
                results.append(Result(thing.path, error.reason, 0))
            except OSError as error:
                results.append(Result(thing.path, tree.reason_of(error), 0))
            else:
                results.append(Result(thing.path, "done", size_bytes))
                done, done_bytes = done + 1, done_bytes + size_bytes
        yield Results(tuple(results))
    # A rotation frees nothing, and others who write meanwhile are no reason to wait for it.
    yield Pruned(done, done_bytes, freed(base, free_before, done_bytes) if done_bytes > 0 else 0)


@contextlib.contextmanager
def _parent(base: int, path: str) -> Iterator[tuple[int, bytes]]:
    """The open folder of an item, and the item's name in it."""
    way = split(path)
    if not way:
        raise RefusedError("bad_path", "cannot use the folder itself")
    if tree.protected(way[-1]):
        raise RefusedError("protected", f'cannot touch "{quote(way[-1])}": it belongs to the system')
    if b".log" not in way[-1]:
        raise RefusedError("no_log", f'cannot touch "{quote(way[-1])}": it is not called a log')
    parent = tree.descend(base, way[:-1])
    try:
        yield parent, way[-1]
    finally:
        os.close(parent)


def _look(parent: int, name: bytes, device: int, inode: int) -> os.stat_result:
    """The file under a name, if it is still the one that was listed and may be touched."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _check(status, device, inode)
    return status


def _check(status: os.stat_result, device: int, inode: int) -> None:
    reason = _unfit(status, device)
    if not reason and (status.st_dev, status.st_ino) != (device, inode):
        reason = "changed"
    if reason:
        raise RefusedError(reason, "cannot touch a file: it is not what was listed")


@contextlib.contextmanager
def _new_file(parent: int, name: bytes) -> Iterator[int]:
    """A new file under a temporary name; gone at the end unless it was given its own."""
    temporary = b"." + name + _TEMPORARY
    _clear(parent, temporary)
    fd = tree.create(parent, temporary)
    made = os.fstat(fd)
    try:
        yield fd
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(temporary, dir_fd=parent, follow_symlinks=False), made):
                os.unlink(temporary, dir_fd=parent)


def _clear(parent: int, temporary: bytes) -> None:
    """Remove what a crash left half made: a plain file of our own that nobody writes."""
    try:
        fd = tree.open_beneath(parent, temporary, tree.FILE)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(fd)
        if _unfit(status, status.st_dev) or tree.lease(fd):
            raise RefusedError("target_exists", f'cannot make "{quote(temporary)}": it is in use')
        os.unlink(temporary, dir_fd=parent)
    finally:
        os.close(fd)


def _dress(fd: int, like: os.stat_result) -> None:
    """Give a new file the owner, the mode and the times of another; never a bit that runs it as somebody."""
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(fd, like.st_uid, like.st_gid)
    os.fchmod(fd, like.st_mode & 0o777)
    os.utime(fd, ns=(like.st_atime_ns, like.st_mtime_ns))


def _publish(parent: int, name: bytes) -> None:
    tree.rename_new(parent, b"." + name + _TEMPORARY, name)
    os.fsync(parent)


def _make_room(parent: int, size_bytes: int) -> None:
    free = os.fstatvfs(parent)
    if free.f_bavail * free.f_frsize < size_bytes + SPARE_BYTES:
        raise RefusedError("no_space", f"cannot write {size_bytes} bytes: too little is free")


# -- compressing -----------------------------------------------------------------------------------------------------


def _compress(parent: int, name: bytes, item: Item, gone: Callable[[], bool]) -> Work:
    if name.endswith(b".gz"):
        raise RefusedError("bad_path", f'cannot compress "{quote(name)}": it is')
    _look(parent, name, item.device, item.inode)  # opening a device or a FIFO can have effects
    try:
        source = tree.open_beneath(parent, name, tree.FILE)
    except PermissionError:
        raise RefusedError("in_use_unknown", f'cannot open "{quote(name)}"') from None
    try:
        if reason := tree.lease(source):
            raise RefusedError(reason, f'cannot compress "{quote(name)}": somebody may have it open')
        before = os.fstat(source)
        _check_whole(before, item)
        packed = _Packing(source, gone)
        if not (yield from _finish_earlier(parent, name, packed, before)):
            _make_room(parent, before.st_size)
            with _new_file(parent, name + b".gz") as out:
                yield from packed.write(out)
                _dress(out, before)
                os.fsync(out)
                yield from packed.compare(out)
                _check_whole(os.fstat(source), item)
                faultpoint.reach("pack_written", kill_parent=True)
                _publish(parent, name + b".gz")
        faultpoint.reach("pack_named", kill_parent=True)
        packed.check()
        if not os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), before):
            raise RefusedError("changed", f'cannot remove "{quote(name)}": another file has its name')
        os.unlink(name, dir_fd=parent)
        os.fsync(parent)
    finally:
        os.close(source)
    after = os.stat(name + b".gz", dir_fd=parent, follow_symlinks=False)
    return (before.st_blocks - after.st_blocks) * tree.BLOCK_BYTES


def _check_whole(status: os.stat_result, item: Item) -> None:
    _check(status, item.device, item.inode)
    if status.st_mtime_ns != item.mtime_ns:
        raise RefusedError("changed", "cannot compress a file: it was written since it was listed")


def _finish_earlier(
    parent: int, name: bytes, packed: _Packing, source: os.stat_result
) -> Generator[Progress, None, bool]:  # fmt: skip
    """Whether the archive is there already, made before a crash: of the same owner and with the same content."""
    try:
        done = tree.open_beneath(parent, name + b".gz", tree.FILE)
    except FileNotFoundError:
        return False
    try:
        status = os.fstat(done)
        if _unfit(status, source.st_dev) or status.st_uid != source.st_uid:
            raise RefusedError("target_exists", f'cannot compress "{quote(name)}": its archive is another\'s')
        yield from packed.read()
        try:
            yield from packed.compare(done)
        except RefusedError as error:
            if error.reason == "verify_failed":
                raise RefusedError("target_exists", f'cannot compress "{quote(name)}": an archive is there') from None
            raise
    finally:
        os.close(done)
    return True


class _Packing:
    """One file on its way into gzip, and back for comparison."""

    def __init__(self, source: int, gone: Callable[[], bool]) -> None:
        self._source = source
        self._gone = gone
        self._digest = b""
        self._length = 0
        self._told = time.monotonic()

    def check(self) -> None:
        """Let go as soon as the peer hangs up or somebody wants to open the file."""
        if self._gone():
            raise RefusedError("stopped", "cannot go on: nobody waits for it")
        if not tree.lease_is_whole(self._source):
            raise RefusedError("open", "cannot go on: somebody opens the file")

    def read(self, write: Callable[[bytes], object] = lambda chunk: None) -> Iterator[Progress]:
        """The file from its beginning, each chunk given to ``write``; remembers what it was."""
        digest, offset = blake2b(), 0
        while chunk := os.pread(self._source, CHUNK_BYTES, offset):
            yield from self._live()
            digest.update(chunk)
            write(chunk)
            offset += len(chunk)
        self._digest, self._length = digest.digest(), offset

    def write(self, out: int) -> Iterator[Progress]:
        """The file as gzip."""
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
        with open(out, "wb", closefd=False) as file:
            yield from self.read(lambda chunk: file.write(packer.compress(chunk)))
            file.write(packer.flush())

    def compare(self, packed: int) -> Iterator[Progress]:
        """Refuse an archive that does not hold exactly what was read."""
        unpacker, digest, length, offset = zlib.decompressobj(_GZIP), blake2b(), 0, 0
        while (chunk := os.pread(packed, CHUNK_BYTES, offset)) and length <= self._length:
            offset += len(chunk)
            while chunk and length <= self._length:
                yield from self._live()
                try:
                    data = unpacker.decompress(chunk, CHUNK_BYTES)
                except zlib.error:
                    raise _damaged() from None
                digest.update(data)
                length += len(data)
                chunk = unpacker.unconsumed_tail
        digest.update(rest := unpacker.flush() if length <= self._length else b"")
        if not unpacker.eof or unpacker.unused_data or (length + len(rest), digest.digest()) != (
            self._length, self._digest,
        ):  # fmt: skip
            raise _damaged()

    def _live(self) -> Iterator[Progress]:
        self.check()
        if time.monotonic() - self._told >= 1.0:
            self._told = time.monotonic()
            yield Progress(1)


def _damaged() -> RefusedError:
    return RefusedError("verify_failed", "cannot trust an archive: it does not hold what the file holds")


# -- rotating --------------------------------------------------------------------------------------------------------


def _checked_target(move: Move) -> bytes:
    """The name that a move leads to, if it is an archive's of the same log."""
    own = move.path.rpartition("/")[2]
    here, there = lognames.archive(own), lognames.archive(move.to)
    if move.step == "shift":
        good = here is not None and there is not None and (here.log, here.packed) == (there.log, there.packed)
    else:
        good = own.endswith(".log") and there is not None and there.log == own and not there.packed
    way = split(move.to)
    if not good or len(way) != 1:
        raise RefusedError("bad_path", f'cannot rotate to "{move.to[:80]}": that is no archive\'s name of this log')
    return unquote(move.to)


def _rename(parent: int, name: bytes, to: bytes, move: Move) -> None:
    """Swap the log with a new empty one: at no instant is there no log, and nothing is written over."""
    before = _look(parent, name, move.device, move.inode)
    _check_filled(before)
    new = tree.create(parent, to)
    made = os.fstat(new)
    try:
        _dress(new, before)
        os.utime(new)
        faultpoint.reach("rotate_made", kill_parent=True)
        tree.exchange(parent, name, to)
        if not os.path.samestat(os.stat(to, dir_fd=parent, follow_symlinks=False), before):
            tree.exchange(parent, name, to)
            raise RefusedError("changed", f'cannot rotate "{quote(name)}": another file has its name')
    finally:
        os.close(new)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(to, dir_fd=parent, follow_symlinks=False), made):
                os.unlink(to, dir_fd=parent)


def _copy_and_truncate(parent: int, name: bytes, to: bytes, move: Move, gone: Callable[[], bool]) -> Work:
    """Copy a log beside it and empty it. What a writer adds between the last read and the truncation is lost: that is
    why the bulk is on disk before, and the last read is followed by the truncation and nothing else.
    """
    _look(parent, name, move.device, move.inode)
    log = tree.open_beneath(parent, name, tree.FILE | os.O_RDWR)
    try:
        before = os.fstat(log)
        _check(before, move.device, move.inode)
        _check_filled(before)
        if before.st_blocks * tree.BLOCK_BYTES < before.st_size // 2:
            raise RefusedError("sparse", f'cannot copy "{quote(name)}": its writer would leave a hole again')
        _make_room(parent, before.st_size)
        _refuse_existing(parent, to)
        with _new_file(parent, to) as out:
            copied = yield from _copy(log, out, 0, gone)
            _dress(out, before)
            os.fsync(out)
            _publish(parent, to)
            faultpoint.reach("rotate_made", kill_parent=True)
            copied = yield from _copy(log, out, copied, lambda: False)
            os.ftruncate(log, 0)
            os.utime(out, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.fsync(out)
        os.fsync(log)
    finally:
        os.close(log)
    return 0


def _copy(log: int, out: int, offset: int, gone: Callable[[], bool]) -> Work:
    """Copy from ``offset`` to a read that comes back short: a writer that never rests would never let it come empty."""
    told = time.monotonic()
    while chunk := os.pread(log, CHUNK_BYTES, offset):
        if gone():
            raise RefusedError("stopped", "cannot go on: nobody waits for it")
        view = memoryview(chunk)
        while view:
            written = os.pwrite(out, view, offset)
            view, offset = view[written:], offset + written
        if len(chunk) < CHUNK_BYTES:
            break
        if time.monotonic() - told >= 1.0:
            told = time.monotonic()
            yield Progress(1)
    return offset


def _check_filled(status: os.stat_result) -> None:
    if status.st_size == 0:
        raise RefusedError("empty", "cannot rotate an empty log")


def _refuse_existing(parent: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=parent, follow_symlinks=False)
        raise RefusedError("target_exists", f'cannot make "{quote(name)}": it is there')


# -- telling the writer ----------------------------------------------------------------------------------------------


def signal_unit(unit: str, units: tuple[str, ...]) -> None:
    """Send SIGHUP to the main process of a unit that the policy names.

    Raises
    ------
    RefusedError
        ``unknown_unit`` for any other; ``not_signalled`` where systemd did not do it.
    """
    if unit not in units:
        raise RefusedError("unknown_unit", f'cannot signal "{unit[:80]}": the policy does not name it')
    argv = ["/usr/bin/systemctl", "kill", "--kill-whom=main", "--signal=HUP", "--", unit]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SIGNAL_TIMEOUT_S, env={}, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError("not_signalled", f'cannot signal "{unit}": {type(error).__name__.lower()}') from None
    if done.returncode:
        raise RefusedError("not_signalled", f'cannot signal "{unit}": systemctl ended with {done.returncode}')
