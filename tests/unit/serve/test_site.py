"""The server over a real socket: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path

import pytest
import uvloop

from agent.clock import ManualClock
from agent.errors import UpkeepError
from agent.model import STALE, Mode, Series, make_labels
from agent.serve import address, bind
from agent.serve import site as serving
from tests.support.site import Site, hung_up, parsed, reading, sampled, site

AT = 1_700_002_800.0


def run(folder: Path, body: Callable[[Site], Awaitable[None]], clock: ManualClock | None = None) -> None:
    async def main() -> None:
        async with site(folder, clock) as running:
            await body(running)

    asyncio.run(main())


# -- the socket ------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_an_error_or_the_next_free_one() -> None:
    with bind("127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with pytest.raises(UpkeepError, match=f'cannot listen on "127.0.0.1:{port}": its port is taken'):
            bind(f"127.0.0.1:{port}")
        with bind(f"127.0.0.1:{port}", tries=20) as second:
            assert port < second.getsockname()[1] <= port + 19
            assert address(second) == f"http://127.0.0.1:{second.getsockname()[1]}/"


def test_every_port_taken_says_how_many_were_tried() -> None:
    with contextlib.ExitStack() as held:
        first = held.enter_context(bind("127.0.0.1:0"))
        port = first.getsockname()[1]
        try:
            held.enter_context(bind(f"127.0.0.1:{port + 1}"))
        except UpkeepError:
            pass  # somebody else holds it: as good
        with pytest.raises(UpkeepError, match="it and the 1 ports after it are taken"):
            bind(f"127.0.0.1:{port}", tries=2)


@pytest.mark.parametrize("listen", ["192.0.2.1:9898", "no-such-host.invalid:9898"])
def test_an_address_that_is_not_ours_is_one_clear_line(listen: str) -> None:
    with pytest.raises(UpkeepError, match=f'^cannot listen on "{listen}": [a-z -]+'):
        bind(listen)


def test_an_address_to_type_is_given_for_any_family() -> None:
    with bind("0.0.0.0:0") as any_address:
        assert address(any_address).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        try:
            with bind("[::1]:0") as six:
                assert address(six) == f"http://[::1]:{six.getsockname()[1]}/"
        except UpkeepError:
            pytest.skip("this host has no ::1")


# -- who may ask, and how --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("localhost.:9898", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:9898", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:9898", 421),
        ("192.168.1.7", 421),
        ("localhost@evil.example", 421),
        ("evil.example#localhost", 421),
        ("localhost:port", 421),
        ("[::1", 421),
    ],
)
def test_only_names_of_this_host_are_answered(tmp_path: Path, host: str, status: int) -> None:
    async def body(running: Site) -> None:
        for page in ("/metrics", "/healthz", "/", "/reports/", "/nowhere"):
            wanted = 404 if (page, status) == ("/nowhere", 200) else status
            assert (await running.ask(page, host=host)).status == wanted

    run(tmp_path, body)


def test_two_hosts_or_none_are_refused(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        none = parsed(await running.raw(b"GET /metrics HTTP/1.0\r\n\r\n"))
        two = parsed(await running.raw(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"))
        assert none.status == 421
        assert two.status in (400, 421)

    run(tmp_path, body)


def test_beyond_loopback_any_address_and_our_own_name_may_ask() -> None:
    with bind("0.0.0.0:0") as bound:
        allowed = serving._Allowed(bound, "")
        assert allowed.names("10.1.2.3:9898")
        assert allowed.names(f"{socket.gethostname()}:9898")
        assert not allowed.names("evil.example")
    with bind("127.0.0.1:0") as bound:
        assert serving._Allowed(bound, "monitoring.local").names("monitoring.local:1")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_but_get_and_head(tmp_path: Path, method: str) -> None:
    async def body(running: Site) -> None:
        for page in ("/", "/metrics", "/nowhere"):
            answer = await running.ask(page, method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")

    run(tmp_path, body)


def test_head_is_get_without_the_body(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT))
        for page in ("/", "/metrics", "/healthz", "/reports/"):
            head, get = await running.ask(page, "HEAD"), await running.ask(page)
            assert head.status == 200
            assert head.body == b""
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))

    run(tmp_path, body)


def test_every_answer_is_locked_down(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        (running.folder / "reports").mkdir()
        (running.folder / "reports" / "weekly.html").write_text("<style>p { color: red }</style><p>x")
        pages = ("/", "/metrics", "/healthz", "/reports/", "/reports/weekly.html", "/reports/none.html", "/nowhere")
        for page in pages:
            headers = (await running.ask(page)).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
            assert "script-src" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["connection"] == "close"
            assert headers["server"] == "upkeep"
            assert not [name for name in headers if name.startswith("access-control")]

    run(tmp_path, body)


def test_a_page_may_use_its_own_style_and_no_other(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        answer = await running.ask("/")
        [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
        assert " style=" not in answer.text

    run(tmp_path, body)


def test_garbage_is_turned_away_and_the_next_one_answered(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        for garbage in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            assert b" 200 " not in (await running.raw(garbage)).split(b"\r\n")[0]
        long = b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert parsed(await running.raw(long)).status == 400
        assert (await running.ask("/healthz")).status == 200

    run(tmp_path, body)


def test_silent_connections_use_up_neither_descriptors_nor_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LONGEST_CONNECTION_S", 0.3)

    async def body(running: Site) -> None:
        before = len(os.listdir("/proc/self/fd"))
        many = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(serving.MOST_CONNECTIONS + 20)]
        try:
            turned_away = [reader for reader, _ in many[serving.MOST_CONNECTIONS :]]
            assert await asyncio.gather(*(reader.read() for reader in turned_away)) == [b""] * 20
            held = len(os.listdir("/proc/self/fd")) - before - len(many)
            assert held < serving.MOST_CONNECTIONS + 10
            for reader, _ in many[: serving.MOST_CONNECTIONS]:  # their time is up
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 5) == b""
            assert (await running.ask("/healthz")).status == 200
        finally:
            for _, writer in many:
                await hung_up(writer)

    run(tmp_path, body)


def test_it_stops_at_once_with_a_connection_open_and_can_serve_again(tmp_path: Path) -> None:
    async def main() -> None:
        with bind("127.0.0.1:0") as bound:
            async with site(tmp_path) as running:
                facts = _facts(running)
                for _ in range(2):
                    task = asyncio.create_task(serving.serve(bound, facts))
                    running.port = bound.getsockname()[1]
                    assert (await running.ask("/healthz")).text == "ok\n"
                    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    began = time.monotonic()
                    task.cancel()
                    await asyncio.wait([task])
                    assert time.monotonic() - began < 1.5
                    assert task.cancelled()
                    await hung_up(writer)

    asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _facts(running: Site) -> serving.Facts:
    return serving.Facts(
        state_dir=running.folder, recent=running.store.metrics.recent, clock=ManualClock(wall=AT),
        zone=UTC, mode=Mode.ACT, alerts=list, paused=lambda: False, stuck=list,
    )  # fmt: skip


# -- pages -----------------------------------------------------------------------------------------------------------


def test_metrics_are_what_the_last_ticks_gave_and_nothing_older(tmp_path: Path) -> None:
    clock = ManualClock(wall=AT)
    load, gone, slow, old = map(Series, ("node_load1", "node_load5", "directory_files", "node_forks_total"))

    async def body(running: Site) -> None:
        append = running.store.metrics.append
        await append([reading(AT - 301, {old: 9.0})])
        await append([reading(AT - 200, {slow: 8.0})])
        await append([reading(AT - 10, {load: 1.0, gone: 2.0})])
        await append([reading(AT - 5, {load: 3.5, gone: STALE})])
        answer = await running.ask("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
        assert samples == ["directory_files 8.0", "node_load1 3.5"]
        asked = await running.ask("/metrics", Accept="application/openmetrics-text;version=1.0.0")
        assert asked.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert asked.text.endswith("# EOF\n")
        clock.advance(400)
        assert (await running.ask("/metrics")).body == b""

    run(tmp_path, body, clock)


def test_a_series_whose_source_changed_its_layout_is_there_once(tmp_path: Path) -> None:
    one, other = Series("node_load1"), Series("node_disk_io_now", make_labels(device="sda"))

    async def body(running: Site) -> None:
        await running.store.metrics.append([reading(AT - 10, {one: 1.0})])
        await running.store.metrics.append([reading(AT - 5, {other: 4.0, one: 2.0})])
        text = (await running.ask("/metrics")).text
        assert re.findall(r"^node_load1 .*", text, re.M) == ["node_load1 2.0"]
        assert text.count("# TYPE node_load1 ") == 1

    run(tmp_path, body, ManualClock(wall=AT))


def test_healthz_names_what_is_stuck(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        assert (await running.ask("/healthz")).text == "ok\n"
        running.stuck = ["engine", "sampler"]
        answer = await running.ask("/healthz")
        assert (answer.status, answer.text) == (503, "stuck: engine, sampler\n")

    run(tmp_path, body)


def test_reports_are_served_by_listed_names_only(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        folder = running.folder / "reports"
        folder.mkdir()
        (running.folder / "secret.txt").write_text("secret")
        (folder / "weekly-2026-11-22.html").write_text("<!doctype html><style>b{}</style><p>ours")
        (folder / "weekly 100% & more.txt").write_text("spaced")
        (folder / ".weekly.html.tmp").write_text("secret")
        (folder / "key.pem").write_text("secret")
        (folder / "link.txt").symlink_to(running.folder / "secret.txt")
        (folder / "folder.txt").mkdir()
        os.mkfifo(folder / "fifo.txt")
        listing = (await running.ask("/reports/")).text
        listed = set(re.findall(r'href="/reports/([^"]+)"', listing))
        assert listed == {"weekly%20100%25%20%26%20more.txt", "weekly-2026-11-22.html"}
        page = await running.ask("/reports/weekly-2026-11-22.html")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (await running.ask("/reports/weekly%20100%25%20%26%20more.txt")).text == "spaced"
        for name in (
            "..", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "....//secret.txt",
            "weekly-2026-11-22.html%00.txt", "weekly-2026-11-22.html/", ".weekly.html.tmp", "key.pem", "link.txt",
            "folder.txt", "fifo.txt", "%ff.txt", "//etc/passwd", "..\\secret.txt",
        ):  # fmt: skip
            answer = await running.ask(f"/reports/{name}")
            assert answer.status in (400, 404), name
            assert b"secret" not in answer.body, name

    run(tmp_path, body)


def test_a_disk_that_hangs_costs_the_page_its_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "DEADLINE_S", 0.05)
    released = threading.Event()

    def hang(*_: object) -> None:
        released.wait(30)
        raise OSError

    monkeypatch.setattr(serving, "records", hang)
    monkeypatch.setattr(serving, "archived", hang)

    async def body(running: Site) -> None:
        clock = ManualClock(wall=AT)
        await sampled(running, clock)
        try:
            for _ in range(4):  # more than there are threads
                answer = await running.ask("/")
                assert answer.status == 200
                assert "Actions, events and brakes are not shown: the disk does not answer" in answer.text
                assert "File systems, fullest first" in answer.text
            assert (await running.ask("/reports/")).status == 503
            assert (await running.ask("/metrics")).status == 200
        finally:
            released.set()

    run(tmp_path, body)
