"""Whether others can be reached, under blackbox_exporter's names: ICMP, TCP, DNS and HTTP.

Each target has a collector of its own and one deadline for all of a try. Where this host does not let the agent ask
(ICMP), there is no value: that says nothing of the target.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from agent import __version__
from agent.errors import cause
from agent.model import Reading, Series, Severity, make_labels
from agent.told import States, Tell, nobody

_ECHO_REQUEST, _ECHO_REPLY, _ECHO_REQUEST_6, _ECHO_REPLY_6 = 8, 0, 128, 129
_MOST_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target answered. ``fault`` is empty where that is what was wanted."""

    fault: str = ""
    status: int | None = None
    expires_at: float | None = None


class NotAllowedError(Exception):
    """This host does not let the agent ask."""


class ProbeCollector:
    """One target.

    Parameters
    ----------
    target
        As the configuration writes it.
    timeout_s
        How long a try may take, looking up its name included.
    tell
        Records an event when the target stops or begins to answer.
    resolv_conf
        Where the host's name servers are written.
    """

    def __init__(
        self, target: str, timeout_s: float, tell: Tell = nobody, resolv_conf: str = "/etc/resolv.conf"
    ) -> None:
        self.name = f"probes:{target}"
        self._target = target
        self._timeout_s = timeout_s
        self._states = States("probes", tell)
        self._resolv_conf = resolv_conf
        self._layout: tuple[str, ...] = ()
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._ask()
        except NotAllowedError as error:
            await self._states.wrong(self._target, "not_allowed", str(error), at)
            return Reading(at, (), [])
        except TimeoutError:
            answer = Answer(f"no answer within {self._timeout_s:g} s")
        except ssl.SSLError as error:
            words = getattr(error, "verify_message", "") or error.reason or "TLS failed"
            answer = Answer(f"cannot trust it: {words.lower()}")
        except (OSError, EOFError, ValueError) as error:
            answer = Answer(cause(error))
        took_s = loop.time() - began
        if answer.fault:
            message = f'"{self._target}" does not answer: {answer.fault}'
            await self._states.wrong(self._target, "failed", message, at, Severity.WARNING)
        else:
            await self._states.right(self._target, f'"{self._target}" answers again', at)
        values = {"probe_success": float(not answer.fault), "probe_duration_seconds": took_s}
        if answer.status is not None:
            values["probe_http_status_code"] = answer.status
        if answer.expires_at is not None:
            values["probe_ssl_earliest_cert_expiry"] = answer.expires_at
        if tuple(values) != self._layout:
            self._layout = tuple(values)
            self._series = tuple(Series(metric, make_labels(target=self._target)) for metric in values)
        return Reading(at, self._series, list(values.values()))

    async def _ask(self) -> Answer:
        parts = urlsplit(self._target)
        host = parts.hostname or ""
        match parts.scheme:
            case "icmp":
                return await echo(host)
            case "tcp":
                return await connect(host, parts.port or 0)
            case "dns":
                server = host or name_server(self._resolv_conf)
                return await look_up(server, parts.port or 53, unquote(parts.path[1:]))
            case _:
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                return await get(host, parts.port, path, parts.netloc, tls=parts.scheme == "https")


async def connect(host: str, port: int) -> Answer:
    """Open a connection and close it."""
    _, writer = await asyncio.open_connection(host, port)
    writer.transport.abort()
    return Answer()


# -- ICMP --


async def echo(host: str) -> Answer:
    """One echo through a ping socket (icmp(7)), which needs no privilege where ``ping_group_range`` has our group.

    Raises
    ------
    NotAllowedError
        The kernel does not open one for us.
    """
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM))[0]
    six = family == socket.AF_INET6
    protocol = socket.getprotobyname("ipv6-icmp") if six else socket.IPPROTO_ICMP
    try:
        asking = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except PermissionError:
        raise NotAllowedError(
            f'cannot ask "icmp://{host}": the kernel lets this group open no ping socket (net.ipv4.ping_group_range)'
        ) from None
    with asking:
        mark = os.urandom(16)
        asking.connect(address)
        # The kernel fills in identifier and checksum, and gives back only answers to this socket's own identifier.
        asking.send(struct.pack("!BBHHH", _ECHO_REQUEST_6 if six else _ECHO_REQUEST, 0, 0, 0, 1) + mark)
        wanted = _ECHO_REPLY_6 if six else _ECHO_REPLY
        while True:
            answer = await loop.sock_recv(asking, 2048)
            if answer[:1] == bytes([wanted]) and answer[8:] == mark:
                return Answer()


# -- DNS (RFC 1035) --


def name_server(path: str) -> str:
    """The first name server of a ``resolv.conf``.

    Raises
    ------
    ValueError
        It names none.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                return words[1]
    raise ValueError(f'"{path}" names no name server')


def question(name: str, number: int) -> bytes:
    """A query for the addresses (A) of a name.

    Raises
    ------
    ValueError
        This is no name of DNS.
    """
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f'"{name}" is no name of DNS')
    coded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + coded + struct.pack("!HH", 1, 1)


_CODES = {1: "it could not read the query", 2: "it failed", 3: "there is no such name", 4: "not implemented",
          5: "it refuses"}  # fmt: skip


def verdict(answer: bytes, asked: bytes) -> Answer | None:
    """What an answer says; None where it belongs to another query. NOERROR is enough, as for blackbox_exporter."""
    if len(answer) < len(asked) or answer[:2] != asked[:2] or not answer[2] & 0x80:
        return None
    if answer[12 : len(asked)].lower() != asked[12:].lower():
        return None
    code = answer[3] & 0x0F
    return Answer(f"the name server says: {_CODES.get(code, f'code {code}')}" if code else "")


async def look_up(server: str, port: int, name: str) -> Answer:
    """Ask a name server by UDP; asked again each second, for a datagram may be lost."""
    asked = question(name, int.from_bytes(os.urandom(2), "big"))
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(server, port, type=socket.SOCK_DGRAM))[0]
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asking:
        asking.connect(address)
        while True:
            asking.send(asked)
            try:
                async with asyncio.timeout(1.0):
                    while (found := verdict(await loop.sock_recv(asking, 4096), asked)) is None:
                        pass
                    return found
            except TimeoutError:
                continue


# -- HTTP --


async def get(host: str, port: int | None, path: str, shown: str, *, tls: bool) -> Answer:
    """GET, the head of the answer only. 200 to 299 is what is wanted; a redirect is not followed."""
    context = ssl.create_default_context() if tls else None
    reader, writer = await asyncio.open_connection(
        host, port or (443 if tls else 80), ssl=context, limit=_MOST_HEAD_BYTES
    )
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {shown}\r\nUser-Agent: upkeep/{__version__}\r\nAccept: */*\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        words = (await reader.readline()).split(None, 2)
        certificate = writer.get_extra_info("peercert") if tls else None
    finally:
        writer.transport.abort()
    expires_at = float(ssl.cert_time_to_seconds(certificate["notAfter"])) if certificate else None
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer("the answer is not HTTP", None, expires_at)
    status = int(words[1])
    return Answer("" if 200 <= status < 300 else f"status {status}", status, expires_at)
