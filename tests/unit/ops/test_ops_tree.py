"""Every property holds with openat2 and with the fallback for kernels and sandboxes without it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ops import tree
from agent.ops.protocol import MAX_DEPTH, RefusedError
from tests.support.hands import mapped


@pytest.fixture(params=["openat2", "fallback"], autouse=True)
def _way_down(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fallback":
        monkeypatch.setattr(tree, "has_openat2", lambda: False)
    elif not tree.has_openat2():
        pytest.skip("this kernel has no openat2")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, tree.DIRECTORY)
    yield fd
    os.close(fd)


def error_of(base: int, name: bytes, flags: int) -> int:
    with pytest.raises(OSError) as caught:
        os.close(tree.open_beneath(base, name, flags))
    return caught.value.errno or 0


def test_d1_links_are_never_followed(tmp_path: Path, base: int) -> None:
    (tmp_path / "to_folder").symlink_to("/etc")
    (tmp_path / "to_file").symlink_to("/etc/passwd")
    (tmp_path / "inside").mkdir()
    (tmp_path / "to_inside").symlink_to("inside")
    for name in (b"to_folder", b"to_inside"):
        assert error_of(base, name, tree.DIRECTORY) == errno.ELOOP
    assert error_of(base, b"to_file", tree.FILE) == errno.ELOOP


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("what", ["tmpfs", "bind"])
def test_d6_mounts_are_never_entered_not_even_binds_of_the_same_device(tmp_path: Path, base: int, what: str) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/file").write_text("x")
    arguments = ["-t", "tmpfs", "tmpfs"] if what == "tmpfs" else ["--bind", os.fspath(tmp_path / "beside")]
    subprocess.run(["mount", *arguments, os.fspath(tmp_path / "mount")], check=True)
    try:
        assert error_of(base, b"mount", tree.DIRECTORY) == errno.EXDEV
        reasons = {entry.path: entry.reason for entry in tree.walk(base, 100) if entry.reason}
        assert reasons == {b"mount": "other_device"}
    finally:
        subprocess.run(["umount", os.fspath(tmp_path / "mount")], check=True)


def test_a_root_behind_a_link_is_refused_wherever_the_link_is(tmp_path: Path) -> None:
    (tmp_path / "real/cache").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/alias").symlink_to("cache")
    os.close(tree.open_root(os.fsencode(tmp_path / "real/cache")))
    for path in ("link/cache", "real/alias"):
        with pytest.raises(OSError) as caught:
            tree.open_root(os.fsencode(tmp_path / path))
        assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        tree.open_root(os.fsencode(tmp_path / "none/cache"))


def test_descending_stops_at_locks_and_protected_names_and_leaks_no_descriptor(tmp_path: Path, base: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/lost+found").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    os.close(tree.descend(base, [b"a", b"b"]))
    os.close(tree.descend(base, []))
    holder = os.open(tmp_path / "a/b", os.O_RDONLY)
    try:
        for lock in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            fcntl.flock(holder, lock)
            with pytest.raises(RefusedError) as caught:
                tree.descend(base, [b"a", b"b"])
            assert caught.value.reason == "locked"
    finally:
        os.close(holder)
    with pytest.raises(RefusedError) as caught:
        tree.descend(base, [b"a", b"lost+found"])
    assert caught.value.reason == "protected"
    with pytest.raises(FileNotFoundError):
        tree.descend(base, [b"a", b"none"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_d4_a_lease_is_refused_for_every_way_of_using_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)

    def answer() -> str:
        fd = os.open(path, tree.FILE)
        try:
            return tree.lease(fd)
        finally:
            os.close(fd)

    assert answer() == ""
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        holder = os.open(path, flags)
        assert answer() == "open"
        os.close(holder)
    with mapped(path):
        assert answer() == "open"
    assert answer() == ""


def test_opening_a_file_under_our_lease_neither_kills_us_nor_waits_for_long(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fd = os.open(path, tree.FILE)
    assert tree.lease(fd) == ""
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    reader = subprocess.Popen(["cat", os.fspath(path)], stdout=subprocess.PIPE)
    os.close(fd)
    assert reader.communicate(timeout=10)[0] == b"x"


def test_the_walk_sees_everything_and_goes_where_it_may(tmp_path: Path, base: int) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "systemd-private-1-x").mkdir()
    (tmp_path / "systemd-private-1-x/hidden").write_text("x")
    for name in ("top", "a/one", "a/b/two", "a/b/c/three"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "a/fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "s"))
        entries = list(tree.walk(base, 1000))
    seen = {entry.path.decode() for entry in entries if entry.status}
    assert seen == {"a", "a/b", "a/b/c", "systemd-private-1-x", "top", "a/one", "a/b/two", "a/b/c/three", "a/fifo", "s"}
    assert [(entry.path, entry.reason) for entry in entries if entry.reason] == [(b"systemd-private-1-x", "protected")]


def test_the_walk_is_bounded_in_depth_and_in_entries(tmp_path: Path, base: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    here = os.dup(base)
    for _ in range(MAX_DEPTH + 20):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here), here
        os.close(above)
    os.close(here)
    assert [entry.reason for entry in tree.walk(base, 1000) if entry.reason] == ["too_deep"]
    (tmp_path / "wide").mkdir()
    for number in range(50):
        (tmp_path / f"wide/{number}").touch()
    assert [entry.reason for entry in tree.walk(base, 10) if entry.reason] == ["budget"]
    walk = tree.walk(base, 1000)
    next(walk)
    walk.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, base: int) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    assert [(entry.path, entry.reason) for entry in tree.walk(base, 10) if entry.reason] == [(b"shut", "unreadable")]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOENT, "gone"), (errno.EXDEV, "other_device"), (errno.EROFS, "read_only"), (errno.EIO, "failed_eio")],
)
def test_what_the_kernel_says_has_a_name(number: int, reason: str) -> None:
    assert tree.reason_of(OSError(number, "")) == reason
