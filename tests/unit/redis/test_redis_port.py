"""One contract for both drivers, against real servers; and the guard against all that is none."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agent.config import RedisInstance
from agent.redis import Client, RedisError, client
from agent.redis.full import FullDriver
from agent.redis.plain import PlainDriver
from agent.redis.port import Driver, refusal
from tests.support.redis_servers import Server, certificates, free_port, redis_server, stranger

DEADLINE_S = 1.0
SECRET = "correct horse"

Ask = Callable[[Client], Awaitable[object]]


def driver(kind: str, host: str, port: int, user: str = "") -> Callable[[], Driver]:
    if kind == "asyncio-redis":
        return lambda: PlainDriver(host, port)
    return lambda: FullDriver(
        host, port, user, tls=False, ca_file=None, cert_file=None, key_file=None, deadline_s=DEADLINE_S
    )


def run(asked: Client, *asks: Ask) -> list[object]:
    """What each question gives, an error as itself; nothing may be left behind in the loop."""
    left: list[object] = []

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: left.append(context))
        found: list[object] = []
        for ask in asks:
            try:
                found.append(await ask(asked))
            except RedisError as error:
                found.append(error)
        await asked.close()
        await asyncio.sleep(0.01)
        return found

    found = asyncio.run(main())
    assert not left
    return found


def reason(found: object) -> str:
    assert isinstance(found, RedisError), found
    return found.reason


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    acl = ["--user", "watcher", "on", f">{SECRET}", "+info", "+ping", "--user", "poor", "on", ">poor", "+ping"]
    with redis_server(tmp_path_factory.mktemp("locked"), "--requirepass", SECRET, *acl) as running:
        yield running


@pytest.fixture(params=["asyncio-redis", "redis-py"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def secret(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "password"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)

    return write


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_info_and_ping(kind: str, way: str, server: Server) -> None:
    place = ("127.0.0.1", server.port) if way == "tcp" else (server.socket, 0)
    info, pong = run(Client(driver(kind, *place), DEADLINE_S), Client.info, Client.ping)
    assert isinstance(info, dict)
    assert info["tcp_port"] == str(server.port)
    assert info["redis_version"]
    assert pong is None


def test_the_connection_is_kept_and_asks_for_nothing_but_what_was_asked(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) as fresh:
        asked = Client(driver(kind, "127.0.0.1", fresh.port), DEADLINE_S)
        first, last = run(asked, Client.info, Client.ping, Client.info)[::2]
        assert isinstance(first, dict)
        assert isinstance(last, dict)
        assert first["total_connections_received"] == last["total_connections_received"]
        commands = {line.partition(":")[0] for line in fresh.cli("info", "commandstats").splitlines()[1:] if line}
        assert commands == {"cmdstat_info", "cmdstat_ping"}, "no HELLO, no CLIENT SETINFO, no SELECT"


def test_a_password(kind: str, locked: Server, secret: Callable[[str], str]) -> None:
    make = driver(kind, "127.0.0.1", locked.port)
    (info,) = run(Client(make, DEADLINE_S, secret(SECRET)), Client.info)
    assert isinstance(info, dict)


def test_a_wrong_password_no_password_and_one_too_many(
    kind: str, locked: Server, server: Server, secret: Callable[[str], str]
) -> None:
    make = driver(kind, "127.0.0.1", locked.port)
    wrong = Client(make, DEADLINE_S, secret("wrong"))
    assert [reason(found) for found in run(wrong, Client.info, Client.ping, Client.info)] == ["unauthorized"] * 3
    assert [reason(found) for found in run(Client(make, DEADLINE_S), Client.info)] == ["unauthorized"]
    missing = Client(make, DEADLINE_S, "/nowhere/at/all")
    assert [reason(found) for found in run(missing, Client.info)] == ["unauthorized"]
    needless = Client(driver(kind, "127.0.0.1", server.port), DEADLINE_S, secret("needless"))
    assert [reason(found) for found in run(needless, Client.info)] == ["unauthorized"]


def test_a_changed_password_is_in_force_at_the_next_connection(
    kind: str, tmp_path: Path, secret: Callable[[str], str]
) -> None:
    with redis_server(tmp_path, "--requirepass", "one") as fresh:
        asked = Client(driver(kind, fresh.socket, 0), DEADLINE_S, secret("two"))

        async def change(_: Client) -> None:
            fresh.cli("config", "set", "requirepass", "two", password="one")

        refused, _, info = run(asked, Client.info, change, Client.info)
        assert reason(refused) == "unauthorized"
        assert isinstance(info, dict)


def test_a_server_that_restarts_between_two_questions_is_not_missed(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) as fresh:

        async def restart(_: Client) -> None:
            fresh.stop()
            fresh.start()

        async def stop(_: Client) -> None:
            fresh.stop()

        asked = Client(driver(kind, "127.0.0.1", fresh.port), DEADLINE_S)
        found = run(asked, Client.info, restart, Client.info, stop, Client.info, Client.info)
        assert isinstance(found[2], dict)
        assert [reason(each) for each in found[4:]] == ["unreachable", "unreachable"]


def test_a_server_that_loads_says_so(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--enable-debug-command", "local") as fresh:
        fresh.cli("debug", "populate", "20000")
        fresh.cli("save")
        fresh.stop()
        fresh.start("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        info, ping = run(Client(driver(kind, fresh.socket, 0), DEADLINE_S), Client.info, Client.ping)
        assert isinstance(info, dict)
        assert info["loading"] == "1"
        assert reason(ping) == "loading"


def test_a_server_that_is_full(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxclients", "1") as fresh:
        first = Client(driver(kind, fresh.socket, 0), DEADLINE_S)
        second = Client(driver(kind, fresh.socket, 0), DEADLINE_S)

        async def both(_: Client) -> object:
            for _ in range(100):  # until the server has seen that whoever looked whether it listens is gone
                with contextlib.suppress(RedisError):
                    await first.info()
                    break
            return await second.info()

        (found,) = run(first, both)
        assert reason(found) in ("full", "unreachable"), "the server says it and hangs up at once"


def test_a_command_that_is_renamed_away(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--rename-command", "INFO", "") as fresh:
        info, pong = run(Client(driver(kind, fresh.socket, 0), DEADLINE_S), Client.info, Client.ping)
        assert reason(info) == "refused"
        assert pong is None


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_guard_dead_server(kind: str) -> None:
    asked = Client(driver(kind, "127.0.0.1", free_port()), DEADLINE_S)
    began = time.monotonic()
    assert [reason(found) for found in run(asked, Client.info, Client.ping)] == ["unreachable"] * 2
    assert time.monotonic() - began < DEADLINE_S, "no retries"
    assert [reason(found) for found in run(Client(driver(kind, "/nowhere", 0), DEADLINE_S), Client.info)] == [
        "unreachable"
    ]


def test_guard_hung_server(kind: str, secret: Callable[[str], str]) -> None:
    for password in (None, secret("any")):

        async def main(password: str | None = password) -> None:
            async with stranger() as port:
                asked = Client(driver(kind, "127.0.0.1", port), 0.2, password)
                for ask in (asked.info, asked.ping):
                    began = time.monotonic()
                    with pytest.raises(RedisError) as caught:
                        await ask()
                    assert caught.value.reason == "silent"
                    assert time.monotonic() - began < 0.6
                await asked.close()

        asyncio.run(main())


def test_guard_wrong_password_is_never_followed_by_a_command(kind: str, secret: Callable[[str], str]) -> None:
    """A server that lets strangers read, but whose password is another, is not read from."""

    async def main() -> None:
        async with stranger(b"-WRONGPASS no\r\n", b"$3\r\nabc\r\n") as port:
            asked = Client(driver(kind, "127.0.0.1", port), DEADLINE_S, secret("wrong"))
            with pytest.raises(RedisError) as caught:
                await asked.info()
            assert caught.value.reason == "unauthorized"
            await asked.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n", id="map of HELLO"),
        pytest.param(b">2\r\n$10\r\ninvalidate\r\n*0\r\n", id="push of HELLO"),
        pytest.param(b"=15\r\ntxt:Some string\r\n", id="verbatim text of HELLO"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"$abc\r\n", id="no length"),
        pytest.param(b"$-7\r\n", id="negative length"),
        pytest.param(b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", id="array"),
        pytest.param(b":1\r\n", id="number"),
        pytest.param(b"$-1\r\n", id="nothing"),
        pytest.param(b"$5\r\nhello\r\n", id="other text"),
        pytest.param(b"+OK\r\n", id="status"),
        pytest.param(b"-ERR \xc3\xa4\xff\r\n", id="an error that is no ASCII"),
        pytest.param(b"\x00" * 70_000, id="zeros"),
    ],
)
def test_guard_hello_and_whatever_else_is_not_the_answer(kind: str, answer: bytes) -> None:
    """asyncio-redis stops reading at a type of RESP3 and leaves its callers waiting; here it is an error at once."""
    left: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context))
        async with stranger(answer) as port:
            asked = Client(driver(kind, "127.0.0.1", port), DEADLINE_S)
            began = time.monotonic()
            with pytest.raises(RedisError) as caught:
                await asked.info()
            assert caught.value.reason in ("garbled", "refused", "unreachable"), caught.value
            assert time.monotonic() - began < DEADLINE_S / 2
            await asked.close()
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert not left


def test_guard_cut_after_any_byte(kind: str) -> None:
    whole = b"$25\r\nredis_version:7\r\nrole:abc\r\n"

    async def main() -> None:
        for length in range(len(whole) - 2):  # the last line end says nothing
            async with stranger(whole[:length], then_close=True) as port:
                asked = Client(driver(kind, "127.0.0.1", port), DEADLINE_S)
                with pytest.raises(RedisError) as caught:
                    await asked.info()
                assert caught.value.reason in ("unreachable", "garbled"), length
                await asked.close()

    asyncio.run(main())


def test_guard_an_answer_without_end_is_cut_off() -> None:
    async def main() -> None:
        async with stranger(b"$99999999\r\n" + b"x" * (5 << 20)) as port:
            asked = Client(driver("asyncio-redis", "127.0.0.1", port), 5.0)
            with pytest.raises(RedisError, match="longer than 4 MiB"):
                await asked.info()
            await asked.close()

    asyncio.run(main())


def test_a_late_answer_is_never_taken_for_another_question(kind: str) -> None:
    async def main() -> None:
        async with stranger(b"", b"+PONG\r\n+PONG\r\n") as port:
            asked = Client(driver(kind, "127.0.0.1", port), 0.2)
            for _ in range(2):  # a fresh connection each time: its first question is never answered
                with pytest.raises(RedisError) as caught:
                    await asked.ping()
                assert caught.value.reason == "silent"
            await asked.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NOAUTH Authentication required.", "unauthorized"),
        ("ERR invalid password", "unauthorized"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("ERR max number of clients reached", "full"),
        ("ERR unknown command", "refused"),
    ],
)
def test_what_a_server_calls_an_error(text: str, expected: str) -> None:
    assert refusal(text).reason == expected


# -- TLS, users, and what is loaded ------------------------------------------------------------------------------------


def test_tls_and_who_is_trusted(tmp_path: Path) -> None:
    certificates(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    certificates(other)
    with redis_server(tmp_path, tls=True) as secured:
        own = {"cert_file": str(tmp_path / "client.pem"), "key_file": str(tmp_path / "client.key")}

        def ask(host: str, ca_file: str | None, **more: str) -> object:
            url = f"rediss://{host}:{secured.port}"
            return run(client(RedisInstance(url=url, ca_file=ca_file, timeout=DEADLINE_S, **more)), Client.info)[0]

        authority = str(tmp_path / "ca.pem")
        assert isinstance(ask("127.0.0.1", authority, **own), dict)
        assert isinstance(ask("localhost", authority, **own), dict)
        assert reason(ask("127.0.0.1", str(other / "ca.pem"), **own)) == "untrusted"
        assert reason(ask("127.0.0.1", None, **own)) == "untrusted"
        assert reason(ask("127.0.0.2", authority, **own)) in ("untrusted", "unreachable")
        assert reason(ask("127.0.0.1", authority)) in ("untrusted", "unreachable"), "the server wants a certificate"
        plain = RedisInstance(url=f"redis://127.0.0.1:{secured.port}", timeout=DEADLINE_S)
        assert reason(run(client(plain), Client.info)[0]) in ("unreachable", "garbled")


def test_acl_users(locked: Server, secret: Callable[[str], str]) -> None:
    def ask(user: str, password: str) -> list[object]:
        url = f"redis://{user}@127.0.0.1:{locked.port}"
        instance = RedisInstance(url=url, password_file=secret(password), timeout=DEADLINE_S)
        return run(client(instance), Client.info, Client.ping)

    info, pong = ask("watcher", SECRET)
    assert isinstance(info, dict)
    assert pong is None
    assert reason(ask("watcher", "wrong")[0]) == "unauthorized"
    assert reason(ask("nobody", SECRET)[0]) == "unauthorized"
    denied, pong = ask("poor", "poor")
    assert reason(denied) == "unauthorized"
    assert pong is None


def test_an_acl_user_over_a_unix_socket(locked: Server, secret: Callable[[str], str]) -> None:
    url = f"unix://watcher@{locked.socket}"
    instance = RedisInstance(url=url, password_file=secret(SECRET), timeout=DEADLINE_S)
    assert isinstance(run(client(instance), Client.info)[0], dict)


@pytest.mark.parametrize(
    ("url", "loaded"), [("redis://127.0.0.1:1", "asyncio_redis"), ("rediss://127.0.0.1:1", "redis"), ("", "")]
)
def test_a_driver_is_loaded_where_a_server_needs_it(url: str, loaded: str) -> None:
    program = f"""
import asyncio, sys
from agent.collectors import build
from agent.config import Collect, RedisInstance
url = {url!r}
for source in build(Collect(redis=(RedisInstance(url=url),) if url else ())):
    if source.collector.name.startswith("redis"):
        asyncio.run(source.collector.collect(1.0))
print(*sorted({{"redis", "asyncio_redis"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == loaded
