"""What may stand under `collect` for servers, units and targets, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import config
from agent.errors import FaultyFilesError


def load(tmp_path: Path, collect: str) -> config.Collect:
    path = tmp_path / "upkeep.yaml"
    path.write_text(f"collect:\n  {collect}\n", encoding="utf-8")
    loaded = config.load(str(path), apart=False)
    assert not loaded.warnings
    return loaded.config.collect


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:6379/0", "redis://[::1]", "rediss://redis.example.org:6380", "unix:///run/redis/redis.sock"],
)
def test_addresses_of_redis(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f'redis: [{{url: "{url}"}}]').redis[0].url == url


@pytest.mark.parametrize(
    ("collect", "words"),
    [
        ('redis: [{url: "http://a"}]', 'cannot ask Redis at "http://a"'),
        ('redis: [{url: "unix://run/redis.sock"}]', "unix:///PATH"),
        ('redis: [{url: "redis://a:0"}]', "cannot ask Redis"),
        ('redis: [{url: "redis://a:70000"}]', "cannot ask Redis"),
        ('redis: [{url: "redis://:secret@a"}]', "password_file names a file"),
        ('redis: [{url: "redis://watcher@a"}]', 'a user needs a "password_file"'),
        ('redis: [{url: "redis://a", ca_file: /ca.pem}]', "TLS is rediss://"),
        ('redis: [{url: "rediss://a", cert_file: /c.pem}]', "half of a certificate"),
        ("redis: [{timeout: 0s}]", 'cannot use this "timeout"'),
        ("redis: [{}, {}]", 'repeated Redis "main"'),
        ("services: {units: [--all]}", 'cannot watch the unit "--all"'),
        ('services: {units: ["*"]}', "write its whole name"),
        ('probes: {targets: ["ftp://a"]}', 'cannot probe "ftp://a"'),
        ('probes: {targets: ["tcp://a"]}', "tcp://HOST:PORT"),
        ('probes: {targets: ["dns://a"]}', "dns://SERVER/NAME"),
        ('probes: {targets: ["icmp://a/b"]}', "cannot probe"),
        ('probes: {targets: ["http://u:secret@a/"]}', "cannot probe"),
        ("probes: {timeout: 2m}", 'cannot use this "timeout"'),
    ],
)
def test_what_cannot_be_asked_is_said_and_no_password_shown(tmp_path: Path, collect: str, words: str) -> None:
    with pytest.raises(FaultyFilesError) as caught:
        load(tmp_path, collect)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert ":2:" in str(caught.value)


def test_a_bare_unit_is_a_service(tmp_path: Path) -> None:
    units = load(tmp_path, 'services: {units: [nginx, a@b.timer, "x-\\\\x2d.mount", v1.2]}').services
    assert units is not None
    assert units.units == ("nginx.service", "a@b.timer", "x-\\x2d.mount", "v1.2.service")


def test_targets(tmp_path: Path) -> None:
    wanted = (
        "icmp://8.8.8.8",
        "tcp://[::1]:80",
        "dns:///a.b",
        "dns://9.9.9.9:53/a.b",
        "http://a",
        "https://a:8443/x?y=z",
    )
    probes = load(tmp_path, f"probes: {{targets: {list(wanted)}}}").probes
    assert probes is not None
    assert probes.targets == wanted
