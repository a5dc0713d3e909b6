"""What the hands can be asked to do. Each verb is a generator of replies; only :func:`prune` changes anything.
The verbs for logs are in :mod:`agent.ops.logs`.

How old is a file
    ``use: atime``: its last use is the later of atime and mtime. ``use: mtime``: its mtime. The change time is never
    asked: it cannot be set back, so it would make every restored or copied cache look new, and an owner who sets his
    file's times back brings forward only his own file's end.
What is never removed
    Anything but a plain file with one name, on the root's own device, that nobody has open, whose last use is known to
    lie between ten years ago and now, and that was neither used nor written in the last ``keep_used_within_s`` seconds
    (by atime or mtime, whichever ``use`` says), so that what was just downloaded with an old mtime is safe.
In what order
    By last use, oldest first: all that are older than ``older_than_s``, then on until the tree holds ``down_to_bytes``.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent import faultpoint
from agent.ops import tree
from agent.ops.protocol import (
    Found,
    Item,
    LastUse,
    Left,
    LeftAlone,
    Measured,
    Progress,
    Prune,
    Pruned,
    RefusedError,
    Reply,
    Result,
    Results,
    Survey,
    Surveyed,
    Tally,
    Use,
    batches,
    quote,
    split,
)

MAX_ENTRIES = 5_000_000
EXAMPLES_PER_REASON = 100
CLOCK_SLACK_S = 60
LONGEST_PLAUSIBLE_S = 10 * 365.25 * 86400
SETTLE_S = 1.0
"""How long a file system that frees in the background (XFS) is given before its figure is taken."""

_PROGRESS_ENTRIES = 4096
_ST_NOATIME, _ST_RELATIME = 1024, 4096  # statvfs(3); Python's os names neither
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """What one request asks of every file, with the instant it is asked at."""

    use: Use
    keep_used_within_s: float
    device: int
    now_ns: int

    def last_use_ns(self, status: os.stat_result) -> int:
        if self.use == "mtime":
            return status.st_mtime_ns
        return max(status.st_atime_ns, status.st_mtime_ns)

    def reason_to_keep(self, status: os.stat_result) -> str:
        """Why a file stays whatever its turn is, or nothing. Whether it is open is asked apart."""
        if stat.S_ISLNK(status.st_mode):
            return "symlink"
        if not stat.S_ISREG(status.st_mode):
            return "special_file"
        if status.st_dev != self.device:
            return "other_device"
        if status.st_nlink != 1:
            return "hard_link"
        age_s = (self.now_ns - self.last_use_ns(status)) / _NS
        if not -CLOCK_SLACK_S <= age_s <= LONGEST_PLAUSIBLE_S:
            return "implausible_time"
        if max(status.st_atime_ns, status.st_mtime_ns) > self.now_ns - self.keep_used_within_s * _NS:
            return "young"
        return ""


def last_use(base: int) -> LastUse:
    """How well the mount keeps access times: every one, within a day, or not at all."""
    flags = os.fstatvfs(base).f_flag
    if flags & (_ST_NOATIME | os.ST_RDONLY):
        return "unknown"
    return "relatime" if flags & _ST_RELATIME else "exact"


class Sizes:
    """Blocks on disk of a tree, each inode once: a second name of a file adds nothing."""

    def __init__(self, base: int) -> None:
        top = os.fstat(base)
        self.bytes, self.files, self.partial = top.st_blocks * tree.BLOCK_BYTES, 0, False
        self._device = top.st_dev
        self._linked: set[int] = set()

    def add(self, entry: tree.Entry) -> None:
        self.partial = self.partial or entry.reason in tree.UNSEEN
        status = entry.status
        if status is None or status.st_dev != self._device:
            return
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._linked:
                return
            self._linked.add(status.st_ino)
        self.bytes += status.st_blocks * tree.BLOCK_BYTES
        self.files += stat.S_ISREG(status.st_mode)


class LeftTally:
    """Counts what is left alone by reason and keeps a few examples of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self.examples: list[Left] = []

    def add(self, path: bytes, reason: str, size_bytes: int) -> None:
        self._counts[reason] += 1
        self._bytes[reason] += size_bytes
        if self._counts[reason] <= EXAMPLES_PER_REASON:
            self.examples.append(Left(quote(path), reason, size_bytes))

    def tallies(self) -> tuple[Tally, ...]:
        return tuple(Tally(reason, count, self._bytes[reason]) for reason, count in sorted(self._counts.items()))


def walked(base: int) -> Iterator[tree.Entry | Progress]:
    """The tree's entries, with a sign of life about once a second."""
    spoken = time.monotonic()
    with contextlib.closing(tree.walk(base, MAX_ENTRIES)) as entries:
        for count, entry in enumerate(entries, 1):
            yield entry
            if count % _PROGRESS_ENTRIES == 0 and time.monotonic() - spoken >= 1.0:
                spoken = time.monotonic()
                yield Progress(count)


def measure(base: int) -> Iterator[Reply]:
    """The size of a tree."""
    sizes = Sizes(base)
    for entry in walked(base):
        if isinstance(entry, Progress):
            yield entry
        else:
            sizes.add(entry)
    yield Measured(sizes.bytes, sizes.files, sizes.partial)


# -- survey ----------------------------------------------------------------------------------------------------------

_Candidate = tuple[int, bytes, int, int, int, int]
"""Last use, path, blocks in bytes, inode, mtime, atime (times in ns): ordered by last use, then path."""


class _Oldest:
    """The ``limit`` candidates with the oldest last use: a heap with the youngest of them on top."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[int, _Candidate]] = []

    def add(self, candidate: _Candidate) -> None:
        entry = (-candidate[0], candidate)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def in_order(self) -> list[_Candidate]:
        return sorted(candidate for _, candidate in self._heap)


def survey(base: int, request: Survey, now_ns: int) -> Iterator[Reply]:
    """What a prune would remove, in its order, and what it would leave alone. Changes nothing.

    Parameters
    ----------
    base
        The open folder.
    request
        ``older_than_s`` and ``down_to_bytes`` as the module says, either may be None; ``limit`` is the most files to
        name, oldest use first: the rest is for the next run.
    now_ns
        The instant that ages are counted to.
    """
    known = last_use(base)
    rule = Rule(request.use, request.keep_used_within_s, os.fstat(base).st_dev, now_ns)
    sizes, left, oldest = Sizes(base), LeftTally(), _Oldest(request.limit)
    for entry in walked(base):
        if isinstance(entry, Progress):
            yield entry
            continue
        sizes.add(entry)
        status = entry.status
        if status is None:
            left.add(entry.path, entry.reason, 0)
        elif not stat.S_ISDIR(status.st_mode):
            size_bytes = status.st_blocks * tree.BLOCK_BYTES
            reason = rule.reason_to_keep(status)
            if reason:
                left.add(entry.path, reason, size_bytes)
            else:
                times = (status.st_mtime_ns, status.st_atime_ns)
                oldest.add((rule.last_use_ns(status), entry.path, size_bytes, status.st_ino, *times))
    if request.use == "mtime" or known != "unknown":
        chosen = _choose(base, request, rule, oldest.in_order(), sizes.bytes, left)
        for batch in batches(chosen):
            yield Found(batch)
    for examples in batches(left.examples):
        yield LeftAlone(examples)
    yield Surveyed(sizes.files, sizes.bytes, left.tallies(), known, sizes.partial)


def _choose(
    base: int, request: Survey, rule: Rule, candidates: Sequence[_Candidate], size_bytes: int, left: LeftTally
) -> Iterator[Item]:
    oldest_kept_ns = rule.now_ns - (request.older_than_s or 0) * _NS
    for used_ns, path, blocks_bytes, inode, mtime_ns, atime_ns in candidates:
        too_old = request.older_than_s is not None and used_ns < oldest_kept_ns
        too_much = request.down_to_bytes is not None and size_bytes > request.down_to_bytes
        if not (too_old or too_much):
            return
        item = Item(quote(path), blocks_bytes, rule.device, inode, mtime_ns, atime_ns)
        reason, _ = _act(base, item, rule, room_bytes=None)
        if reason:
            left.add(path, reason, blocks_bytes)
            continue
        size_bytes -= blocks_bytes
        yield item


# -- prune -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caps:
    """The policy's limit on one prune, and how to learn that the peer has gone away."""

    bytes: int
    gone: Callable[[], bool]


def prune(
    base: int, request: Prune, requested: Iterator[tuple[Item, ...]], caps: Caps, now_ns: Callable[[], int]
) -> Iterator[Reply]:
    """Remove what is named, each item only if it is still what the survey saw.

    Stops before the next item when the peer goes away. Items over the policy's bytes are left as ``over_byte_cap``.
    """
    free_before = free_bytes(base)
    device = os.fstat(base).st_dev
    removed, removed_bytes = 0, 0
    for items in requested:
        results: list[Result] = []
        for item in items:
            if caps.gone():
                return
            rule = Rule(request.use, request.keep_used_within_s, device, now_ns())
            reason, size_bytes = _act(base, item, rule, room_bytes=caps.bytes - removed_bytes)
            results.append(Result(item.path, reason or "done", size_bytes))
            if not reason:
                removed, removed_bytes = removed + 1, removed_bytes + size_bytes
                if removed == 1:
                    faultpoint.reach("unlink_first", kill_parent=True)
        yield Results(tuple(results))
    if removed:
        faultpoint.reach("unlink_last", kill_parent=True)
    yield Pruned(removed, removed_bytes, freed(base, free_before, removed_bytes))


def _act(base: int, item: Item, rule: Rule, *, room_bytes: int | None) -> tuple[str, int]:
    """Look at one file again, take the lease, and remove it if it fits into ``room_bytes`` (None: only look).

    Returns the reason why it stays (empty: it is, or could be, gone) and its blocks as found now.
    """
    try:
        way = split(item.path)
        if not way:
            return "bad_path", 0
        if tree.protected(way[-1]):
            return "protected", 0
        parent = tree.descend(base, way[:-1])
        try:
            return _act_in(parent, way[-1], item, rule, room_bytes)
        finally:
            os.close(parent)
    except RefusedError as error:
        return error.reason, 0
    except OSError as error:
        return tree.reason_of(error), 0


def _act_in(parent: int, name: bytes, item: Item, rule: Rule, room_bytes: int | None) -> tuple[str, int]:
    before = os.stat(name, dir_fd=parent, follow_symlinks=False)
    size_bytes = before.st_blocks * tree.BLOCK_BYTES
    # Opening a device or a FIFO can have effects: only what is a plain file by now is opened at all.
    reason = _still(before, item, rule)
    if reason:
        return reason, size_bytes
    try:
        fd = tree.open_beneath(parent, name, tree.FILE)
    except PermissionError:
        return "in_use_unknown", size_bytes
    try:
        reason = tree.lease(fd) or _still(os.fstat(fd), item, rule)
        if reason or room_bytes is None:
            return reason, size_bytes
        if size_bytes > room_bytes:
            return "over_byte_cap", size_bytes
        if not os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), before):
            return "changed", size_bytes
        os.unlink(name, dir_fd=parent)
    finally:
        os.close(fd)
    return "", size_bytes


def _still(status: os.stat_result, item: Item, rule: Rule) -> str:
    """Whether a file is what the plan saw, and may still go: nothing, or the reason why not."""
    if (status.st_dev, status.st_ino, status.st_mtime_ns) != (item.device, item.inode, item.mtime_ns):
        # A link or a device in its place is said as such; another plain file is just another file.
        return rule.reason_to_keep(status) if not stat.S_ISREG(status.st_mode) else "changed"
    if rule.use == "atime" and status.st_atime_ns > item.atime_ns:
        return "used_since"
    return rule.reason_to_keep(status)


def free_bytes(base: int) -> int:
    """What is free on the file system of an open folder, for root."""
    free = os.fstatvfs(base)
    return free.f_bfree * free.f_frsize


def freed(base: int, before: int, removed_bytes: int) -> int:
    """What the file system gained; other writers count too, so it may be less, or negative."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        freed = free_bytes(base) - before
        if freed >= removed_bytes or time.monotonic() >= deadline:
            return freed
        time.sleep(0.05)
