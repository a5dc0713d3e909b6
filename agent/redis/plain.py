"""asyncio-redis beneath the port, for servers in the clear without ACL users.

The library is of 2020 and guards nothing: it retries a dead server for ever, waits for a silent one for ever, signs in
by a task whose failure nobody hears while commands go on, and stops reading for good, without a word, at a byte it does
not know. So it gets neither its reconnection nor its password, and a reader that ends the connection when it fails.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asyncio_redis import RedisProtocol
from asyncio_redis.encoders import BytesEncoder
from asyncio_redis.exceptions import ConnectionLostError, ErrorReply, NotConnectedError

from agent.redis.port import Command, LostError, RedisError, refusal

logging.getLogger("asyncio_redis").setLevel(logging.WARNING)  # it tells of each connection that it makes and ends

MOST_BYTES = 4 * 1024**2
"""The longest answer that is read; INFO has 6 KiB, and some hundreds of KiB with thousands of databases."""


class _Guarded(RedisProtocol):  # type: ignore[misc]
    """The library's protocol, which ends the connection where the library would stop reading."""

    def __init__(self) -> None:
        super().__init__(encoder=BytesEncoder())
        self.fault: RedisError | None = None
        self._received_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > MOST_BYTES:
            self._end(RedisError("garbled", f"the answer is longer than {MOST_BYTES >> 20} MiB"))
            return
        super().data_received(data)

    def _send_command(self, args: list[bytes]) -> None:
        self._received_bytes = 0
        super()._send_command(args)

    def _push_answer(self, answer: object) -> None:
        if self._queue:
            super()._push_answer(answer)
        elif isinstance(answer, ErrorReply):  # it turns the client away before it was asked anything
            self._end(refusal(str(answer)))
        else:
            self._end(RedisError("garbled", "the server speaks before it is asked"))

    async def _reader_coroutine(self) -> None:
        try:
            await super()._reader_coroutine()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._end(RedisError("garbled", f"cannot read the answer: {type(error).__name__}"))
        else:
            self._end(None)

    def _end(self, fault: RedisError | None) -> None:
        self.fault = self.fault or fault
        if self.transport is not None:
            self.transport.abort()


class PlainDriver:
    """A connection by TCP, or by a Unix socket where ``port`` is 0 and ``host`` its path."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._link: _Guarded | None = None

    async def open(self, password: str | None) -> None:
        loop = asyncio.get_running_loop()
        if self._port:
            _, self._link = await loop.create_connection(_Guarded, self._host, self._port)
        else:
            _, self._link = await loop.create_unix_connection(_Guarded, self._host)
        if password is not None:
            await self._answer(self._link.auth(password.encode()))

    async def ask(self, command: Command) -> bytes:
        assert self._link is not None
        if command == "PING":
            return str((await self._answer(self._link.ping())).status).encode()
        return bytes((await self._answer(self._link.info()))._data)

    async def drop(self) -> None:
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abort()

    async def _answer(self, question: Any) -> Any:
        assert self._link is not None
        try:
            return await question
        except ErrorReply as error:
            raise refusal(str(error)) from None
        except (ConnectionLostError, NotConnectedError):
            raise self._link.fault or LostError() from None
        except (AssertionError, AttributeError, TypeError, ValueError):
            raise self._link.fault or RedisError("garbled", "the answer is of another kind than asked for") from None
