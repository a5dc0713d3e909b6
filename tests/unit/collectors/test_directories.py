"""Sizes of trees: what is counted, what is not, and what is absent."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.collectors.directories import DirectoriesCollector, Size, parse
from agent.fs import walk
from agent.fs.walk import OverBudgetError, measure, report


def du_bytes(path: Path) -> int:
    return int(subprocess.run(["du", "-sx", "--block-size=1", path], check=True, capture_output=True).stdout.split()[0])


def test_a_tree_is_as_large_as_du_says(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "b" / "same")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 10**9)
    (tmp_path / "link").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    os.utime(tmp_path / "a" / "one", (0, 1_500_000_000))
    os.utime(tmp_path / "sparse", (0, 1_600_000_000))
    tally = measure(str(tmp_path))
    assert tally.bytes == du_bytes(tmp_path)
    assert tally.files == 2
    assert (tally.oldest, tally.newest) == (1_500_000_000, 1_600_000_000)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=4), st.integers(0, 20_000)), max_size=12))
def test_any_tree_is_as_large_as_du_says(files: list[tuple[list[str], int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for number, (folders, size) in enumerate(files):
            folder = Path(root, *folders)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"file{number}").write_bytes(b"x" * size)
        tally = measure(root)
        assert tally.bytes == du_bytes(Path(root))
        assert tally.files == len(files)


def test_a_deep_tree_needs_no_long_path(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert measure(str(tmp_path)).files == 1


def test_a_root_that_is_a_link_is_followed_and_links_below_are_not(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(real)
    (real / "round").symlink_to(real)
    assert measure(str(tmp_path / "link")).files == 1


def test_open_files_are_closed_when_the_walk_fails(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OverBudgetError):
        measure(str(tmp_path), budget_s=-1.0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_part_that_may_not_be_read_makes_the_whole_absent(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)  # the folders above are closed to others
        os.setuid(65534)
        os._exit(42 if report(".") == "absent Permission denied" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert measure(str(tmp_path)).files == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_another_device_is_never_entered(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (inside / "file").write_bytes(b"x" * 50_000)
        tally = measure(str(tmp_path))
        assert tally.files == 0
        assert tally.bytes == du_bytes(tmp_path)
    finally:
        subprocess.run(["umount", inside], check=True)


def test_what_the_walk_says_is_read() -> None:
    assert parse(b"absent No such file or directory\n") == "No such file or directory"
    assert parse(b"4096 0 - - 0.25\n") == Size(
        ("directory_size_bytes", "directory_files", "directory_scan_seconds"), (4096, 0, 0.25)
    )
    whole = parse(b"8192 2 1500000000.5 1600000000.0 0.125\n")
    assert isinstance(whole, Size)
    assert dict(zip(whole.metrics, whole.values, strict=True)) == {
        "directory_size_bytes": 8192,
        "directory_files": 2,
        "directory_oldest_timestamp_seconds": 1500000000.5,
        "directory_newest_timestamp_seconds": 1600000000.0,
        "directory_scan_seconds": 0.125,
    }


def test_the_collector_measures_what_exists(tmp_path: Path) -> None:
    full, empty, none = (tmp_path / name for name in ("full", "empty", "none"))
    full.mkdir()
    empty.mkdir()
    (full / "file").write_bytes(b"x" * 10_000)

    async def readings() -> None:
        collector = DirectoriesCollector([str(full), str(none), str(empty)])
        first = await collector.collect(1.0)
        second = await collector.collect(2.0)
        assert second.series is first.series
        found = {
            (dict(series.labels)["path"], series.metric): value
            for series, value in zip(first.series, first.values, strict=True)
        }
        assert {path for path, _ in found} == {str(full), str(empty)}
        assert found[str(full), "directory_size_bytes"] == du_bytes(full)
        assert (str(empty), "directory_oldest_timestamp_seconds") not in found

    asyncio.run(readings())


def test_a_tree_that_hangs_is_given_up_and_the_rest_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk's own program, which waits for ever at a tree of one name, as a dead server would make it."""
    script = tmp_path / "walk_hanging.py"
    script.write_text(
        f"import runpy, sys, time\nmodule = runpy.run_path({walk.__file__!r})\nreport = module['report']\n"
        "def slow(path):\n"
        "    while path.endswith('hung'):\n        time.sleep(1)\n"
        "    return report(path)\n"
        "module['main'].__globals__['report'] = slow\nmodule['main'](sys.argv[1:])\n"
    )
    monkeypatch.setattr(walk, "__file__", str(script))
    for name in ("first", "hung", "last"):
        (tmp_path / name).mkdir()
    paths = [str(tmp_path / name) for name in ("first", "hung", "last")]

    async def readings() -> None:
        collector = DirectoriesCollector(paths, patience_s=1.0)
        for _ in range(2):
            reading = await collector.collect(1.0)
            assert {dict(series.labels)["path"] for series in reading.series} == {paths[0], paths[2]}

    asyncio.run(readings())
