"""The ledger's nightly copies: made while it is written, kept only when good, named when they are needed."""

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
from agent.model import Severity
from agent.store import Silence, Store, copies
from agent.store.copies import EVERY_S, KEPT, Copies, copy_ledger, ledger_copies

WithStore = Callable[..., None]
DAY_S = 86400.0


def silence(n: int) -> Silence:
    return Silence(f'alertname="A{n}"', "why", "me", 0.0, 60.0)


def silences(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [text for (text,) in connection.execute("SELECT matchers FROM silence ORDER BY id")]


def test_a_copy_holds_what_was_committed_and_is_as_private(with_store: WithStore, state_dir: Path) -> None:
    async def body(store: Store) -> None:
        await store.ledger.add_silence(silence(1))
        copy = await asyncio.to_thread(copy_ledger, state_dir, 1_700_000_000.0)
        await store.ledger.add_silence(silence(2))
        assert copy.path == state_dir / "copies/ledger-20231114T221320Z.db"
        assert silences(copy.path) == ['alertname="A1"']
        assert (stat.S_IMODE(copy.path.stat().st_mode), copy.bytes) == (0o640, copy.path.stat().st_size)
        assert stat.S_IMODE(copy.path.parent.stat().st_mode) == 0o2750
        with closing(sqlite3.connect(copy.path)) as connection:
            for name in ("application_id", "user_version", "auto_vacuum"):
                assert await store._files[1].read(f"PRAGMA {name}") == connection.execute(f"PRAGMA {name}").fetchall()

    mask = os.umask(0o077)
    try:
        with_store(body)
    finally:
        os.umask(mask)


def test_the_ledger_is_copied_once_a_day_and_seven_are_kept(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        for _ in range(10):
            await store.maintain(clock.wall())
            await store.maintain(clock.wall() + 60)
            clock.advance(EVERY_S)
        assert len(ledger_copies(state_dir)) == KEPT
        ages = [clock.wall() - copy.at for copy in ledger_copies(state_dir)]
        assert ages == [n * DAY_S for n in range(1, KEPT + 1)]
        series, values = store.copies.figures()
        found = {one.metric: value for one, value in zip(series, values, strict=True)}
        assert found == {
            "upkeep_ledger_copy_failures_total": 0,
            "upkeep_ledger_copy_last_success_timestamp_seconds": clock.wall() - DAY_S,
        }

    with_store(body)


def test_a_start_knows_when_the_last_copy_was_made(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await store.maintain(clock.wall())

    for _ in range(3):
        with_store(body)
        clock.advance(3600)
    assert len(ledger_copies(state_dir)) == 1
    clock.step_wall(-10 * DAY_S)  # what lies in the future says nothing of now
    with_store(body)
    assert len(ledger_copies(state_dir)) == 2


def test_a_failure_is_an_event_and_a_figure_and_keeps_what_there_is(
    with_store: WithStore, state_dir: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        await store.maintain(clock.wall())
        clock.advance(EVERY_S)
        monkeypatch.setattr(copies, "free_bytes", lambda folder: 0)
        for _ in range(3):
            await store.maintain(clock.wall())
            clock.advance(60)
        found = await store._files[0].read("SELECT severity, message FROM event WHERE kind = 'ledger_copy_failed'")
        assert found == [(Severity.ERROR.value, f'cannot copy "{state_dir / "ledger.db"}": that takes 4 MiB in "'
                          f'{state_dir / "copies"}"')]  # fmt: skip
        assert store.copies.figures()[1][0] == 1
        assert len(ledger_copies(state_dir)) == 1
        clock.advance(copies.AGAIN_AFTER_S)
        monkeypatch.undo()
        await store.maintain(clock.wall())
        assert len(ledger_copies(state_dir)) == 2

    with_store(body)


def test_a_copy_that_is_not_good_is_not_kept(with_store: WithStore, state_dir: Path) -> None:
    async def body(store: Store) -> None:
        for n in range(2000):
            await store.ledger.add_silence(silence(n))

    with_store(body)
    with (state_dir / "ledger.db").open("r+b") as file:
        file.seek(4096 * 30)
        file.write(os.urandom(4096 * 10))
    with pytest.raises(StoreError, match=r"cannot (copy|use the copy of)"):
        copy_ledger(state_dir, 1_700_000_000.0)
    assert list((state_dir / "copies").iterdir()) == []


def test_a_damaged_ledger_names_its_newest_copy_and_the_command(
    with_store: WithStore, state_dir: Path, clock: ManualClock
) -> None:
    async def body(store: Store) -> None:
        await store.ledger.add_silence(silence(1))
        await store.maintain(clock.wall())

    async def after(store: Store) -> None:
        [notice] = store.notices
        assert notice.message.endswith(
            "its newest good copy is of 2023-11-14 23:00 UTC: stop the agent, then upkeep state restore "
            f"{state_dir}/copies/ledger-20231114T230000Z.db"
        )
        assert await store.ledger.silences(0.0) == []  # never put back unasked

    with_store(body)
    (state_dir / "ledger.db").write_bytes(b"")
    with_store(after)


def test_without_a_copy_that_is_said(with_store: WithStore, state_dir: Path) -> None:
    async def nothing(store: Store) -> None:
        pass

    async def after(store: Store) -> None:
        assert store.notices[0].message.endswith("there is no copy of it")

    with_store(nothing)
    (state_dir / "ledger.db").write_bytes(b"")
    with_store(after)


def test_copies_give_way_to_what_the_store_needs(state_dir: Path) -> None:
    (state_dir / "copies").mkdir(parents=True)
    for day in range(1, 6):
        (state_dir / f"copies/ledger-2023111{day}T000000Z.db").write_bytes(bytes(1000))
    (state_dir / "metrics.db.schema-1").write_bytes(bytes(5000))
    whole = Copies(state_dir, 100_000)
    assert whole.bytes() == 10_000
    now = (state_dir / "metrics.db.schema-1").stat().st_mtime

    async def left(store_bytes: int, at: float) -> list[str]:
        kept = Copies(state_dir, 100_000)
        kept._due = at + 1  # not what this is about
        await kept.maintain(at, store_bytes)
        return sorted(path.name for path in state_dir.rglob("*") if path.is_file())

    assert len(asyncio.run(left(90_000, now))) == 6
    assert len(asyncio.run(left(90_001, now))) == 5  # the file of before first
    assert asyncio.run(left(97_500, now)) == ["ledger-20231114T000000Z.db", "ledger-20231115T000000Z.db"]
    assert asyncio.run(left(10**9, now)) == ["ledger-20231115T000000Z.db"]  # the last one stays
    (state_dir / "metrics.db.schema-1").write_bytes(bytes(5000))
    assert len(asyncio.run(left(0, now + 6 * DAY_S))) == 2
    assert asyncio.run(left(0, now + 8 * DAY_S)) == ["ledger-20231115T000000Z.db"]


def test_a_stop_interrupts_a_copy(with_store: WithStore, state_dir: Path, clock: ManualClock) -> None:
    async def body(store: Store) -> None:
        await store.ledger.add_silence(silence(1))
        task = asyncio.create_task(store.copies.maintain(clock.wall(), 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not list((state_dir / "copies").glob("*.new"))

    with_store(body)
