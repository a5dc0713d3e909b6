"""A full disk under the state directory: sampling goes on, acting stays possible, nothing is corrupt afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.model import Action, ActionStatus, Event, Plan, PlanItem, Reading, Series, Severity
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store, StoreError, StoreFullError

SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(200)))
ACTION = Action(0, "alert", "DiskFull", (), 1.0, 0, 0, "clean_temp", {}, "directory:/tmp", ActionStatus.REQUESTED)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk"),
]


@pytest.fixture(params=[12, 24])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)  # a test that failed may hold files


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


def test_a_full_disk_stops_nothing_and_breaks_nothing(disk: Path) -> None:
    clock = ManualClock()
    state_dir = disk / "state"

    async def tick(store: Store, n: int) -> None:
        clock.advance(1)
        await store.metrics.append([Reading(clock.wall(), SERIES, [float(n), *(n / (i + 3) for i in range(200))])])
        if n % 60 == 0:
            await store.maintain(clock.wall())

    async def main() -> None:
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        for n in range(300):
            await tick(store, n)
        filler = fill(disk)

        for n in range(300, 900):
            await tick(store, n)
        [points] = store.metrics.select([Matcher(NAME, MatchOp.EQUAL, "n")], clock.wall() - 899, clock.wall())
        assert [int(value) for value in points.values] == list(range(900))

        # The disk is full, and the action that is to clean it must be recorded before it may run.
        asked = await store.ledger.request(ACTION)
        assert asked is not None
        await store.ledger.save_action(replace(asked, status=ActionStatus.RUNNING, started_at=clock.wall()))
        await store.ledger.save_action(replace(asked, status=ActionStatus.DONE, finished_at=clock.wall()))

        filler.unlink()
        for n in range(900, 902):
            await tick(store, n)
        assert (store.metrics.fault, store.metrics.waiting_rows) == ("", 0)
        await store.maintain(clock.wall())
        for name in ("metrics", "ledger"):
            assert (state_dir / f"{name}.ballast").stat().st_size == 1 << 20
        await store.close()

    asyncio.run(main())

    for name in ("metrics.db", "ledger.db"):
        with closing(sqlite3.connect(state_dir / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Reader.open(state_dir) as reader:
        kept = [int(value) for (value,) in reader.sql("SELECT value FROM samples WHERE metric = 'n' ORDER BY time")[1]]
        assert kept[-1] == 901
        assert len(kept) == len(set(kept))
        # Old rows may have made room for new ones; among those that are there, none is missing.
        assert kept == list(range(kept[0], 902))
        assert [action.status for action in reader.actions()] == [ActionStatus.DONE]


def test_a_log_commit_on_a_full_disk_is_whole_or_not_at_all(disk: Path) -> None:
    clock = ManualClock()
    state_dir = disk / "state"
    large = [Event("log_match", Severity.ERROR, "x" * 2000, "logs", clock.wall()) for _ in range(500)]

    async def main() -> None:
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        filler = fill(disk)
        refused, n = 0, 0
        for _ in range(20):
            try:
                await store.metrics.commit_log(large, [], {"/log": {"offset": n + 1}})
            except StoreFullError:
                refused += 1
            else:
                n += 1
        assert refused
        assert (await store.metrics.offsets()).get("/log", {"offset": 0}) == {"offset": n}
        filler.unlink()
        await store.metrics.commit_log(large, [], {"/log": {"offset": n + 1}})
        await store.close()
        with Reader.open(state_dir) as reader:
            assert reader.sql("SELECT count(*) FROM events")[1] == [(500 * (n + 1),)]

    asyncio.run(main())


PHASES = ("ingest", "compaction", "pruning", "roll-up", "tidying", "ledger commit", "items", "log commit")


@pytest.mark.parametrize("phase", PHASES)
def test_a_disk_that_fills_in_a_phase_is_survived(disk: Path, phase: str) -> None:
    """Nothing raises but what says so, and two intervals after space returns all that waited is in the file."""
    clock = ManualClock(1_700_000_400.0)
    state_dir = disk / "state"
    limits = Retention(hot_s=600.0, raw_s=1800.0 if phase == "pruning" else 7 * 86400.0)
    plan = Plan("clean_temp", "directory:/tmp", "x", tuple(PlanItem("unlink", f"f{n}", n) for n in range(300)))

    async def tick(store: Store, step_s: float) -> None:
        clock.advance(step_s)
        at = clock.wall()
        await store.metrics.append([Reading(at, SERIES, [at, *(at / (i + 3) for i in range(200))])])

    async def work(store: Store) -> None:
        if phase == "ledger commit":
            asked = await store.ledger.request(replace(ACTION, fired_at=clock.wall()))
            assert asked is not None, "the ballast makes room for the intent"
        elif phase == "log commit":
            large = [Event("log_match", Severity.ERROR, "x" * 2000, "logs", clock.wall()) for _ in range(300)]
            with contextlib.suppress(StoreFullError):
                await store.metrics.commit_log(large, [], {"/log": {"offset": round(clock.wall())}})
        elif phase == "tidying":
            with contextlib.suppress(StoreFullError):
                await store.metrics.tidy()
        if phase != "ingest":
            if phase in ("compaction", "pruning", "items"):
                clock.advance(4 * 86400.0 if phase == "items" else 2400.0)
            await store.maintain(clock.wall())

    async def main() -> None:
        store = await Store.open(state_dir, clock=clock, limits=limits)
        asked = await store.ledger.request(replace(ACTION, requested_at=clock.wall()))
        assert asked is not None
        await store.ledger.save_action(replace(asked, status=ActionStatus.DONE, plan=plan, finished_at=clock.wall()))
        for n in range(240):
            await tick(store, 5.0)
            if n % 12 == 0:
                await store.maintain(clock.wall())
        filler = fill(disk)
        for _ in range(3):
            await work(store)
            for _ in range(20):
                await tick(store, 5.0)
        [points] = store.metrics.select([Matcher(NAME, MatchOp.EQUAL, "n")], clock.wall() - 99, clock.wall())
        assert len(points.times) == 20
        filler.unlink()
        for _ in range(2):
            await tick(store, 5.0)
        assert (store.metrics.fault, store.metrics.waiting_rows, store.metrics.dropped_rows) == ("", 0, 0)
        await store.maintain(clock.wall())
        await store.metrics.tidy()
        await store.close()

    asyncio.run(main())
    for name in ("metrics.db", "ledger.db"):
        with closing(sqlite3.connect(state_dir / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Reader.open(state_dir) as reader:
        kept = [
            float(value) for (value,) in reader.sql("SELECT value FROM samples WHERE metric = 'n' ORDER BY time")[1]
        ]
        assert kept == sorted(set(kept))
        assert kept[-1] == clock.wall()
        done = next(action for action in reader.actions() if action.fired_at == ACTION.fired_at)
        assert done.plan == plan


def test_an_agent_starts_on_a_full_disk(disk: Path) -> None:
    clock = ManualClock()

    async def main(resource: str) -> None:
        store = await Store.open(disk / "state", clock=clock, limits=Retention())
        asked = await store.ledger.request(replace(ACTION, resource=resource, fired_at=clock.wall()))
        assert asked is not None
        await store.close()

    asyncio.run(main("before"))
    clock.advance(1)
    filler = fill(disk)
    asyncio.run(main("full"))
    filler.unlink()


def test_a_file_that_cannot_be_brought_forward_on_a_full_disk_is_left_as_it_is(disk: Path) -> None:
    clock = ManualClock()
    state_dir = disk / "state"

    async def open_and_close() -> None:
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        assert store.notices == []
        await store.close()

    asyncio.run(open_and_close())
    with closing(sqlite3.connect(state_dir / "ledger.db")) as old:
        old.execute("PRAGMA user_version = 1")
    before = (state_dir / "ledger.db").read_bytes()
    filler = fill(disk)
    with pytest.raises(StoreError, match="MiB are free; it was left as it is"):
        asyncio.run(open_and_close())
    assert (state_dir / "ledger.db").read_bytes() == before
    filler.unlink()
