"""C1, compressed: a ``.gz`` that was made of a file before its end was read is read to its end, and never twice."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.logwatch import tailer as tailing
from agent.logwatch.tailer import DRAIN_DELETED_S, Tailer


def read_all(tailer: Tailer, boot: float) -> list[str]:
    """Every line that can be read now."""
    lines: list[str] = []
    ready = tailer.sweep(boot)
    ready += [tail for tail in tailer.draining() if tail not in ready]
    while ready:
        tail = ready.pop(0)
        block = tailer.read(tail, boot)
        if block is not None:
            lines += bytes(block.data[block.start : block.stop]).decode().splitlines()
            tail.position = block.after
            ready.append(tail)
    return lines


def restarted(tailer: Tailer, log: Path) -> Tailer:
    """The agent of after a ``kill -9``: it knows what was committed."""
    state = {str(log): tailer.entry(str(log))}
    tailer.close()
    return Tailer([f"{log.parent}/*.log"], state, [f"{log.parent}/*.log"])


def pack(path: Path, name: str) -> None:
    (path.parent / name).write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def begun(log: Path, text: str) -> Tailer:
    log.write_text(text)
    made = Tailer([f"{log.parent}/*.log"], known_globs=[f"{log.parent}/*.log"])
    assert read_all(made, 1.0) == text.splitlines()
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(read=st.integers(1, 3000), unread=st.integers(0, 3000), stamp=st.booleans())
def test_the_unread_end_is_read_from_the_archive_once(tmp_path: Path, read: int, unread: int, stamp: bool) -> None:
    log = tmp_path / "app.log"
    tailer = begun(log, "".join(f"line {number}\n" for number in range(read)))
    with log.open("a") as file:
        file.writelines(f"more {number}\n" for number in range(unread))
    tailer.close()
    pack(log, "app_20260101_000000.log.gz" if stamp else "app.log.1.gz")
    log.write_text("new\n")
    again = restarted(tailer, log)
    assert sorted(read_all(again, 2.0)) == sorted([*(f"more {number}" for number in range(unread)), "new"])
    # A new log on the old one's inode cannot be told from one that was truncated while nobody looked.
    assert all("its end is read from its .gz" in notice.message for notice in again.take_notices())
    assert read_all(again, 3.0) == []
    for tail in again.draining():
        assert again.is_drained(tail, 4.0 + DRAIN_DELETED_S)
        again.let_go(tail)
    later = restarted(again, log)
    assert read_all(later, 2.0) == []
    assert later.take_notices() == []
    later.close()
    for path in tmp_path.glob("app*"):
        path.unlink()


def test_killed_half_way_it_goes_on_where_it_was_committed(log: Path) -> None:
    tailer = begun(log, "one\n")
    rest = [f"{number:0100}" for number in range(10_000)]
    with log.open("a") as file:
        file.writelines(f"{line}\n" for line in rest)
    tailer.close()
    pack(log, "app.log.1.gz")
    again = restarted(tailer, log)
    again.sweep(2.0)
    (tail,) = again.draining()
    block = again.read(tail, 2.0)
    assert block is not None
    first = bytes(block.data[block.start : block.stop]).decode().splitlines()
    tail.position = block.after
    last = restarted(again, log)
    assert first + read_all(last, 3.0) == rest
    last.close()


def test_what_a_copytruncate_took_is_read_from_the_archive_of_the_copy(log: Path) -> None:
    tailer = begun(log, "one\n")
    with log.open("a") as file:
        file.write("unread\n")
    (log.parent / "app.log.1.gz").write_bytes(gzip.compress(log.read_bytes()))
    os.truncate(log, 0)
    with log.open("a") as file:
        file.write("new\n")
    lines = read_all(tailer, 2.0)
    assert sorted(lines) == ["new", "unread"]
    assert [notice.kind for notice in tailer.take_notices()] == ["gap"]
    tailer.close()


@pytest.mark.parametrize("broken", ["cut", "noise", "other", "bomb"])
def test_archives_that_are_broken_or_of_another_file_are_a_gap(
    log: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tailer = begun(log, "one\n")
    tailer.close()
    log.unlink()
    whole = gzip.compress(b"one\n" + os.urandom(50_000).hex().encode() + b"\n")
    made = {
        "cut": whole[:12],
        "noise": os.urandom(500),
        "other": gzip.compress(b"two\nthree\n"),
        "bomb": gzip.compress(b"one\n" + b"0" * 20_000_000),
    }[broken]
    (log.parent / "app.log.1.gz").write_bytes(made)
    monkeypatch.setattr(tailing, "MOST_UNPACKED_BYTES", 1_000_000)
    again = restarted(tailer, log)
    lines = read_all(again, 2.0)
    if broken == "bomb":
        assert sum(map(len, lines)) < 1_100_000
    else:
        assert lines == []
        assert [notice.kind for notice in again.take_notices()] == ["gap"]
    again.close()


def test_a_log_that_is_long_still_is_let_go_and_followed_all_the_same(log: Path) -> None:
    tailer = begun(log, "one\n")
    assert len(_open(log)) == 1
    os.utime(log, (time.time() - 4000,) * 2)
    assert read_all(tailer, 2.0) == []
    assert read_all(tailer, 3.0) == []
    assert _open(log) == []
    assert read_all(tailer, 4.0) == []
    assert _open(log) == [], "a sweep must not open it again"
    with log.open("a") as file:
        file.write("two\n")
    assert read_all(tailer, 5.0) == ["two"]
    assert len(_open(log)) == 1
    os.utime(log, (time.time() - 4000,) * 2)
    read_all(tailer, 6.0)
    read_all(tailer, 7.0)
    assert _open(log) == []
    pack(log, "app.log.gz")
    assert read_all(tailer, 8.0) == []
    assert tailer.take_notices() == [], "all of it had been read"
    log.write_text("three\n")
    assert read_all(tailer, 9.0) == ["three"]
    assert tailer.take_notices() == []
    tailer.close()


def _open(path: Path) -> list[str]:
    found = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return [fd for fd in found if os.path.exists(fd) and os.path.realpath(fd) == str(path)]
