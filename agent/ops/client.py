"""The agent's side of the hands: asks, waits no longer than it must, and starts them again when they died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from agent.clock import Clock
from agent.errors import OpsError
from agent.ops import policy as policies
from agent.ops.clockwatch import ClockWatch
from agent.ops.policy import Policy
from agent.ops.protocol import (
    MAX_LINE_BYTES,
    VERSION,
    Compress,
    Found,
    Hello,
    Item,
    Items,
    Left,
    LeftAlone,
    Listed,
    LogFile,
    Logs,
    Measure,
    Measured,
    Move,
    Moves,
    Progress,
    Prune,
    Pruned,
    Ready,
    Refused,
    RefusedError,
    Reply,
    Request,
    Result,
    Results,
    Rotate,
    Signal,
    Signalled,
    Survey,
    Surveyed,
    Use,
    Welcome,
    batches,
    decode_reply,
    encode,
)

SILENCE_S = 60.0
"""Hands at work say something about once a second; one unlink of a huge file may take longer."""
STOP_S = 2.0

R = TypeVar("R")

_MAIN = Path(__file__).with_name("__main__.py")


@dataclass(frozen=True, slots=True)
class SurveyResult:
    """What a prune of ``path`` would remove (in order), what it would leave alone (examples), and the totals."""

    path: str
    items: tuple[Item, ...]
    left: tuple[Left, ...]
    totals: Surveyed


@dataclass(frozen=True, slots=True)
class LogsResult:
    """The logs and archives of a tree, what was left alone (examples), and the totals."""

    path: str
    files: tuple[LogFile, ...]
    left: tuple[Left, ...]
    totals: Surveyed


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What became of each item. ``error`` says why the end was not reached; then ``bytes_freed`` is not known (0).

    Items that were under way when the hands were lost are ``unknown``, later ones ``not_reached``.
    """

    results: tuple[Result, ...]
    bytes_removed: int
    bytes_freed: int
    error: str = ""


class _Link(Protocol):
    """How a connection to the hands is made."""

    keep: ClassVar[bool]
    """Whether one connection serves many requests, or each request gets its own so that others get their turn."""

    async def open(self) -> _Connection: ...


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: asyncio.subprocess.Process | None = None
    roots: tuple[str, ...] = ()

    @property
    def lost(self) -> bool:
        return self.reader.at_eof() or (self.process is not None and self.process.returncode is not None)

    async def close(self, grace_s: float) -> None:
        """Hang up: the hands stop before their next item and end. A child that has not after ``grace_s`` is killed."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        if self.process is None:
            return
        for patience_s in (grace_s, STOP_S):
            try:
                await asyncio.wait_for(self.process.wait(), patience_s)
                return
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
        # What the kernel holds in a call cannot be killed; it is left behind, and new hands are started when needed.


@dataclass(frozen=True, slots=True)
class _Child:
    """Hands of our own: the same program as a child on a socket pair, with the policy as its first line."""

    policy: Policy
    keep: ClassVar[bool] = True

    async def open(self) -> _Connection:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-IS",
                os.fspath(_MAIN),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the agent, which then lets the hands finish
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=2 * MAX_LINE_BYTES)
        writer.write(self.policy.to_json().encode() + b"\n")
        return _Connection(reader, writer, process)


@dataclass(frozen=True, slots=True)
class _Socket:
    """Hands that systemd runs."""

    path: str
    keep: ClassVar[bool] = False

    async def open(self) -> _Connection:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=2 * MAX_LINE_BYTES)
        return _Connection(reader, writer)


@dataclass(frozen=True, slots=True)
class _Talk:
    """One request and its answers."""

    connection: _Connection
    id: int
    silence_s: float
    root: str = ""
    way: str = ""

    async def send(self, request: Request) -> None:
        try:
            self.connection.writer.write(encode(self.id, request))
            async with asyncio.timeout(self.silence_s):
                await self.connection.writer.drain()
        except TimeoutError:
            raise OpsError(f"cannot reach the hands: nothing was read for {self.silence_s:g} s") from None
        except OSError as error:
            raise OpsError(f"cannot reach the hands: {error.strerror or error}") from error

    async def next(self) -> Reply:
        """The next reply that says something; a refusal is raised."""
        while isinstance(reply := await self._read(), Progress):
            pass
        if isinstance(reply, Refused):
            raise RefusedError(reply.reason, reply.message)
        return reply

    async def expect(self, cls: type[R]) -> R:
        reply = await self.next()
        if not isinstance(reply, cls):
            raise OpsError(f"cannot follow the hands: they said {type(reply).__name__.lower()}")
        return reply

    async def _read(self) -> Reply:
        try:
            async with asyncio.timeout(self.silence_s):
                line = await self.connection.reader.readline()
        except TimeoutError:
            raise OpsError(f"cannot wait for the hands: silent for {self.silence_s:g} s") from None
        except (OSError, ValueError) as error:
            raise OpsError(f"cannot hear the hands: {error}") from error
        if not line.endswith(b"\n"):
            raise OpsError("cannot hear the hands: they have ended")
        reply_id, reply = decode_reply(line)
        if reply_id != self.id:
            said = reply.message if isinstance(reply, Refused) else "an answer to another question"
            raise OpsError(f"cannot follow the hands: {said}")
        return reply


def _interrupted(
    items: Sequence[Item] | Sequence[Move], results: Sequence[Result], sent: int, error: str
) -> PruneResult:  # fmt: skip
    lost = [Result(item.path, "unknown", _bytes(item)) for item in items[len(results) : sent]]
    lost += [Result(item.path, "not_reached", _bytes(item)) for item in items[sent:]]
    removed_bytes = sum(result.bytes for result in results if result.result == "done")
    return PruneResult((*results, *lost), removed_bytes, 0, error)


def _bytes(item: Item | Move) -> int:
    return item.bytes if isinstance(item, Item) else 0


def _batches(items: Sequence[Item] | Sequence[Move]) -> Iterator[Items | Moves]:
    """What is to be changed, as requests."""
    yield from map(Items, batches(item for item in items if isinstance(item, Item)))
    yield from map(Moves, batches(move for move in items if isinstance(move, Move)))


class OpsClient:
    """One conversation with the hands. They are reached at the first request, and again after they were lost.

    Requests go one at a time; a caller that is cancelled hangs up, which stops a prune before its next item.
    """

    def __init__(self, link: _Link, clock: Clock, silence_s: float = SILENCE_S) -> None:
        self._link = link
        self._clock_watch = ClockWatch(clock)
        self._silence_s = silence_s
        self._ids = itertools.count(1)
        self._turn = asyncio.Lock()
        self._connection: _Connection | None = None

    @classmethod
    def spawn(cls, policy: Policy, clock: Clock, *, silence_s: float = SILENCE_S) -> OpsClient:
        """Hands as a child process with this policy, started when first needed.

        Raises
        ------
        OpsError
            When the policy would be refused, with everything that is wrong with it.
        """
        if faults := policies.check(policy):
            raise OpsError("\n".join(faults))
        return cls(_Child(policy), clock, silence_s)

    @classmethod
    def connect(cls, path: str, clock: Clock, *, silence_s: float = SILENCE_S) -> OpsClient:
        """Hands behind a socket, with a policy of their own."""
        return cls(_Socket(path), clock, silence_s)

    async def measure(self, path: str) -> Measured:
        """The size of the tree at an absolute path.

        Raises
        ------
        RefusedError
            When the hands will not, with a named reason: ``outside_roots``, ``missing``, ``symlink`` …
        OpsError
            When they cannot be reached or went silent.
        """
        async with self._talk(path) as talk:
            await talk.send(Measure(talk.root, talk.way))
            return await talk.expect(Measured)

    async def survey(
        self,
        path: str,
        *,
        older_than_s: float | None,
        down_to_bytes: int | None,
        use: Use,
        keep_used_within_s: float,
        limit: int,
    ) -> SurveyResult:
        """What would go from the tree at an absolute path; :mod:`agent.ops.verbs` says in which order and what stays.

        Raises as :meth:`measure`.
        """
        async with self._talk(path) as talk:
            request = Survey(talk.root, talk.way, older_than_s, down_to_bytes, use, keep_used_within_s, limit)
            items: list[Item] = []
            left: list[Left] = []
            await talk.send(request)
            while not isinstance(reply := await talk.next(), Surveyed):
                if isinstance(reply, Found):
                    items += reply.items
                elif isinstance(reply, LeftAlone):
                    left += reply.items
            return SurveyResult(path, tuple(items), tuple(left), reply)

    async def prune(
        self,
        path: str,
        items: Sequence[Item],
        *,
        use: Use,
        keep_used_within_s: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> PruneResult:
        """Remove surveyed items beneath an absolute path; each is looked at again first.

        ``stop`` is asked before each batch of a few hundred; once it is true no further one is sent.

        Raises
        ------
        RefusedError
            When the hands will not begin (then nothing was touched).
        OpsError
            When they cannot be reached. Once begun, losing them is told in the result instead.
        """
        async with self._talk(path) as talk:
            return await self._change(
                talk, Prune(talk.root, talk.way, use, keep_used_within_s, len(items)), items, stop
            )

    async def logs(self, path: str, *, limit: int) -> LogsResult:
        """The logs and archives of the tree at an absolute path. Raises as :meth:`measure`."""
        async with self._talk(path) as talk:
            files: list[LogFile] = []
            left: list[Left] = []
            await talk.send(Logs(talk.root, talk.way, limit))
            while not isinstance(reply := await talk.next(), Surveyed):
                if isinstance(reply, Listed):
                    files += reply.files
                elif isinstance(reply, LeftAlone):
                    left += reply.items
            return LogsResult(path, tuple(files), tuple(left), reply)

    async def compress(
        self, path: str, items: Sequence[Item], *, stop: Callable[[], bool] = lambda: False
    ) -> PruneResult:  # fmt: skip
        """Put files beneath an absolute path into gzip files beside them. Stops and raises as :meth:`prune`."""
        async with self._talk(path) as talk:
            return await self._change(talk, Compress(talk.root, talk.way, len(items)), items, stop)

    async def rotate(
        self, path: str, moves: Sequence[Move], *, stop: Callable[[], bool] = lambda: False
    ) -> PruneResult:  # fmt: skip
        """Rotate logs beneath an absolute path, in this order. Stops and raises as :meth:`prune`."""
        async with self._talk(path) as talk:
            return await self._change(talk, Rotate(talk.root, talk.way, len(moves)), moves, stop)

    async def signal(self, path: str, unit: str) -> None:
        """Have the main process of a unit of the policy open its logs, beneath ``path``, again.

        Raises as :meth:`measure`.
        """
        async with self._talk(path) as talk:
            await talk.send(Signal(unit))
            await talk.expect(Signalled)

    async def _change(
        self,
        talk: _Talk,
        request: Prune | Compress | Rotate,
        items: Sequence[Item] | Sequence[Move],
        stop: Callable[[], bool],
    ) -> PruneResult:
        """Announce a change, then bring its items a batch at a time."""
        await talk.send(request)
        await talk.expect(Ready)
        results: list[Result] = []
        sent = 0
        try:
            for batch in _batches(items):
                if stop():
                    raise OpsError("stopped: acting was paused")
                sent += len(batch.items if isinstance(batch, Items) else batch.moves)
                await talk.send(batch)
                results += (await talk.expect(Results)).results
            end = await talk.expect(Pruned)
        except OpsError as error:
            await self._drop(grace_s=0)
            return _interrupted(items, results, sent, str(error))
        return PruneResult(tuple(results), end.bytes_removed, end.bytes_freed)

    async def close(self) -> None:
        """Let the hands go."""
        async with self._turn:
            await self._drop()

    @contextlib.asynccontextmanager
    async def _talk(self, path: str) -> AsyncIterator[_Talk]:
        """One request's turn. Whatever breaks it off half way also ends the connection, so no answer goes astray."""
        async with self._turn:
            try:
                connection = await self._connected()
                located = policies.locate(connection.roots, path)
                if located is None:
                    raise RefusedError("outside_roots", f'cannot touch "{path}": it is under no root of the policy')
                yield _Talk(connection, next(self._ids), self._silence_s, *located)
            except RefusedError:
                await self._rest()  # a whole answer like any other
                raise
            except OpsError:
                await self._drop(grace_s=0)
                raise
            except BaseException:
                await self._drop()
                raise
            await self._rest()

    async def _rest(self) -> None:
        if not self._link.keep:
            await self._drop()

    async def _connected(self) -> _Connection:
        if self._connection and self._connection.lost:
            await self._drop()
        if self._connection is None:
            try:
                self._connection = await self._link.open()
            except OSError as error:
                raise OpsError(f"cannot reach the hands: {error.strerror or error}") from error
            await self._greet(self._connection)
        return self._connection

    async def _greet(self, connection: _Connection) -> None:
        talk = _Talk(connection, next(self._ids), self._silence_s)
        try:
            await talk.send(Hello(VERSION, self._clock_watch.distrusted_s()))
            connection.roots = (await talk.expect(Welcome)).roots
        except RefusedError as error:
            raise OpsError(f"cannot work with the hands: {error}") from error

    async def _drop(self, grace_s: float = STOP_S) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await asyncio.shield(connection.close(grace_s))
