"""FAULTS D: whatever others do to a tree while it is cleaned, nothing outside it and nothing in use is touched.

``UPKEEP_SWAP_ROUNDS`` and ``UPKEEP_KEPT_FILES`` make the campaigns longer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ops import tree
from agent.ops.policy import Limits, Policy
from tests.support.hands import DAY_S, Peer, hands, item_of, mapped, put

ROUNDS = int(os.environ.get("UPKEEP_SWAP_ROUNDS", "200"))
KEPT_FILES = int(os.environ.get("UPKEEP_KEPT_FILES", "2000"))
ROOT = Path(__file__).parents[2]

SWAPPER = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # subprocess.run then ends its mount(8) too
cache, victim, how, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def tried(act, *arguments, **more):
    try:
        act(*arguments, **more)
    except OSError:
        pass
while True:
    for number in range(4):
        folder = f"{cache}/d{(number + seed) % 4}"
        aside, file = f"{folder}.aside{seed}", f"{folder}/f{seed}"
        if how == "symlink":
            tried(os.rename, folder, aside); tried(os.symlink, victim, folder)
            tried(os.unlink, folder); tried(os.rename, aside, folder)
        elif how == "rename":
            tried(os.rename, folder, aside); tried(os.rename, f"{cache}/../beside", folder)
            tried(os.rename, folder, f"{cache}/../beside"); tried(os.rename, aside, folder)
        elif how == "file":
            tried(os.rename, file, file + ".aside"); tried(os.symlink, f"{victim}/f{seed}", file)
            tried(os.unlink, file); tried(os.link, f"{victim}/f{seed}", file)
            tried(os.unlink, file); tried(os.rename, file + ".aside", file)
        else:
            subprocess.run(["mount", "--bind", victim, folder], stderr=subprocess.DEVNULL)
            subprocess.run(["umount", folder], stderr=subprocess.DEVNULL)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@contextlib.contextmanager
def swappers(cache: Path, victim: Path, how: str) -> Iterator[None]:
    processes = [
        subprocess.Popen([sys.executable, "-ISc", SWAPPER, str(cache), str(victim), how, str(seed)])
        for seed in range(2)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        for folder in cache.glob("d*"):
            while how == "bind" and subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode == 0:
                pass


def fingerprint(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything of a folder that a cleaner could touch; the link count is the swappers' own doing."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.iterdir())
    }


def fill(cache: Path, at: float) -> None:
    """What a round may remove: files named like the victims, with the same size and times."""
    for folder in range(4):
        for name in range(6):
            with contextlib.suppress(OSError):  # a swapper may have the folder just now
                path = cache / f"d{folder}" / f"f{name}"
                if not path.is_symlink() and not (cache / f"d{folder}").is_symlink():
                    _write_new(path, at)


def _write_new(path: Path, at: float) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fd = os.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        os.write(fd, b"v" * 100)
        os.utime(fd, (at, at))
        os.close(fd)
    finally:
        os.close(folder)


@pytest.mark.parametrize("way_down", ["openat2", "fallback"])
@pytest.mark.parametrize(
    "how",
    [
        "symlink",
        "rename",
        "file",
        pytest.param(
            "bind", marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
        ),
    ],
)
def test_d1_hostile_swaps_touch_nothing_outside(
    cache: Path, how: str, way_down: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way_down == "fallback":
        monkeypatch.setattr(tree, "has_openat2", lambda: False)
    at = time.time() - 2 * DAY_S
    victims = [cache.parent / "victim", cache.parent / "beside"]
    for folder in (*victims, *(cache / f"d{number}" for number in range(4))):
        folder.mkdir()
    for folder in victims:
        for name in range(6):
            _write_new(folder / f"f{name}", at)
    before = [fingerprint(folder) for folder in victims[:1]]
    kept = {path.stat().st_ino for path in victims[1].iterdir()}
    fates: Counter[str] = Counter()
    with hands(Policy((str(cache),), Limits(actions_per_hour=10**9))) as peer:
        fill(cache, at)
        with swappers(cache, victims[0], how):
            rounds = max(ROUNDS // 8, 25)
            # On a busy machine the swappers may not have come to run yet.
            for number in range(10 * rounds):
                if number >= rounds and sum(fates.values()) > fates["done"] > 0:
                    break
                fates.update(_round(peer, cache, kept))
                fill(cache, at)
    assert [fingerprint(folder) for folder in victims[:1]] == before
    beside = [path for path in cache.parent.rglob("f*") if path.is_file() and path.stat().st_ino in kept]
    assert len({path.stat().st_ino for path in beside}) == len(kept)
    assert fates["done"] > 0, "the rounds must really remove"
    assert sum(fates.values()) > fates["done"], f"the swappers must really be met: {fates}"


def _round(peer: Peer, cache: Path, kept: set[int]) -> list[str]:
    """Survey and prune once; what lay outside when the round began is never asked for, as no survey named it there."""
    items, left, _ = peer.survey(str(cache), older_than_s=DAY_S)
    # A folder that was moved in whole is part of the tree then; here it stands for somebody else's.
    items = [item for item in items if item.inode not in kept]
    results, _ = peer.prune(str(cache), items)
    return [*results.values(), *(each.reason for each in left)]


def test_d1_a_name_that_is_swapped_after_the_survey_is_never_followed(cache: Path) -> None:
    victim = cache.parent / "victim"
    put(victim / "f")
    real = put(cache / "d/f")
    os.utime(victim / "f", ns=(real.stat().st_atime_ns, real.stat().st_mtime_ns))
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        (cache / "d").rename(cache / "aside")
        (cache / "d").symlink_to(victim)
        assert peer.prune(str(cache), items)[0] == {"d/f": "symlink"}
        (cache / "d").unlink()
        victim.rename(cache / "d")
        assert peer.prune(str(cache), items)[0] == {"d/f": "changed"}
    assert (cache / "d/f").exists()


def test_d2_a_hard_link_is_left_alone(cache: Path) -> None:
    outside = put(cache.parent / "shadow")
    os.link(outside, cache / "link")
    with hands(Policy((str(cache),))) as peer:
        items, left, _ = peer.survey(str(cache), older_than_s=60.0)
        assert (items, [(each.path, each.reason) for each in left]) == ([], [("link", "hard_link")])
        assert peer.prune(str(cache), [item_of(cache / "link", cache)])[0] == {"link": "hard_link"}
    assert (outside.stat().st_nlink, outside.read_bytes()) == (2, b"x" * 4096)


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, count + 200))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_d4_f10_nothing_open_mapped_locked_young_or_linked_is_ever_removed(cache: Path) -> None:
    each = KEPT_FILES // 5
    with contextlib.ExitStack() as held:
        held.enter_context(many_descriptors(each))
        for number in range(each):
            held.enter_context(open(put(cache / f"open{number}", age_s=9 * DAY_S), "rb"))
            used = put(cache / f"mapped{number}", age_s=9 * DAY_S)
            times_ns = (used.stat().st_atime_ns, used.stat().st_mtime_ns)
            held.enter_context(mapped(used))
            os.utime(used, ns=times_ns)  # mapping counts as a read: only the use itself can save it now
            put(cache / f"young{number}", age_s=9 * DAY_S, atime_age_s=30)
            put(cache / f"locked/{number}", age_s=9 * DAY_S)
            os.link(put(cache / f"linked{number}", age_s=9 * DAY_S), cache / f"again{number}")
        lock = os.open(cache / "locked", os.O_RDONLY)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        wishes = [item_of(path, cache) for path in sorted(cache.rglob("*")) if path.is_file()]
        with hands(Policy((str(cache),))) as peer:
            items, _, totals = peer.survey(str(cache), older_than_s=DAY_S, down_to_bytes=1)
            assert items == []
            # A hostile agent asks for them all the same.
            results, end = peer.prune(str(cache), wishes)
        assert end.files == 0
        fates = Counter(results.values())
        assert fates == {"open": 2 * each, "young": each, "locked": each, "hard_link": 2 * each}
        counts = {tally.reason: tally.count for tally in totals.left}
        assert counts == {"open": 2 * each, "young": each, "locked": 1, "hard_link": 2 * each}
    assert len(wishes) == 6 * each
    assert all((cache / item.path).exists() for item in wishes)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_f10_files_of_another_device_are_never_removed(cache: Path) -> None:
    (cache / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", os.fspath(cache / "mount")], check=True)
    try:
        for number in range(KEPT_FILES // 5):
            put(cache / f"mount/{number}", age_s=9 * DAY_S)
        put(cache / "covered", age_s=9 * DAY_S)
        subprocess.run(["mount", "--bind", cache / "mount/0", cache / "covered"], check=True)
        wishes = [item_of(path, cache) for path in (*(cache / "mount").iterdir(), cache / "covered")]
        with hands(Policy((str(cache),))) as peer:
            items, left, _ = peer.survey(str(cache), older_than_s=DAY_S)
            assert items == []
            assert {(each.path, each.reason) for each in left} == {
                ("mount", "other_device"),
                ("covered", "other_device"),
            }
            results, end = peer.prune(str(cache), wishes)
        assert set(results.values()) == {"other_device"}
        assert end.files == 0
        assert len(list((cache / "mount").iterdir())) == KEPT_FILES // 5
    finally:
        for path in ("covered", "mount"):
            subprocess.run(["umount", os.fspath(cache / path)], check=False)


def test_d4_a_program_that_runs_is_in_use(cache: Path) -> None:
    program = cache / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    os.utime(program, (time.time() - 9 * DAY_S,) * 2)
    with subprocess.Popen([program, "600"]) as running, hands(Policy((str(cache),))) as peer:
        try:
            # Its atime moved when it was started; the guard is lifted so that only the use itself can save it.
            wish = item_of(program, cache)
            assert peer.prune(str(cache), [wish], keep_used_within_s=0.0)[0] == {"sleep": "open"}
        finally:
            running.kill()


AGENT = """
import asyncio, sys
from agent.clock import SystemClock
from agent.ops.client import OpsClient
from agent.ops.policy import Limits, Policy

async def main(cache):
    ops = OpsClient.spawn(Policy((cache,)), SystemClock())
    rule = {"use": "atime", "keep_used_within_s": 0}
    found = await ops.survey(cache, older_than_s=60.0, down_to_bytes=None, limit=9999, **rule)
    print((await ops.prune(cache, found.items, **rule)).bytes_removed)
    await ops.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(("point", "left"), [("unlink_first", 299), ("unlink_last", 0)])
def test_e1_killed_at_an_unlink_both_die_and_the_next_run_ends_the_work(cache: Path, point: str, left: int) -> None:
    for number in range(300):
        put(cache / str(number))

    def run(armed: str) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "UPKEEP_FAULTPOINT": armed, "PYTHONPATH": str(ROOT)}
        for variable in ("INVOCATION_ID", "NOTIFY_SOCKET"):
            environment.pop(variable, None)
        return subprocess.run(
            [sys.executable, "-c", AGENT, str(cache)], env=environment, capture_output=True, timeout=60, check=False
        )

    assert run(point).returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == left
    again = run("")
    assert (again.returncode, again.stderr, int(again.stdout)) == (0, b"", left * 4096)
    assert list(cache.iterdir()) == []
