"""What waits on disk: whole or not at all, one of each key, bounded, and never sent twice where that was asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.spool import LEAST_BYTES, REMEMBERED_S, Spool

T0 = 1_700_000_000.0


def spool(folder: Path, *, max_bytes: int = 1 << 20, max_age_s: float = 86400.0) -> Spool:
    return Spool(folder / "spool", max_bytes=max_bytes, max_age_s=max_age_s)


def contents(waiting: Spool) -> list[bytes]:
    return [waiting.read(entry) for entry in waiting.entries()]


def test_the_oldest_comes_first_and_another_process_sees_the_same(tmp_path: Path) -> None:
    one = spool(tmp_path)
    assert one.entries() == []
    for index, key in enumerate("cab"):
        one.put(key, key.encode(), T0 + index)
    assert contents(one) == contents(spool(tmp_path)) == [b"c", b"a", b"b"]


def test_the_same_key_is_one_entry_and_keeps_its_place(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.put("a", b"1", T0)
    waiting.put("b", b"2", T0 + 1)
    waiting.put("a", b"3", T0 + 2, join=lambda older, newer: older + newer)
    assert contents(waiting) == [b"13", b"2"]


def test_what_is_being_sent_is_not_joined_with_what_comes_meanwhile(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.put("a", b"1", T0)
    [sending] = waiting.entries()
    waiting.hold(sending)
    waiting.put("a", b"2", T0, join=lambda older, newer: older + newer)
    assert waiting.read(sending) == b"1"
    waiting.hold(None)
    waiting.done(sending)
    assert contents(waiting) == [b"2"]


def test_a_key_that_is_remembered_is_never_taken_again(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.put("weekly", b"report", T0)
    waiting.done(waiting.entries()[0], remember=True)
    spool(tmp_path).put("weekly", b"report, made again", T0 + 60)
    assert waiting.entries() == []
    [remembered] = (tmp_path / "spool" / "sent").iterdir()
    assert remembered.stat().st_size == 0
    os.utime(remembered, (T0, T0))
    waiting.trim(T0 + REMEMBERED_S + 1)
    assert not remembered.exists()


def test_age_and_size_let_the_oldest_go_and_say_which(tmp_path: Path) -> None:
    waiting = spool(tmp_path, max_bytes=3 * LEAST_BYTES, max_age_s=100.0)
    for index in range(3):
        assert waiting.put(str(index), str(index).encode(), T0 + index) == []
    [gone] = waiting.put("3", b"3", T0 + 3)
    assert gone.put_at == T0
    assert contents(waiting) == [b"1", b"2", b"3"]
    assert [entry.put_at for entry in waiting.trim(T0 + 102)] == [T0 + 1]


def test_what_has_arrived_goes_even_if_it_cannot_be_remembered(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.put("a", b"1", T0)
    (tmp_path / "spool" / "sent").write_text("a file where a folder is wanted")
    with pytest.raises(OSError, match="sent"):
        waiting.done(waiting.entries()[0], remember=True)
    assert waiting.entries() == []


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.put("a", b"1", T0)
    os.mkdir(tmp_path / "spool" / f".{waiting.entries()[0].name}.{os.getpid()}")
    with pytest.raises(OSError, match="directory"):
        waiting.put("a", b"2", T0 + 1)
    assert contents(waiting) == [b"1"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3 * LEAST_BYTES)), max_size=30))
def test_it_never_holds_more_than_it_may_but_for_the_newest(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[str, int]]
) -> None:
    waiting = spool(tmp_path_factory.mktemp("s"), max_bytes=4 * LEAST_BYTES)
    for index, (key, size) in enumerate(puts):
        waiting.put(key, bytes(size), T0 + index)
        held = waiting.entries()
        assert sum(entry.bytes for entry in held) <= 4 * LEAST_BYTES or len(held) == 1
        assert len({entry.digest for entry in held}) == len(held)


KILLED = """
import sys
from pathlib import Path
from agent.spool import Spool
spool = Spool(Path(sys.argv[1]) / "spool", max_bytes=1 << 30, max_age_s=1e9)
index = 0
while True:
    spool.put(f"key {index % 50}", (f"{index} " * 2000).encode(), 1_700_000_000.0 + index)
    print(index, flush=True)
    index += 1
"""


@pytest.mark.parametrize("after", [1, 7, 60])
def test_kill_9_loses_nothing_that_was_taken_and_leaves_nothing_half(tmp_path: Path, after: int) -> None:
    process = subprocess.Popen([sys.executable, "-P", "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    taken = [int(process.stdout.readline()) for _ in range(after)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    taken = max([taken, *map(int, process.stdout.read().split())])
    process.stdout.close()
    newest: dict[int, int] = {}
    for content in contents(spool(tmp_path)):
        words = content.decode().split()
        assert len(words) == 2000
        assert len(set(words)) == 1, "a content of two writings"
        newest[int(words[0]) % 50] = max(int(words[0]), newest.get(int(words[0]) % 50, -1))
    for index in range(taken + 1):
        assert newest[index % 50] >= index
