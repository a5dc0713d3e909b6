"""FAULTS D and E for logs: rotated and compressed, never lost, never written over, never in use, never elsewhere.

``UPKEEP_PACK_KILLS`` and ``UPKEEP_LOG_SWAPS`` make the campaigns longer.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agent import faultpoint
from agent.ops import logs
from agent.ops.policy import Limits, Policy
from agent.ops.protocol import Compress, Item, Items, Move, Moves, Reply, Results, Rotate, Signal
from agent.ops.verbs import Caps
from tests.support.hands import Peer, hands, item_of, mapped

KILLS = int(os.environ.get("UPKEEP_PACK_KILLS", "60"))
SWAPS = int(os.environ.get("UPKEEP_LOG_SWAPS", "60"))
CAPS = Caps(1 << 40, lambda: False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def text(size: int, seed: int = 1) -> bytes:
    """Lines that gzip does not make to nothing."""
    return random.Random(seed).randbytes(size // 2).hex().encode()


def run(folder: Path, work: Callable[[int], Iterator[Reply]]) -> dict[str, str]:
    """Carry a verb out here, to its end."""
    base = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        replies = list(work(base))
    finally:
        os.close(base)
    return {each.path: each.result for reply in replies if isinstance(reply, Results) for each in reply.results}


def pack(folder: Path, *names: str) -> dict[str, str]:
    items = tuple(item_of(folder / name, folder) for name in names)
    return run(folder, lambda base: logs.compress(base, iter([items]), CAPS))


def move(folder: Path, name: str, to: str, step: str) -> dict[str, str]:
    status = (folder / name).lstat()
    wanted = Move(name, to, step, status.st_dev, status.st_ino)  # type: ignore[arg-type]
    return run(folder, lambda base: logs.rotate(base, iter([(wanted,)]), CAPS))


def rotate_by(peer: Peer, folder: Path, move: Move) -> str:
    assert peer.ask(Rotate(str(folder), "", 1), 77)[-1].__class__.__name__ == "Ready"
    return _last_result(peer, Moves((move,)))


def compress_by(peer: Peer, folder: Path, item: Item) -> str:
    assert peer.ask(Compress(str(folder), "", 1), 77)[-1].__class__.__name__ == "Ready"
    return _last_result(peer, Items((item,)))


def _last_result(peer: Peer, request: Items | Moves) -> str:
    results = peer.ask(request, 77)[0]
    assert isinstance(results, Results)
    return results.results[0].result


def in_a_child(work: Callable[[], object], *, kill_after_s: float | None = None, point: str = "") -> None:
    """Run in a process that dies, by itself at a fault point or killed from here."""
    child = os.fork()
    if child == 0:
        # A fault point kills the parent too: this process stands for the agent.
        grandchild = os.fork() if point else 0
        if grandchild:
            os.waitpid(grandchild, 0)
            os._exit(0)
        faultpoint._ARMED = point
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if point:
        assert os.WIFSIGNALED(status), f"{point} was not reached"


def test_d7_killed_at_any_instant_a_log_is_whole_as_it_was_or_in_gzip(folder: Path) -> None:
    content = text(1_000_000)
    log, packed = folder / "x.log", folder / "x.log.gz"
    fates = {"plain": 0, "packed": 0}
    for number in range(KILLS):
        log.write_bytes(content)
        in_a_child(lambda: pack(folder, "x.log"), kill_after_s=random.Random(number).uniform(0, 0.09))
        if log.exists():
            assert log.read_bytes() == content
            fates["plain"] += 1
            # The next run takes up what was left, whatever it was.
            deadline = time.monotonic() + 5
            while (result := pack(folder, "x.log")) != {"x.log": "done"}:
                assert time.monotonic() < deadline, result
        else:
            fates["packed"] += 1
        assert gzip.decompress(packed.read_bytes()) == content
        assert os.listdir(folder) == ["x.log.gz"]
        packed.unlink()
    assert fates["plain"], "the kill must come in time"


@pytest.mark.parametrize("point", ["pack_written", "pack_named"])
def test_e1_a_crash_between_two_steps_of_compression_is_finished_by_the_next_run(folder: Path, point: str) -> None:
    content = text(300_000)
    (folder / "x.log").write_bytes(content)
    in_a_child(lambda: pack(folder, "x.log"), point=point)
    assert (folder / "x.log").read_bytes() == content
    assert pack(folder, "x.log") == {"x.log": "done"}
    assert os.listdir(folder) == ["x.log.gz"]
    assert gzip.decompress((folder / "x.log.gz").read_bytes()) == content


@pytest.mark.parametrize("step", ["rename", "copytruncate"])
def test_e1_a_crash_in_a_rotation_loses_nothing(folder: Path, step: str) -> None:
    content = text(300_000)
    (folder / "x.log").write_bytes(content)
    in_a_child(lambda: move(folder, "x.log", "x.log.1", step), point="rotate_made")
    assert (folder / "x.log").read_bytes() == content
    assert move(folder, "x.log", "x.log.1", step) == {"x.log": "target_exists"}
    assert move(folder, "x.log", "x.log.2", step) == {"x.log": "done"}
    assert (folder / "x.log.2").read_bytes() == content


def test_d4_a_log_in_use_is_not_compressed_however_it_is_used(folder: Path) -> None:
    for name in ("read.log", "written.log", "mapped.log", "free.log"):
        (folder / name).write_bytes(text(9000))
    with open(folder / "read.log"), open(folder / "written.log", "ab"), mapped(folder / "mapped.log"):
        results = pack(folder, "read.log", "written.log", "mapped.log", "free.log")
    assert results == {"read.log": "open", "written.log": "open", "mapped.log": "open", "free.log": "done"}
    assert sorted(os.listdir(folder)) == ["free.log.gz", "mapped.log", "read.log", "written.log"]


def test_d4_who_opens_a_log_meanwhile_is_let_in_at_once_and_it_stays(folder: Path) -> None:
    (folder / "x.log").write_bytes(text(30_000_000))
    results: dict[str, str] = {}
    worker = threading.Thread(target=lambda: results.update(pack(folder, "x.log")))
    worker.start()
    while not (folder / ".x.log.gz.upkeep").exists():
        time.sleep(0.001)
    began = time.monotonic()
    with open(folder / "x.log", "ab") as file:
        waited_s = time.monotonic() - began
        file.write(b"one more\n")
    worker.join()
    assert results == {"x.log": "open"}
    assert waited_s < 2.0, "lease-break-time is 45 s"
    assert os.listdir(folder) == ["x.log"]
    assert (folder / "x.log").read_bytes().endswith(b"one more\n")


def test_d2_links_devices_and_foreign_archives_are_left_as_they_are(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"precious\n")
    os.link(outside, folder / "hard.log")
    (folder / "soft.log").symlink_to(outside)
    os.mkfifo(folder / "pipe.log")
    (folder / "taken.log").write_bytes(b"taken\n")
    (folder / "taken.log.gz").write_bytes(gzip.compress(b"something else\n"))
    (folder / "linked.log").write_bytes(b"linked\n")
    (folder / "linked.log.gz").symlink_to(outside)
    (folder / "trap.log").write_bytes(b"trap\n")
    (folder / ".trap.log.gz.upkeep").symlink_to(outside)
    names = ("hard.log", "soft.log", "pipe.log", "taken.log", "linked.log", "trap.log")
    assert pack(folder, *names) == {
        "hard.log": "hard_link",
        "soft.log": "symlink",
        "pipe.log": "special_file",
        "taken.log": "target_exists",
        "linked.log": "symlink",
        "trap.log": "symlink",
    }
    for step in ("rename", "copytruncate"):
        assert move(folder, "hard.log", "hard.log.1", step) == {"hard.log": "hard_link"}
        assert move(folder, "soft.log", "soft.log.1", step) == {"soft.log": "symlink"}
        assert move(folder, "pipe.log", "pipe.log.1", step) == {"pipe.log": "special_file"}
        (folder / "taken.log.1").write_bytes(b"stray\n")
        assert move(folder, "taken.log", "taken.log.1", step) == {"taken.log": "target_exists"}
        assert (folder / "taken.log.1").read_bytes() == b"stray\n"
    assert outside.read_bytes() == b"precious\n"
    assert (folder / "taken.log").read_bytes() == b"taken\n"


def test_a_rename_takes_no_line_from_a_writer_that_goes_on(folder: Path) -> None:
    lines = _written_while(folder, "rename")
    assert lines == sorted(set(lines)) == list(range(len(lines)))


def test_a_copytruncate_doubles_nothing_and_loses_at_most_the_instant_of_the_truncation(folder: Path) -> None:
    lines = _written_while(folder, "copytruncate")
    assert len(set(lines)) == len(lines)
    assert max(lines) + 1 - len(lines) < 0.02 * max(lines)


def _written_while(folder: Path, step: str) -> list[int]:
    """Serial numbers found in all archives and the log, in order, after rotations under a writer."""
    log = folder / "x.log"
    log.touch()
    stop = threading.Event()

    def write() -> None:
        with open(log, "ab", buffering=0) as file:
            number = 0
            while not stop.is_set():
                file.write(b"%09d\n" % number)
                number += 1
                if number % 500 == 0:
                    time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        rotated = 0
        while rotated < 20:
            if log.stat().st_size:
                assert move(folder, "x.log", f"x.log.{rotated + 1}", step) == {"x.log": "done"}
                rotated += 1
            elif step == "rename":
                break  # the writer goes on in the first archive, as it should
    finally:
        stop.set()
        writer.join()
    archives = sorted(folder.glob("x.log.*"), key=lambda path: int(path.suffix[1:]))
    return [int(line) for path in [*archives, log] for line in path.read_bytes().split()]


def test_d3_owner_and_mode_stay_and_no_bit_that_runs_it_as_somebody(folder: Path) -> None:
    (folder / "x.log").write_bytes(b"a\n")
    os.chmod(folder / "x.log", 0o4640)
    if os.geteuid() == 0:
        os.chown(folder / "x.log", 1234, 4321)
        os.chmod(folder / "x.log", 0o4640)
    os.utime(folder / "x.log", (1_700_000_000, 1_700_000_000))
    before = (folder / "x.log").stat()
    assert move(folder, "x.log", "x.log.1", "rename") == {"x.log": "done"}
    new = (folder / "x.log").stat()
    assert (new.st_uid, new.st_gid, new.st_mode & 0o7777, new.st_size) == (before.st_uid, before.st_gid, 0o640, 0)
    assert pack(folder, "x.log.1") == {"x.log.1": "done"}
    packed = (folder / "x.log.1.gz").stat()
    assert (packed.st_uid, packed.st_gid, packed.st_mode & 0o7777) == (before.st_uid, before.st_gid, 0o640)
    assert packed.st_mtime_ns == before.st_mtime_ns


def test_i1_a_hostile_agent_gets_no_other_name_and_no_other_file(folder: Path) -> None:
    (folder / "x.log").write_bytes(b"a\n")
    (folder / "data.bin").write_bytes(b"d\n")
    status, data = (folder / "x.log").stat(), item_of(folder / "data.bin", folder)
    device, inode = status.st_dev, status.st_ino
    with hands(Policy((str(folder),), Limits(actions_per_hour=1000), units=("web.service",))) as peer:
        for to in ("../x.log.1", "/etc/x.log.1", "y.log.1", "x.log", "x.log.0", "x.log.1.gz", "sub/x.log.1", "", "."):
            assert rotate_by(peer, folder, Move("x.log", to, "rename", device, inode)) == "bad_path", to
        assert rotate_by(peer, folder, Move("x.log", "x.log.1", "shift", device, inode)) == "bad_path"
        assert rotate_by(peer, folder, Move("x.log", "x.log.1", "rename", device, inode + 1)) == "changed"
        assert rotate_by(peer, folder, Move("../x.log", "x.log.1", "rename", device, inode)) == "bad_path"
        assert rotate_by(peer, folder, Move("data.bin", "x.log.1", "shift", device, inode)) == "no_log"
        assert compress_by(peer, folder, data) == "no_log"
        assert peer.refusal(Signal("ssh.service")) == "unknown_unit"
        assert peer.refusal(Rotate("/etc", "", 1)) == "outside_roots"
        assert peer.refusal(Compress(str(folder), "", -1)) == "bad_request"
    assert sorted(os.listdir(folder)) == ["data.bin", "x.log"]


def test_d7_too_little_room_refuses_and_leaves_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "x.log").write_bytes(text(50_000))
    monkeypatch.setattr(logs, "SPARE_BYTES", 1 << 60)
    assert pack(folder, "x.log") == {"x.log": "no_space"}
    assert move(folder, "x.log", "x.log.1", "copytruncate") == {"x.log": "no_space"}
    assert os.listdir(folder) == ["x.log"]


def test_a_log_with_a_hole_is_not_copied(folder: Path) -> None:
    with open(folder / "x.log", "wb") as file:
        file.seek(50_000_000)
        file.write(b"end\n")
    assert move(folder, "x.log", "x.log.1", "copytruncate") == {"x.log": "sparse"}


def test_d1_folders_swapped_for_links_meanwhile_lead_nowhere(folder: Path) -> None:
    victim = folder.parent / "victim"
    for where in (victim, folder / "sub"):
        where.mkdir()
        for name in ("a.log", "b.log"):
            (where / name).write_bytes(text(4000))
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in victim.iterdir()}
    stop = threading.Event()

    def swap() -> None:
        sub, aside = folder / "sub", folder / "aside"
        while not stop.is_set():
            os.rename(sub, aside)
            os.symlink(victim, sub)
            os.unlink(sub)
            os.rename(aside, sub)

    swapper = threading.Thread(target=swap)
    swapper.start()
    results: list[str] = []
    try:
        for number in range(10 * SWAPS):
            if number >= SWAPS and len(set(results)) > 1 and "done" in results:
                break
            for name in ("a.log", "b.log"):
                results += _tried(folder, victim, name, number)
    finally:
        stop.set()
        swapper.join()
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in victim.iterdir()} == before
    assert "done" in results


def _tried(folder: Path, victim: Path, name: str, number: int) -> Sequence[str]:
    """One attempt on the log and, as a hostile agent would, on the victim's identity under the same path."""
    results: list[str] = []
    base = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for where in (victim, folder / "sub", folder / "aside"):
            with contextlib.suppress(OSError):
                status = (where / name).stat()
                moved = Move(f"sub/{name}", f"{name}.{number + 1}", "copytruncate", status.st_dev, status.st_ino)
                times = (status.st_mtime_ns, status.st_atime_ns)
                item = Item(f"sub/{name}", 0, status.st_dev, status.st_ino, *times)
                for work in (logs.rotate(base, iter([(moved,)]), CAPS), logs.compress(base, iter([(item,)]), CAPS)):
                    for reply in work:
                        results += [each.result for each in reply.results] if isinstance(reply, Results) else []
    finally:
        os.close(base)
    return results
