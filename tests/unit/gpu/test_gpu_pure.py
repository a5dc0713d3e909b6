"""The probe's pure parts: the host's files, orphans, paces, the lines of the protocol."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gpu import release
from agent.gpu.device import UNOWNED_BYTES, Used, find_orphans
from agent.gpu.host import DriverFiles, Processes, device_holders, driver_files
from agent.gpu.pace import LEAST_MINUTES, Loaded, Pace, median
from agent.gpu.protocol import (
    DRIVER_WORDS,
    CallTime,
    Column,
    DriverState,
    Gpu,
    GpuError,
    GpuState,
    Orphan,
    Read,
    Seen,
    Xid,
    decode,
    encode,
)
from tests.support.nvml import Stub

# -- the host's files --


def test_a_package_newer_than_the_loaded_driver_is_seen_in_files_alone(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    assert driver_files(str(stub.root)) == DriverFiles(True, "590.48.01", "")
    assert driver_files(str(stub.root)).mismatch is None
    stub.installed("590.48.01")
    assert driver_files(str(stub.root)).mismatch is False
    stub.installed("595.71.05")
    assert driver_files(str(stub.root)).mismatch is True
    stub.loaded(None)
    assert driver_files(str(stub.root)) == DriverFiles(False, "", "595.71.05")


def test_the_open_kernel_modules_version_line_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    file.write_text(line + "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    assert driver_files(str(tmp_path)).loaded_version == "580.65.06"


def test_a_device_without_a_version_is_a_driver_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert driver_files(str(tmp_path)) == DriverFiles(True, "", "")
    assert driver_files(str(tmp_path / "nothing")) == DriverFiles(False)


@pytest.mark.parametrize("name", ["plain", "with (brackets) and ) blanks", "ünï"])
def test_a_process_with_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42/stat").write_text(f"42 ({name}) D 1 2 3")
    process = Processes(str(tmp_path)).find(42)
    assert process is not None
    assert (process.name, process.state) == (name, "D")
    assert Processes(str(tmp_path)).find(43) is None
    assert not Processes(str(tmp_path)).all_visible()


def test_who_has_a_device_open(tmp_path: Path) -> None:
    for pid, target in ((7, "/dev/nvidia0"), (8, "/dev/null"), (9, "/dev/nvidiactl")):
        folder = tmp_path / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fd/3").symlink_to(target)
        (folder / "stat").write_text(f"{pid} (train) S 1")
    assert device_holders(str(tmp_path)) == [(7, "train"), (9, "train")]


# -- orphans --

STATES = {1: ("a", "S"), 2: ("b", "Z"), 3: ("c", "D"), 4: ("d", "R"), 5: ("", "")}


def test_who_holds_memory_without_living() -> None:
    listed = [Used(pid, 10 * pid) for pid in STATES] + [Used(9, None)]
    found = [(o.pid, o.state, o.bytes) for o in find_orphans(listed, 1, lambda pid: STATES.get(pid, ("", "")))]
    assert found == [(2, "zombie", 20), (3, "uninterruptible", 30), (5, "dead", 50)]


def test_memory_without_any_process_is_nobodys_when_it_is_much() -> None:
    assert list(find_orphans([], UNOWNED_BYTES - 1, lambda pid: ("", ""))) == []
    [orphan] = find_orphans([], UNOWNED_BYTES, lambda pid: ("", ""))
    assert (orphan.pid, orphan.state, orphan.bytes) == (0, "nobody", UNOWNED_BYTES)


# -- paces --


def at_load(**clocks: float) -> list[Loaded]:
    return [Loaded(uuid, "H100", 100.0, clock) for uuid, clock in clocks.items()]


def test_a_gpu_is_compared_with_its_peers_under_the_same_load() -> None:
    speeds = Pace().take(0.0, at_load(a=1800, b=1800, c=900))
    assert speeds["c"]["peers"] == 0.5
    assert speeds["a"]["peers"] == pytest.approx(1800 / 1350)


def test_neither_an_idle_gpu_nor_another_model_is_a_peer() -> None:
    gpus = [Loaded("a", "H100", 100, 1000), Loaded("b", "H100", 10, 2000), Loaded("c", "L40S", 100, 2500)]
    assert Pace().take(0.0, gpus) == {"a": {}, "c": {}}


def test_a_gpu_is_compared_with_its_own_day_after_half_an_hour_of_load() -> None:
    pace = Pace()
    for second in range(0, 60 * (LEAST_MINUTES + 1), 5):
        speeds = pace.take(float(second), at_load(a=1800))
        assert ("itself" in speeds["a"]) == (second >= 60 * LEAST_MINUTES)
    later = 60.0 * (LEAST_MINUTES + 1)
    assert pace.take(later, at_load(a=900))["a"]["itself"] == 0.5
    assert pace.take(later + 5, [Loaded("a", "H100", 3, 210)]) == {}
    assert pace.take(later + 9999, at_load(a=900))["a"]["itself"] == 0.5


@given(st.lists(st.floats(1, 3000), min_size=2, max_size=16), st.floats(0.1, 1.0))
def test_speeds_do_not_depend_on_the_unit(clocks: list[float], factor: float) -> None:
    one = Pace().take(0.0, at_load(**{f"g{n}": clock for n, clock in enumerate(clocks)}))
    other = Pace().take(0.0, at_load(**{f"g{n}": clock * factor for n, clock in enumerate(clocks)}))
    for uuid, speeds in one.items():
        assert speeds["peers"] == pytest.approx(other[uuid]["peers"])
        assert speeds["peers"] > 0


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_the_median_is_the_median(numbers: list[float]) -> None:
    assert median(numbers) == statistics.median(numbers)


# -- the protocol --

words = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
small = st.integers(0, 2**63)
columns = st.builds(Column, words, st.lists(st.tuples(words, words), max_size=3).map(tuple))
numbers = st.floats(0, 1e18)
gpus = st.builds(
    Gpu, words, small, small, words, words, st.sampled_from(get_args(GpuState)), words, numbers, small,
    st.none() | st.lists(columns, max_size=4).map(tuple), st.lists(numbers, max_size=4).map(tuple),
    st.lists(st.builds(Orphan, small, words, words, small), max_size=2).map(tuple),
)  # fmt: skip
seens = st.builds(
    Seen, small, st.sampled_from(get_args(DriverState)), small, words, words, words, words,
    st.lists(gpus, max_size=3).map(tuple), st.lists(st.builds(CallTime, words, numbers), max_size=2).map(tuple),
    st.lists(st.builds(Xid, words, small, numbers), max_size=2).map(tuple), st.lists(words, max_size=2).map(tuple),
)  # fmt: skip


@given(st.integers(0, 2**62), seens)
def test_what_is_written_is_what_is_read(number: int, seen: Seen) -> None:
    line = encode(number, seen)
    assert line.count(b"\n") == 1
    assert decode(line, Seen) == (number, seen)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    with pytest.raises(GpuError):
        decode(raw, Seen)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([], 'needs an "id"'),
        ({"version": 1}, 'needs an "id"'),
        ({"id": -1, "version": 1}, 'needs an "id"'),
        ({"id": 1}, 'missing field "version"'),
        ({"id": 1, "version": 1, "more": 2}, 'unknown field "more"'),
        ({"id": 1, "version": "1"}, '"version" is not a whole number'),
    ],
)
def test_a_question_is_read_strictly(body: object, why: str) -> None:
    with pytest.raises(GpuError, match=why):
        decode(json.dumps(body).encode(), Read)


def test_every_state_of_the_driver_has_words() -> None:
    assert set(DRIVER_WORDS) == set(get_args(DriverState))


# -- letting go --


def test_a_release_ends_by_itself_and_what_cannot_be_read_asks_for_nothing(tmp_path: Path) -> None:
    assert release.released_until(tmp_path, 0.0) == 0.0
    release.release(tmp_path, 100.0, "a test")
    assert release.released_until(tmp_path, 99.0) == 100.0
    assert release.released_until(tmp_path, 100.0) == 0.0
    for text in ("", "{}", "[]", '{"until": "soon"}', '{"until": null}', "\0"):
        (tmp_path / release.RELEASED).write_text(text)
        assert release.released_until(tmp_path, 0.0) == 0.0
