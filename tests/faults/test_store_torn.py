"""A2, A3, F2: logs cut at any byte, bits flipped in any file: the store opens, and holds no wrong value.

``UPKEEP_STORE_TORN`` sets how many files are hurt in each campaign (60).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from agent.clock import ManualClock, SystemClock
from agent.errors import StoreError
from agent.model import Action, ActionStatus, Event, Labels, Reading, Series, Severity
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store
from agent.store.series import decode_values
from tests.support.forked import Forked, Say, forked

TORN = int(os.environ.get("UPKEEP_STORE_TORN", "60"))
VARIANTS = 10
"""Hurt copies of one moment."""

SERIES = (Series("n"), *(Series("wide", (("i", str(i)),)) for i in range(20)))
START, STEP_S, DAY = 1_700_000_400, 20, 4 * 3600 // 20

pytestmark = pytest.mark.slow


def values(n: int) -> list[float]:
    return [float(n), *(n / (i + 1) for i in range(20))]


async def write_for_ever(state_dir: Path, say: Say) -> None:
    """Commit n is a tick, then an event with its offset, and beside them an action."""
    clock = SystemClock()
    store = await Store.open(state_dir, clock=clock, limits=Retention())
    n = 0
    while True:
        await store.metrics.append([Reading(clock.wall(), SERIES, values(n))])
        await store.metrics.commit_log(
            [Event("log_match", Severity.ERROR, f"line {n}", "logs", clock.wall())], [], {"/log": {"offset": n}}
        )
        action = Action(0, "job", "", (), float(n), 0, 0, "clean_logs", {}, "r", ActionStatus.REQUESTED)
        await store.ledger.request(action)
        if n % 50 == 0:
            await store.maintain(clock.wall())
        say(n)
        n += 1


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A foreign shell that holds a snapshot: the log is moved into the file in part, and cannot start over."""
    with subprocess.Popen(["sqlite3", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdin
        assert shell.stdout
        time.sleep(random.Random(6).uniform(0, 0.5))
        print("BEGIN; SELECT count(*) FROM tick;", file=shell.stdin, flush=True)
        assert shell.stdout.readline()
        try:
            yield
        finally:
            shell.kill()


def moments(folder: Path, count: int, chance: random.Random) -> Iterator[Path]:
    """Copies of a state directory whose writer stood still between any two instructions."""
    state_dir = folder / "live"

    def copy(run: Forked, name: str) -> Path:
        os.kill(run.pid, signal.SIGSTOP)
        os.waitpid(run.pid, os.WUNTRACED)
        try:
            return Path(shutil.copytree(state_dir, folder / name))
        finally:
            os.kill(run.pid, signal.SIGCONT)

    for number in range(count):
        with forked(lambda say: write_for_ever(state_dir, say)) as run:
            run.hear()
            with reading(state_dir / "metrics.db") if chance.random() < 0.5 else nullcontext():
                time.sleep(chance.uniform(0, 1.2))  # about two fillings of the log
                moment = copy(run, f"moment-{number}")
            yield moment
        shutil.rmtree(state_dir)


def cut(path: Path, chance: random.Random) -> str:
    size = path.stat().st_size
    at = chance.randrange(size + 1) if chance.random() < 0.7 else max(0, size - chance.randrange(5000))
    os.truncate(path, at)
    return f"{path.name} cut at {at} of {size}"


def flip(path: Path, chance: random.Random, low: int = 0) -> str:
    at, bit = chance.randrange(low, path.stat().st_size), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 1 << bit,)))
    return f"{path.name} bit {bit} of byte {at}"


def hurt_logs(state_dir: Path, chance: random.Random) -> str:
    done = []
    for name in ("metrics.db", "ledger.db"):
        wal, shm = state_dir / f"{name}-wal", state_dir / f"{name}-shm"
        kind = chance.choice(["cut", "flip", "flip", "shm", "gone", "both"])
        if wal.stat().st_size and kind in ("cut", "both"):
            done.append(cut(wal, chance))
        if wal.stat().st_size and kind == "flip":
            done.append(flip(wal, chance, 0 if chance.random() < 0.8 else max(0, wal.stat().st_size - 5000)))
        if kind in ("shm", "both"):
            done.append(chance.choice([cut, flip])(shm, chance))
        if kind == "gone":
            shm.unlink()
            done.append(f"{shm.name} gone")
    return ", ".join(done)


async def look(state_dir: Path, say: Say) -> None:
    """Open the store as a start of the agent does, and say what it holds."""
    store = await Store.open(state_dir, clock=SystemClock(), limits=Retention())
    try:
        with Reader.open(state_dir) as reader:
            found = {
                "aside": [dict(e.labels)["set_aside"] for e in store.notices if e.kind == "store_damaged"],
                "rows": [decode_values(vals) for (vals,) in reader.sql("SELECT vals FROM tick ORDER BY id")[1]],
                "lines": [text for (text,) in reader.sql("SELECT message FROM event ORDER BY id")[1]],
                "offsets": [n for (n,) in reader.sql("SELECT json_extract(state, '$.offset') FROM tail")[1]],
                "actions": [n for (n,) in reader.sql("SELECT fired_at FROM action ORDER BY id")[1]],
            }
    finally:
        await store.close()
    say(json.dumps(found))


def test_a_hurt_log_leaves_a_prefix(tmp_path: Path) -> None:
    chance, seen = random.Random(4), Counter[str]()
    for moment in moments(tmp_path, max(1, TORN // VARIANTS), chance):
        for _ in range(VARIANTS):
            state_dir = Path(shutil.copytree(moment, tmp_path / "hurt"))
            done = hurt_logs(state_dir, chance)
            with forked(partial(look, state_dir)) as run:
                said = run.hear()
                assert not said.startswith("Traceback"), (done, run.kill())
                assert said, f"{done}: the agent crashed"
            found = json.loads(said)
            aside = [Path(path) for path in found["aside"]]
            assert all(path.exists() for path in aside), done
            assert len(list(state_dir.glob("*.db.corrupt-*"))) >= len(aside)
            ticks = len(found["rows"])
            assert found["rows"] == [values(n) for n in range(ticks)], done
            assert found["lines"] == [f"line {n}" for n in range(len(found["lines"]))], done
            assert found["offsets"] == ([len(found["lines"]) - 1] if found["lines"] else []), done
            assert ticks - len(found["lines"]) in (0, 1), done
            assert found["actions"] == list(range(len(found["actions"]))), done
            for path in aside:
                seen[f"{path.name.partition('.')[0]} set aside"] += 1
            seen["prefix"] += not aside
            shutil.rmtree(state_dir)
        shutil.rmtree(moment)
    print(dict(seen))
    assert seen["prefix"] > TORN // 2


def test_a_log_that_lost_what_the_file_has_is_not_replayed(tmp_path: Path) -> None:
    """Pages of two instants would be mixed: some as the file has them, some as the rest of the log does."""
    state_dir, hurt = tmp_path / "state", tmp_path / "hurt"

    async def write() -> None:
        clock = ManualClock(START)
        store = await Store.open(state_dir, clock=clock, limits=Retention())
        for n in range(60):
            await store.metrics.append([Reading(START + n, SERIES, values(n))])
        with reading(state_dir / "metrics.db"):
            for n in range(60, 120):
                await store.metrics.append([Reading(START + n, SERIES, values(n))])
            await store._files[0].checkpoint()
            shutil.copytree(state_dir, hurt)
        await store.close()

    asyncio.run(write())
    os.truncate(hurt / "metrics.db-wal", 32 + 10 * (24 + 4096))
    with forked(partial(start_and_stop, hurt)) as run:
        [message] = json.loads(run.hear())
    assert "the log beside it lost" in message
    assert list(hurt.glob("metrics.db.corrupt-*-wal"))


async def fill(state_dir: Path) -> None:
    """Four hours, of which two are chunks."""
    clock = ManualClock(START)
    store = await Store.open(state_dir, clock=clock, limits=Retention(hot_s=7200))
    for n in range(DAY):
        at = START + STEP_S * n
        await store.metrics.append([Reading(at, SERIES, values(n))])
        if n % 3 == 0:
            await store.maintain(at)
            await store.metrics.add_events([Event("log_match", Severity.ERROR, f"line {n}", "logs", at)])
    await store.close()


def read_all(state_dir: Path) -> dict[Labels, list[tuple[float, bytes]]]:
    """Every sample, bit by bit."""
    with Reader.open(state_dir) as reader:
        found = [one for name in ("n", "wide") for one in reader.select([Matcher(NAME, MatchOp.EQUAL, name)], 0, 2e9)]
    return {
        one.labels: [(at, struct.pack("<d", v)) for at, v in zip(one.times, one.values, strict=True)] for one in found
    }


async def start_and_stop(state_dir: Path, say: Say) -> None:
    store = await Store.open(state_dir, clock=ManualClock(START + STEP_S * DAY), limits=Retention(hot_s=7200))
    await store.maintain(START + STEP_S * DAY)
    aside = [event.message for event in store.notices if event.kind == "store_damaged"]
    await store.close()
    say(json.dumps(aside))


def test_a_bit_flipped_in_the_file_is_an_error_and_never_a_value(tmp_path: Path) -> None:
    """The agent starts on every one of them; what it cannot vouch for is set aside, or said when it is read."""
    whole = tmp_path / "whole"
    asyncio.run(fill(whole))
    truth = read_all(whole)
    chance, seen = random.Random(5), Counter[str]()
    for _ in range(TORN):
        state_dir = Path(shutil.copytree(whole, tmp_path / "hurt"))
        done = flip(state_dir / "metrics.db", chance)
        try:
            read = "right" if read_all(state_dir) == truth else "misplaced"
        except StoreError:
            read = "error"
        seen[read] += 1
        with forked(partial(start_and_stop, state_dir)) as run:
            said = run.hear()
        if "newer version" in said:
            seen["refused"] += 1
        else:
            assert said.startswith("["), (done, said)
            seen["set aside"] += bool(json.loads(said))
        # A changed key leaves values as they were, at another instant or at none: the order of the keys shows it.
        assert read != "misplaced" or json.loads(said), done
        shutil.rmtree(state_dir)
    print(dict(seen))
    assert seen["right"]
    assert seen["error"]
