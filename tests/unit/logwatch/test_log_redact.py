"""Secrets go, the words around them stay; what is only like one stays too."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logwatch.keep import Keeping, Place, Stored, StoreLines, covers
from agent.logwatch.patterns import Pattern, compile_patterns
from agent.logwatch.redact import REDACTED, redact

SHAPES = [
    "AKIA" + "Z" * 16,
    "AIza" + "b" * 35,
    "ya29." + "c" * 30,
    "hf_" + "d" * 34,
    "sk-" + "e" * 48,
    "sk-proj-" + "f" * 40,
    "sk-ant-api03-" + "g" * 40,
    "ghp_" + "h" * 36,
    "github_pat_" + "i" * 40,
    "glpat-" + "j" * 20,
    "xoxb-" + "1" * 12 + "-" + "k" * 20,
    "nvapi-" + "l" * 40,
    "eyJ" + "m" * 20 + "." + "n" * 30 + "." + "o" * 20,
    "-----BEGIN OPENSSH PRIVATE KEY----- ⏎ pppp ⏎ qqqq",
]
NAMED = [
    "password={}",
    "password: {} ",
    "DB_PASSWORD='{}'",
    '{{"api_key": "{}", "x": 1}}',
    "--token {} --verbose",
    "Authorization: Bearer {}",
    "aws_secret_access_key = {}",
    "postgres://user:{}@db/x",
    "GET /?access_token={}&page=2",
    "Set-Cookie: {}",
]
HARMLESS = [
    "max_tokens=4096 tokens: 512",
    "pass=3 fail=2",
    "tokenizer: bert, config=3, design: new",
    "step 12 of 300, loss=0.25",
    "git@github.com:team/repo",
    "GPU 0000:3b:00.0 fell off the bus",
    "sha256:0123456789abcdef0123456789abcdef",
]


@pytest.mark.parametrize("secret", SHAPES)
def test_a_shape_is_known_without_a_name(secret: str) -> None:
    assert redact(f"ERROR got {secret}") == f"ERROR got {REDACTED}"


@pytest.mark.parametrize("form", NAMED)
@given(secret=st.text("abcdefXYZ0123456789/+._-", min_size=8, max_size=60).filter(lambda text: text[0].isalnum()))
def test_what_a_name_says_is_a_secret_goes_whatever_it_is(form: str, secret: str) -> None:
    if "://" in form:
        secret = secret.replace("/", "%2F")  # RFC 3986: userinfo holds no slash
    shown = redact("ERROR " + form.format(secret))
    assert secret not in shown
    assert REDACTED in shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_addresses_go_on_request() -> None:
    assert redact("to bob.o'x@example.com now") == "to bob.o'x@example.com now"
    assert "example" not in redact("to bob.ox@mail.example.com now", emails=True)


@given(st.text(max_size=300))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


def _event(line: bytes, stored: Stored, regex: str = "ERROR", **more: object):  # type: ignore[no-untyped-def]
    (match,) = compile_patterns([Pattern("p", regex, **more)]).scan(line + b"\n")  # type: ignore[arg-type]
    return stored.event(match, line, stored.groups(match, line), Place("/x.log", 7, 1000.0, 0.0))


def test_a_file_keeps_all_or_all_but_secrets_or_nothing() -> None:
    line = b"ERROR user=ann password=hunter2"
    assert _event(line, Stored(StoreLines.FULL)).message == "ERROR user=ann password=hunter2"
    assert _event(line, Stored()).message == "ERROR user=ann password=[redacted]"
    assert _event(line, Stored(StoreLines.NONE)).message == "(not stored)"


@pytest.mark.parametrize("regex", [r"ERROR.*password=(?P<what>\w+)", r"ERROR.*password=(?P<what>\w+)|é"])
def test_a_captured_secret_is_no_label(regex: str) -> None:
    labels = dict(_event("ERROR é password=hunter2".encode(), Stored(), regex).labels)
    assert labels["what"] == REDACTED


def test_a_colour_within_a_secret_does_not_hide_it() -> None:
    assert "hunter" not in _event(b"ERROR pass\x1b[31mword=hunter2", Stored()).message


@given(pad=st.integers(0, 12_000))
def test_a_secret_that_the_cut_would_halve_is_none_of_it_shown(pad: int) -> None:
    line = b"ERROR " + b"x" * pad + b" hf_" + b"s" * 40
    assert not re.search("hf_|ss", _event(line, Stored()).message)


def test_the_strictest_entry_counts() -> None:
    keeping = Keeping(
        [
            ("/var/log/**/*.log", Stored(StoreLines.FULL)),
            ("/var/log/eval/*.log", Stored(StoreLines.NONE, emails=True)),
        ]
    )
    assert keeping.of("/var/log/eval/a.log") == Stored(StoreLines.NONE, emails=True)
    assert keeping.of("/var/log/b/c/a.log") == Stored(StoreLines.FULL)
    assert keeping.of("/srv/a.log") == Stored(StoreLines.REDACTED)


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("/a/*.log", "/a/x.log", True),
        ("/a/*.log", "/a/b/x.log", False),
        ("/a/**/*.log", "/a/x.log", True),
        ("/a/**/*.log", "/a/b/c/x.log", True),
        ("/a/**", "/a/b/c", True),
        ("/a/?/x.log", "/a/b/x.log", True),
        ("/a/x.log", "/a/x.log.1", False),
    ],
)
def test_a_glob_covers_what_it_finds(glob: str, path: str, expected: bool) -> None:
    assert covers(glob, path) is expected
