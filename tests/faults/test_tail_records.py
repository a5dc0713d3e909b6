"""Records of several lines: whatever is appended, read and killed when, each is an event once, and whole.

Hypothesis writes a log in pieces of any size, reads, waits and kills; what was committed must be what a plain reading
of the whole text gives. ``UPKEEP_TAIL_SEQUENCES`` sets how many sequences (150).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.logwatch.patterns import Pattern, compile_patterns
from agent.logwatch.records import Multiline, RecordMode
from agent.logwatch.runner import LogWatch
from agent.model import Event
from tests.support.logs import Kept

SEQUENCES = int(os.environ.get("UPKEEP_TAIL_SEQUENCES", "150"))
MOST_LINES = 5
WAIT_S = 2.0

LINES = ["BEGIN a", " in", " END in", "END", "PLAIN", "BEGIN PLAIN", "2026 head", "tail", ""]
REGEX = {"start": "^(2026|BEGIN)", "end": "END", "continue": "^ ", "until": "^ "}

Record = tuple[str, int, str]


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def boot(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now

    monotonic = boot


class Watched:
    """Every folder is watched."""

    def cover(self, folders: object) -> bool:
        return True


class Driver:
    """The runner's own steps one by one, so that a kill can fall between any two."""

    def __init__(self, log: Path, patterns: Sequence[Pattern]) -> None:
        self.log, self.patterns = log, patterns
        self.kept, self.clock = Kept(), Clock()
        log.touch()
        self.start()
        self.look()
        self.commit()

    def start(self) -> None:
        self.watch = LogWatch(
            [str(self.log)], compile_patterns(self.patterns), self.kept.commit, self.clock,  # type: ignore[arg-type]
            stored={path: _copied(state) for path, state in self.kept.offsets.items()}, events_per_s=1_000_000,
        )  # fmt: skip

    def kill(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.watch._tailer.close()
        self.watch._thread.shutdown()

    def look(self) -> None:
        boot = self.clock.boot()
        self.watch._sweep(Watched(), boot)  # type: ignore[arg-type]
        self.watch._release(boot)
        self.watch._turn(boot)

    def commit(self) -> None:
        asyncio.run(self.watch._commit(self.clock.boot()))

    def settle(self) -> None:
        """Let the time pass that a record waits for its rest."""
        self.look()
        self.clock.now += WAIT_S + 0.1
        self.look()
        self.look()
        self.commit()

    def records(self) -> list[Record]:
        return [_record(event) for event in self.kept.events if event.kind == "log_match"]


def _copied(state: Any) -> Any:
    return json.loads(json.dumps(state))


def _record(event: Event) -> Record:
    labels = dict(event.labels)
    return labels["pattern"], int(labels["line"]), event.message


def expected(
    lines: Sequence[str], ends: Sequence[int], name: str, begins: Callable[[str], bool], mode: str
) -> list[Record]:
    """The records by a plain reading; ``ends`` are the line counts at which the time of every wait had passed."""
    hit = {"start": lambda x: x.startswith(("2026", "BEGIN")), "end": lambda x: "END" in x}.get(
        mode, lambda x: x.startswith(" ")
    )
    found: list[Record] = []
    at = 0
    while at < len(lines):
        first, at = at, at + 1
        if not begins(lines[first]):
            continue
        limit = min(min(end for end in [*ends, len(lines)] if end > first), first + MOST_LINES)
        while not (mode == "end" and hit(lines[at - 1])) and at < limit:
            if (mode == "start" and hit(lines[at])) or (mode == "continue" and not hit(lines[at])):
                break
            at += 1
            if mode == "until" and not hit(lines[at - 1]):
                break
        found.append((name, first + 1, " ⏎ ".join(filter(None, (line.strip() for line in lines[first:at])))))
    return found


def patterns_of(mode: str) -> list[Pattern]:
    return [
        Pattern("one", "BEGIN", multiline=Multiline(RecordMode(mode), REGEX[mode], MOST_LINES, wait_s=WAIT_S)),
        # Its records overlap the others: where one is cut, the other is too.
        Pattern("two", "PLAIN", multiline=Multiline(RecordMode.UNTIL, "^ ", MOST_LINES, wait_s=WAIT_S)),
        Pattern("plain", "PLAIN|END"),
    ]


STEPS = st.one_of(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=8),
    st.sampled_from(["look", "look", "commit", "kill", "settle", "half"]),
)


@pytest.mark.parametrize("mode", list(REGEX))
@settings(max_examples=SEQUENCES, deadline=None)
@given(steps=st.lists(STEPS, max_size=20), newline=st.sampled_from(["\n", "\r\n"]))
def test_each_record_is_an_event_once_and_whole(mode: str, steps: list[Any], newline: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "x.log"
        driver = Driver(log, patterns_of(mode))
        lines: list[str] = []
        ends: list[int] = []
        try:
            for step in [*steps, "settle"]:
                if isinstance(step, list):
                    with log.open("a", newline="") as file:
                        file.write("".join(line + newline for line in step))
                    lines += step
                elif step == "half":
                    with log.open("a", newline="") as file:
                        file.write("BEGIN ")
                        file.flush()
                        driver.look()
                        file.write("a" + newline)
                    lines.append("BEGIN a")
                else:
                    getattr(driver, step)()
                    if step == "settle":
                        ends.append(len(lines))
            wanted = expected(lines, ends, "one", lambda line: "BEGIN" in line, mode)
            wanted += expected(lines, ends, "two", lambda line: "PLAIN" in line, "until")
            wanted += [("plain", n, x.strip()) for n, x in enumerate(lines, 1) if "PLAIN" in x or "END" in x]
            assert sorted(driver.records()) == sorted(wanted)
            counted = Counter(name for name, _, _ in wanted)
            driver.clock.now += 1
            driver.watch._touch(str(log))
            driver.commit()
            for name in ("one", "two", "plain"):
                assert driver.kept.counter("log_matches_total", pattern=name) == counted[name]
            assert driver.kept.counter("log_lines_total") == len(lines)
        finally:
            driver.stop()


def test_an_incomplete_record_is_not_behind_the_offset(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "x.log", patterns_of("until"))
    try:
        driver.log.write_text("tail\nBEGIN a\n in\n")
        driver.look()
        driver.commit()
        assert driver.records() == []
        [[_, _, _, offset, *_]] = driver.kept.offsets[f"log:{driver.log}"]["tails"]
        assert offset == len("tail\n")
        driver.kill()
        with driver.log.open("a") as file:
            file.write("ValueError: x\nrest\n")
        driver.look()
        driver.commit()
        assert driver.records() == [("one", 2, "BEGIN a ⏎ in ⏎ ValueError: x")]
    finally:
        driver.stop()


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("BEGIN\n" + " x\n" * 200_000, 1),
        ("BEGIN PLAIN\n x\n" * 60_000, 60_000),  # "until" takes the line behind, and the next record with it
        ("BEGIN\n x\nPLAIN\n x\n" * 30_000, 60_000),  # each record ends within one of the other pattern
        ("BEGIN\n" + "y" * 200_000, 1),
    ],
)
def test_a_file_full_of_records_is_read_to_its_end(tmp_path: Path, text: str, records: int) -> None:
    """Neither records that lie over each other nor a line beyond the cap hold the reading up."""
    long = Multiline(RecordMode.UNTIL, "^ ", 1000, 64 * 1024, wait_s=WAIT_S)
    driver = Driver(
        tmp_path / "x.log", [Pattern("one", "BEGIN", multiline=long), Pattern("two", "PLAIN", multiline=long)]
    )
    try:
        driver.log.write_text(text)
        for _ in range(10):
            driver.settle()
        assert len(driver.records()) == records
        assert driver.kept.offsets[f"log:{driver.log}"]["tails"][0][3] == len(text)
    finally:
        driver.stop()
