"""A6: the file system under the state directory stops taking writes; all that need not be written goes on.

A loop-mounted ext4 and ``fsfreeze`` make the kernel's own uninterruptible wait: nothing here is simulated.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from os import geteuid
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.model import Action, ActionStatus
from agent.store import Reader, Retention, Store
from tests.support.running import Host, scratch_host, until

FROZEN_S = 12.0
LATE_S = 2.0
"""How far apart samples of every 500 ms may be on a busy machine."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(geteuid() != 0, reason="needs root, to mount and to freeze"),
]


class Disk:
    """An ext4 of its own."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Frozen within; should this process die meanwhile, a child of its own thaws it."""
        thaw = subprocess.Popen(["sh", "-c", f"sleep 60; fsfreeze -u {self.mount}"], stderr=subprocess.DEVNULL)
        subprocess.run(["fsfreeze", "-f", self.mount], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "-u", self.mount], check=True)
            thaw.kill()
            thaw.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount an image here: {done.stderr.strip()}")
    try:
        yield Disk(mount)
    finally:
        until(lambda: subprocess.run(["umount", mount], capture_output=True, check=False).returncode == 0, "umount")


@pytest.fixture
def host(tmp_path: Path, disk: Disk) -> Iterator[Host]:
    (tmp_path / "host").mkdir()
    with scratch_host(tmp_path / "host") as host:
        host.state = disk.mount / "state"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        host.write(f"listen: 127.0.0.1:{port}\n")
        host.page = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        host.start()
        (host.logs / "app.log").touch()
        until(lambda: times(host), "a first commit")
        yield host


def times(host: Host) -> list[float]:
    """When the host's load was sampled, as the file has it."""
    with Reader.open(host.state) as reader:
        query = "SELECT (julianday(time) - 2440587.5) * 86400 FROM samples WHERE metric = 'node_load1' ORDER BY time"
        return [at for (at,) in reader.sql(query)[1]]


def gaps(host: Host, since: float, until_: float) -> list[float]:
    """How far apart samples were."""
    within = [at for at in times(host) if since - LATE_S <= at <= until_ + LATE_S]
    return [after - before for before, after in pairwise([since, *within, until_])]


def answers(host: Host) -> bool:
    with urllib.request.urlopen(f"{host.page}/healthz", timeout=LATE_S) as answer:  # type: ignore[attr-defined]
        return bool(answer.status == 200)


def test_all_but_the_file_goes_on_and_nothing_is_lost(host: Host, disk: Disk) -> None:
    began = time.time()
    with disk.frozen():
        (host.logs / "app.log").write_text("ERROR worker 3: CUDA out of memory. GPU 0\n")
        host.fill()
        while time.time() < began + FROZEN_S:
            assert answers(host)
            time.sleep(0.2)
    thawed = time.time()
    until(lambda: times(host)[-1] > thawed, "samples after the thaw")
    assert time.time() - thawed < 10, "two intervals of commits have passed"
    assert max(gaps(host, began, thawed)) < LATE_S
    # What may only be done once it is recorded is done now.
    until(lambda: host.actions(rule="CacheTooLarge", outcome="fixed"), "the cache to be cleaned")
    until(lambda: host.actions(rule="OutOfMemory", handler="notify"), "the match to be told")
    [found] = [event for event in host.json("events") if event["kind"] == "log_match"]
    assert began - 1 < found["at"] < thawed + 5 if "at" in found else found
    assert host.stop() < 5


def test_stopped_while_frozen_it_ends_at_the_thaw_and_starts_again(host: Host, disk: Disk) -> None:
    began = time.time()
    assert host.process is not None
    with disk.frozen():
        (host.logs / "app.log").write_text("ERROR worker 3: CUDA out of memory. GPU 0\n")
        host.fill()
        time.sleep(FROZEN_S)
        host.process.send_signal(signal.SIGTERM)
        stopped = time.time()
        time.sleep(1.5)
    assert host.process.wait(timeout=10) == 0, host.log()[-3000:]
    assert max(gaps(host, began, stopped)) < LATE_S
    host.start()
    again = time.time()
    until(lambda: times(host)[-1] > again, "samples after the restart")
    host.stop()


def test_a_frozen_disk_is_known_to_be_one(disk: Disk) -> None:
    async def story() -> list[float]:
        clock = SystemClock()
        store = await Store.open(disk.mount / "state", clock=clock, limits=Retention())
        told = [store.frozen_s()]
        with disk.frozen():
            action = Action(0, "job", "", (), 1.0, 0, 0, "notify", {}, "r", ActionStatus.REQUESTED)
            asked = asyncio.create_task(store.ledger.request(action))
            await asyncio.sleep(1)
            told.append(store.frozen_s())
        assert await asked is not None
        told.append(store.frozen_s())
        await store.close()
        return told

    before, meanwhile, after = asyncio.run(story())
    assert before == after == 0
    assert 0.5 < meanwhile < 5
