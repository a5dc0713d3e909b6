"""Past logs: plain and compressed ones read to their end, broken ones named."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

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
