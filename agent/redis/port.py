"""The port: INFO and PING of one server, with one deadline for each answer and one name for each way to fail.

The connection is kept between questions and given up after any failure: what comes late can then never be taken for
the answer to a later question, and nothing goes on unauthenticated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal, Protocol
from urllib.parse import unquote, urlsplit

from agent.config import RedisInstance
from agent.errors import UpkeepError, cause
from agent.redis.info import parse_info
from agent.secret import read_secret

Reason = Literal["unreachable", "silent", "untrusted", "unauthorized", "loading", "full", "refused", "garbled"]
"""Why there is no answer: nothing listens or the connection broke; nothing came in time; TLS could not be verified;
wrong password, user or rights; the data is still being read from disk; no room for another client; any other error that
the server answered; bytes that are not Redis' protocol."""

Command = Literal["INFO", "PING"]

DEFAULT_PORT = 6379

_UNAUTHORIZED = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR invalid password", "ERR AUTH", "ERR Client sent AUTH")


class RedisError(UpkeepError):
    """A server did not answer as it should; ``reason`` names how."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class LostError(Exception):
    """The connection broke; a driver raises it for whatever its library makes of that."""


class Driver(Protocol):
    """One connection of one library. No call is ever made twice at once, and none after one that failed."""

    async def open(self, password: str | None) -> None:
        """Connect, and sign in where there is a password."""

    async def ask(self, command: Command) -> bytes:
        """The answer's bytes. What the server calls an error is raised by :func:`refusal`."""

    async def drop(self) -> None:
        """Let the connection go at once, whatever is under way."""


def refusal(text: str) -> RedisError:
    """The error for a reply that began with ``-``; ``text`` is the rest of its line."""
    reason: Reason = "refused"
    if text.startswith(_UNAUTHORIZED):
        reason = "unauthorized"
    elif text.startswith("LOADING"):
        reason = "loading"
    elif text.startswith("ERR max number of clients"):
        reason = "full"
    return RedisError(reason, f"the server answers: {text[:200]}")


class Client:
    """One server, asked through a driver.

    Parameters
    ----------
    make
        Makes a driver for each connection.
    deadline_s
        How long one answer may take in all, connecting and signing in included.
    password_file
        Read at each connection, so that a changed password is in force at the next one.
    """

    def __init__(self, make: Callable[[], Driver], deadline_s: float, password_file: str | None = None) -> None:
        self._make = make
        self._deadline_s = deadline_s
        self._password_file = password_file
        self._driver: Driver | None = None

    async def info(self) -> Mapping[str, str]:
        """The fields of INFO; see :func:`agent.redis.info.parse_info`.

        Raises
        ------
        RedisError
            There is no answer. A server that still loads its data answers, with a field ``loading`` of 1.
        """
        fields = parse_info((await self._ask("INFO")).decode(errors="replace"))
        if "redis_version" not in fields:
            await self.close()
            raise RedisError("garbled", "cannot read the answer to INFO: it names no version")
        return fields

    async def ping(self) -> None:
        """Return when the server is ready for commands.

        Raises
        ------
        RedisError
            It is not.
        """
        answer = await self._ask("PING")
        if answer != b"PONG":
            await self.close()
            raise RedisError("garbled", "cannot read the answer to PING: it is not PONG")

    async def close(self) -> None:
        """Let the connection go; the next question opens another."""
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.drop()

    async def _ask(self, command: Command) -> bytes:
        try:
            async with asyncio.timeout(self._deadline_s):
                if self._driver is not None:
                    try:
                        return await self._driver.ask(command)
                    except (LostError, OSError):  # it was kept while the server restarted: ask afresh
                        await self.close()
                return await self._ask_afresh(command)
        except TimeoutError:
            await self.close()
            raise RedisError("silent", f"no answer within {self._deadline_s:g} s") from None
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError | LostError):
                words = cause(error) if isinstance(error, OSError) else str(error) or "the connection broke"
                raise RedisError("unreachable", words) from None
            raise

    async def _ask_afresh(self, command: Command) -> bytes:
        driver = self._driver = self._make()
        await driver.open(self._password())
        return await driver.ask(command)

    def _password(self) -> str | None:
        try:
            return read_secret(self._password_file) if self._password_file else None
        except UpkeepError as error:
            raise RedisError("unauthorized", str(error)) from None


def client(instance: RedisInstance) -> Client:
    """What asks a configured server: asyncio-redis in the clear, redis-py where there is TLS or a user."""
    parts = urlsplit(instance.url)
    host, port, path = parts.hostname or "", parts.port or DEFAULT_PORT, unquote(parts.path)
    if parts.scheme == "unix":
        host, port = path, 0
    user = unquote(parts.username or "")

    def plain() -> Driver:
        from agent.redis.plain import PlainDriver

        return PlainDriver(host, port)

    def full() -> Driver:
        from agent.redis.full import FullDriver

        return FullDriver(
            host, port, user, tls=parts.scheme == "rediss", ca_file=instance.ca_file,
            cert_file=instance.cert_file, key_file=instance.key_file, deadline_s=instance.timeout,
        )  # fmt: skip

    make = full if user or parts.scheme == "rediss" else plain
    return Client(make, instance.timeout, instance.password_file)
