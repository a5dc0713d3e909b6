"""Mounts: which are measured, which may hang, and what a hanging one costs."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from agent.collectors import filesystem
from agent.collectors.filesystem import FIGURES, LocalFilesystems, RemoteFilesystems, ask, parse_mounts
from agent.fs import statfs
from agent.model import Reading

PROC = Path(__file__).parents[2] / "testdata" / "proc"


def test_mounts_that_are_measured_and_those_that_may_hang() -> None:
    mounts = {mount.path: mount for mount in parse_mounts((PROC / "mounts.mixed").read_bytes())}
    assert {path for path, mount in mounts.items() if mount.local} == {
        "/",
        "/mnt/nvme",
        "/media/usb stick",
        "/data/back\\slash\ttab",
        "/data/models-old",
    }
    assert {path for path, mount in mounts.items() if not mount.local} == {
        "/data/models",
        "/data/models/local",
        "/data/bucket",
        "/misc/disk",
    }


def test_a_remote_root_makes_all_below_it_remote() -> None:
    mounts = parse_mounts(b"srv:/root / nfs4 rw 0 0\n/dev/sda1 /scratch ext4 rw 0 0\n")
    assert [mount.local for mount in mounts] == [False, False]


def test_in_a_container_the_root_is_an_overlay_and_is_measured() -> None:
    [root] = parse_mounts(
        b"overlay / overlay rw,lowerdir=/l,upperdir=/u,workdir=/w 0 0\n"
        b"overlay /var/lib/docker/overlay2/ab12/merged overlay rw 0 0\n"
        b"overlay /opt/merged overlay rw 0 0\n"
    )
    assert (root.device, root.path, root.kind, root.local) == ("overlay", "/", "overlay", True)
    assert parse_mounts(b"rootfs / rootfs rw 0 0\n/dev/sda1 / ext4 rw 0 0\n")[0].device == "/dev/sda1"


def test_the_captured_mounts() -> None:
    mounts = parse_mounts((PROC / "vm" / "mounts").read_bytes())
    assert [(mount.path, mount.kind, mount.local) for mount in mounts] == [
        ("/", "ext4", True),
        ("/mnt/scratch", "tmpfs", True),
    ]


def table(folder: Path, *mounts: tuple[str, str]) -> str:
    path = folder / "mounts"
    path.write_text("".join(f"dev{n} {point} {kind} rw 0 0\n" for n, (point, kind) in enumerate(mounts)))
    return str(path)


def by_mount(reading: Reading) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for series, value in zip(reading.series, reading.values, strict=True):
        labels = dict(series.labels)
        found.setdefault(labels["mountpoint"], {})[series.metric.removeprefix("node_filesystem_")] = value
    return found


@pytest.fixture
def _folders_as_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_POINT_LEFT_OUT", filesystem.re.compile(r"^/proc"))


@pytest.mark.usefixtures("_folders_as_mounts")
def test_a_mount_that_fails_has_its_error_and_nothing_else(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    collector = LocalFilesystems(table(tmp_path, (str(good), "ext4"), (str(bad), "xfs")))

    async def readings() -> list[dict[str, dict[str, float]]]:
        first = await collector.collect(1.0)
        bad.mkdir()
        second = await collector.collect(2.0)
        assert (await collector.collect(3.0)).series is second.series
        return [by_mount(first), by_mount(second)]

    first, second = asyncio.run(readings())
    assert first[str(bad)] == {"device_error": 1}
    assert tuple(first[str(good)]) == FIGURES
    assert tuple(second[str(bad)]) == FIGURES
    status = os.statvfs(good)
    assert first[str(good)]["size_bytes"] == status.f_blocks * status.f_frsize


def test_the_child_answers_as_the_agent_itself_would(tmp_path: Path) -> None:
    odd = tmp_path / "with blank and \n break \udcff"
    odd.mkdir()
    number, *figures = statfs.answer(f"7 {os.fsencode(odd).hex()}").split()
    assert number == "7"
    local = ask(str(odd))
    assert local is not None
    assert [int(figures[place]) for place in (0, 3, 5)] == [local[place] for place in (0, 3, 5)]
    assert statfs.answer(f"8 {os.fsencode(tmp_path / 'none').hex()}") == "8 error No such file or directory"


@pytest.mark.usefixtures("_folders_as_mounts")
def test_remote_mounts_are_asked_through_a_child_that_is_kept(tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()

    async def readings() -> None:
        collector = RemoteFilesystems(table(tmp_path, (str(there), "nfs4"), (str(gone), "fuse.sshfs")))
        try:
            first = await collector.collect(1.0)
            second = await collector.collect(2.0)
        finally:
            await collector.close()
        assert by_mount(first)[str(gone)] == {"device_error": 1}
        assert tuple(by_mount(first)[str(there)]) == FIGURES
        assert second.series is first.series

    asyncio.run(readings())


HANGING = """
import sys, time, _thread, runpy
module = runpy.run_path({real!r})
answer = module["answer"]
def slow(question):
    path = bytes.fromhex(question.split()[1]).decode()
    while path.endswith("hanging") and not __import__("os").path.exists(path + ".thawed"):
        time.sleep(0.01)
    return answer(question)
module["_reply"].__globals__["answer"] = slow
module["main"]()
"""


@pytest.mark.usefixtures("_folders_as_mounts")
def test_a_hung_mount_is_waited_for_once_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own program, with a statvfs that hangs for one path until it is thawed."""
    script = tmp_path / "statfs_hanging.py"
    script.write_text(HANGING.format(real=statfs.__file__))
    monkeypatch.setattr(statfs, "__file__", str(script))
    good, hung = tmp_path / "good", tmp_path / "hanging"
    good.mkdir()
    hung.mkdir()

    async def story() -> None:
        collector = RemoteFilesystems(table(tmp_path, (str(good), "nfs4"), (str(hung), "nfs4")), deadline_s=0.5)
        try:
            first = by_mount(await collector.collect(1.0))
            assert first[str(hung)] == {"device_error": 1}
            assert tuple(first[str(good)]) == FIGURES
            started = time.monotonic()
            second = by_mount(await collector.collect(2.0))
            assert time.monotonic() - started < 0.4, "the hung mount was waited for again"
            assert second[str(hung)] == {"device_error": 1}
            assert tuple(second[str(good)]) == FIGURES
            (tmp_path / "hanging.thawed").touch()
            async with asyncio.timeout(10):
                await asyncio.gather(*(future for _, future in collector._child._pending.values()))
            assert tuple(by_mount(await collector.collect(3.0))[str(hung)]) == FIGURES
        finally:
            await collector.close()

    asyncio.run(story())


@pytest.mark.usefixtures("_folders_as_mounts")
def test_a_child_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async def story() -> None:
        collector = RemoteFilesystems(table(tmp_path, (str(tmp_path), "nfs4")), deadline_s=5.0)
        try:
            await collector.collect(1.0)
            process = collector._child._process
            assert process is not None
            process.kill()
            await process.wait()
            reading = await collector.collect(2.0)
            assert tuple(by_mount(reading)[str(tmp_path)]) == FIGURES
        finally:
            await collector.close()

    asyncio.run(story())
