"""Files of other programs: whole, bad, hostile, changed and gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import textfile
from agent.collectors.textfile import TextfileCollector, parse
from agent.errors import FaultyFilesError
from agent.model import Event, Reading

GOOD = """\
# HELP backup_bytes What the last one holds.
# TYPE backup_bytes gauge
backup_bytes{set="a b",note="say \\"hi\\""} 1.5e3
backup_bytes{set="c"} +Inf
smart_ok 1
node_reboot_required 1
"""


def values(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


class Folder:
    """A collector on a folder, and the events it told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[Event] = []
        self.collector = TextfileCollector(str(path), self._tell)

    async def _tell(self, event: Event) -> None:
        self.told.append(event)

    def write(self, name: str, text: str, at: float = 1_700_000_000.5) -> None:
        (self.path / name).write_text(text, encoding="utf-8")
        os.utime(self.path / name, (at, at))

    def read(self) -> dict[str, float]:
        self.reading = asyncio.run(self.collector.collect(1.0))
        return values(self.reading)

    def mtime(self, name: str) -> str:
        return f'node_textfile_mtime_seconds{{file="{self.path / name}"}}'


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_samples_mtime_and_no_error(folder: Folder) -> None:
    folder.write("a.prom", GOOD)
    folder.write("a.prom.12345", "half a li")
    assert folder.read() == {
        "node_textfile_scrape_error": 0,
        folder.mtime("a.prom"): 1_700_000_000.5,
        'backup_bytes{note="say "hi"",set="a b"}': 1500,
        'backup_bytes{set="c"}': float("inf"),
        "smart_ok": 1,
        "node_reboot_required": 1,
    }
    before = folder.reading.series
    folder.read()
    assert folder.reading.series is before
    assert not folder.told


def test_no_folder_and_an_empty_one_are_in_order(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        assert Folder(path).read() == {"node_textfile_scrape_error": 0}


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("broken", "3:7", "the sample has no value"),
        ('x{a="b} 1', "3:2", "not closed"),
        ("x one", "3:3", 'cannot read "one" as a value'),
        ("x 1 1700000000000", "3:5", "an instant of its own"),
        ("x{a=1} 1", "3:3", 'write name="value"'),
        ("first 2", "3:1", "first is there already"),
        ("node_load1 99", "3:1", "the agent makes it itself"),
        ("up 0", "3:1", "the agent makes it itself"),
    ],
)
def test_a_bad_file_gives_nothing_and_is_named_with_its_line_once(
    folder: Folder, line: str, place: str, words: str
) -> None:
    folder.write("bad.prom", f"# ours\nfirst 1\n{line}\nlast 3\n")
    folder.write("good.prom", "fine 1\n")
    for _ in range(2):
        assert folder.read() == {"node_textfile_scrape_error": 1, folder.mtime("good.prom"): 1_700_000_000.5, "fine": 1}
    assert [event.message.startswith(f"{folder.path}/bad.prom:{place}: ") for event in folder.told] == [True]
    assert words in folder.told[0].message
    folder.write("bad.prom", "mended 1\n")
    assert folder.read()["mended"] == 1
    assert folder.reading.values[0] == 0
    assert folder.told[-1].message.endswith("can be read again")


def test_two_files_with_one_series_the_later_is_left_out(folder: Folder) -> None:
    folder.write("a.prom", "x 1\n")
    folder.write("b.prom", "y 1\nx 2\n")
    assert folder.read() == {"node_textfile_scrape_error": 1, folder.mtime("a.prom"): 1_700_000_000.5, "x": 1}
    assert "x is in another file already" in folder.told[0].message
    (folder.path / "a.prom").unlink()
    assert folder.read()["x"] == 2


def test_what_is_no_plain_file_is_not_waited_for(folder: Folder) -> None:
    os.mkfifo(folder.path / "pipe.prom")
    (folder.path / "folder.prom").mkdir()
    (folder.path / "loop.prom").symlink_to("loop.prom")
    (folder.path / "gone.prom").symlink_to("nothing")
    folder.write("target", "linked 1\n")
    (folder.path / "link.prom").symlink_to("target")
    found = folder.read()
    assert found["node_textfile_scrape_error"] == 1
    assert found["linked"] == 1
    assert len(folder.told) == 3


def test_bounds(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "MOST_BYTES", 20)
    monkeypatch.setattr(textfile, "MOST_SAMPLES", 2)
    monkeypatch.setattr(textfile, "MOST_FILES", 3)
    folder.write("a.prom", "a 1\n" * 6)
    folder.write("b.prom", "b 1\nc 1\n")
    folder.write("c.prom", "d 1\n")
    folder.write("d.prom", "e 1\n")
    found = folder.read()
    assert {"b", "c"} < found.keys()
    assert not {"a", "d", "e"} & found.keys()
    assert len(folder.told) == 3


@given(st.binary())
def test_no_bytes_break_it(raw: bytes) -> None:
    with contextlib.suppress(FaultyFilesError):
        series, found = parse(raw, "x.prom")
        assert len(series) == len(found) == len(set(series))


@given(st.dictionaries(st.from_regex(r"x_[a-z]{1,9}", fullmatch=True), st.floats(allow_nan=False)))
def test_what_is_written_is_read(samples: dict[str, float]) -> None:
    raw = "".join(f"{name} {value!r}\n" for name, value in samples.items()).encode()
    series, found = parse(raw, "x.prom")
    assert dict(zip((one.metric for one in series), found, strict=True)) == samples
