"""Real receivers on loopback: an SMTP server with TLS and AUTH, an HTTP server that misbehaves, an Alertmanager."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Certificate:
    """A key and a certificate for ``localhost`` that signs itself, so that it is its own authority."""

    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def certificate(folder: Path, name: str = "localhost") -> Certificate:
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", str(made.key), "-out", str(made.certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


# -- SMTP ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Mailbox:
    """What an SMTP server took, and how it answers: an entry of ``answers`` by verb takes the place of its own."""

    mails: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    port: int = 0

    def _answer(self, verb: str) -> str | None:
        waiting = self.answers.get(verb)
        return waiting.pop(0) if waiting else None

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if answer := self._answer("RCPT"):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if answer := self._answer("DATA"):
            return answer
        content = envelope.content
        assert isinstance(content, bytes)
        self.mails.append((str(envelope.mail_from), list(envelope.rcpt_tos), content))
        return "250 OK"


@contextlib.contextmanager
def smtp_server(
    mailbox: Mailbox, *, secured: Certificate | None = None, at_once: bool = False, login: tuple[str, str] | None = None
) -> Iterator[Mailbox]:
    """A server that fills the mailbox; ``secured`` offers STARTTLS, or TLS at once; ``login`` requires AUTH."""

    def known(server: object, session: object, envelope: object, mechanism: str, data: Any) -> AuthResult:
        if isinstance(data, LoginPassword) and login is not None:
            return AuthResult(success=(data.login.decode(), data.password.decode()) == login, handled=False)
        return AuthResult(success=False, handled=False)

    context = secured.server() if secured else None
    how: dict[str, Any] = {"auth_required": True, "authenticator": known} if login else {}
    how |= {"tls_context": context} if context and not at_once else {}
    mailbox.port = mailbox.port or free_port()
    controller = Controller(
        mailbox, hostname="127.0.0.1", port=mailbox.port, ssl_context=context if at_once else None,
        auth_require_tls=bool(context) and not at_once, **how,
    )  # fmt: skip
    controller.start()
    try:
        yield mailbox
    finally:
        asyncio.run_coroutine_threadsafe(_hung_up(), controller.loop).result()
        controller.stop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # aiosmtpd leaves the connection below its TLS to the GC
            gc.collect()


async def _hung_up() -> None:
    """Wait until every connection has ended: the server closes its loop at once."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=2)
    for _ in range(5):
        await asyncio.sleep(0)


# -- HTTP ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Hook:
    """What an HTTP server was asked, and how it answers: the next of ``answers``, then 200 for ever.

    An answer is a status, a status and headers, or a function that is given the handler to do worse.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    answers: list[int | tuple[int, dict[str, str]] | Callable[[BaseHTTPRequestHandler], None]] = field(
        default_factory=list
    )
    always: int = 200

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])


@contextlib.contextmanager
def http_server(secured: Certificate | None = None, port: int = 0) -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hook.requests.append(Request(self.command, self.path, dict(self.headers.items()), body))
            answer = hook.answers.pop(0) if hook.answers else hook.always
            if callable(answer):
                answer(self)
                return
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in {"Content-Length": "2", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up is what some tests are about

    server = Server(("127.0.0.1", port), Handler)
    if secured:
        server.socket = secured.server().wrap_socket(server.socket, server_side=True)
    hook.url = f"{'https' if secured else 'http'}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- Alertmanager ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alertmanager:
    url: str

    def alerts(self) -> list[dict[str, Any]]:
        """Active alerts, as its API has them."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def post(self, alerts: list[dict[str, Any]]) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts", json.dumps(alerts).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=5).close()


@contextlib.contextmanager
def alertmanager(folder: Path, config: str, port: int = 0) -> Iterator[Alertmanager]:
    """Debian's prometheus-alertmanager on loopback, alone."""
    folder.mkdir(exist_ok=True)
    (folder / "alertmanager.yml").write_text(config)
    chosen = port or free_port()
    with (folder / "alertmanager.log").open("ab") as log:
        process = subprocess.Popen(
            ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{chosen}", "--cluster.listen-address="],
            stdout=log, stderr=log,
        )  # fmt: skip
    made = Alertmanager(f"http://127.0.0.1:{chosen}")
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                made.alerts()
                break
            except OSError:
                assert process.poll() is None, (folder / "alertmanager.log").read_text()
                assert time.monotonic() < deadline, "an alertmanager that listens"
                time.sleep(0.05)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=10)
