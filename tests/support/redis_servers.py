"""Real Redis servers on Unix sockets and loopback, with and without TLS, and strangers that only listen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 20.0


@dataclass(slots=True)
class Server:
    """A server that runs; ``stop`` and ``start`` keep its place."""

    arguments: list[str]
    socket: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        self.process = subprocess.Popen(
            ["redis-server", *self.arguments, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_S
        while not self._listens():
            assert self.process.poll() is None, "redis-server ended at its start"
            assert time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)

    def cli(self, *words: str, password: str = "") -> str:
        signed = ["-a", password, "--no-auth-warning"] if password else []
        command = ["redis-cli", "-s", self.socket, *signed, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as link:
            try:
                link.connect(self.socket)
            except OSError:
                return False
        return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str, tls: bool = False) -> Iterator[Server]:
    """A server in ``folder``; ``port`` speaks TLS where ``tls`` says so, with the files of :func:`certificates`."""
    port, path = free_port(), str(folder / "redis.sock")
    ports = ["--port", str(port)]
    if tls:
        ports = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(folder / "server.pem")]
        ports += ["--tls-key-file", str(folder / "server.key"), "--tls-ca-cert-file", str(folder / "ca.pem")]
    common = ["--bind", "127.0.0.1", "--unixsocket", path, "--dir", str(folder), "--save", "", "--daemonize", "no"]
    server = Server([*common, *ports, *arguments], path, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def certificates(folder: Path) -> None:
    """``ca``, ``server`` (for localhost and 127.0.0.1) and ``client``, each as ``.pem`` and ``.key``."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="ascii")
        sign = ("x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*sign, "-extfile", "names", "-in", f"{name}.csr", "-out", f"{name}.pem")


@contextlib.asynccontextmanager
async def stranger(*answers: bytes, then_close: bool = False) -> AsyncIterator[int]:
    """A listener that gives the next answer to whatever it hears, and then is silent or closes; its port."""
    links: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(writer)
        with contextlib.suppress(ConnectionError):
            for answer in answers:
                if not await reader.read(65536):
                    break
                writer.write(answer)
            if then_close:
                writer.close()
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for link in links:
            link.close()
        await asyncio.sleep(0)
