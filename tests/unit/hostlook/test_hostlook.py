"""The first screen: what is measured, what a part that hangs costs, and what a line may hold."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import hostlook
from agent.fs import survey
from agent.fs.survey import DAY_S, MIB, FolderLook, Tree
from agent.hostlook import answers, asking, screen
from agent.hostlook.asking import GIB, Places
from agent.hostlook.findings import findings
from agent.hostlook.seen import Finding, GpuLook, Look, MountLook, RedisLook, UnitLook

NOW = 1_800_000_000.0


def blocks(path: Path) -> int:
    return sum(os.lstat(each).st_blocks for each in [path, *path.rglob("*")]) * 512


def write(path: Path, content: bytes, age_s: float = 0.0, now: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    at = (time.time() if now is None else now) - age_s
    os.utime(path, (at, at))
    return path


def walked(*trees: Tree, points: tuple[str, ...] = ("/",), seconds: float = 20.0) -> dict[str, FolderLook]:
    out = io.BytesIO()
    request = {"trees": [asdict(tree) for tree in trees], "points": points}
    survey.walk_all(json.dumps({**request, "until": time.monotonic() + seconds}), out)
    return {folder.path: folder for folder in answers.folders(trees, out.getvalue())}


def elsewhere(tmp_path: Path, *trees: Tree) -> Places:
    """Places of which none is the host's own."""
    table = tmp_path / "mounts"
    table.write_text("/dev/vda / ext4 rw 0 0\n")
    return Places(
        trees,
        mounts=str(table),
        reboot=str(tmp_path / "none"),
        redis=("127.0.0.1", closed_port()),
        gpus=(str(tmp_path / "no-nvidia-smi"),),
        systemd=str(tmp_path / "none"),
    )


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


# -- trees --


def test_a_tree_is_its_blocks_each_inode_once_and_no_link_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    one = write(root / "a" / "one", b"x" * 100_000)
    os.link(one, root / "again")
    os.truncate(write(root / "sparse", b""), 10 * MIB)
    outside = write(tmp_path / "outside" / "large", b"y" * 500_000)
    (root / "link").symlink_to(outside.parent)
    folder = walked(Tree(str(root), "cache"))[str(root)]
    assert folder.bytes == blocks(root) - os.stat(one).st_blocks * 512
    assert (folder.files, folder.whole, folder.unreadable) == (2, True, 0)


def test_old_files_are_those_that_the_name_and_the_age_mean(tmp_path: Path) -> None:
    old = write(tmp_path / "log" / "old.log", b"x" * 8192, 8 * DAY_S)
    write(tmp_path / "log" / "young.log", b"x" * 8192, 6 * DAY_S)
    write(tmp_path / "log" / "old.log.gz", b"x" * 8192, 8 * DAY_S)
    linked = write(tmp_path / "log" / "linked.log", b"x" * 8192, 8 * DAY_S)
    os.link(linked, tmp_path / "elsewhere")
    folder = walked(Tree(str(tmp_path / "log"), "log", r"\.log$", 7 * DAY_S, by_writing=True))[str(tmp_path / "log")]
    assert (folder.old_files, folder.old_bytes) == (1, os.stat(old).st_blocks * 512)


def test_the_last_use_counts_and_not_only_the_last_write(tmp_path: Path) -> None:
    used = write(tmp_path / "cache" / "used", b"x" * 4096)
    os.utime(used, (time.time(), time.time() - 90 * DAY_S))
    root = str(tmp_path / "cache")
    by_use = walked(Tree(root, "cache", "", 30 * DAY_S))[root]
    by_writing = walked(Tree(root, "cache", "", 30 * DAY_S, by_writing=True))[root]
    assert (by_use.old_files, by_writing.old_files) == (0, 1)
    assert by_use.newest_at == pytest.approx(time.time(), abs=60)
    assert by_writing.newest_at == pytest.approx(time.time() - 90 * DAY_S, abs=60)


def test_where_use_is_not_recorded_the_last_write_is_what_is_told(tmp_path: Path) -> None:
    write(tmp_path / "cache" / "f", b"x" * 4096)
    places = elsewhere(tmp_path, Tree(f"{tmp_path}/cache", "cache"))
    Path(places.mounts).write_text("/dev/vda / ext4 rw,noatime 0 0\n")
    seen = hostlook.look(5.0, places)
    assert [folder.by_writing for folder in seen.folders] == [True]
    assert any(re.search(r"last written \d+ s ago", line) for line in hostlook.lines(seen, 200, colour=False))


def test_a_pattern_names_folders_one_by_one_but_temporary_ones_together(tmp_path: Path) -> None:
    for name in ("benchmark_1", "benchmark_2", "other"):
        write(tmp_path / name / "f", b"x" * 4096, 2 * DAY_S)
    (tmp_path / "benchmark_link").symlink_to(tmp_path / "other")
    pattern = f"{tmp_path}/benchmark_*"
    together = walked(Tree(pattern, "temporary", "", DAY_S))
    assert list(together) == [pattern]
    assert (together[pattern].files, together[pattern].old_files) == (2, 2)
    assert walked(Tree(f"{tmp_path}/benchmark_[0-9]*", "data")).keys() == {f"{tmp_path}/benchmark_{n}" for n in "12"}


def test_what_does_not_exist_is_not_mentioned(tmp_path: Path) -> None:
    assert walked(Tree(str(tmp_path / "none"), "cache"), Tree(f"{tmp_path}/none/*", "data")) == {}


def test_a_mount_point_below_is_not_even_asked(tmp_path: Path) -> None:
    write(tmp_path / "data" / "own", b"x" * 4096)
    write(tmp_path / "data" / "dead" / "f", b"x" * 400_000)
    root = str(tmp_path / "data")
    assert walked(Tree(root, "cache"), points=("/", f"{root}/dead"))[root].files == 1
    assert walked(Tree(f"{root}/*", "data"), points=("/", f"{root}/dead")).keys() == {f"{root}/own"}


@pytest.mark.skipif(os.stat("/dev").st_dev == os.stat("/dev/shm").st_dev, reason="/dev/shm is no mount here")
def test_no_walk_crosses_into_another_device() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as other:
        other.write(b"x" * 4 * MIB)
        other.flush()
        assert walked(Tree("/dev", "cache"), points=())["/dev"].bytes < 4 * MIB


def test_a_walk_out_of_time_says_so_and_a_tree_not_come_to_is_silent(tmp_path: Path) -> None:
    write(tmp_path / "a" / "f", b"x")
    late = walked(Tree(str(tmp_path / "a"), "cache"), seconds=0.0)
    assert [folder.answered for folder in late.values()] == [False]
    begun = survey.Survey(Tree(str(tmp_path / "a"), "cache"), frozenset(), NOW)
    assert next(begun.walk([str(tmp_path / "a")])) is None
    assert not begun.result("a", sampled=False).whole


def test_small_trees_have_their_turn_before_a_large_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "TURN_S", 0.0)
    for number in range(3 * survey.TURN_ENTRIES):
        write(tmp_path / "large" / str(number), b"")
    write(tmp_path / "small" / "f", b"")
    out = io.BytesIO()
    trees = (Tree(str(tmp_path / "large"), "cache"), Tree(str(tmp_path / "small"), "cache"))
    request = {"trees": [asdict(tree) for tree in trees], "points": [], "until": time.monotonic() + 20}
    survey.walk_all(json.dumps(request), out)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    ends = [Path(answer["path"]).name for answer in told if answer.get("whole")]
    assert ends == ["small", "large"]
    assert told[-1]["files"] == 3 * survey.TURN_ENTRIES


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_an_unreadable_part_is_said(tmp_path: Path) -> None:
    write(tmp_path / "log" / "shut" / "f", b"x")
    (tmp_path / "log" / "shut").chmod(0)
    root = str(tmp_path / "log")
    assert walked(Tree(root, "log"))[root].unreadable == 1
    (tmp_path / "log" / "shut").chmod(0o755)


def test_a_root_that_cannot_be_followed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "gone")
    root = str(tmp_path / "models")
    assert walked(Tree(root, "cache"))[root].unreadable == 1


@pytest.mark.parametrize("name", ["plain", "new\nline", "\x1b[31mred", "bad-\udc80-utf8", "b" * 255, '"quote\\'])
def test_hostile_names_come_through_the_child_unharmed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "data" / name / "f", b"x" * 4096)
    seen = hostlook.look(5.0, elsewhere(tmp_path, Tree(f"{tmp_path}/data/*", "data")))
    assert [(folder.path, folder.files) for folder in seen.folders] == [(f"{tmp_path}/data/{name}", 1)]
    for line in hostlook.lines(seen, 100, colour=False):
        assert line.isprintable()
        assert screen.cells(line) <= 100


# -- samples --


def test_what_gzip_saves_is_measured_on_the_files_themselves(tmp_path: Path) -> None:
    text = write(tmp_path / "text", b"2026-01-01 INFO all is well\n" * 50_000)
    noise = write(tmp_path / "noise", random.Random(1).randbytes(1_400_000))
    of_text, of_noise = survey.gzip_gain([str(text)]), survey.gzip_gain([str(noise)])
    assert of_text is not None
    assert of_noise is not None
    assert of_text > 0.95
    assert 0 <= of_noise < 0.01
    assert survey.gzip_gain([str(text), str(noise)]) == pytest.approx((of_text + of_noise) / 2, abs=0.05)
    assert survey.gzip_gain([str(tmp_path / "gone")]) is None


def test_only_regular_files_are_sampled_and_a_fifo_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.log")
    (tmp_path / "link.log").symlink_to("/etc/passwd")
    for name in ("x.log", "link.log", "gone.log"):
        assert survey.read_part(str(tmp_path / name), 100, middle=True) == b""
    root = str(tmp_path)
    assert walked(Tree(root, "log", r"\.log$", 0.0, errors=True))[root].files == 0


def test_a_sample_leaves_the_time_of_last_use_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", b"0123456789", 90 * DAY_S)
    before = os.stat(path).st_atime_ns
    assert survey.read_part(str(path), 4, middle=True) == b"3456"
    assert survey.read_part(str(path), 4, middle=False) == b"6789"
    assert os.stat(path).st_atime_ns == before


def test_errors_of_today_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "w.log", b"ERROR evaluation failed\nINFO fine\nERROR x: CUDA out of memory. GPU 0\n\x00\xffERROR")
    write(tmp_path / "old.log", b"ERROR of last week\n", 7 * DAY_S)
    folder = walked(Tree(str(tmp_path), "log", r"\.log$", 7 * DAY_S, True, errors=True))[str(tmp_path)]
    assert (folder.error_files, folder.error_lines, folder.cuda_lines) == (1, 3, 1)


# -- what hangs --


def test_a_look_at_nothing_is_whole(tmp_path: Path) -> None:
    seen = hostlook.look(5.0, elsewhere(tmp_path))
    assert (seen.gpus, seen.units, seen.folders) == ("no GPU", "systemd does not run here", ())
    assert seen.redis.state == "nothing listens"
    assert [mount.path for mount in seen.mounts] == ["/"]
    assert len(seen.findings) == 3


def test_everything_may_hang_and_the_look_still_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    hanging = script(tmp_path / "hang", f"exec cat {tmp_path}/never")
    deaf = script(tmp_path / "deaf", f"trap '' TERM; read line < {tmp_path}/never")
    places = replace(
        elsewhere(tmp_path, Tree("/nowhere/cache", "cache")),
        gpus=(deaf,),
        systemd=str(tmp_path),
        systemctl=(hanging,),
        walker=(hanging,),
    )
    over = threading.Event()
    with listening(lambda link: over.wait()) as address:
        start = time.monotonic()
        seen = hostlook.look(0.8, replace(places, redis=address))
        took_s = time.monotonic() - start
        over.set()
    assert took_s < 0.8 + 0.2  # the second figure is for a busy machine, not for the look
    assert seen.gpus == "nvidia-smi did not answer within 0.8 s"
    assert seen.units == "systemctl did not answer within 0.8 s"
    assert seen.redis.state == "does not answer within 300 ms"
    assert seen.folders == (FolderLook("/nowhere/cache", "cache", answered=False),)
    assert "not measured in time: /nowhere/cache" in "\n".join(hostlook.lines(seen, 100, colour=False))
    (deaf_one,) = asking._left_behind
    os.close(os.open(tmp_path / "never", os.O_WRONLY))  # lets the one that does not end when asked go
    assert deaf_one.wait(5) == 1
    asking._left_behind.clear()


def test_many_that_do_not_go_cost_the_wait_for_one() -> None:
    children = asking._Children()
    deaf = [children.start(("sh", "-c", "trap '' TERM; echo; exec sleep 60"), gentle=True) for _ in range(8)]
    children.wait(time.monotonic() + 0.5)
    assert all(child.output for child in deaf)
    start = time.monotonic()
    children.end()
    took_s = time.monotonic() - start
    left = [*asking._left_behind]
    asking._left_behind.clear()
    for process in left:
        process.kill()
        process.wait()
    assert len(left) == len(deaf)
    assert took_s < 4 * asking.MARGIN_S / 3


def test_trees_are_asked_for_by_a_child_for_each_mount(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "nfs" / "f", b"x" * 4096)
    write(data / "own" / "f", b"x" * 4096)
    places = elsewhere(tmp_path, Tree(f"{data}/*", "data"))
    Path(places.mounts).write_text(f"/dev/vda / ext4 rw 0 0\nsrv:/x {data}/nfs nfs4 rw 0 0\n")
    seen = hostlook.look(5.0, places)
    assert {folder.path for folder in seen.folders if folder.whole} == {f"{data}/own", f"{data}/nfs"}
    assert {mount.path for mount in seen.mounts} == {"/", f"{data}/nfs"}


def test_a_programs_last_line_may_be_cut_off() -> None:
    trees = (Tree("/a", "cache"), Tree("/b", "cache"))
    output = b'{"tree": "/a", "names": ["/a"]}\n{"path": "/a", "kind": "cache", "bytes": 7}\n{"tree": "/b", "na'
    assert [(each.path, each.bytes, each.answered) for each in answers.folders(trees, output)] == [
        ("/a", 7, True),
        ("/b", 0, False),
    ]


# -- mounts --


def test_the_root_of_a_container_is_shown_and_bind_mounts_once(tmp_path: Path) -> None:
    places = elsewhere(tmp_path)
    here = str(tmp_path)
    mounts = f"/dev/vdb {here}/mounts ext4 rw 0 0\n/dev/vdb {here} ext4 rw 0 0\nproc /proc proc rw 0 0\n"
    Path(places.mounts).write_text(f"overlay / overlay rw 0 0\n{mounts}")
    assert {mount.path for mount in hostlook.look(5.0, places).mounts} == {"/", here}


def test_a_mount_that_this_user_may_not_see_is_left_out_not_called_silent(tmp_path: Path) -> None:
    places = elsewhere(tmp_path)
    Path(places.mounts).write_text(f"/dev/vda / ext4 rw 0 0\n/dev/sdz1 {tmp_path}/gone ext4 rw 0 0\n")
    # It answers at once, with an error, as a mount below a closed folder does.
    assert [mount.path for mount in hostlook.look(5.0, places).mounts] == ["/"]


def test_mount_points_by_their_octal_names() -> None:
    table = rb"""a / ext4 rw 0 0
b /data/with\040blank nfs rw,noatime 0 0
"""
    points = answers.mount_points(table)
    assert list(points.items()) == [("/data/with blank", "rw,noatime"), ("/", "rw")]
    assert answers.place_of("/data/with blank/x", points) == "/data/with blank"
    assert answers.place_of("/data/with blanks", points) == "/"


# -- Redis, GPUs, units --


@contextmanager
def listening(serve: object) -> Iterator[tuple[str, int]]:
    """A server for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            link, _ = server.accept()
            with link:
                serve(link)  # type: ignore[operator]

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()
        thread.join()


def test_a_redis_that_drips_is_cut_off_at_its_deadline() -> None:
    def drip(link: socket.socket) -> None:
        for character in b"$100000\r\n" * 10:
            try:
                link.send(bytes([character]))
            except OSError:
                return
            threading.Event().wait(0.02)

    with listening(drip) as address:
        start = time.monotonic()
        assert asking.ask_redis(address, 0.2).state == "does not answer within 200 ms"
        assert time.monotonic() - start < 0.4


@pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server here")
def test_a_real_redis_open_and_with_a_password(tmp_path: Path) -> None:
    port = closed_port()
    argv = ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path), "--loglevel", "warning"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            seen = answer_of(port)
            assert seen.state.startswith("Redis ")
            assert "0 keys" in seen.state
            with socket.create_connection(("127.0.0.1", port)) as link:
                link.sendall(b"CONFIG SET requirepass secret\r\n")
                assert link.recv(100) == b"+OK\r\n"
            assert asking.ask_redis(("127.0.0.1", port), 2.0).state == "needs a password"
        finally:
            server.terminate()


def answer_of(port: int) -> RedisLook:
    until = time.monotonic() + 10
    while (seen := asking.ask_redis(("127.0.0.1", port), 2.0)).state == "nothing listens":
        assert time.monotonic() < until
        time.sleep(0.01)
    return seen


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b"-NOAUTH Authentication required.\r\n", "needs a password"),
        (b"-DENIED Redis is running in protected mode\r\n", "refuses: denied redis is running in protected mode"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something answers, but not as Redis does"),
        (b"", "something answers, but not as Redis does"),
        (b"$99999999999\r\nx", "something answers, but not as Redis does"),
    ],
)
def test_answers_of_redis_and_of_what_is_none(answer: bytes, state: str) -> None:
    def reply(link: socket.socket) -> None:
        link.recv(100)
        link.send(answer)

    with listening(reply) as address:
        assert asking.ask_redis(address, 2.0).state == state


def test_a_redis_says_its_memory_and_keys() -> None:
    body = b"# Memory\r\nredis_version:7.0.15\r\nused_memory:3221225472\r\nmaxmemory:4294967296\r\n"
    body += b"# Keyspace\r\ndb0:keys=1000,expires=1\r\ndb3:keys=200,expires=0\r\n"
    seen = answers.parse_info("h:1", b"$%d\r\n%s" % (len(body), body))
    assert seen.state == "Redis 7.0.15 · 3.0 GiB of 4.0 GiB · 1,200 keys · ? clients"


@given(st.binary(max_size=300))
def test_no_answer_of_redis_breaks_the_screen(answer: bytes) -> None:
    redis = answers.parse_info("h:1", answer)
    found = findings(host(redis=redis), reboot_required=False, memory={})
    text = list(hostlook.lines(host(redis=redis, findings=found), 80, colour=False))
    assert all(line.isprintable() and screen.cells(line) <= 80 for line in text)


@pytest.mark.parametrize("ratio", [b"many", b"9" * 5000])
def test_figures_that_are_none_count_as_none(ratio: bytes) -> None:
    body = b"redis_version:7\r\nmem_fragmentation_bytes:999999999999\r\nmem_fragmentation_ratio:" + ratio
    redis = answers.parse_info(
        "h:1", b"$9\r\n" + body + b"\r\nused_memory:" + b"9" * 5000 + b"\r\ndb0:keys=" + b"9" * 5000
    )
    assert redis.state == "Redis 7 · 0 B · 0 keys · ? clients"
    assert not any("Redis" in finding.text for finding in found(redis=redis))


def test_gpus_as_nvidia_smi_lists_them() -> None:
    text = (
        "0, NVIDIA H100 80GB HBM3, 12, 4096, 81559, 41\n1, NVIDIA A30, [N/A], [N/A], [N/A], 30\nUnable to determine\n"
    )
    assert answers.parse_gpus(text) == (
        GpuLook(0, "NVIDIA H100 80GB HBM3", 12, 4096 * MIB, 81559 * MIB, 41),
        GpuLook(1, "NVIDIA A30", None, None, None, 30),
    )


def test_units_with_redis_under_the_name_that_exists() -> None:
    text = """Id=benchmark-framework.service
LoadState=not-found
ActiveState=inactive

Id=redis-server.service
NRestarts=2
LoadState=loaded
ActiveState=active

Id=redis.service
LoadState=not-found
ActiveState=inactive
"""
    assert answers.parse_units(text) == (
        UnitLook("benchmark-framework", "not installed"),
        UnitLook("redis-server", "active", 2),
    )
    assert answers.parse_units("") == ()


# -- findings --


def host(**parts: object) -> Look:
    calm = Look(
        host="gpu-07",
        mounts=(MountLook("/", "ext4", True, 100 * GIB, 80 * GIB, 75 * GIB, 1000, 900),),
        gpus="no GPU",
        folders=(),
        redis=RedisLook("127.0.0.1:6379", "nothing listens", {}),
        units="systemd does not run here",
        findings=(),
        at=NOW,
    )
    return replace(calm, **parts)  # type: ignore[arg-type]


def found(*, reboot: bool = False, **parts: object) -> list[Finding]:
    memory = {"MemTotal": 1000, "MemAvailable": 250}
    return list(findings(host(**parts), reboot_required=reboot, memory=memory))


LOGS = FolderLook("/var/log", "log", 9 * GIB, 900, NOW, 6 * GIB, 500, 7 * DAY_S, by_writing=True, gain=0.9)


def test_a_calm_host_has_three_honest_small_things_to_say() -> None:
    assert [finding.text for finding in found()] == [
        "every file system is below 80 %: the fullest is / at 21 %",
        "25 % of memory is available",
        "inodes are plenty: / has used 10 % of its own",
    ]


def test_inodes_are_plenty_only_where_a_file_system_counts_them() -> None:
    texts = [finding.text for finding in found(mounts=(MountLook("/", "btrfs", True, 100 * GIB, 80 * GIB, 75 * GIB),))]
    assert texts[2] == "no reboot is asked for by an update"


def test_a_required_reboot_is_never_denied_as_well() -> None:
    said = findings(host(mounts=()), reboot_required=True, memory={})
    assert [finding.text for finding in said if "reboot" in finding.text] == ["a reboot is required by an update"]


def test_old_logs_are_said_once_with_what_gzip_saves() -> None:
    inner = replace(LOGS, path="/var/log/benchmark", old_bytes=2 * GIB)
    first, second, _ = found(folders=(inner, LOGS))
    assert first.text == "/var/log: 6.0 GiB of logs older than 7 d"
    assert first.would == "gzip them and save about 5.4 GiB; observed only"
    assert "/var/log" not in second.text


def test_what_fails_comes_before_what_is_large_and_that_before_what_is_calm() -> None:
    full = MountLook("/data", "xfs", True, 100 * GIB, 4 * GIB, 4 * GIB)
    order = [finding.text.split(" ")[0] for finding in found(mounts=(full,), folders=(LOGS,), reboot=True)]
    assert order == ["/data", "a", "/var/log:"]


def test_a_silent_mount_is_said_first_and_never_called_empty() -> None:
    texts = [finding.text for finding in found(mounts=(MountLook("/data", "nfs4", answered=False),))]
    assert texts[0] == "/data: the file system does not answer"
    assert not any("below 80 %" in text for text in texts)


def test_caches() -> None:
    cache = FolderLook("/c", "cache", 3 * GIB, 9, NOW - 41 * DAY_S, 3 * GIB, 9, 30 * DAY_S)
    assert found(folders=(cache,))[0].text == "/c: 3.0 GiB, nothing in it used for 41 d"
    assert found(folders=(replace(cache, whole=False),))[0].text == "/c: at least 3.0 GiB in 9 files not used for 30 d"
    part = replace(cache, newest_at=NOW, old_bytes=GIB, old_files=1, whole=False)
    assert found(folders=(part,))[0].text == "/c: at least 1.0 GiB in 1 file not used for 30 d"
    over = replace(part, whole=True, limit_bytes=2 * GIB)
    assert found(folders=(over,))[0].text == "/c: 1.0 GiB in 1 file not used for 30 d, and over its limit of 2.0 GiB"
    assert found(folders=(replace(cache, old_bytes=1000),))[0].urgency == 0


def test_errors_redis_and_units() -> None:
    errors = FolderLook("/l", "log", error_files=2, error_bytes=MIB, error_lines=12, cuda_lines=3)
    assert found(folders=(errors,))[0].text == (
        "/l: 12 ERROR lines in the last 1.0 MiB of 2 logs written within a day, 3 of them CUDA out of memory"
    )
    info = {"rdb_last_bgsave_status": "err"}
    assert found(redis=RedisLook("r", "up", info))[0].text == "Redis could not write its last snapshot"
    assert found(units=(UnitLook("nginx", "failed"),))[0].text == "the unit nginx has failed"


# -- the screen --

CROWDED = host(
    host="h" * 200,
    mounts=tuple(MountLook(f"/m{n}" * 30, "xfs", True, 900 * GIB, n * GIB, n * GIB) for n in range(12)),
    gpus=tuple(GpuLook(n, f"GPU of kind {n % 3} " * 9, 50, GIB, 80 * GIB, 60) for n in range(8)),
    folders=(
        FolderLook("/dead", "data", answered=False),
        *(FolderLook(f"/d/{n}" * 40, "data", n * GIB, n, NOW, whole=False, unreadable=3) for n in range(20)),
    ),
    redis=RedisLook("127.0.0.1:6379", "refuses: " + "x" * 300, {}),
    units=tuple(UnitLook(f"unit{n}", "active", n) for n in range(9)),
    findings=tuple(Finding("something " * 50, "do much " * 50, urgency) for urgency in (3, 2, 1)),
)


@pytest.mark.parametrize("width", [1, 40, 80, 100, 250])
@pytest.mark.parametrize("colour", [False, True])
def test_a_crowded_screen_keeps_its_size(width: int, colour: bool) -> None:
    text = list(hostlook.lines(CROWDED, width, colour))
    assert len(text) <= 24
    assert all(screen.cells(re.sub(r"\x1b\[\d+m", "", line)) <= max(40, width) for line in text)
    assert ("\x1b" in "".join(text)) is colour
    assert any("not measured in time: /dead" in line for line in text if width >= 80) or width < 80


def test_bars_are_for_terminals() -> None:
    plain = "\n".join(hostlook.lines(host(), 80, colour=False))
    assert "█" not in plain
    assert "/   21 %    20.0 GiB of  100.0 GiB    75.0 GiB left  ext4" in plain
    assert "██░" in "\n".join(hostlook.lines(host(), 80, colour=True))


def test_many_gpus_are_told_together() -> None:
    gpus = tuple(GpuLook(n, "NVIDIA H100", n * 10, GIB, 80 * GIB, 40 + n) for n in range(8))
    rows = [line for line in hostlook.lines(host(gpus=gpus), 100, colour=False) if "H100" in line]
    assert rows == ["GPUs      8 × NVIDIA H100  35 % busy · 8.0 GiB of 640.0 GiB · 47 °C"]


@given(st.text(max_size=80), st.integers(2, 60))
def test_a_text_is_cut_to_its_columns(text: str, room: int) -> None:
    shown = screen.cut(screen.printable(text), room)
    assert screen.cells(shown) <= room
    assert shown.isprintable()
    assert screen.cells(screen.pad(text, room)) == room


def test_wide_and_combining_characters_take_their_own_columns() -> None:
    assert [screen.cells(text) for text in ("ab", "模型", "e\u0301")] == [2, 4, 1]
    assert screen.cut("模型缓存", 5) == "模型…"
