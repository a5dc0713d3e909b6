"""Targets that answer, refuse, hang or lie: all on loopback, with real servers and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import build
from agent.collectors.probes import ProbeCollector, name_server, question, verdict
from agent.config import Collect, Probes
from agent.model import Event, Reading
from tests.support.redis_servers import certificates, free_port, stranger

TIMEOUT_S = 0.4


def values(reading: Reading) -> dict[str, float]:
    return {series.metric: value for series, value in zip(reading.series, reading.values, strict=True)}


async def probe(target: str, told: list[Event] | None = None, **more: str) -> dict[str, float]:
    async def tell(event: Event) -> None:
        if told is not None:
            told.append(event)

    return values(await ProbeCollector(target, TIMEOUT_S, tell, **more).collect(1.0))


class NameServer(asyncio.DatagramProtocol):
    """Answers each query by a function of it; what it gives goes out as so many datagrams."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self._answer = answer
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for each in self._answer(data):
            self._transport.sendto(each, addr)


@contextlib.asynccontextmanager
async def names(answer: Callable[[bytes], list[bytes]]) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: NameServer(answer), local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)


def answered(query: bytes, code: int = 0) -> bytes:
    return query[:2] + bytes([0x81, 0x80 | code]) + query[4:]


def test_tcp() -> None:
    async def main() -> None:
        told: list[Event] = []
        async with stranger() as port:
            found = await probe(f"tcp://127.0.0.1:{port}", told)
            assert found["probe_success"] == 1
            assert 0 < found["probe_duration_seconds"] < TIMEOUT_S
            assert (await probe(f"tcp://localhost:{port}"))["probe_success"] == 1
        assert not told
        assert (await probe(f"tcp://127.0.0.1:{free_port()}", told))["probe_success"] == 0
        assert "refused" in told[0].message

    asyncio.run(main())


def test_a_target_that_fails_and_comes_back_is_told_twice() -> None:
    async def main() -> None:
        told: list[Event] = []

        async def tell(event: Event) -> None:
            told.append(event)

        port = free_port()
        collector = ProbeCollector(f"tcp://127.0.0.1:{port}", TIMEOUT_S, tell)
        first = await collector.collect(1.0)
        second = await collector.collect(2.0)
        assert first.series is second.series
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        await collector.collect(3.0)
        server.close()
        await asyncio.sleep(0.01)
        assert [event.severity.value for event in told] == ["warning", "info"]

    asyncio.run(main())


def test_what_never_answers_fails_at_the_deadline() -> None:
    async def main() -> None:
        with socket.socket() as full:  # a listener whose queue is full takes no more connections
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(1)]
            async with stranger() as silent, names(lambda _: []) as deaf:
                for target in (f"tcp://127.0.0.1:{port}", f"http://127.0.0.1:{silent}/", f"dns://127.0.0.1:{deaf}/a.b"):
                    began = time.monotonic()
                    assert (await probe(target))["probe_success"] == 0, target
                    assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S * 2
            for link in waiting:
                link.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "success", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 1, 200),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 1, 204),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 0, 302),
        (b"HTTP/1.1 503 Busy\r\n\r\n", 0, 503),
        (b"SSH-2.0-OpenSSH_9\r\n", 0, None),
        (b"HTTP/1.1 abc\r\n", 0, None),
        (b"\r\n", 0, None),
        (b"x" * 200_000, 0, None),
    ],
)
def test_http(answer: bytes, success: int, status: int | None) -> None:
    async def main() -> None:
        async with stranger(answer) as port:
            found = await probe(f"http://127.0.0.1:{port}/health?full=1")
        assert found["probe_success"] == success
        assert found.get("probe_http_status_code") == status

    asyncio.run(main())


def test_http_asks_for_the_path_and_host_of_the_target() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async def main() -> int:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        assert (await probe(f"http://localhost:{port}/a/b?c=d"))["probe_success"] == 1
        server.close()
        await asyncio.sleep(0.01)
        return port

    port = asyncio.run(main())
    assert heard[0].startswith(f"GET /a/b?c=d HTTP/1.1\r\nHost: localhost:{port}\r\n".encode())


def test_https_tells_when_the_certificate_ends_and_trusts_nobody_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's own view of being refused
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        target = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
        told: list[Event] = []
        assert (await probe(target, told))["probe_success"] == 0
        assert "cannot trust it" in told[0].message
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        found = await probe(target)
        assert found["probe_success"] == 1
        assert 86400 < found["probe_ssl_earliest_cert_expiry"] - time.time() <= 2 * 86400
        server.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_dns(tmp_path: Path) -> None:
    def forged(query: bytes) -> list[bytes]:
        other = bytes([query[0] ^ 1]) + query[1:]
        return [b"", answered(other), query, answered(question("other.name", 0)), answered(query)]

    async def main() -> None:
        async with names(lambda query: [answered(query)]) as port:
            assert (await probe(f"dns://127.0.0.1:{port}/example.org"))["probe_success"] == 1
        async with names(forged) as port:
            assert (await probe(f"dns://127.0.0.1:{port}/example.org."))["probe_success"] == 1
        told: list[Event] = []
        async with names(lambda query: [answered(query, 3)]) as port:
            assert (await probe(f"dns://127.0.0.1:{port}/example.org", told))["probe_success"] == 0
        assert "there is no such name" in told[0].message
        (tmp_path / "resolv.conf").write_text("search x\n", encoding="ascii")
        assert (await probe("dns:///a.b", told, resolv_conf=str(tmp_path / "resolv.conf")))["probe_success"] == 0
        assert "names no name server" in told[1].message

    asyncio.run(main())


def test_the_hosts_own_name_server_is_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# nameserver 9.9.9.9\nsearch a\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n", encoding="ascii")
    assert name_server(str(path)) == "192.0.2.1"


@pytest.mark.parametrize("name", ["a..b", "x" * 64, "", "."])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(ValueError):
        question(name, 1)


@given(st.binary())
def test_no_datagram_breaks_it(answer: bytes) -> None:
    assert verdict(answer, question("example.org", 7)) is None or answer[:2] == b"\0\7"


PROGRAM = """
import asyncio, sys
from agent.collectors.probes import ProbeCollector
async def tell(event): print(event.message)
for target in sys.argv[1:]:
    reading = asyncio.run(ProbeCollector(target, 0.5, tell).collect(1.0))
    print(target, *reading.values[:1])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize("allowed", [True, False])
def test_icmp_where_the_kernel_lets_us_and_where_not(allowed: bool) -> None:
    groups = "0 0" if allowed else "1 0"
    script = f'ip link set lo up && echo "{groups}" > /proc/sys/net/ipv4/ping_group_range && exec "$@"'
    targets = ["icmp://127.0.0.1", "icmp://[::1]"]
    command = ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, "-c", PROGRAM, *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    if allowed:
        assert done.stdout.splitlines() == [f"{target} 1.0" for target in targets]
    else:
        assert done.stdout.count("the kernel lets this group open no ping socket") == 2
        assert " 0.0" not in done.stdout, "unknown is absent, never 0"


def test_each_target_has_a_collector_of_its_own() -> None:
    config = Collect(probes=Probes(targets=("tcp://a:1", "icmp://b", "tcp://a:1"), interval=20.0, timeout=3.0))
    sources = [source for source in build(config) if source.collector.name.startswith("probes:")]
    assert [source.collector.name for source in sources] == ["probes:tcp://a:1", "probes:icmp://b"]
    assert {(source.interval_s, source.inline) for source in sources} == {(20.0, False)}
    assert all((source.deadline_s or 0) > 3.0 for source in sources)
