"""``upkeep state`` as people type it, with the real agent: save, look, restore, observe, accept."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Host, scratch_host, until, upkeep


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with scratch_host(tmp_path) as made:
        yield made


def test_a_restored_ledger_observes_until_a_person_accepts(host: Host, tmp_path: Path) -> None:
    saved = tmp_path / "state.tar.gz"
    host.start()
    upkeep("silence", "add", 'alertname="X"', "--for", "1h", "--why", "kept", config=host.config)
    said = upkeep("state", "save", str(saved), config=host.config).stdout
    assert "ledger.db" in said
    assert "configuration/upkeep.yaml" in said
    assert "configuration/rules.yaml" in said
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    refused = upkeep("state", "restore", str(saved), "--yes", config=host.config, status=1).stderr
    assert "another agent runs there" in refused
    assert "stop it first: systemctl stop upkeep" in refused
    upkeep("silence", "end", "1", config=host.config)
    host.stop()

    looked = upkeep("state", "restore", str(saved), "--dry-run", config=host.config).stdout
    assert "would become" in looked
    assert not (host.state / "observe").exists()
    assert "add --yes" in upkeep("state", "restore", str(saved), config=host.config, status=1).stderr
    upkeep("state", "restore", str(saved), "--yes", config=host.config)
    assert len(host.json("silence", "list")) == 1

    host.fill()
    host.start()
    [observed] = until(lambda: host.actions(rule="CacheTooLarge", handler="clean_cache"), "the rule to fire")
    assert (observed["status"], observed["reason"]) == ("observed", "observe_mode")
    assert "OBSERVING" in upkeep("status", config=host.config).stdout
    assert host.json("status")["observing"] is True
    assert len(list(host.cache.iterdir())) == 12

    upkeep("state", "accept", config=host.config)
    assert host.json("status")["observing"] is False
    records = [(each["handler"], each["cause"].split()[0]) for each in host.actions(resource="ledger")]
    assert records == [("state_restore", "person"), ("state_accept", "person")]
    for path in host.cache.iterdir():
        path.unlink()
    until(lambda: not [each for each in host.alerts() if each["state"] == "firing"], "the alert to end")
    host.fill()
    until(lambda: host.actions(handler="clean_cache", outcome="fixed"), "the cache to be cleaned")
    again = upkeep("state", "accept", config=host.config, status=1).stderr
    assert "cannot accept the state: it was not restored" in again
    host.stop()


def test_the_configuration_is_written_where_nothing_is(host: Host, tmp_path: Path) -> None:
    upkeep("run", "--once", config=host.config)
    saved, target = tmp_path / "state.tar.gz", tmp_path / "new"
    upkeep("state", "save", str(saved), config=host.config)
    upkeep("state", "restore", str(saved), "--configuration", str(target), "--dry-run")
    assert not target.exists()
    upkeep("state", "restore", str(saved), "--configuration", str(target))
    assert (target / "upkeep.yaml").read_bytes() == host.config.read_bytes()
    assert (target / "rules.yaml").read_bytes() == host.rules.read_bytes()
    upkeep("check", config=target / "upkeep.yaml")
    (target / "rules.yaml").unlink()
    again = upkeep("state", "restore", str(saved), "--configuration", str(target), status=1).stderr
    assert "it exists, and nothing that exists is overwritten" in again
    assert not (target / "rules.yaml").exists()


def test_the_copies_of_the_ledger_are_listed(host: Host) -> None:
    upkeep("run", "--once", config=host.config)
    (host.state / "copies").mkdir()
    (host.state / "copies/ledger-20231114T220000Z.db").write_bytes(bytes(5000))
    [copy] = json.loads(upkeep("state", "list", "--json", config=host.config).stdout)
    assert copy["path"] == str(host.state / "copies/ledger-20231114T220000Z.db")
    assert copy["time"] == "2023-11-14T22:00:00.000Z"
    assert "4.9 KiB" in upkeep("state", "list", config=host.config).stdout


@pytest.mark.parametrize("content", [b"", b"no archive", b"SQLite format 3\0 and no more"])
def test_what_is_no_saved_state_is_refused(host: Host, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    refused = upkeep("state", "restore", str(tmp_path / "x"), "--yes", config=host.config, status=1).stderr
    assert "cannot use" in refused
    assert upkeep("state", "restore", str(tmp_path / "none"), config=host.config, status=1).stderr.startswith(
        "cannot read"
    )
    assert "without a FILE" in upkeep("state", "save", config=host.config, status=1).stderr
