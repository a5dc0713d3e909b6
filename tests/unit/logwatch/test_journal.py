"""The journal: through the real ``journalctl`` on a real journal file where one can be made, else its JSON replayed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent import journal
from agent.clock import SystemClock
from agent.errors import StoreError
from agent.journal import DAY_S, Entry, Errors, errors_of_the_day, parse_entry
from agent.journalwatch import JournalWatch
from agent.logwatch.patterns import Pattern, compile_patterns
from agent.model import Event, Reading
from tests.support.logs import SHIPPED, Kept

UNIT = "benchmark-framework.service"
AT = 1_790_000_000.0
REMOTE = os.environ.get("UPKEEP_JOURNAL_REMOTE") or next(
    (path for path in ("/lib/systemd/systemd-journal-remote",) if os.path.exists(path)), None
)
BOOT = "0123456789abcdef0123456789abcdef"

REPLAY = """\
import os, sys, time
after = sys.argv[sys.argv.index("--after-cursor") + 1] if "--after-cursor" in sys.argv else ""
skipping = bool(after) or "--lines=0" in sys.argv
for line in open(sys.argv[1]):
    if not skipping:
        print(line, end="", flush=True)
    skipping = skipping and not (after and f'"{after}"' in line)
if "--follow" in sys.argv:
    time.sleep(600)
"""


def entry(number: int, message: object, *, priority: int = 6, unit: str = UNIT, at: float = AT) -> dict[str, object]:
    return {
        "MESSAGE": message, "__CURSOR": f"c{number:06}", "__REALTIME_TIMESTAMP": str(int((at + number) * 1e6)),
        "PRIORITY": str(priority), "_SYSTEMD_UNIT": unit,
    }  # fmt: skip


def replaying(folder: Path, entries: Sequence[Mapping[str, object]]) -> list[str]:
    """A command in journalctl's place, which prints what it would."""
    (folder / "journal.json").write_text("".join(json.dumps(each) + "\n" for each in entries))
    (folder / "replay.py").write_text(REPLAY)
    return [sys.executable, "-IS", str(folder / "replay.py"), str(folder / "journal.json")]


def watch(
    kept: Kept, command: Sequence[str], commit: Any = None, patterns: Sequence[Pattern] = SHIPPED
) -> JournalWatch:
    return JournalWatch(
        [UNIT],
        compile_patterns(patterns),
        commit or kept.commit,
        SystemClock(),
        stored=kept.offsets.get(f"journal:{UNIT}"),
        wake=kept.woken.append,
        follow=partial(journal.follow, command=command),
    )


async def run_until(watching: JournalWatch, kept: Kept, reached: Any) -> None:
    task = asyncio.create_task(watching.run())
    try:
        await kept.until(reached)
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_entries_become_events_and_counters_with_the_cursor(tmp_path: Path) -> None:
    kept = Kept()
    kept.offsets[f"journal:{UNIT}"] = {"cursor": "c000000"}
    text = "ERROR worker 1: evaluation failed\nTraceback\nERROR worker 2: evaluation failed"
    command = replaying(
        tmp_path, [entry(0, "old ERROR evaluation failed"), entry(1, text), entry(2, [255, 65]), entry(3, None)]
    )
    asyncio.run(run_until(watch(kept, command), kept, lambda: len(kept.events) == 2))
    assert kept.messages() == ["ERROR worker 1: evaluation failed", "ERROR worker 2: evaluation failed"]
    assert dict(kept.events[0].labels) == {"pattern": "evaluation_failed", "file": f"journal:{UNIT}"}
    assert kept.events[0].at == AT + 1
    assert kept.counter("log_matches_total", pattern="evaluation_failed") == 2
    assert kept.counter("log_lines_total") == 4
    assert kept.offsets[f"journal:{UNIT}"]["cursor"] == "c000002"
    assert any("log_matches_total" in names for names in kept.woken)


def test_killed_before_or_after_any_commit_each_line_is_recorded_once(tmp_path: Path) -> None:
    command = replaying(tmp_path, [entry(number, f"n={number};") for number in range(40)])
    serial = [Pattern("serial", r"n=(?:\d+);")]
    kept = Kept()
    kept.offsets[f"journal:{UNIT}"] = {"cursor": "c000000"}
    dead: list[str] = []

    for number in range(30):

        async def commit(
            events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, Any]],
            number: int = number,
        ) -> None:  # fmt: skip
            # Odd starts die just before the transaction, even ones just after; the disk refuses now and then.
            if number % 5 == 4 and "refused" not in dead:
                dead.append("refused")
                raise StoreError("cannot write: full")
            if number % 2:
                dead.append("before")
                await asyncio.Event().wait()
            await kept.commit(events[:], readings, json.loads(json.dumps(offsets)))
            dead.append("after")
            await asyncio.Event().wait()

        if len(kept.events) == 39:
            break
        dead.clear()
        asyncio.run(run_until(watch(kept, command, commit, serial), kept, lambda: {"before", "after"} & set(dead)))
    assert kept.messages() == [f"n={number};" for number in range(1, 40)]
    assert kept.counter("log_matches_total", pattern="serial") == 39


def test_the_errors_of_a_day_are_counted_and_the_last_are_kept(tmp_path: Path) -> None:
    entries = [entry(number, f"ERROR {number}") for number in range(30)]
    entries += [entry(30, "fine"), entry(31, "broken", priority=3), entry(32, "ERROR, of no unit", unit="")]
    found = errors_of_the_day(UNIT, AT + 100, most=3, command=replaying(tmp_path, entries))
    assert (found.unit, found.total, found.whole) == (UNIT, 32, True)
    assert [each.text for each in found.last] == ["ERROR 29", "broken", "ERROR, of no unit"]
    slow = [sys.executable, "-ISc", "import time; print('{', flush=True); time.sleep(60)"]
    assert errors_of_the_day(UNIT, AT, command=slow, deadline_s=0.2) == Errors(UNIT, 0, (), whole=False)
    failing = [sys.executable, "-ISc", "raise SystemExit(1)"]
    assert not errors_of_the_day(UNIT, AT, command=failing).whole


def test_what_is_no_entry_is_passed_over() -> None:
    for raw in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"MESSAGE":"x"}',
        b'{"MESSAGE":{},"__CURSOR":"c","__REALTIME_TIMESTAMP":"1"}',
    ):
        assert parse_entry(raw) is None
    odd = b'{"MESSAGE":"x","__CURSOR":"c","__REALTIME_TIMESTAMP":"1000000","_SYSTEMD_UNIT":["a","b"]}'
    assert parse_entry(odd) == Entry("x", 1.0, "c")


@pytest.mark.skipif(shutil.which("journalctl") is None or REMOTE is None, reason="needs systemd-journal-remote")
def test_the_real_journalctl_follows_a_real_journal_and_goes_on_behind_its_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()

    def log(numbers: range) -> None:
        records = []
        for number in numbers:
            unit = UNIT if number % 2 else "other.service"
            records.append(
                f"__REALTIME_TIMESTAMP={int((AT + number) * 1e6)}\n"
                f"__MONOTONIC_TIMESTAMP={number + 1}\n_BOOT_ID={BOOT}\n"
                f"_SYSTEMD_UNIT={unit}\nPRIORITY={3 if number == 1 else 6}\nMESSAGE=n={number}; ERROR\n\n"
            )
        assert REMOTE
        made = [REMOTE, "-o", str(folder / "remote.journal"), "-"]
        subprocess.run(made, input="".join(records).encode(), check=True, capture_output=True)

    log(range(6))
    command = ["journalctl", "-D", str(folder)]
    found = errors_of_the_day(UNIT, AT + 60, command=command)
    assert (found.total, found.whole, [each.text for each in found.last]) == (
        3, True, ["n=1; ERROR", "n=3; ERROR", "n=5; ERROR"],
    )  # fmt: skip
    assert errors_of_the_day(UNIT, AT + 2 * DAY_S, command=command).total == 0
    kept = Kept()
    kept.offsets[f"journal:{UNIT}"] = {"cursor": found.last[0].cursor}
    serial = [Pattern("serial", r"n=(?:\d+);")]
    asyncio.run(run_until(watch(kept, command, patterns=serial), kept, lambda: len(kept.events) == 2))
    log(range(6, 10))
    asyncio.run(run_until(watch(kept, command, patterns=serial), kept, lambda: len(kept.events) == 4))
    assert kept.messages() == ["n=3; ERROR", "n=5; ERROR", "n=7; ERROR", "n=9; ERROR"]
    fresh = Kept()

    async def nothing_old() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await watch(fresh, command, patterns=serial).run()

    asyncio.run(nothing_old())
    assert fresh.events == []
