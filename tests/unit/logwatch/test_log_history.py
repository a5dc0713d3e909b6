"""Past logs: plain and compressed ones read to their end, broken ones named."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from agent.logwatch import history
from agent.logwatch.history import scan
from agent.logwatch.patterns import compile_patterns
from agent.logwatch.tailer import LINE_BYTES
from tests.support.logs import SHIPPED


def test_plain_and_compressed_files_are_counted_oldest_first(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    texts = [f"INFO ok\r\nERROR {number} evaluation failed after {number * 7} s\r\n".encode() for number in range(3)]
    files = [tmp_path / "old" / "a.log.2.gz", tmp_path / "a.log.1.xz", tmp_path / "a.log"]
    files[0].write_bytes(gzip.compress(texts[0]))
    files[1].write_bytes(lzma.compress(texts[1]))
    files[2].write_bytes(texts[2])
    (tmp_path / "notes.txt").write_bytes(texts[0])
    for age, path in enumerate(reversed(files)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    told: list[tuple[int, int]] = []
    summary = scan([str(tmp_path)], compile_patterns(SHIPPED), progress=lambda done, whole: told.append((done, whole)))
    found = summary.patterns["evaluation_failed"]
    assert (summary.files, summary.lines, found.count) == (3, 6, 3)
    assert found.first is not None
    assert found.last is not None
    assert (found.first.path, found.first.line) == (str(files[0]), 2)
    assert (found.last.path, found.last.text) == (str(files[2]), "ERROR 2 evaluation failed after 14 s")
    assert found.top() == [("ERROR # evaluation failed after # s", 3)]
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in files)
    assert scan([str(tmp_path)], compile_patterns(SHIPPED), since=1_000_000).files == 1


def test_what_cannot_be_read_is_named_and_the_rest_counts(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(200_000).hex().encode() + b"\nERROR evaluation failed\n")
    cut, fifo, gone = tmp_path / "cut.log.gz", tmp_path / "x.log", tmp_path / "gone.log"
    cut.write_bytes(whole[: len(whole) // 2])
    os.mkfifo(fifo)
    (tmp_path / "good.log").write_text("ERROR evaluation failed, no newline")
    summary = scan([str(tmp_path), str(gone)], compile_patterns(SHIPPED))
    assert summary.patterns["evaluation_failed"].count == 1
    assert set(summary.unreadable) == {str(cut), str(fifo), str(gone)}


def test_a_huge_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "huge.log"
    path.write_bytes(
        b"ERROR evaluation failed " + b"x" * 5 * LINE_BYTES + b" ERROR evaluation failed\nWARNING high latency\n"
        + b"y" * (LINE_BYTES + 1) + b"\nCRITICAL system overload\n"
    )  # fmt: skip
    summary = scan([str(path)], compile_patterns(SHIPPED))
    assert {name: found.count for name, found in summary.patterns.items() if found.count} == {
        "evaluation_failed": 1,
        "high_latency": 1,
        "system_overload": 1,
    }
    last = summary.patterns["system_overload"].last
    assert last is not None
    assert (last.line, summary.lines) == (4, 4)


def compressed(text: bytes, how: str) -> bytes:
    if how == "zst":
        return subprocess.run(["zstd", "-qc"], input=text, capture_output=True, check=True).stdout
    return gzip.compress(text) if how == "gz" else lzma.compress(text)


@pytest.mark.parametrize("how", ["gz", "xz", "zst"])
def test_archives_are_known_by_their_bytes_read_on_when_joined_and_named_when_cut(tmp_path: Path, how: str) -> None:
    if how == "zst" and shutil.which("zstd") is None:
        pytest.skip("needs zstd")
    noise = random.Random(1).randbytes(300_000).hex().encode()
    one, two = (compressed(b"ERROR evaluation failed\n" + noise + b"\nWARNING high latency\n", how) for _ in range(2))
    (tmp_path / "wrong_suffix.log").write_bytes(one + two)
    (tmp_path / f"plain.log.{how}").write_bytes(b"ERROR evaluation failed\n")
    (tmp_path / "cut.log").write_bytes(one[: len(one) // 2])
    (tmp_path / "spoilt.log").write_bytes(one[:1000] + bytes(1000) + one[2000:])
    summary = scan([str(tmp_path)], compile_patterns(SHIPPED))
    assert set(summary.unreadable) == {str(tmp_path / "cut.log"), str(tmp_path / "spoilt.log")}
    assert summary.patterns["evaluation_failed"].count >= 3
    assert summary.patterns["high_latency"].count == 2


@pytest.mark.parametrize("how", ["gz", "xz", "zst"])
def test_a_bomb_is_read_as_far_as_a_log_could_reach_and_named(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "zst" and shutil.which("zstd") is None:
        pytest.skip("needs zstd")
    monkeypatch.setattr(history, "UNPACKED_BYTES", 1_000_000)
    path = tmp_path / "bomb.log"
    path.write_bytes(compressed(b"ERROR evaluation failed\n" + b"0" * 30_000_000, how))
    summary = scan([str(path)], compile_patterns(SHIPPED))
    most = max(1_000_000, 250 * path.stat().st_size)
    assert summary.unreadable == {str(path): f"it unpacks to over {most} bytes, more than a log would"}
    assert summary.patterns["evaluation_failed"].count == 1
    assert summary.bytes <= most + LINE_BYTES


def test_an_xz_that_asks_for_much_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "greedy.log.xz"
    path.write_bytes(lzma.compress(b"ERROR evaluation failed\n", preset=9))
    monkeypatch.setattr(history, "MEMORY_BYTES", 1_000_000)
    summary = scan([str(path)], compile_patterns(SHIPPED))
    assert "memory" in summary.unreadable[str(path)].lower()


def test_errors_are_summed_by_the_day_that_the_line_names_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(
        "2026-01-02 12:00:00 ERROR evaluation failed\n2026-01-02 13:00:00 WARNING high latency\n"
        "2026-01-03 12:00:00 ERROR evaluation failed\nERROR evaluation failed, without a time\n"
    )
    noon = time.mktime((2026, 2, 1, 12, 0, 0, 0, 0, -1))
    os.utime(path, (noon, noon))
    days = scan([str(path)], compile_patterns(SHIPPED)).days
    assert {day: dict(found) for day, found in days.items()} == {
        "2026-01-02": {"evaluation_failed": 1, "high_latency": 1},
        "2026-01-03": {"evaluation_failed": 1},
        "2026-02-01": {"evaluation_failed": 1},
    }


def test_what_varies_is_folded(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    ids = ("1b4e28ba-2fa1-11d2-883f-0016d3cca427", "9f3c2a11-0000-4000-8000-00000000beef")
    path.write_text(
        "".join(f"2026-01-0{day}T12:00:00Z ERROR evaluation failed: {each}\n" for day, each in enumerate(ids, 1))
    )
    found = scan([str(path)], compile_patterns(SHIPPED)).patterns["evaluation_failed"]
    assert found.top() == [("# ERROR evaluation failed: #", 2)]
