"""One HTTP request against a server that fails, hangs, redirects, and one whose certificate nobody knows."""

from __future__ import annotations

import asyncio
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from agent import web
from agent.aside import Aside
from agent.config import Endpoint
from agent.errors import DeliveryError, UpkeepError
from agent.secret import read_secret
from tests.support.receivers import certificate, http_server


def secret(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def failed(endpoint: Endpoint) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        web.ask(endpoint, "POST", body=b"{}")
    return caught.value


@pytest.mark.parametrize(
    ("answer", "refused", "retry_s", "words"),
    [
        (500, False, 0, "answered 500 Internal Server Error"),
        (503, False, 0, "answered 503"),
        ((429, {"Retry-After": "17"}), False, 17, "answered 429"),
        ((503, {"Retry-After": "999999"}), False, 3600, "answered 503"),
        (400, True, 0, "answered 400 Bad Request: ok"),
        (404, True, 0, "answered 404"),
        ((302, {"Location": "http://evil.example/"}), True, 0, "redirects are not followed"),
    ],
)
def test_what_it_answers_decides(answer: object, refused: bool, retry_s: float, words: str) -> None:
    with http_server() as hook:
        hook.answers.append(answer)  # type: ignore[arg-type]
        error = failed(Endpoint(url=hook.url))
        assert len(hook.requests) == 1
    assert (error.refused, error.retry_after_s) == (refused, retry_s)
    assert words in str(error)


def test_retry_after_may_be_a_date() -> None:
    assert web.retry_after_s({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 1_700_000_000.0) == 60.0
    assert web.retry_after_s({"retry-after": "soon"}, 0.0) == 0.0


def test_a_secret_is_sent_and_not_shown(tmp_path: Path) -> None:
    dialogue: list[str] = []
    with http_server() as hook:
        token = Endpoint(url=f"{hook.url}/path?x=1", token_file=secret(tmp_path, "s3cret\n"))
        web.ask(token, "POST", body=b'{"a": 1}', say=dialogue.append)
        hidden = Endpoint(url_file=secret(tmp_path, f"{hook.url}/services/T0/s3cret"))
        web.ask(hidden, "POST", body=b"{}", say=dialogue.append)
        basic = Endpoint(url=hook.url, username="sre", password_file=secret(tmp_path, "s3cret"))
        web.ask(basic, "GET", say=dialogue.append)
    assert [each.headers.get("Authorization") for each in hook.requests] == [
        "Bearer s3cret", None, "Basic c3JlOnMzY3JldA==",
    ]  # fmt: skip
    assert [each.path for each in hook.requests] == ["/path?x=1", "/services/T0/s3cret", "/"]
    assert "s3cret" not in "\n".join(dialogue)
    assert "c3JlOnMzY3JldA" not in "\n".join(dialogue)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("s\n", 0o644, "everybody may read it"), ("", 0o600, "one line of text"), ("a\nb", 0o600, "one line of text")],
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    with pytest.raises(UpkeepError, match=words):
        read_secret(secret(tmp_path, text, mode))


def test_a_bare_name_is_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UpkeepError, match="no credentials"):
        read_secret("smtp")
    secret(tmp_path, "from systemd")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_secret("secret") == "from systemd"


def test_tls_is_verified(tmp_path: Path) -> None:
    known, other = certificate(tmp_path), certificate(tmp_path, "other.example")
    with http_server(known) as hook:
        assert "cannot trust localhost" in str(failed(Endpoint(url=hook.url)))
        web.ask(Endpoint(url=hook.url, ca_file=str(known.certificate)), "POST", body=b"{}")
    with http_server(other) as hook:
        assert "cannot trust localhost" in str(failed(Endpoint(url=hook.url, ca_file=str(other.certificate))))


def test_a_proxy_is_used_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server() as proxy, http_server() as hook:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        web.ask(Endpoint(url=f"{hook.url}/a"), "GET")
        assert (len(proxy.requests), len(hook.requests)) == (0, 1)
        web.ask(Endpoint(url=f"{hook.url}/a", proxy=proxy.url), "GET")
        assert [each.path for each in proxy.requests] == [f"{hook.url}/a"]


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.0)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 100:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)


@pytest.mark.parametrize("worse", [hang, trickle])
def test_what_hangs_is_left_behind_and_costs_one_thread(worse: object) -> None:
    async def story(endpoint: Endpoint) -> None:
        aside = Aside("test")
        began = time.monotonic()
        with pytest.raises(DeliveryError, match=r"no end within 0\.2 s"):
            await aside.run(lambda: web.ask(endpoint, "GET"), 0.2)
        with pytest.raises(DeliveryError, match="hangs still"):
            await aside.run(lambda: web.ask(endpoint, "GET"), 0.2)
        assert time.monotonic() - began < 0.9

    with http_server() as hook:
        hook.answers.append(worse)  # type: ignore[arg-type]
        asyncio.run(story(Endpoint(url=hook.url, timeout=5.0)))
        assert len(hook.requests) == 1
