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
from agent.fs.walk import ROUNDS, Memory, OverBudgetError, Tally, keep, measure, recall, report


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
    tally, _ = measure(str(tmp_path))
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
        tally, _ = measure(root)
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
    assert measure(str(tmp_path))[0].files == 1


def test_a_root_that_is_a_link_is_followed_and_links_below_are_not(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(real)
    (real / "round").symlink_to(real)
    assert measure(str(tmp_path / "link"))[0].files == 1


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
    assert measure(str(tmp_path))[0].files == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_another_device_is_never_entered(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (inside / "file").write_bytes(b"x" * 50_000)
        tally, _ = measure(str(tmp_path))
        assert tally.files == 0
        assert tally.bytes == du_bytes(tmp_path)
    finally:
        subprocess.run(["umount", inside], check=True)


def test_what_the_walk_says_is_read() -> None:
    assert parse(b"absent No such file or directory\n") == "No such file or directory"
    assert parse(b"4096 0 - - 1700000000.5 0.25\n") == Size(
        (
            "directory_size_bytes",
            "directory_files",
            "directory_verified_timestamp_seconds",
            "directory_scan_seconds",
        ),
        (4096, 0, 1700000000.5, 0.25),
    )
    whole = parse(b"8192 2 1500000000.5 1600000000.0 1700000000.5 0.125\n")
    assert isinstance(whole, Size)
    assert dict(zip(whole.metrics, whole.values, strict=True)) == {
        "directory_size_bytes": 8192,
        "directory_files": 2,
        "directory_oldest_timestamp_seconds": 1500000000.5,
        "directory_newest_timestamp_seconds": 1600000000.0,
        "directory_verified_timestamp_seconds": 1700000000.5,
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
        await collector.close()

    asyncio.run(readings())


def test_a_tree_that_hangs_is_given_up_and_the_rest_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk's own program, which waits for ever at a tree of one name, as a dead server would make it."""
    hanging = (
        "import sys, time; sys.path[:0] = sys.argv[1:2]; from agent.fs import walk; report = walk.report\n"
        "def slow(path, memory):\n"
        "    while path.endswith('hung'):\n        time.sleep(1)\n"
        "    return report(path, memory)\n"
        "walk.report = slow; walk.main(sys.argv[2:])"
    )
    command = walk.command

    def hanging_command(*words: str) -> list[str]:
        *python, _, above = command()
        return [*python, hanging, above, *words]

    monkeypatch.setattr(walk, "command", hanging_command)
    for name in ("first", "hung", "last"):
        (tmp_path / name).mkdir()
    paths = [str(tmp_path / name) for name in ("first", "hung", "last")]

    async def readings() -> None:
        collector = DirectoriesCollector(paths, patience_s=1.0)
        for _ in range(2):
            reading = await collector.collect(1.0)
            assert {dict(series.labels)["path"] for series in reading.series} == {paths[0], paths[2]}
        await collector.close()

    asyncio.run(readings())


OLD_S = 1_600_000_000


def age(root: Path) -> None:
    """Make all of a tree look as if nobody had touched it for years."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            os.utime(Path(folder, name), (OLD_S, OLD_S), follow_symlinks=False)
        os.utime(folder, (OLD_S, OLD_S))


def listed(before: Memory, after: Memory) -> set[str]:
    """The folders that were listed for the second of two walks."""
    return {path for path, folder in after.items() if path not in before or before[path][3] != folder[3]}


def tree_of(root: Path, folders: int) -> Path:
    for number in range(folders):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / "file").write_bytes(b"x" * 5000)
    age(root)
    return root


def test_a_folder_that_did_not_change_is_not_listed_again_before_its_turn(tmp_path: Path) -> None:
    tree_of(tmp_path, 2 * ROUNDS)
    whole, first = measure(str(tmp_path))
    again, second = measure(str(tmp_path), first)
    assert (again.bytes, again.files) == (whole.bytes, whole.files) == (du_bytes(tmp_path), 2 * ROUNDS)
    assert len(listed(first, second)) == 3  # of 2 ROUNDS + 1 folders, so that ROUNDS walks are enough
    seen: set[str] = set()
    memory = first
    for _ in range(ROUNDS):
        _, after = measure(str(tmp_path), memory)
        seen |= listed(memory, after)
        memory = after
    assert seen == set(first)


def test_what_grows_in_place_is_seen_in_its_turn_and_the_bound_says_until_when_all_is_counted(tmp_path: Path) -> None:
    tree_of(tmp_path, ROUNDS - 1)
    _, memory = measure(str(tmp_path))
    grown = tmp_path / str(ROUNDS // 2) / "file"
    grown.write_bytes(b"x" * 100_000)
    written_at = grown.stat().st_mtime
    for _ in range(ROUNDS):
        tally, memory = measure(str(tmp_path), memory)
        assert tally.bytes == du_bytes(tmp_path) or tally.verified_at < written_at
    assert tally.bytes == du_bytes(tmp_path)
    assert tally.verified_at > written_at


def test_a_folder_with_a_file_written_lately_is_listed_each_time(tmp_path: Path) -> None:
    tree_of(tmp_path, 3)
    log = tmp_path / "1" / "file"
    log.write_bytes(b"x")
    os.utime(log.parent, (OLD_S, OLD_S))
    _, memory = measure(str(tmp_path))
    log.write_bytes(b"x" * 50_000)
    assert measure(str(tmp_path), memory)[0].bytes == du_bytes(tmp_path)


def test_a_folder_whose_time_is_set_back_has_changed_all_the_same(tmp_path: Path) -> None:
    tree_of(tmp_path, 3)
    _, memory = measure(str(tmp_path))
    (tmp_path / "1" / "more").write_bytes(b"x" * 50_000)
    age(tmp_path)
    assert measure(str(tmp_path), memory)[0].bytes == du_bytes(tmp_path)


def test_a_second_name_of_a_file_counts_nothing_more(tmp_path: Path) -> None:
    tree_of(tmp_path, 3)
    _, memory = measure(str(tmp_path))
    os.link(tmp_path / "2" / "file", tmp_path / "0" / "same")
    for _ in range(3):
        tally, memory = measure(str(tmp_path), memory)
        assert (tally.bytes, tally.files) == (du_bytes(tmp_path), 3)
        age(tmp_path)
    (tmp_path / "2" / "file").unlink()
    assert measure(str(tmp_path), memory)[0].files == 3


def test_a_folder_that_moved_and_left_a_link_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "below").mkdir(parents=True)
    (tmp_path / "a" / "below" / "file").write_bytes(b"x" * 5000)
    age(tmp_path)
    _, memory = measure(str(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("b")
    tally, _ = measure(str(tmp_path), memory)
    assert (tally.bytes, tally.files) == (du_bytes(tmp_path), 1)


CHANGES = ("make", "remove", "move", "folder", "link", "age")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 7), st.integers(0, 7)), max_size=30))
def test_names_that_come_and_go_are_always_counted(changes: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, memory = Path(name), None
        for made, (change, one, other) in enumerate(changes):
            files = sorted(path for path in root.rglob("*") if path.is_file())
            folders = sorted(path for path in root.rglob("*") if path.is_dir())
            target = [root, *folders][other % (len(folders) + 1)]
            if change == "make":
                (target / f"f{made}").write_bytes(b"x" * 3000 * one)
            elif change == "folder":
                (target / f"d{made}").mkdir()
            elif change == "age":
                age(root)
            elif change == "remove" and files:
                files[one % len(files)].unlink()
            elif change == "link" and files:
                os.link(files[one % len(files)], target / f"l{made}")
            elif change == "move" and folders:
                moved = folders[one % len(folders)]
                if not target.is_relative_to(moved):
                    moved.rename(target / f"m{made}")
            tally, memory = measure(str(root), memory)
            whole = Tally(measure(str(root))[1])
            assert (tally.bytes, tally.files) == (whole.bytes, whole.files) == (du_bytes(root), whole.files)


def test_what_was_learned_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    tree_of(tmp_path / "tree", 5)
    _, folders = measure(str(tmp_path / "tree"))
    memory = os.memfd_create("test")
    try:
        assert recall(memory) == {}
        keep(memory, folders)
        assert recall(memory) == folders
        keep(memory, {"/".join("d" * 4000): folders[""]})
        assert recall(memory) == {}
    finally:
        os.close(memory)
