"""The real hands in a thread on a socket pair, a peer that can also say what no client would, and trees to clean."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.clock import Clock
from agent.ops.policy import Policy
from agent.ops.protocol import (
    VERSION,
    Found,
    Hello,
    Item,
    Items,
    Left,
    LeftAlone,
    Measured,
    Progress,
    Prune,
    Pruned,
    Ready,
    Refused,
    Reply,
    Request,
    Results,
    Signalled,
    Survey,
    Surveyed,
    Use,
    Welcome,
    batches,
    decode_reply,
    encode,
)
from agent.ops.server import serve

DAY_S = 86400.0
FINAL = (Welcome, Measured, Surveyed, Pruned, Signalled, Refused, Ready)


class Peer:
    """One connection to hands that serve ``policy``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self._ids = itertools.count(1)

    def raw(self, line: bytes) -> bytes:
        """Send anything and read one line; empty at the end of the conversation."""
        if line:
            self._sock.sendall(line)
        return self._file.readline()

    def ask(self, request: Request, request_id: int | None = None) -> list[Reply]:
        """Everything that is answered, the final reply last; progress left out."""
        self._sock.sendall(encode(next(self._ids) if request_id is None else request_id, request))
        replies: list[Reply] = []
        while not replies or not isinstance(replies[-1], FINAL):
            line = self._file.readline()
            assert line, f"the hands ended after {replies}"
            reply = decode_reply(line)[1]
            if not isinstance(reply, Progress):
                replies.append(reply)
        return replies

    def refusal(self, request: Request) -> str:
        """The reason of a refusal, empty when the request was carried out."""
        last = self.ask(request)[-1]
        return last.reason if isinstance(last, Refused) else ""

    def survey(
        self,
        root: str,
        path: str = "",
        *,
        older_than_s: float | None = None,
        down_to_bytes: int | None = None,
        use: Use = "atime",
        keep_used_within_s: float = 600.0,
        limit: int = 100_000,
    ) -> tuple[list[Item], list[Left], Surveyed]:
        replies = self.ask(Survey(root, path, older_than_s, down_to_bytes, use, keep_used_within_s, limit))
        totals = replies[-1]
        assert isinstance(totals, Surveyed), totals
        items = [item for reply in replies if isinstance(reply, Found) for item in reply.items]
        left = [item for reply in replies if isinstance(reply, LeftAlone) for item in reply.items]
        return items, left, totals

    def prune(
        self,
        root: str,
        items: Sequence[Item],
        path: str = "",
        *,
        use: Use = "atime",
        keep_used_within_s: float = 600.0,
    ) -> tuple[dict[str, str], Pruned]:
        """Results by path, and the end."""
        request_id = next(self._ids)
        ready = self.ask(Prune(root, path, use, keep_used_within_s, len(items)), request_id)[-1]
        assert isinstance(ready, Ready), ready
        results: dict[str, str] = {}
        for batch in batches(items):
            self._sock.sendall(encode(request_id, Items(batch)))
            reply = decode_reply(self._file.readline())[1]
            assert isinstance(reply, Results), reply
            results |= {result.path: result.result for result in reply.results}
        end = decode_reply(self._file.readline())[1]
        assert isinstance(end, Pruned), end
        return results, end

    def hang_up(self) -> None:
        self._file.close()
        self._sock.close()


@contextmanager
def hands(policy: Policy, clock: Clock | None = None, *, greet: bool = True) -> Iterator[Peer]:
    """Hands at work; on leaving, they must end by themselves and not by an exception."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    died: list[BaseException] = []

    def work() -> None:
        try:
            serve(theirs, policy, clock)
        except BaseException as error:
            died.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=work)
    thread.start()
    peer = Peer(ours)
    try:
        if greet:
            assert isinstance(peer.ask(Hello(VERSION, 0.0))[-1], Welcome)
        yield peer
    finally:
        peer.hang_up()
        thread.join(60)
        assert not thread.is_alive()
        if died:
            raise died[0]


def put(path: Path, *, size: int = 4096, age_s: float = 2 * DAY_S, atime_age_s: float | None = None) -> Path:
    """A file of ``size`` bytes, last used and written ``age_s`` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    now = time.time()
    os.utime(path, (now - (age_s if atime_age_s is None else atime_age_s), now - age_s))
    return path


def item_of(path: Path, root: Path) -> Item:
    """What a survey would say of a file, whatever it is."""
    status = path.lstat()
    relative = str(path.relative_to(root))
    return Item(relative, status.st_blocks * 512, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_atime_ns)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """A file in use by a mapping alone; Python's own mmap keeps a descriptor open as well."""
    fd = os.open(path, os.O_RDONLY)
    address = _libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    assert address != ctypes.c_void_p(-1).value
    try:
        yield
    finally:
        _libc.munmap(address, 4096)
