"""``upkeep ops``: answers one peer at a time, one request after the other, in one thread.

Whatever arrives, the worst that happens is what the policy allows: every path is taken apart and walked down from a
root of the policy, every item is looked at again, and the limits are the hands' own.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from agent.clock import Clock, SystemClock
from agent.errors import FaultyFilesError
from agent.ops import logs, tree, verbs
from agent.ops import policy as policies
from agent.ops.clockwatch import ClockWatch
from agent.ops.policy import Policy
from agent.ops.protocol import (
    MAX_ITEMS,
    MAX_LINE_BYTES,
    VERSION,
    Compress,
    Hello,
    Item,
    Items,
    Logs,
    Measure,
    Move,
    Moves,
    ProtocolError,
    Prune,
    Ready,
    Refused,
    RefusedError,
    Reply,
    Request,
    Rotate,
    Signal,
    Signalled,
    Survey,
    Welcome,
    decode_request,
    encode,
    quote,
    split,
)

HOUR_S = 3600.0
WRITE_TIMEOUT_S = 30
LISTEN_FD = 3  # sd_listen_fds(3)

_GONE = select.POLLHUP | select.POLLRDHUP | select.POLLERR


class Hands:
    """What outlives a connection: the policy, the instants of past prunes, and whether the clock can be believed."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.policy = policy
        self.clock = clock
        self._pruned_at: deque[float] = deque()
        self.clock_watch = ClockWatch(clock)

    def now_ns(self) -> int:
        return round(self.clock.wall() * 1e9)

    def take_turn(self) -> None:
        """Count one change against the hour, or refuse it."""
        boot = self.clock.boot()
        while self._pruned_at and boot - self._pruned_at[0] >= HOUR_S:
            self._pruned_at.popleft()
        if len(self._pruned_at) >= self.policy.limits.actions_per_hour:
            raise RefusedError("rate_limit", f"cannot act: {len(self._pruned_at)} times within the hour already")
        self._pruned_at.append(boot)

    def trust_clock(self) -> None:
        """Refuse to judge ages while the wall clock is not to be believed."""
        if self.clock_watch.distrusted_s() > 0:
            raise RefusedError("clock_jumped", "cannot judge ages: the clock was stepped less than an hour ago")

    @contextmanager
    def folder(self, root: str, path: str) -> Iterator[int]:
        """The open folder that a request means. This is the only way from a request to a descriptor."""
        if root not in self.policy.roots:
            raise RefusedError("outside_roots", f'cannot use "{root[:200]}": it is no root of the policy')
        way = split(path)
        start, pattern = policies.split_glob(root)
        if pattern and not (way and policies.matches(way[0], pattern)):
            raise RefusedError("outside_roots", f'cannot use "{path[:200]}": the root is "{root}"')
        try:
            top = tree.open_root(os.fsencode(start))
        except OSError as error:
            raise _unusable(start, error) from None
        try:
            if pattern and not os.fstat(top).st_mode & stat.S_ISVTX:
                raise RefusedError(
                    "not_sticky", f'cannot use "{root}": {start} has no sticky bit, so names are not safe'
                )
            if not pattern and tree.locked(top):
                raise RefusedError("locked", f'cannot go into "{start}": somebody holds a lock on it')
            base = _down(top, way, start)
        finally:
            os.close(top)
        try:
            yield base
        finally:
            os.close(base)


def _down(top: int, way: tuple[bytes, ...], start: str) -> int:
    try:
        return tree.descend(top, way)
    except OSError as error:
        raise _unusable("/".join([start, *map(quote, way)]), error) from None


def _unusable(path: str, error: OSError) -> RefusedError:
    reason = {"gone": "missing", "changed": "no_folder", "denied": "unreadable"}.get(
        tree.reason_of(error), tree.reason_of(error)
    )
    words = {"symlink": "it leads through a symbolic link", "other_device": "it is on another device than its root"}
    return RefusedError(reason, f'cannot use "{path[:200]}": {words.get(reason, error.strerror)}')


class _PeerGone(Exception):
    """The peer closed the connection, or reads no more."""


class _Lines:
    """Whole lines from a socket, never more than the protocol's longest in memory."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def next(self) -> bytes:
        """The next line without its newline.

        Raises
        ------
        _PeerGone
            At the end.
        ProtocolError
            When a line is too long: nothing after it can be made sense of.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                raise ProtocolError(f"cannot read a line of over {MAX_LINE_BYTES} bytes")
            try:
                chunk = self._sock.recv(65536)
            except ConnectionError:
                raise _PeerGone from None
            if not chunk:
                raise _PeerGone
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


class Session:
    """One connection."""

    def __init__(self, sock: socket.socket, hands: Hands, lines: _Lines) -> None:
        self._sock = sock
        self._hands = hands
        self._lines = lines
        self._greeted = False
        # A peer that stops reading must not hold the hands for ever; one that is silent may.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", WRITE_TIMEOUT_S, 0))
        self._poll = select.poll()
        self._poll.register(sock, _GONE)

    def run(self) -> None:
        """Answer until the peer goes away or says what cannot be read on from."""
        try:
            if not self._may_ask():
                raise RefusedError("peer", "cannot serve this user: the policy does not name it")
            while True:
                self._answer(self._lines.next())
        except ProtocolError as error:
            self._last_word(Refused("protocol", str(error)))
        except RefusedError as error:
            self._last_word(Refused(error.reason, str(error)))
        except _PeerGone:
            return

    def _last_word(self, reply: Reply) -> None:
        try:
            self._say(0, reply)
        except _PeerGone:
            return

    def _may_ask(self) -> bool:
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        return uid in (self._hands.policy.peers or (os.geteuid(),))

    def _answer(self, line: bytes) -> None:
        request_id = 0
        try:
            request_id, request = decode_request(line)
            for reply in self._carry_out(request_id, request):
                self._say(request_id, reply)
        except ProtocolError as error:
            self._say(request_id, Refused("protocol", str(error)))
        except RefusedError as error:
            self._say(request_id, Refused(error.reason, str(error)))
        except OSError as error:
            self._say(request_id, Refused(tree.reason_of(error), f"cannot finish: {error.strerror}"))

    def _carry_out(self, request_id: int, request: Request) -> Iterator[Reply]:
        hands = self._hands
        if isinstance(request, Hello):
            yield self._greet(request)
            return
        if not self._greeted:
            raise ProtocolError("cannot answer before hello")
        if isinstance(request, Items | Moves):
            raise ProtocolError("cannot take items: nothing was begun")
        if isinstance(request, Signal):
            hands.take_turn()
            logs.signal_unit(request.unit, hands.policy.units)
            yield Signalled()
            return
        if isinstance(request, Survey | Prune):
            hands.trust_clock()
        _check_numbers(request)
        with hands.folder(request.root, request.path) as base:
            if isinstance(request, Measure):
                yield from verbs.measure(base)
            elif isinstance(request, Survey):
                yield from verbs.survey(base, request, hands.now_ns())
            elif isinstance(request, Logs):
                yield from logs.listing(base, request)
            else:
                yield from self._change(base, request_id, request)

    def _greet(self, request: Hello) -> Reply:
        if request.version != VERSION:
            raise RefusedError("version", f"cannot speak version {request.version}: this is version {VERSION}")
        self._greeted = True
        self._hands.clock_watch.distrust_for(request.distrust_clock_s)
        return Welcome(VERSION, self._hands.policy.roots)

    def _change(self, base: int, request_id: int, request: Prune | Compress | Rotate) -> Iterator[Reply]:
        hands, limits = self._hands, self._hands.policy.limits
        if request.count > limits.files_per_action:
            raise RefusedError(
                "over_file_cap", f"cannot change {request.count} files at once: {limits.files_per_action}"
            )
        if isinstance(request, Prune) and request.use == "atime" and verbs.last_use(base) == "unknown":
            raise RefusedError("use_unknown", "cannot tell the last use: this mount keeps no access times")
        hands.take_turn()
        yield Ready()
        caps = verbs.Caps(limits.bytes_per_action, self._gone)
        if isinstance(request, Rotate):
            yield from logs.rotate(base, self._moves(request_id, request.count), caps)
            return
        items = self._items(request_id, request.count)
        if isinstance(request, Compress):
            yield from logs.compress(base, items, caps)
        else:
            yield from verbs.prune(base, request, items, caps, hands.now_ns)

    def _items(self, request_id: int, count: int) -> Iterator[tuple[Item, ...]]:
        """The batches of one change, exactly as many items as it announced."""
        while count > 0:
            found_id, request = decode_request(self._lines.next())
            if found_id != request_id or not isinstance(request, Items) or not 1 <= len(request.items) <= count:
                raise ProtocolError("cannot go on: expected the items that were announced")
            count -= len(request.items)
            yield request.items

    def _moves(self, request_id: int, count: int) -> Iterator[tuple[Move, ...]]:
        while count > 0:
            found_id, request = decode_request(self._lines.next())
            if found_id != request_id or not isinstance(request, Moves) or not 1 <= len(request.moves) <= count:
                raise ProtocolError("cannot go on: expected the moves that were announced")
            count -= len(request.moves)
            yield request.moves

    def _gone(self) -> bool:
        return bool(self._poll.poll(0))

    def _say(self, request_id: int, reply: Reply) -> None:
        try:
            self._sock.sendall(encode(request_id, reply))
        except (ConnectionError, BlockingIOError):
            raise _PeerGone from None


def _check_numbers(request: Measure | Survey | Prune | Logs | Compress | Rotate) -> None:
    """Refuse what is well formed and makes no sense: a threshold of nothing must never mean everything."""
    if isinstance(request, Survey | Prune) and request.keep_used_within_s < 0:
        raise RefusedError("bad_request", "cannot use a negative keep_used_within_s")
    if isinstance(request, Prune | Compress | Rotate) and not 0 <= request.count <= MAX_ITEMS:
        raise RefusedError("bad_request", f'cannot use "{request.count}" as a count')
    if isinstance(request, Survey | Logs) and not 1 <= request.limit <= MAX_ITEMS:
        raise RefusedError("bad_request", f'cannot use "{request.limit}" as a limit')
    if not isinstance(request, Survey):
        return
    if request.older_than_s is not None and request.older_than_s <= 0:
        raise RefusedError("bad_request", "cannot use older_than_s: it must be above 0")
    if request.down_to_bytes is not None and request.down_to_bytes <= 0:
        raise RefusedError("bad_request", "cannot use down_to_bytes: it must be above 0")


def serve(sock: socket.socket, policy: Policy, clock: Clock | None = None) -> None:
    """Answer the peer of a connected socket until it goes away.

    Parameters
    ----------
    sock
        A connected AF_UNIX stream socket; its peer must be one of the policy's.
    policy
        What may be touched.
    clock
        The host's own unless a test brings one.
    """
    Session(sock, Hands(policy, clock or SystemClock()), _Lines(sock)).run()


def main() -> int:
    """``python -m agent.ops``: started by systemd with its socket, or by the agent with a connected socket as stdin.

    Under systemd the policy is ``/etc/upkeep/ops.json``; by hand it is the first line that arrives.
    """
    os.umask(0o077)
    try:
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            return _serve_systemd()
        return _serve_parent()
    except FaultyFilesError as error:
        print(error, file=sys.stderr)
        return 1


def _serve_systemd() -> int:
    hands = Hands(policies.load(), SystemClock())
    with socket.socket(fileno=LISTEN_FD) as listening:
        while True:
            peer, _ = listening.accept()
            with peer:
                Session(peer, hands, _Lines(peer)).run()


def _serve_parent() -> int:
    with socket.socket(fileno=os.dup(0)) as sock:
        lines = _Lines(sock)
        try:
            line = lines.next()
        except _PeerGone:
            return 0
        Session(sock, Hands(policies.parse(line, "the policy"), SystemClock()), lines).run()
    return 0
