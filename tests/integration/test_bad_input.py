"""What a real host puts in the way: each ends in a clear message, nothing lost, no traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Host, scratch_host, until, upkeep

ERROR = "2026-01-01 ERROR worker 3: CUDA out of memory. GPU 0\n"

TEN_FAULTS = """groups:
  - name: a
    rules:
      - alert: One
        expr: rate(node_load1)
      - alert: Two
        expr: node_load1 > 1
        for: 5
      - alert: Three
        exp: node_load1 > 1
      - record: four-five
        expr: node_load1
      - alert: Five
        expr: node_load1 > 1
        labels: {severity: warning, severity: critical}
      - alert: Six
        expr: node_load1 > 1
        annotations: {summary: '{{ $labels.x | nofunction }}'}
      - alert: Seven
        expr: node_load1 > 1
        remediation:
          limit: six a day
          steps:
            - clean_cash: {path: /tmp/evaluation_cache}
            - clean_cache: {path: tmp/cache, down_to: 8G}
patterns:
  - name: look
    regex: '(?<=x)ERROR'
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with scratch_host(tmp_path) as host:
        yield host
        assert "Traceback" not in host.log(), host.log()


def matches(host: Host) -> int:
    return len(host.json("events", "--kind", "log_match", "--limit", "100000"))


def test_ten_faults_of_a_rules_file_are_ten_lines_with_positions(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(TEN_FAULTS)
    path.chmod(0o644)
    done = upkeep("check", str(path), status=1)
    lines = done.stderr.strip().splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    places = [int(line.removeprefix(f"{path}:").split(":")[0]) for line in lines]
    assert places == [5, 8, 9, 10, 11, 15, 18, 22, 24, 25, 25, 28], "\n".join(lines)


def test_hostile_log_files_lose_no_line_beside_them(host: Host) -> None:
    os.mkfifo(host.logs / "x.log")
    (host.logs / "folder.log").mkdir()
    (host.logs / "dangling.log").symlink_to("/nonexistent")
    host.start()
    odd = host.logs / "odd.log"
    odd.write_bytes(
        b"before\r\n"
        + ERROR.encode().replace(b"\n", b"\r\n")
        + b"\0" * 5000
        + b"\n"
        + b"\xff\xfe broken \xc3\n"
        + ERROR.encode()
    )
    good = host.logs / "good.log"
    good.write_text(ERROR)
    until(lambda: matches(host) == 3, "the three lines of two files")
    huge = host.logs / "huge.log"
    with huge.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 1024 * 1024)
        file.write(b"\n" + ERROR.encode())
    until(lambda: matches(host) == 4, "the line after one of a hundred megabytes")
    assert host.process is not None
    status = Path(f"/proc/{host.process.pid}/status").read_text()
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kib < 150 * 1024
    assert host.stop() < 2.0


def test_a_cache_that_is_a_symbolic_link_is_refused_by_name(host: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    host.fill(12)
    host.cache.rename(tmp_path / "was-cache")
    host.cache.symlink_to(tmp_path / "was-cache")
    done = upkeep("plan", "clean_cache", f"path={host.cache}", "down_to=1MiB", config=host.config, status=1)
    assert "symlink" in done.stdout
    assert len(list((tmp_path / "was-cache").iterdir())) == 12


def test_a_path_outside_the_roots_is_refused_by_name(host: Host, tmp_path: Path) -> None:
    done = upkeep("plan", "clean_cache", f"path={tmp_path}/log", "down_to=1MiB", config=host.config, status=1)
    assert "outside_roots" in done.stdout


def test_a_cache_that_vanishes_is_absent_and_nothing_else_suffers(host: Host) -> None:
    host.fill(12)
    host.write("", "", mode="observe")
    host.start()
    until(lambda: host.json("query", "directory_size_bytes"), "the cache to be measured")
    for path in host.cache.iterdir():
        path.unlink()
    host.cache.rmdir()
    until(lambda: not host.json("query", "directory_size_bytes"), "the series to end")
    host.cache.mkdir()
    host.fill(12)
    until(lambda: host.json("query", "directory_size_bytes"), "the cache to be seen again")


@pytest.mark.parametrize("what", ["no_such_handler", "clean_cache"])
def test_a_command_with_wrong_words_says_what_is_wrong(host: Host, what: str) -> None:
    done = upkeep("plan", what, "paht=/x", config=host.config, status=1)
    assert "unknown" in done.stderr


def test_commands_without_a_store_say_so(host: Host) -> None:
    for command in (["status"], ["events"], ["sql", "SELECT 1"], ["query", "up"]):
        assert "there is no metrics.db" in upkeep(*command, config=host.config, status=1).stderr


def test_sql_that_would_change_something_is_refused(host: Host) -> None:
    upkeep("run", "--once", config=host.config)
    assert "only read" in upkeep("sql", "DELETE FROM event", config=host.config, status=1).stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own can be mounted by root only")
def test_a_full_disk_under_the_state_directory_stops_neither_watching_nor_recovery(host: Host) -> None:
    host.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(host.state)], check=True)
    try:
        host.start()
        until(lambda: host.json("query", "node_load1"), "the first samples")
        with (host.state / "filler").open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 65536)
                    file.flush()
            except OSError:
                pass
        assert host.process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            host.process.wait(timeout=4)
        (host.state / "filler").unlink()
        host.fill(12)
        until(lambda: host.actions(handler="clean_cache", outcome="fixed"), "the agent to act again")
        host.stop()
    finally:
        host.kill()
        subprocess.run(["umount", "-l", str(host.state)], check=False)
