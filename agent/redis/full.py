"""redis-py beneath the port, for TLS and ACL users.

Of the library only a connection is used: no pool, no retries (it would make ten), no health checks. ``protocol=2``
keeps it from HELLO, which servers before 6 refuse.
"""

from __future__ import annotations

import ssl
from typing import Any

from agent.redis.port import Command, LostError, RedisError, refusal


class FullDriver:
    """A connection by TCP, TLS, or by a Unix socket where ``port`` is 0 and ``host`` its path.

    Parameters
    ----------
    user
        Who signs in; empty for the server's default user.
    ca_file, cert_file, key_file
        Authorities to trust in place of the host's own; what the agent shows where the server asks for a certificate.
    deadline_s
        The port's own deadline: the library's timeouts are no longer than that.
    """

    def __init__(
        self,
        host: str,
        port: int,
        user: str,
        *,
        tls: bool,
        ca_file: str | None,
        cert_file: str | None,
        key_file: str | None,
        deadline_s: float,
    ) -> None:
        self._place: dict[str, Any] = {"host": host, "port": port} if port else {"path": host}
        self._tls = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file} if tls else None
        self._user = user or None
        self._deadline_s = deadline_s
        self._link: Any = None

    async def open(self, password: str | None) -> None:
        from redis.asyncio import connection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        kind: Any = connection.Connection
        if "path" in self._place:
            kind = connection.UnixDomainSocketConnection
        elif self._tls is not None:
            kind = connection.SSLConnection
        self._link = kind(
            **self._place,
            **(self._tls or {}),
            username=self._user,
            password=password,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._deadline_s,
            socket_connect_timeout=self._deadline_s,
            driver_info=None,
        )
        await self._answer(self._link.connect())

    async def ask(self, command: Command) -> bytes:
        assert self._link is not None
        await self._answer(self._link.send_command(command, check_health=False))
        answer = await self._answer(self._link.read_response(disable_decoding=True))
        if not isinstance(answer, bytes):
            raise RedisError("garbled", "the answer is of another kind than asked for")
        return answer

    async def drop(self) -> None:
        if self._link is not None:
            if (writer := self._link._writer) is not None:
                writer.transport.abort()  # TLS would take its leave of a server that may be silent
            await self._link.disconnect(nowait=True)

    async def _answer(self, question: Any) -> Any:
        from redis.exceptions import RedisError as LibraryError

        try:
            return await question
        except (LibraryError, ValueError, TypeError, AttributeError) as error:
            raise _translated(error) from None


def _translated(error: BaseException) -> Exception:
    """The port's word for what the library raised; it wraps some of its errors in others of its own."""
    from redis import exceptions

    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for each in chain:
        match each:
            case exceptions.TimeoutError():
                return TimeoutError()
            case exceptions.BusyLoadingError():
                return RedisError("loading", f"the server answers: {each}")
            case exceptions.AuthenticationError() | exceptions.NoPermissionError():
                return RedisError("unauthorized", f"the server answers: {each}")
            case exceptions.ResponseError():
                return refusal(str(each))
            case ssl.SSLError():
                words = getattr(each, "verify_message", "") or each.reason or "TLS failed"
                return RedisError("untrusted", f"cannot trust the server: {words.lower()}")
    if isinstance(error, exceptions.ConnectionError):
        full = "max number of clients" in str(error)
        return RedisError("full", f"the server answers: {error}") if full else LostError(str(error))
    return RedisError("garbled", f"cannot read the answer: {type(error).__name__}")
