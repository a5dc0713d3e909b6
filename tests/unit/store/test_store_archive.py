"""Saved state: what is in an archive, what is refused of one, and how a ledger is put back."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.model import Action, ActionStatus, Mode, done_by_person
from agent.store import Silence, Store, archive
from agent.store.archive import LEDGER_NAME, MANIFEST, extract, read_manifest, restore, save, unpack
from agent.store.copies import copy_ledger

WithStore = Callable[..., None]
AT = 1_700_002_800.0
OPEN = Action(
    id=0, cause="person root", rule="", labels=(), fired_at=1.0, step=0, attempt=1, handler="clean_cache", params={},
    resource="x", status=ActionStatus.REQUESTED, requested_at=1.0, mode=Mode.ACT,
)  # fmt: skip


def remember(with_store: WithStore, text: str) -> None:
    async def body(store: Store) -> None:
        await store.ledger.add_silence(Silence(text, "why", "me", 0.0, 60.0))
        await store.ledger.commit_alerts([], [OPEN])

    with_store(body)


def remembered(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [text for (text,) in connection.execute("SELECT matchers FROM silence ORDER BY id")]


@pytest.fixture
def saved(with_store: WithStore, state_dir: Path, tmp_path: Path) -> Path:
    remember(with_store, "saved")
    rules = tmp_path / "site.yaml"
    rules.write_text("groups: []\n")
    target = tmp_path / "state.tar.gz"
    save(target, state_dir, "/etc/upkeep/upkeep.yaml", {"configuration/rules.d/site.yaml": rules}, AT)
    return target


def nothing() -> None:
    pass


def test_an_archive_is_private_and_names_what_it_holds(saved: Path, state_dir: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    with saved.open("rb") as file:
        manifest = read_manifest(file, "it")
        ledger, rules = io.BytesIO(), io.BytesIO()
        assert extract(file, "it", {LEDGER_NAME: ledger, "configuration/rules.d/site.yaml": rules}) == manifest
    assert rules.getvalue() == b"groups: []\n"
    assert [member.name for member in manifest.files] == [LEDGER_NAME, "configuration/rules.d/site.yaml"]
    assert manifest.files[0].bytes == len(ledger.getvalue())
    assert (manifest.saved_at, manifest.config) == (AT, "/etc/upkeep/upkeep.yaml")
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(StoreError, match=r'cannot save to ".*state\.tar\.gz": it exists'):
        save(saved, state_dir, "", {}, AT)


def test_it_is_saved_while_an_agent_writes(with_store: WithStore, state_dir: Path, tmp_path: Path) -> None:
    async def body(store: Store) -> None:
        await store.ledger.add_silence(Silence("in the log only", "why", "me", 0.0, 60.0))
        save(tmp_path / "s", state_dir, "", {}, AT)

    with_store(body)
    with (tmp_path / "s").open("rb") as file, (tmp_path / "l").open("wb") as ledger:
        extract(file, "it", {LEDGER_NAME: ledger})
    assert remembered(tmp_path / "l") == ["in the log only"]


def test_a_ledger_is_restored_and_the_old_one_set_aside(with_store: WithStore, saved: Path, state_dir: Path) -> None:
    remember(with_store, "since")
    order: list[str] = []
    with saved.open("rb") as file:
        looked = restore(file, "it", state_dir, "ann", AT, observe=None)
        assert (looked.actions, looked.alerts, looked.replaces) == (1, 0, state_dir / "ledger.db")
        assert remembered(state_dir / "ledger.db") == ["saved", "since"]
        done = restore(file, "it", state_dir, "ann", AT, observe=lambda: order.append("observe"))
    assert order == ["observe"]
    assert remembered(state_dir / "ledger.db") == ["saved"]
    assert done.replaces == state_dir / "ledger.db.before-20231114T230000Z"
    assert remembered(done.replaces) == ["saved", "since"]
    assert stat.S_IMODE((state_dir / "ledger.db").stat().st_mode) == 0o640
    assert not list(state_dir.glob("*restoring*"))

    async def after(store: Store) -> None:
        assert store.notices == []
        assert await store.ledger.open_actions() == []  # nobody waits for them any more
        rows = await store._files[1].read("SELECT handler, cause, status, reason FROM action ORDER BY id")
        assert rows == [
            ("clean_cache", "person root", "interrupted", "ledger_restored"),
            ("state_restore", "person ann", "done", ""),
        ]

    with_store(after)


def test_a_nightly_copy_is_restored_as_it_is(with_store: WithStore, state_dir: Path) -> None:
    remember(with_store, "copied")
    copy = copy_ledger(state_dir, AT)
    remember(with_store, "since")
    (state_dir / "ledger.db").write_bytes(b"damaged")
    (state_dir / "ledger.db-wal").write_bytes(b"the log of the damaged one")
    with copy.path.open("rb") as file:
        restore(file, str(copy.path), state_dir, "ann", AT, observe=nothing)
    assert remembered(state_dir / "ledger.db") == ["copied"]
    assert (state_dir / "ledger.db.before-20231114T230000Z-wal").read_bytes() == b"the log of the damaged one"
    assert remembered(copy.path) == ["copied"]


def test_a_host_that_never_had_a_ledger_gets_one(saved: Path, tmp_path: Path) -> None:
    with saved.open("rb") as file:
        assert restore(file, "it", tmp_path / "new", "ann", AT, observe=nothing).replaces is None
    assert remembered(tmp_path / "new/ledger.db") == ["saved"]


def rewritten(saved: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The archive with other content, its manifest untouched unless the change touches it."""
    with tarfile.open(saved) as old:
        content = {entry.name: old.extractfile(entry).read() for entry in old}  # type: ignore[union-attr]
    change(content)
    target = saved.with_name("changed.tar.gz")
    with tarfile.open(target, "w:gz") as new:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    return target


def name_outside(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(content: dict[str, bytes]) -> None:
        facts = json.loads(content[MANIFEST])
        facts["files"][1]["name"] = name
        content[MANIFEST] = json.dumps(facts).encode()
        content[name] = content.pop("configuration/rules.d/site.yaml")

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update({LEDGER_NAME: c[LEDGER_NAME][:-1] + b"x"}), '"ledger.db" is not what was saved'),
        (lambda c: c.update({LEDGER_NAME: c[LEDGER_NAME] + b"x"}), '"ledger.db" is not what was saved'),
        (lambda c: c.pop("configuration/rules.d/site.yaml"), '"configuration/rules.d/site.yaml" is missing'),
        (lambda c: c.update({"more": b""}), 'it holds "more", which its manifest does not name'),
        (lambda c: c.pop(MANIFEST), "it does not begin with a manifest"),
        (lambda c: c.update({MANIFEST: b"{}"}), "its manifest cannot be read"),
        (lambda c: c.update({MANIFEST: c[MANIFEST].replace(b'"format": 1', b'"format": 2')}), "another version"),
        (name_outside("configuration/../../etc/cron.d/x"), "lies outside"),
        (name_outside("configuration//etc/x"), "lies outside"),
        (name_outside("configuration/./x"), "lies outside"),
        (name_outside("configuration/x/.."), "lies outside"),
        (name_outside("/etc/passwd"), "lies outside"),
        (name_outside("metrics.db"), "lies outside"),
    ],
)
def test_an_archive_that_is_not_what_was_saved_is_refused(
    saved: Path, state_dir: Path, change: Callable[[dict[str, bytes]], object], why: str
) -> None:
    before = sorted((path.name, path.stat().st_size) for path in state_dir.iterdir())
    with rewritten(saved, change).open("rb") as file, pytest.raises(StoreError, match=f"cannot use .it.: .*{why}"):
        restore(file, "it", state_dir, "ann", AT, observe=lambda: pytest.fail("too early"))
    assert sorted((path.name, path.stat().st_size) for path in state_dir.iterdir()) == before


def test_links_are_no_files(saved: Path, tmp_path: Path) -> None:
    with tarfile.open(saved) as old, tarfile.open(tmp_path / "links", "w:gz") as new:
        for entry in old:
            data = old.extractfile(entry)
            if entry.name == LEDGER_NAME:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            new.addfile(entry, data if entry.isreg() else None)
    with (tmp_path / "links").open("rb") as file, pytest.raises(StoreError, match=r'holds "ledger\.db", which'):
        extract(file, "it", {})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_archive_is_refused(saved: Path, state_dir: Path, share: float) -> None:
    os.truncate(saved, int(saved.stat().st_size * share))
    with saved.open("rb") as file, pytest.raises(StoreError, match="cannot use"):
        restore(file, "it", state_dir, "ann", AT, observe=lambda: pytest.fail("too early"))
    assert remembered(state_dir / "ledger.db") == ["saved"]


def test_a_ledger_of_a_newer_version_is_refused(with_store: WithStore, state_dir: Path) -> None:
    remember(with_store, "copied")
    copy = copy_ledger(state_dir, AT).path
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with copy.open("rb") as file, pytest.raises(StoreError, match=r'cannot open "it": .*newer version'):
        restore(file, "it", state_dir, "ann", AT, observe=lambda: pytest.fail("too early"))


def test_what_is_unpacked_is_whole_or_not_there(saved: Path, tmp_path: Path) -> None:
    paths = {"configuration/rules.d/site.yaml": tmp_path / "etc/rules.d/site.yaml"}
    bad = rewritten(saved, lambda c: c.update({"configuration/rules.d/site.yaml": b"groups: {}\n"}))
    with bad.open("rb") as file, pytest.raises(StoreError, match="is not what was saved"):
        unpack(file, "it", paths)
    assert not (tmp_path / "etc/rules.d/site.yaml").exists()
    with saved.open("rb") as file:
        unpack(file, "it", paths)
    assert (tmp_path / "etc/rules.d/site.yaml").read_text() == "groups: []\n"


def test_a_record_of_a_person_reads_back(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        [stored] = await store.ledger.commit_alerts([], [done_by_person("state_accept", "text", "ann", AT)])
        found = await store.ledger.action(stored.id)
        assert found is not None
        assert (found.cause, found.handler, found.status) == ("person ann", "state_accept", ActionStatus.DONE)
        assert found.outcome is not None
        assert found.outcome.text == "text"

    with_store(body)
    assert archive.FORMAT == 1
