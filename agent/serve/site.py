"""The HTTP side: a socket that is bound first, and read-only pages on it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from agent.errors import UpkeepError
from agent.serve import exposition
from agent.serve.archive import KINDS, archived, content, style_source
from agent.serve.page import REFRESH_S, Pages
from agent.serve.status import Facts, Records, now, records

log = logging.getLogger(__name__)

DEADLINE_S = 2.0
"""How long a page waits for the disk; the status page then does without."""

MOST_CONNECTIONS = 32
LONGEST_CONNECTION_S = 30.0
"""Each connection carries one request and lives no longer than this: silent ones must not use up our descriptors."""

_STOP_S = 1.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "upkeep",
    "X-Content-Type-Options": "nosniff",
}
_POLICY = "default-src 'none'; style-src {style}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


# -- the socket ------------------------------------------------------------------------------------------------------


def bind(listen: str, tries: int = 1) -> socket.socket:
    """Bind and listen, before anything is served on it.

    Parameters
    ----------
    listen
        ``ADDRESS:PORT``; port 0 is any that is free.
    tries
        How many ports from that one on may be tried while they are taken.

    Raises
    ------
    UpkeepError
        It cannot be had, and why.
    """
    parts = urlsplit(f"//{listen}")
    host, port = parts.hostname or "", parts.port or 0
    for candidate in range(port, min(port + tries, 65536)):
        try:
            return _bound(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UpkeepError(f'cannot listen on "{listen}": {(error.strerror or str(error)).lower()}') from None
    which = "its port is" if tries == 1 else f"it and the {tries - 1} ports after it are"
    raise UpkeepError(f'cannot listen on "{listen}": {which} taken; name another one with `listen:`')


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(MOST_CONNECTIONS)  # with SO_REUSEADDR only this shows that nobody else listens there
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def address(bound: socket.socket) -> str:
    """What to type into a browser on this host."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


# -- the server ------------------------------------------------------------------------------------------------------


async def serve(bound: socket.socket, facts: Facts, *, named: str = "") -> None:
    """Answer until cancelled; the socket stays open for the next call, should this one fail.

    Parameters
    ----------
    bound
        From :func:`bind`.
    named
        The host of ``listen:`` as it was written, which requests may call us by.
    """
    async with _Site(facts, bound, named).running() as factory:
        loop = asyncio.get_running_loop()
        listening = bound.dup()
        server = await loop.create_server(factory, sock=listening)
        log.info("serving address=%s", address(bound))
        try:
            await loop.create_future()
        finally:
            server.close()
            listening.close()


def _hang_up(protocol: web.RequestHandler) -> None:
    if protocol.transport is not None:
        protocol.transport.abort()


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Site:
    def __init__(self, facts: Facts, bound: socket.socket, named: str) -> None:
        self._facts = facts
        self._pages = Pages(facts.zone)
        self._allowed = _Allowed(bound, named)
        # Threads of its own: when the disk hangs, it is these that hang with it.
        self._pool = ThreadPoolExecutor(2, "serve")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], asyncio.BaseProtocol]]:
        """Ready to answer; gives what makes the protocol of each connection."""
        runner = web.AppRunner(self._app(), access_log=None, handle_signals=False, shutdown_timeout=_STOP_S)
        await runner.setup()
        server = runner.server
        assert server is not None
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.BaseProtocol:
            if len(server.connections) >= MOST_CONNECTIONS:
                return _Refused()
            protocol = server()
            loop.call_later(LONGEST_CONNECTION_S, _hang_up, protocol)
            return protocol

        try:
            yield connection
        finally:
            await runner.cleanup()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded], client_max_size=0)
        app.on_response_prepare.append(_finish)
        app.router.add_get("/", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/reports/", self._archive)
        app.router.add_get("/reports/{name}", self._report)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not self._allowed.names(hosts[0]):
            return _plain("this host is not known here by that name\n", status=421)
        if request.method not in ("GET", "HEAD"):
            return _plain("only GET and HEAD\n", status=405, Allow="GET, HEAD")
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return _plain("there is no such page\n", status=404)
        except TimeoutError:
            return _plain("the disk does not answer\n", status=503)

    async def _metrics(self, request: web.Request) -> web.Response:
        openmetrics = exposition.wants_openmetrics(",".join(request.headers.getall("Accept", [])))
        samples = ((series, value) for series, value, _ in self._facts.recent.latest(self._facts.clock.wall()))
        page = exposition.expose(samples, openmetrics=openmetrics)
        kind = exposition.OPENMETRICS if openmetrics else exposition.TEXT
        return web.Response(body=page, headers={"Content-Type": kind})

    async def _healthz(self, request: web.Request) -> web.Response:
        stuck = list(self._facts.stuck())
        return _plain(f"stuck: {', '.join(stuck)}\n", status=503) if stuck else _plain("ok\n")

    async def _status(self, request: web.Request) -> web.Response:
        told = now(self._facts)
        try:
            kept = await self._aside(lambda: records(self._facts.state_dir, told.at))
        except TimeoutError:
            kept = Records(problem="the disk does not answer")
        refreshing = request.query.get("refresh") != "off"
        page = self._pages.status(self._facts, told, kept, refreshing=refreshing)
        # As a header: a <meta> in the page is what the accessibility rules warn of, and could not be switched off.
        return _html(page, **({"Refresh": str(REFRESH_S)} if refreshing else {}))

    async def _archive(self, request: web.Request) -> web.Response:
        return _html(self._pages.archive(self._facts, await self._aside(lambda: archived(self._facts.state_dir))))

    async def _report(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await self._aside(lambda: content(self._facts.state_dir, name))
        if body is None:
            raise web.HTTPNotFound
        kind = KINDS[os.path.splitext(name)[1]]
        return _html(body) if kind.startswith("text/html") else web.Response(body=body, headers={"Content-Type": kind})

    async def _aside(self, work: Callable[[], T]) -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class _Allowed:
    """By which names a request may call us.

    A page that rebinds its own name to our address (DNS rebinding) still sends that name. Reached over the network,
    any address will do, for an address cannot be rebound, and forwarded ports make it one that we do not know.
    """

    def __init__(self, bound: socket.socket, named: str) -> None:
        host = bound.getsockname()[0]
        self._names = {*_LOOPBACK_NAMES, host, named.lower()} - {""}
        self._any_address = not ipaddress.ip_address(host).is_loopback
        if self._any_address:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            log.warning("serving_beyond_loopback address=%s: whoever reaches it may read", address(bound))

    def names(self, header: str) -> bool:
        try:
            parts = urlsplit(f"//{header}")
            host = parts.hostname or ""
            if parts.netloc != header or "@" in header or (parts.port or 0) < 0:
                return False
        except ValueError:
            return False
        return host.removesuffix(".") in self._names or (self._any_address and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# -- answers ---------------------------------------------------------------------------------------------------------


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.setdefault("Content-Security-Policy", _POLICY.format(style="'none'"))
    response.force_close()


def _plain(text: str, *, status: int = 200, **headers: str) -> web.Response:
    return web.Response(text=text, status=status, headers=headers)


def _html(page: bytes, **headers: str) -> web.Response:
    """A page that may use its own style sheet, and nothing else at all."""
    headers |= {"Content-Type": "text/html; charset=utf-8"}
    headers["Content-Security-Policy"] = _POLICY.format(style=style_source(page))
    return web.Response(body=page, headers=headers)
