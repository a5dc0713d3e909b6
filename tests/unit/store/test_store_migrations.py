"""Files of earlier versions: brought forward whole or left as they are, with a copy of what they were."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.errors import StoreError
from agent.model import Event, Reading, Series, Severity
from agent.store import Retention, Store, database
from agent.store.database import LEDGER, METRICS, Schema, connect, copies_before

WithStore = Callable[..., None]
KILLS = int(os.environ.get("UPKEEP_MIGRATION_KILLS", "10"))
ROOT = Path(__file__).parents[3]


def write_first(path: Path, rows: int = 100) -> None:
    """A metrics.db of schema 1, with samples, as a stopped agent leaves it."""
    folder = Path(database.__file__).parent / "schema"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL;"
            f"PRAGMA application_id = {METRICS.application_id}; PRAGMA user_version = 1;"
            + (folder / "metrics.sql").read_text()
            + "CREATE VIEW samples AS SELECT 'as it was' AS time; CREATE VIEW gone AS SELECT 1;"
        )
        connection.execute("BEGIN")
        connection.execute("INSERT INTO series VALUES (1, 'n', '{}')")
        connection.execute("INSERT INTO slot VALUES (1, 0, 1)")
        values = ((1_700_000_000_000_000 + n * 1_000_000, f"[{n}]") for n in range(rows))
        connection.executemany("INSERT INTO tick VALUES (?, 1, ?)", values)
        connection.execute("COMMIT")


def content(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        names = connection.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()
        return [version, names, connection.execute("SELECT id, vals FROM tick ORDER BY id").fetchall()]


@pytest.fixture
def first(state_dir: Path) -> Path:
    state_dir.mkdir(parents=True)
    path = state_dir / "metrics.db"
    write_first(path)
    return path


def test_a_file_of_an_earlier_version_is_brought_forward_and_copied(first: Path, with_store: WithStore) -> None:
    before = content(first)

    async def body(store: Store) -> None:
        [notice] = store.notices
        copy = first.with_name("metrics.db.schema-1")
        assert (notice.kind, notice.severity) == ("store_brought_forward", Severity.INFO)
        assert dict(notice.labels) == {"file": "metrics.db", "copy": str(copy)}
        assert f'from schema 1 to {METRICS.version}; as it was it is "{copy}" for 7 days' in notice.message
        assert content(copy) == before

    with_store(body)
    version, names, ticks = content(first)
    assert version == (METRICS.version,)
    assert ticks == before[2]
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(METRICS.script())
        assert names == fresh.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall()

    async def calm(store: Store) -> None:
        assert store.notices == []

    with_store(calm)


def test_what_a_killed_agent_left_in_the_log_is_copied_and_brought_forward(first: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(sqlite3.connect(first, isolation_level=None)) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("INSERT INTO tick VALUES (9, 1, '[9]')")
        for companion in ("", "-wal", "-shm"):
            shutil.copy(f"{first}{companion}", killed)
    path = killed / "metrics.db"
    connect(path, METRICS).close()
    assert (9, "[9]") in content(path)[2]  # type: ignore[operator]
    assert (9, "[9]") in content(killed / "metrics.db.schema-1")[2]  # type: ignore[operator]


def test_without_room_for_the_copy_the_file_is_left_as_it_is(
    first: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first.read_bytes()
    monkeypatch.setattr(database, "free_bytes", lambda folder: 1 << 20)
    with pytest.raises(StoreError, match=r'cannot bring ".*metrics\.db" from schema 1 .* 1 MiB are free; it was left'):
        asyncio.run(Store.open(first.parent, clock=clock, limits=Retention()))
    assert first.read_bytes() == before
    assert sorted(path.name for path in first.parent.iterdir()) == ["lock", "metrics.db"]


def test_a_migration_that_fails_changes_nothing(first: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(Path(database.__file__).parent / "schema", tmp_path / "schema")
    monkeypatch.setattr(database, "_FOLDER", tmp_path / "schema")
    later = Schema("metrics", METRICS.version + 1, METRICS.application_id, "NORMAL", checked_whole=False)
    (tmp_path / f"schema/metrics_{later.version}.sql").write_text(
        "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1);"
    )
    before = content(first)
    with pytest.raises(database.Damaged, match="it is not laid out as schema 1 is: no such table: nowhere"):
        connect(first, later)
    assert content(first) == before
    (tmp_path / f"schema/metrics_{later.version}.sql").write_text("CREATE TABLE whole (x);")
    connect(first, later).close()
    assert content(first)[0] == (later.version,)


def test_a_disk_that_fills_up_during_a_migration_leaves_the_file(
    first: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(Path(database.__file__).parent / "schema", tmp_path / "schema")
    monkeypatch.setattr(database, "_FOLDER", tmp_path / "schema")
    later = Schema("metrics", METRICS.version + 1, METRICS.application_id, "NORMAL", checked_whole=False)
    (tmp_path / f"schema/metrics_{later.version}.sql").write_text(
        "PRAGMA max_page_count = 20; CREATE TABLE big (x); INSERT INTO big VALUES (zeroblob(1000000));"
    )
    before = content(first)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        connect(first, later)
    assert content(first) == before


def test_a_file_that_is_not_what_it_says_is_set_aside(first: Path, with_store: WithStore) -> None:
    with closing(sqlite3.connect(first)) as connection:
        connection.execute("CREATE TABLE chunk (theirs)")

    async def body(store: Store) -> None:
        assert [notice.kind for notice in store.notices] == ["store_damaged"]
        assert "not laid out as schema 1" in store.notices[0].message

    with_store(body)


def test_a_newer_version_that_is_only_in_the_log_is_refused_and_not_touched(
    with_store: WithStore, state_dir: Path, clock: ManualClock, tmp_path: Path
) -> None:
    async def nothing(store: Store) -> None:
        pass

    with_store(nothing)
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(sqlite3.connect(state_dir / "ledger.db", isolation_level=None)) as newer:
        newer.execute("PRAGMA journal_mode = WAL")
        newer.execute("PRAGMA user_version = 9")
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(state_dir / name, killed)
    before = [(killed / name).read_bytes() for name in ("ledger.db", "ledger.db-wal")]
    with pytest.raises(StoreError, match="newer version \\(schema 9"):
        connect(killed / "ledger.db", LEDGER)
    assert [(killed / name).read_bytes() for name in ("ledger.db", "ledger.db-wal")] == before


def test_a_log_without_its_file_is_set_aside_before_a_new_file_could_take_it(
    with_store: WithStore, state_dir: Path, tmp_path: Path
) -> None:
    async def body(store: Store) -> None:
        await store.metrics.append([Reading(1_700_002_800.0, (Series("n"),), [1.0])])
        shutil.copy(state_dir / "metrics.db-wal", tmp_path / "log")

    with_store(body)
    (state_dir / "metrics.db").unlink()
    shutil.copy(tmp_path / "log", state_dir / "metrics.db-wal")

    async def after(store: Store) -> None:
        [notice] = store.notices
        assert "gone and left its log behind" in notice.message
        assert list(state_dir.glob("metrics.db.corrupt-*-wal"))
        assert not list(state_dir.glob("metrics.db.corrupt-*Z"))
        await store.metrics.add_events([Event("e", Severity.INFO, "m", "s", 0.0)])

    with_store(after)


def link_log(path: Path) -> None:
    os.symlink("/etc/passwd", f"{path}-wal")


def folder_for_log(path: Path) -> None:
    os.mkdir(f"{path}-wal")


def garbage_log(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(random.Random(1).randbytes(100_000))


def zero_first_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(bytes(3996))


def page_size_of_another(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x20\x00")


def link_elsewhere(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere.db")
    path.symlink_to(path.parent.parent / "elsewhere.db")


def one_table_dropped(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE " + ("tick" if path.name == "metrics.db" else "action"))


@pytest.mark.parametrize("name", ["metrics.db", "ledger.db"])
@pytest.mark.parametrize(
    ("damage", "aside"),
    [
        (link_log, True),
        (folder_for_log, True),
        (garbage_log, False),  # no commit of ours is in it
        (zero_first_page, True),
        (page_size_of_another, True),
        (link_elsewhere, True),
    ],
)
def test_attacked_files(
    with_store: WithStore, state_dir: Path, name: str, damage: Callable[[Path], None], aside: bool
) -> None:
    async def write(store: Store) -> None:
        await store.metrics.add_events([Event("kept", Severity.INFO, "m", "s", 0.0)])

    with_store(write)
    passwords = Path("/etc/passwd").read_bytes()
    damage(state_dir / name)

    async def after(store: Store) -> None:
        assert [notice.kind for notice in store.notices] == ["store_damaged"] * aside
        await store.metrics.add_events([Event("after", Severity.INFO, "m", "s", 1.0)])

    with_store(after)
    assert Path("/etc/passwd").read_bytes() == passwords
    with closing(sqlite3.connect(state_dir / "metrics.db")) as connection:
        kinds = [kind for (kind,) in connection.execute("SELECT kind FROM events ORDER BY time")]
    assert kinds == (["after"] if aside and name == "metrics.db" else ["kept", "after"])


def test_random_damage_never_keeps_the_store_from_opening(state_dir: Path, clock: ManualClock) -> None:
    async def open_and_close() -> None:
        await (await Store.open(state_dir, clock=clock, limits=Retention())).close()

    asyncio.run(open_and_close())
    chance, whole = random.Random(7), (state_dir / "ledger.db").read_bytes()
    for _ in range(120):
        mutated = bytearray(whole)
        for _ in range(chance.choice((1, 1, 20))):
            at = chance.choice((chance.randrange(100), chance.randrange(len(mutated))))
            mutated[at] = chance.randrange(256)
        (state_dir / "ledger.db").write_bytes(mutated[: chance.choice((len(mutated), chance.randrange(len(mutated))))])
        try:
            asyncio.run(open_and_close())
        except StoreError as refused:
            if "newer version" not in str(refused):  # the byte that was changed is the version's
                raise
            continue
        with closing(sqlite3.connect(state_dir / "ledger.db")) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (LEDGER.version,)


@pytest.mark.slow
def test_a_killed_migration_is_repeated_cleanly(tmp_path: Path) -> None:
    """Run as a program, this file brings the file forward; it is killed at some instant of that."""
    template = tmp_path / "template.db"
    write_first(template, rows=60_000)
    before, chance = content(template), random.Random(3)
    versions = set()
    for _ in range(KILLS):
        path = tmp_path / "metrics.db"
        shutil.copy(template, path)
        command = [sys.executable, str(Path(__file__)), str(path)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "now\n"
            time.sleep(chance.uniform(0.0, 0.04))
            run.kill()
        for copy in copies_before(path):
            assert content(copy) == before
        with closing(sqlite3.connect(path)) as connection:
            versions.add(connection.execute("PRAGMA user_version").fetchone()[0])
        connect(path, METRICS).close()
        assert content(path)[0] == (METRICS.version,)
        assert content(path)[2] == before[2]
        for made in tmp_path.glob("metrics.db*"):
            made.unlink()
    assert 1 in versions


if __name__ == "__main__":
    print("now", flush=True)
    connect(Path(sys.argv[1]), METRICS).close()
    time.sleep(60)
