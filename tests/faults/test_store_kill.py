"""A1, F1: kill -9 at any instant of ingest, packing, pruning and migration loses, doubles and breaks nothing.

A writer says what was acknowledged, line by line, and is killed; then the files are looked at.
``UPKEEP_STORE_KILLS`` sets how often in each campaign (40).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from agent.clock import ManualClock, SystemClock
from agent.model import Action, ActionStatus, Event, Reading, Series, Severity
from agent.store import Reader, Retention, Store
from agent.store.database import LEDGER, METRICS
from tests.support.forked import Say, forked

KILLS = int(os.environ.get("UPKEEP_STORE_KILLS", "40"))
ROUNDS_A_FILE = 50
SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(40)))
START, STEP_S = 1_700_000_400, 20
NUMBERS = "SELECT value FROM samples WHERE metric = 'n' ORDER BY time"
MINUTES = "SELECT strftime('%s', time) / 60, count FROM minutes WHERE metric = 'n' ORDER BY time"

pytestmark = pytest.mark.slow


def values(n: int) -> list[float]:
    return [float(n), *(n / (i + 1) for i in range(40))]


def is_whole(state_dir: Path) -> None:
    for name in ("metrics.db", "ledger.db"):
        with closing(sqlite3.connect(f"file:{state_dir / name}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], name
    assert not list(state_dir.glob("*.corrupt-*"))


def test_ingest(tmp_path: Path) -> None:
    """Ticks, actions and log lines with their offset, as fast as they go."""

    async def write(state_dir: Path, say: Say) -> None:
        clock = SystemClock()
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        n = int(str((await store.metrics.offsets()).get("/log", {"offset": -1})["offset"])) + 1
        while True:
            await store.metrics.append([Reading(clock.wall(), SERIES, values(n))])
            assert store.metrics.waiting_rows == 0
            say(f"tick {n}")
            await store.ledger.request(
                Action(0, "job", "", (), float(n), 0, 0, "clean_logs", {}, "r", ActionStatus.REQUESTED)
            )
            say(f"action {n}")
            event = Event("log_match", Severity.ERROR, f"line {n}", "logs", clock.wall())
            await store.metrics.commit_log([event], [], {"/log": {"offset": n}})
            say(f"log {n}")
            if n % 20 == 0:
                await store.maintain(clock.wall())
            n += 1

    chance = random.Random(1)
    for turn in range(KILLS):
        if turn % ROUNDS_A_FILE == 0:
            state_dir, acked = tmp_path / f"state-{turn}", {"tick": -1, "action": -1, "log": -1}
        with forked(partial(write, state_dir)) as run:
            first = run.hear()
            time.sleep(chance.uniform(0, 0.05))
            for line in [first, *run.kill()]:
                kind, n = line.split()
                acked[kind] = max(acked[kind], int(n))
        is_whole(state_dir)
        with Reader.open(state_dir) as reader:
            # A tick that was committed and not said is written again by the next run.
            ticks = {int(n) for (n,) in reader.sql(NUMBERS)[1]}
            assert ticks == set(range(len(ticks)))
            assert len(ticks) > acked["tick"]
            actions = [int(n) for (n,) in reader.sql("SELECT fired_at FROM action ORDER BY id")[1]]
            assert actions == list(range(len(actions)))
            assert len(actions) > acked["action"]
            # Events and the offset behind them are one transaction: neither is ever ahead.
            lines = [message for (message,) in reader.sql("SELECT message FROM event ORDER BY id")[1]]
            assert lines == [f"line {n}" for n in range(len(lines))]
            assert len(lines) > acked["log"]
            if lines:
                offset = reader.sql("SELECT json_extract(state, '$.offset') FROM tail")[1]
                assert offset == [(len(lines) - 1,)]


@pytest.mark.parametrize(
    ("limits", "kept_s"),
    [
        (Retention(hot_s=7200), 10**9),
        (Retention(hot_s=7200, raw_s=3 * 3600, minutes_s=4 * 3600), 3 * 3600),
        (Retention(hot_s=7200, minutes_s=3600, max_size_bytes=2 << 20), 1200),
    ],
    ids=["packing", "pruning_by_age", "pruning_by_size"],
)
def test_maintenance(tmp_path: Path, limits: Retention, kept_s: float) -> None:
    """Rows become chunks, chunks become old; each sample that is young enough is in one place, once."""

    async def write(state_dir: Path, first: int, say: Say) -> None:
        clock = ManualClock(START + STEP_S * float(first))
        store = await Store.open(state_dir, clock=clock, limits=limits)
        n = first
        while True:
            await store.metrics.append([Reading(START + STEP_S * n, SERIES, values(n))])
            assert store.metrics.waiting_rows == 0
            say(n)
            n += 1
            if n % 30 == 0:
                say("begin")
                await store.maintain(START + STEP_S * n)
                assert not store.metrics.fault
                say("end")

    chance, within, pruned = random.Random(2), 0, 0
    for turn in range(KILLS):
        if turn % ROUNDS_A_FILE == 0 and (turn == 0 or kept_s == 10**9):  # what is pruned stays small by itself
            state_dir, next_one = tmp_path / f"state-{turn}", 0
        with forked(partial(write, state_dir, next_one)) as run:
            said = [run.hear()]
            while turn == 0 and kept_s == 1200 and said[-1] != "9000":  # until the size is reached
                said.append(run.hear())
            time.sleep(chance.uniform(0.02, 0.4))
            said += run.kill()
        within += said[-1] == "begin"
        acknowledged = max(int(word) for word in said if word.isdigit())
        is_whole(state_dir)
        with Reader.open(state_dir) as reader:
            found = [int(n) for (n,) in reader.sql(NUMBERS)[1]]
            minutes = reader.sql(MINUTES)[1]
        assert found == list(range(found[0], found[-1] + 1))
        assert found[-1] >= acknowledged
        assert (found[-1] - found[0]) * STEP_S >= min(found[-1] * STEP_S, kept_s) - STEP_S
        pruned += found[0] > 0
        # The first minute of a file begins where its samples do; all others have all of theirs.
        assert all(after == before + 1 for (before, _), (after, _) in pairwise(minutes))
        assert {count for _, count in minutes[1:]} <= {60 // STEP_S}
        next_one = found[-1] + 1
    assert within > KILLS // 5, "most of the kills fell between two maintenances"
    assert (pruned > KILLS // 2) == (kept_s < 10**9)


def old_files(folder: Path) -> None:
    """Both files as the first version left them, with a day of samples and some actions."""
    folder.mkdir(mode=0o750)
    for schema in (METRICS, LEDGER):
        with closing(sqlite3.connect(folder / f"{schema.name}.db")) as file:
            file.executescript(replace(schema, version=1).script())
            if schema is METRICS:
                named = [(i, one.metric, "{}" if i == 0 else f'{{"i":"{i - 1}"}}') for i, one in enumerate(SERIES)]
                file.executemany("INSERT INTO series VALUES (?, ?, ?)", named)
                file.executemany("INSERT INTO slot VALUES (1, ?, ?)", [(i, i) for i in range(len(SERIES))])
                rows = [((START + STEP_S * n) * 1_000_000, repr(values(n))) for n in range(4320)]
                file.executemany("INSERT INTO tick VALUES (?, 1, ?)", rows)
            else:
                file.executemany(
                    "INSERT INTO action (cause, rule, labels, fired_at, step, attempt, handler, params, resource, "
                    "status, reason, requested_at, mode, extra) VALUES "
                    "('job', '', '{}', ?, 0, 0, 'clean_logs', '{}', 'r', 'requested', '', 0, 'act', '{}')",
                    [(n,) for n in range(200)],
                )
            file.commit()


def version_of(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[60:64], "big")


def test_migration(tmp_path: Path) -> None:
    """Files of the first version, opened and killed: they are old or new, and the next start brings them forward."""
    old = tmp_path / "old"
    old_files(old)

    async def opened(state_dir: Path, say: Say) -> None:
        store = await Store.open(state_dir, clock=ManualClock(START + 86_400.0), limits=Retention())
        say("opened")
        await store.close()

    async def finish(state_dir: Path) -> Sequence[Event]:
        store = await Store.open(state_dir, clock=ManualClock(START + 86_400.0), limits=Retention())
        await store.close()
        return store.notices

    def numbered(turn: int) -> Path:
        state_dir = tmp_path / f"state-{turn}"
        shutil.copytree(old, state_dir)
        return state_dir

    state_dir = numbered(-1)
    with forked(partial(opened, state_dir)) as run:
        began = time.monotonic()
        assert run.hear() == "opened"
        takes_s = time.monotonic() - began

    chance, left = random.Random(3), set()
    for turn in range(KILLS):
        state_dir = numbered(turn)
        with forked(partial(opened, state_dir)) as run:
            time.sleep(chance.uniform(0, takes_s))
            run.kill()
        left.add((version_of(state_dir / "metrics.db"), *sorted(path.suffix for path in state_dir.iterdir())))
        notices = asyncio.run(finish(state_dir))
        assert "store_damaged" not in {event.kind for event in notices}
        is_whole(state_dir)
        assert version_of(state_dir / "metrics.db") == METRICS.version
        assert version_of(state_dir / "ledger.db") == LEDGER.version
        with Reader.open(state_dir) as reader:
            assert [int(n) for (n,) in reader.sql(NUMBERS)[1]] == list(range(4320))
            assert reader.sql("SELECT count(*), sum(fired_at) FROM action")[1] == [(200, 19900.0)]
        shutil.rmtree(state_dir)
    assert len(left) >= 3, "the kills found the migration at too few of its steps"
