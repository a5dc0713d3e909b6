"""The rows C1 to C9 of the fault list, on real files. C6 is in test_tail_redos, F6 in test_tail_model."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.logwatch.patterns import Pattern
from agent.logwatch.runner import LogWatch
from agent.logwatch.tailer import DRAIN_DELETED_S, DRAIN_S, LINE_BYTES, Tailer
from tests.support.logs import Kept, watching

ANY_SERIAL = [Pattern("serial", r"n=(?:\d+);")]


def read_all(tailer: Tailer, boot: float) -> list[str]:
    """Every line that can be read now."""
    lines: list[str] = []
    ready = tailer.sweep(boot)
    while ready:
        tail = ready.pop(0)
        block = tailer.read(tail, boot)
        if block is not None:
            lines += bytes(block.data[block.start : block.stop]).decode("utf-8", "replace").splitlines()
            tail.position = block.after
            ready.append(tail)
    return lines


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text("old\n")
    return path


@pytest.fixture
def tailer(log: Path):  # type: ignore[no-untyped-def]
    made = Tailer([str(log.parent / "*.log")], known_globs=[str(log.parent / "*.log")])
    assert read_all(made, 1.0) == ["old"]
    yield made
    made.close()


def test_c1_rename_and_create(log: Path, tailer: Tailer) -> None:
    append(log, "before\n")
    log.rename(log.parent / "app.log.1")
    log.write_text("after\n")
    assert sorted(read_all(tailer, 2.0)) == ["after", "before"]


def test_c1_writer_goes_on_in_the_renamed_file(log: Path, tailer: Tailer) -> None:
    with log.open("a") as writer:
        log.rename(log.parent / "app.log.1")
        log.write_text("")
        for minute in range(5):
            writer.write(f"late {minute}\n")
            writer.flush()
            assert read_all(tailer, 60.0 * minute + 2) == [f"late {minute}"]
            assert not any(tailer.is_drained(tail, 60.0 * minute + 3) for tail in tailer.tails)
    (renamed,) = tailer.draining()
    assert tailer.is_drained(renamed, 242.0 + DRAIN_S)


def test_c1_deleted_and_made_again_on_the_same_inode(log: Path) -> None:
    kept = Tailer([str(log)], known_globs=[str(log)])
    assert read_all(kept, 1.0) == ["old"]
    state = {str(log): kept.entry(str(log))}
    inode = log.stat().st_ino
    kept.close()
    state[str(log)][0][1:3] = [log.stat().st_dev, inode]
    log.write_text("new file, longer than before\n")  # the inode is the same: what ext4 does 1000 times in 1000
    again = Tailer([str(log)], state, [str(log)])
    assert read_all(again, 2.0) == ["new file, longer than before"]
    assert [notice.kind for notice in again.take_notices()] == ["gap"]
    again.close()


def test_c1_a_deleted_file_is_read_to_its_end_and_let_go_soon(log: Path, tailer: Tailer) -> None:
    append(log, "last words\n")
    log.unlink()
    assert read_all(tailer, 2.0) == ["last words"]
    (gone,) = tailer.draining()
    assert not tailer.is_drained(gone, 3.0)
    assert tailer.is_drained(gone, 2.0 + DRAIN_DELETED_S)


def test_c1_copytruncate_loses_nothing_that_the_copy_holds(log: Path, tailer: Tailer) -> None:
    append(log, "unread\n")
    shutil.copyfile(log, log.parent / "app.log.1")
    os.truncate(log, 0)
    append(log, "new\n")
    lines = read_all(tailer, 2.0) + read_all(tailer, 3.0)
    assert sorted(lines) == ["new", "unread"]
    (notice,) = tailer.take_notices()
    assert notice.kind == "gap"
    assert "app.log.1" in notice.message


def test_c1_a_copy_under_a_watched_name_is_not_read_again(log: Path) -> None:
    glob = str(log.parent / "*.log*")
    tailer = Tailer([glob], known_globs=[glob])
    assert read_all(tailer, 1.0) == ["old"]
    shutil.copyfile(log, log.parent / "app.log.1")
    assert read_all(tailer, 2.0) == []
    os.truncate(log, 0)
    append(log, "new\n")
    assert read_all(tailer, 3.0) + read_all(tailer, 4.0) == ["new"]
    tailer.close()


def test_c1_two_files_that_begin_alike_are_both_read(tmp_path: Path) -> None:
    glob = str(tmp_path / "*.log")
    tailer = Tailer([glob], known_globs=[glob])
    (tmp_path / "app.log").write_text("banner\none\n")
    (tmp_path / "app.2.log").write_text("banner\ntwo\n")
    assert sorted(read_all(tailer, 1.0)) == ["banner", "banner", "one", "two"]
    tailer.close()


def test_c1_truncated_and_filled_again_to_the_same_size(log: Path, tailer: Tailer) -> None:
    os.truncate(log, 0)
    append(log, "NEW\n")
    assert read_all(tailer, 2.0) == ["NEW"]
    assert [notice.kind for notice in tailer.take_notices()] == ["gap"]


def test_c1_compressed_rotations_are_not_read(log: Path) -> None:
    glob = str(log.parent / "*.log*")
    tailer = Tailer([glob], known_globs=[glob])
    assert read_all(tailer, 1.0) == ["old"]
    subprocess.run(["gzip", "-k", str(log)], check=True)
    shutil.copyfile(f"{log}.gz", log.parent / "disguised.log")
    assert read_all(tailer, 2.0) == []
    assert [(notice.path, notice.message) for notice in tailer.take_notices()] == [
        (str(log.parent / "disguised.log"), "compressed")
    ]
    tailer.close()


def test_c1_a_renamed_file_is_found_after_a_restart(log: Path, tailer: Tailer) -> None:
    state = {str(log): tailer.entry(str(log))}
    append(log, "written while down\n")
    log.rename(log.parent / "app.log.1")
    log.write_text("new\n")
    glob = str(log.parent / "*.log")
    again = Tailer([glob], state, [glob])
    assert sorted(read_all(again, 2.0)) == ["new", "written while down"]
    assert again.take_notices() == []
    again.close()


def test_c1_a_file_deleted_while_down_is_a_gap(log: Path, tailer: Tailer) -> None:
    state = {str(log): tailer.entry(str(log))}
    log.unlink()
    again = Tailer([str(log)], state, [str(log)])
    assert read_all(again, 2.0) == []
    assert [notice.kind for notice in again.take_notices()] == ["gap"]
    again.close()


def test_c1_logrotate_itself(tmp_path: Path) -> None:
    """Real logrotate, copytruncate and create in turn, under a writer: what is in no file was destroyed by it."""
    log = tmp_path / "app.log"
    log.touch()
    kept = Kept()

    def rotate(words: str) -> None:
        config = tmp_path / "logrotate.conf"
        config.write_text(
            f"{log} {{\n rotate 50\n {words}\n su root root\n}}\n"
            if os.getuid() == 0
            else f"{log} {{\n rotate 50\n {words}\n}}\n"
        )
        config.chmod(0o600)
        tmp_path.chmod(0o755)
        command = ["logrotate", "-f", "-s", str(tmp_path / "state"), str(config)]
        subprocess.run(command, check=True, capture_output=True)

    async def story() -> None:
        serial = 0
        async with watching(str(tmp_path / "*.log"), kept, ANY_SERIAL, events_per_s=1_000_000):
            for turn in range(12):
                for _ in range(40):
                    serial += 1
                    append(log, f"ERROR n={serial};\n")
                    if serial % 10 == 0:
                        await asyncio.sleep(0.002)
                if turn % 2:
                    rotate("create")
                else:
                    await kept.until(lambda: len(kept.messages()) == serial)  # noqa: B023
                    rotate("copytruncate")
                    await kept.until(lambda: kept.counter("log_gaps_total") == turn // 2 + 1)  # noqa: B023
            await kept.until(lambda: len(kept.messages()) >= serial)
        found = sorted(int(message.split("n=")[1].rstrip(";")) for message in kept.messages())
        assert found == list(range(1, serial + 1))

    if shutil.which("logrotate") is None:
        pytest.skip("logrotate is not installed")
    asyncio.run(story())


def test_c2_a_commit_that_fails_is_offered_again_and_nothing_is_doubled(log: Path) -> None:
    kept = Kept()

    async def story() -> None:
        async with watching(str(log), kept):
            kept.failing = True
            for number in range(3):
                append(log, f"ERROR {number} evaluation failed\n")
                await kept.until(lambda: kept.refused > 1)
            kept.failing = False
            await kept.until(lambda: len(kept.messages()) == 3)
            await kept.until(lambda: kept.counter("log_matches_total", pattern="evaluation_failed") == 3)

    asyncio.run(story())
    assert [message[:7] for message in kept.messages()] == ["ERROR 0", "ERROR 1", "ERROR 2"]


def test_c2_counters_and_offsets_survive_a_restart(log: Path) -> None:
    kept = Kept()

    async def story() -> None:
        for number in range(1, 4):
            async with watching(str(log), kept):
                append(log, "ERROR: CUDA out of memory. GPU 7\n")
                await kept.until(lambda: kept.counter("log_matches_total", gpu="7") == number)  # noqa: B023
            append(log, "written while down\n")

    asyncio.run(story())
    assert kept.counter("log_matches_total", gpu="7") == 3
    first = [
        (reading.at, value)
        for reading in kept.readings
        for series, value in zip(reading.series, reading.values, strict=True)
        if dict(series.labels).get("gpu") == "7"
    ]
    assert [value for _, value in first[:2]] == [0.0, 1.0]
    assert first[1][0] - first[0][0] == pytest.approx(0.001, abs=1e-5)


def test_c3_without_inotify_the_sweep_finds_everything(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watchdog.observers import inotify

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(inotify.InotifyObserver, "schedule", full)
    kept = Kept()

    async def story() -> None:
        async with watching(str(log), kept, sweep_s=10.0):
            append(log, "ERROR evaluation failed\n")
            await kept.until(lambda: len(kept.messages()) == 1)

    asyncio.run(story())


def test_c3_a_burst_takes_the_watch_off_and_loses_nothing(log: Path) -> None:
    kept = Kept()

    async def story() -> LogWatch:
        async with watching(str(log), kept, ANY_SERIAL, events_per_s=1_000_000) as watch:
            rested = False
            with log.open("a") as writer:
                for number in range(3000):
                    writer.write(f"n={number};\n")
                    writer.flush()
                    if number % 4 == 0:
                        await asyncio.sleep(0.0005)
                    rested = rested or bool(watch._resting)
            await kept.until(lambda: len(kept.messages()) == 3000)
            assert rested
            await kept.until(lambda: not watch._resting)
            append(log, "n=3000;\n")
            await kept.until(lambda: len(kept.messages()) == 3001)
        return watch

    asyncio.run(story())
    assert [int(message[2:-1]) for message in kept.messages()] == list(range(3001))


def test_c3_a_folder_made_anew_is_watched_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    kept = Kept()

    async def story() -> None:
        async with watching(str(folder / "*.log"), kept, sweep_s=0.2):
            for number in range(1, 4):
                (folder / "app.log").write_text(f"ERROR {number} evaluation failed\n")
                await kept.until(lambda: len(kept.messages()) == number)  # noqa: B023
                shutil.rmtree(folder)
                await asyncio.sleep(0.3)
                folder.mkdir()

    asyncio.run(story())


@pytest.mark.parametrize("made", ["fifo", "socket", "directory", "device"])
def test_c4_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, made: str) -> None:
    path = tmp_path / "x.log"
    server = socket.socket(socket.AF_UNIX)
    if made == "fifo":
        os.mkfifo(path)
    elif made == "socket":
        server.bind(str(path))
    elif made == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    tailer = Tailer([str(tmp_path / "*.log")])
    assert read_all(tailer, 1.0) == []
    assert read_all(tailer, 2.0) == []
    assert len(tailer.take_notices()) == (0 if made == "directory" else 1)
    server.close()


def test_c4_crlf_nul_broken_text_and_escapes(log: Path) -> None:
    kept = Kept()
    hostile = (
        b"ERROR one evaluation failed\r\n"
        b"\0\0\0\0ERROR two evaluation failed\n"
        b"ERROR \xff\xfe evaluation failed \x1b[31mred\x1b[0m \x1b]0;title\x07 \xe2\x80\xaeevil\n"
        b"ERROR four\xe2\x80\xa8 evaluation failed\n"
    )

    async def story() -> None:
        async with watching(str(log), kept):
            append(log, hostile)
            await kept.until(lambda: len(kept.messages()) == 4)

    asyncio.run(story())
    assert kept.messages() == [
        "ERROR one evaluation failed",
        "ERROR two evaluation failed",
        "ERROR \ufffd\ufffd evaluation failed red  evil",
        "ERROR four evaluation failed",
    ]


def test_c4_the_hole_that_a_truncation_leaves_is_skipped(log: Path, tailer: Tailer) -> None:
    with log.open("r+b") as writer:
        writer.seek(3 << 30)
        os.truncate(log, 0)
        writer.write(b"after the hole\n")
        writer.flush()
        assert read_all(tailer, 2.0) == ["after the hole"]


def test_c4_an_unfinished_line_is_counted_once(log: Path, tailer: Tailer) -> None:
    with log.open("a") as writer:
        for part in ("half ", "a line", "\n"):
            assert read_all(tailer, 2.0) == []
            writer.write(part)
            writer.flush()
    assert read_all(tailer, 3.0) == ["half a line"]


def test_c4_a_last_line_without_newline_is_matched_when_it_stays(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.logwatch.runner.UNFINISHED_S", 0.3)
    kept = Kept()

    async def story() -> None:
        async with watching(str(log), kept, sweep_s=0.1):
            with log.open("a") as writer:
                writer.write("ERROR evaluation failed, dying")
                writer.flush()
                await kept.until(lambda: len(kept.messages()) == 1)
                writer.write(" ERROR evaluation failed\nERROR evaluation failed again\n")
                writer.flush()
            await kept.until(lambda: len(kept.messages()) == 2)
            await kept.until(lambda: kept.counter("log_lines_total") == 2)

    asyncio.run(story())
    assert kept.messages() == ["ERROR evaluation failed, dying", "ERROR evaluation failed again"]


def test_c4_a_huge_line_is_one_line_and_takes_no_memory(log: Path, tailer: Tailer) -> None:
    with log.open("ab") as writer:
        writer.write(b"ERROR evaluation failed ")
        for _ in range(100):
            writer.write(b"x" * (1 << 20))
        writer.write(b"ERROR evaluation failed\nnext\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tail,) = tailer.sweep(2.0)
    blocks = []
    while (block := tailer.read(tail, 2.0)) is not None:
        tail.position = block.after
        if block.lines:
            blocks.append((block.lines, block.truncated, block.stop - block.start))
    assert blocks == [(1, True, LINE_BYTES), (1, False, 5)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.binary(max_size=400), max_size=12))
def test_c4_any_bytes_in_any_pieces_give_the_same_lines(tmp_path: Path, chunks: list[bytes]) -> None:
    path = tmp_path / "fuzz.log"
    path.write_bytes(b"")
    tailer = Tailer([str(path)], known_globs=[str(path)])
    tailer.sweep(0.0)
    read: list[bytes] = []
    content = b"".join(chunks)
    with path.open("ab", buffering=0) as writer:
        for boot, chunk in enumerate([*chunks, b"\n"]):
            writer.write(chunk)
            for tail in tailer.sweep(float(boot)):
                while (block := tailer.read(tail, float(boot))) is not None:
                    read += bytes(block.data[block.start : block.stop]).split(b"\n")[:-1]
                    tail.position = block.after
    tailer.close()
    assert tailer.take_notices() == []
    lines = [line.removesuffix(b"\r") for line in (content + b"\n").split(b"\n")[:-1]]
    assert [line.lstrip(b"\0") for line in read] == [line.lstrip(b"\0").removesuffix(b"\r") for line in lines]


def test_c5_a_flood_is_counted_and_folded_and_the_loop_stays_awake(log: Path) -> None:
    kept = Kept()
    lines = 200_000
    longest_pause = 0.0

    async def story() -> None:
        nonlocal longest_pause
        loop = asyncio.get_running_loop()
        async with watching(str(log), kept, events_per_s=10):
            writer = threading.Thread(target=_flood, args=(log, lines))
            writer.start()
            while kept.counter("log_matches_total", pattern="high_latency") < lines:
                began = loop.time()
                await asyncio.sleep(0.005)
                longest_pause = max(longest_pause, loop.time() - began - 0.005)
            writer.join()
            await kept.until(lambda: _stored(kept) + _folded(kept) == lines)

    asyncio.run(asyncio.wait_for(story(), 60))
    assert _stored(kept) < 1000
    assert longest_pause < 0.5


def _flood(path: Path, lines: int) -> None:
    with path.open("a") as file:
        for number in range(lines):
            file.write(f"WARNING {number} high latency of a worker that goes on about it at some length\n")


def _stored(kept: Kept) -> int:
    return len(kept.messages())


def _folded(kept: Kept) -> int:
    return sum(int(dict(event.labels)["count"]) for event in kept.events if event.kind == "log_folded")


def test_c5_captured_labels_are_bounded(log: Path) -> None:
    kept = Kept()

    async def story() -> None:
        async with watching(str(log), kept):
            with log.open("a") as writer:
                for gpu in range(1000):
                    writer.write(f"ERROR CUDA out of memory. GPU {gpu}\n")
            await kept.until(lambda: kept.counter("log_matches_total", pattern="cuda_out_of_memory") == 1000)

    asyncio.run(story())
    assert kept.counter("log_matches_total", gpu="other") == 900
    assert kept.counter("log_matches_total", gpu="99") == 1


def test_c7_log_text_forges_no_field(log: Path) -> None:
    kept = Kept()
    forged = 'ERROR CUDA out of memory GPU 0","pattern":"x\x1b[2J kind=log_match severity=info\x00\n'

    async def story() -> None:
        async with watching(str(log), kept):
            append(log, forged)
            await kept.until(lambda: len(kept.messages()) == 1)

    asyncio.run(story())
    (event,) = [event for event in kept.events if event.kind == "log_match"]
    assert dict(event.labels) == {"pattern": "cuda_out_of_memory", "file": str(log), "line": "1", "gpu": "0"}
    assert event.severity == "critical"
    assert event.message.isprintable()


def test_c8_its_own_complaints_do_not_feed_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's log lies in the watched folder and says ERROR with every failed commit."""
    import logging

    own = logging.FileHandler(log)
    own.setFormatter(logging.Formatter("ERROR evaluation failed: %(message)s"))
    logging.getLogger("agent.logwatch").addHandler(own)
    kept = Kept()

    async def story() -> None:
        async with watching(str(log), kept):
            kept.failing = True
            append(log, "ERROR evaluation failed\n")
            await kept.until(lambda: kept.refused >= 3)
            kept.failing = False
            await kept.until(lambda: len(kept.messages()) == 3)  # the line, the complaint, its end
            await asyncio.sleep(0.5)

    try:
        asyncio.run(story())
    finally:
        logging.getLogger("agent.logwatch").removeHandler(own)
        own.close()
    assert len(kept.messages()) == 3


def test_c9_more_files_than_descriptors(tmp_path: Path) -> None:
    glob = str(tmp_path / "*.log")
    tailer = Tailer([glob], known_globs=[glob], most_open=8)
    for number in range(200):
        (tmp_path / f"{number}.log").write_text(f"first {number}\n")
    descriptors = len(os.listdir("/proc/self/fd"))
    assert len(read_all(tailer, 1.0)) == 200
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8
    for number in range(200):
        append(tmp_path / f"{number}.log", f"second {number}\n")
    assert len(read_all(tailer, 2.0)) == 200
    tailer.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_c9_a_file_that_becomes_readable_is_read_from_its_beginning(log: Path) -> None:
    log.chmod(0)
    tailer = Tailer([str(log)], known_globs=[str(log)])
    assert read_all(tailer, 1.0) == []
    assert [notice.kind for notice in tailer.take_notices()] == ["refused"]
    log.chmod(0o600)
    assert read_all(tailer, 2.0) == ["old"]
    tailer.close()


def test_c9_folders_that_appear_later_are_found(tmp_path: Path) -> None:
    kept = Kept()

    async def story() -> None:
        async with watching(str(tmp_path / "runs" / "*" / "*.log"), kept, sweep_s=0.2):
            folder = tmp_path / "runs" / "one"
            folder.mkdir(parents=True)
            (folder / "app.log").write_text("ERROR evaluation failed\n")
            await kept.until(lambda: len(kept.messages()) == 1)
            append(folder / "app.log", "CRITICAL system overload\n")
            await kept.until(lambda: len(kept.messages()) == 2)

    asyncio.run(story())


def test_first_start_reads_from_the_end_and_a_later_file_from_its_beginning(log: Path) -> None:
    kept = Kept()

    async def story() -> None:
        log.write_text("ERROR old evaluation failed\n")
        async with watching(str(log.parent / "*.log"), kept):
            (log.parent / "new.log").write_text("ERROR new evaluation failed\n")
            await kept.until(lambda: len(kept.messages()) == 1)
            await kept.until(lambda: kept.counter("log_matches_total") == 1)
            assert kept.counter("log_lines_total", file=str(log)) == 0

    asyncio.run(story())
    assert kept.messages() == ["ERROR new evaluation failed"]
