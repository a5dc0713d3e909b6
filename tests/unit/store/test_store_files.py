"""Opening: what is made, refused, set aside; and one agent at a time."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import Event, Severity
from agent.store import Reader, Retention, Store, StoreBusyError

WithStore = Callable[..., None]


async def nothing(store: Store) -> None:
    pass


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_files_are_private_to_the_group(with_store: WithStore, state_dir: Path) -> None:
    async def body(store: Store) -> None:
        await store.metrics.add_events([Event("e", Severity.INFO, "", "", 0.0)])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()}
        assert modes.keys() >= {"metrics.db", "metrics.db-wal", "metrics.db-shm", "ledger.db", "lock"}
        assert set(modes.values()) == {0o640}
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o2750
        assert store.notices == []
        assert store.ledger_lost is False

    mask = os.umask(0o077)
    try:
        with_store(body)
    finally:
        os.umask(mask)


def test_a_clean_stop_leaves_plain_files(with_store: WithStore, state_dir: Path) -> None:
    with_store(nothing)

    assert sorted(path.name for path in state_dir.iterdir()) == [
        "first-start.json",
        "ledger.ballast",
        "ledger.db",
        "lock",
        "metrics.ballast",
        "metrics.db",
    ]
    for name in ("metrics.db", "ledger.db"):
        assert pragma(state_dir / name, "journal_mode") == "delete"
        assert pragma(state_dir / name, "auto_vacuum") == 2
        assert pragma(state_dir / name, "integrity_check") == "ok"


def test_commits_are_synced_as_promised(with_store: WithStore) -> None:
    async def body(store: Store) -> None:
        metrics, ledger = store._files
        assert await metrics.read("PRAGMA synchronous") == [(1,)]
        assert await ledger.read("PRAGMA synchronous") == [(2,)]
        for file in (metrics, ledger):
            assert await file.read("PRAGMA journal_mode") == [("wal",)]

    with_store(body)


def test_a_second_agent_is_told_who_the_first_is(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(StoreBusyError) as busy:
            await Store.open(state_dir, clock=clock, limits=Retention())
        assert str(busy.value) == (
            f'cannot use the state directory "{state_dir}": another agent runs there (pid {os.getpid()})'
        )

    with_store(body)
    with_store(nothing)


def damage_zero(path: Path) -> None:
    path.write_bytes(b"")


def damage_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"not a database, no, not at all")


def damage_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 4))


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("name", ["metrics.db", "ledger.db"])
@pytest.mark.parametrize("damage", [damage_zero, damage_header, damage_middle, damage_cut, foreign, folder, dangling])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    with_store: WithStore, state_dir: Path, clock: ManualClock, name: str, damage: Callable[[Path], None]
) -> None:
    async def body(store: Store) -> None:
        await store.metrics.add_events([Event("e", Severity.INFO, "m", "s", clock.wall())])

    async def after(store: Store) -> None:
        [notice] = store.notices
        aside = state_dir / f"{name}.corrupt-20231114T230000Z"
        assert os.path.lexists(aside)
        assert notice.kind == "store_damaged"
        assert dict(notice.labels) == {"file": name, "set_aside": str(aside)}
        assert f'"{aside}"' in notice.message
        assert store.ledger_lost is (name == "ledger.db")
        assert notice.severity is (Severity.CRITICAL if store.ledger_lost else Severity.ERROR)
        await store.metrics.add_events([notice])
        assert await store.ledger.alerts() == []

    with_store(body)
    damage(state_dir / name)
    with_store(after)

    async def calm(store: Store) -> None:
        assert store.notices == []

    with_store(calm)


def test_two_damaged_files_of_one_second_are_both_kept(with_store: WithStore, state_dir: Path) -> None:
    for _ in range(3):
        with_store(nothing)
        damage_zero(state_dir / "metrics.db")
    with_store(nothing)

    assert len(list(state_dir.glob("metrics.db.corrupt-*"))) == 3


@pytest.mark.parametrize("name", ["metrics.db", "ledger.db"])
def test_a_newer_version_is_refused_and_not_touched(
    with_store: WithStore, state_dir: Path, clock: ManualClock, name: str
) -> None:
    with_store(nothing)
    with closing(sqlite3.connect(state_dir / name)) as connection:
        connection.execute("PRAGMA user_version = 9")
    before = (state_dir / name).read_bytes()

    with pytest.raises(StoreError, match="newer version") as refused:
        asyncio.run(Store.open(state_dir, clock=clock, limits=Retention()))

    assert f'"{state_dir / name}"' in str(refused.value)
    assert (state_dir / name).read_bytes() == before
    assert not list(state_dir.glob("*.corrupt-*"))
    assert not (state_dir / f"{name}-wal").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot use the state directory .*/file/state.*Not a directory"):
        asyncio.run(Store.open(tmp_path / "file" / "state", clock=clock, limits=Retention()))


def test_a_reader_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no metrics\.db"):
        Reader.open(tmp_path)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM tick",
        "INSERT INTO event VALUES (1, 1, '', '', '', '', '')",
        "DROP VIEW samples",
        "ATTACH '/tmp/other.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = OFF",
        "CREATE TEMP TABLE t (x)",
        "VACUUM",
        "BEGIN IMMEDIATE",
    ],
)
def test_a_reader_changes_nothing(with_store: WithStore, state_dir: Path, query: str) -> None:
    with_store(nothing)
    with Reader.open(state_dir) as reader, pytest.raises(StoreError, match="the store is only read here") as refused:
        reader.sql(query)
    assert f'cannot run "{query}"' in str(refused.value)


def test_a_wrong_query_says_why(with_store: WithStore, state_dir: Path) -> None:
    with_store(nothing)
    with Reader.open(state_dir) as reader:
        for query, why in (
            ("SELECT * FROM nowhere", "no such table: nowhere"),
            ("SELEC 1", "syntax error"),
            ("SELECT 1; SELECT 2", "one statement at a time"),
        ):
            with pytest.raises(StoreError, match=why):
                reader.sql(query)
        assert reader.sql("SELECT 1 AS one") == (["one"], [(1,)])
        assert reader.sql("WITH RECURSIVE n(x) AS (SELECT 1 UNION SELECT x + 1 FROM n LIMIT 3) SELECT sum(x) FROM n")
