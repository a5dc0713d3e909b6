"""The runner over the kernel's log: real replayed journals, positions that commit with events, stores that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.clock import ManualClock, SystemClock
from agent.errors import StoreError
from agent.journal import parse_entry
from agent.kernel.book import Book
from agent.kernel.journal import Journal, Kmsg, Line, Silence, find_source, parse_record
from agent.kernelwatch import KEY, KernelWatch, restored
from agent.model import Event, Reading

TEXTS = [
    "Linux version 6.1.0",
    "NVRM: GPU at PCI:0000:5e:00: GPU-1",
    "NVRM: Xid (PCI:0000:5e:00): 94, pid=9, name=train, Contained error",
    "NVRM: Xid (PCI:0000:5e:00): 45, pid=9, name=train, Ch 00000008",
    "usb 1-1: new device",
    "EXT4-fs (sda1): Remounting filesystem read-only",
]

REPLAY = """\
import sys, time
after = sys.argv[sys.argv.index("--after-cursor") + 1] if "--after-cursor" in sys.argv else ""
lines = open(sys.argv[1]).read().splitlines()
skipping = bool(after)
for line in lines:
    if not skipping:
        print(line, flush=True)
    skipping = skipping and f'"{after}"' not in line
time.sleep(60)
"""


def replaying(folder: Path, texts: Sequence[object] = TEXTS) -> Journal:
    """A command that prints a captured journal as ``journalctl --follow`` does, and waits."""
    entries = [
        {"MESSAGE": text, "__CURSOR": f"c{n}", "__REALTIME_TIMESTAMP": str((1000 + n) * 1_000_000)}
        for n, text in enumerate(texts)
    ]
    (folder / "journal.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "replay.py").write_text(REPLAY)
    return Journal([sys.executable, str(folder / "replay.py"), str(folder / "journal.json")])


class Commits:
    """A store's end that remembers, and can refuse."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state: dict[str, Any] = {}
        self.refuse = 0
        self.told = 0
        self.changed = asyncio.Event()

    async def commit(
        self, events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, object]]
    ) -> None:
        if self.refuse:
            self.refuse -= 1
            raise StoreError("cannot write: full")
        self.events += events
        self.state = json.loads(json.dumps(offsets[KEY]))
        self.changed.set()

    async def tell(self) -> None:
        self.told += 1


@contextlib.asynccontextmanager
async def watching(source: Any, commits: Commits, stored: Mapping[str, Any] | None = None) -> AsyncIterator[Book]:
    book = Book()
    book.restore(restored(stored, "boot") or {})
    watch = KernelWatch(
        source, book, commits.commit, ManualClock(wall=2000.0), boot_id="boot", stored=stored, told=commits.tell
    )
    task = asyncio.create_task(watch.run())
    try:
        yield book
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_a_boots_log_is_read_from_its_start_and_a_restart_goes_on_behind_it(tmp_path: Path) -> None:
    async def story() -> None:
        commits = Commits()
        async with watching(replaying(tmp_path), commits):
            async with asyncio.timeout(10):
                while len(commits.events) < 3:
                    await commits.changed.wait()
                    commits.changed.clear()
        assert [event.kind for event in commits.events] == ["gpu_xid", "gpu_xid", "kernel_message"]
        assert [event.at for event in commits.events] == [1002.0, 1003.0, 1005.0]
        assert dict(commits.events[1].labels)["cause"] == "94"
        assert commits.state["position"] == "c5"
        assert commits.told >= 1

        later = Commits()
        more = replaying(tmp_path, [*TEXTS, "NVRM: Xid (PCI:0000:5e:00): 79, GPU has fallen off the bus."])
        async with watching(more, later, commits.state) as book:
            async with asyncio.timeout(10):
                await later.changed.wait()
            assert [dict(event.labels)["xid"] for event in later.events] == ["79"]
            assert dict(later.events[0].labels)["UUID"] == "GPU-1"
            series, values = book.readings()
            xids = {dict(s.labels).get("xid"): v for s, v in zip(series, values, strict=True)}
            assert (xids["94"], xids["45"]) == (1.0, 1.0)

    asyncio.run(story())


def test_a_position_of_another_boot_means_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        commits = Commits()
        async with watching(replaying(tmp_path), commits, {"boot": "another", "position": "c5", "xids": [["x", 1, 9]]}):
            async with asyncio.timeout(10):
                await commits.changed.wait()
        assert commits.events
        assert ["x", 1, 9] not in commits.state["xids"]

    asyncio.run(story())


def test_events_wait_for_a_store_that_does_not_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.kernelwatch.CHECK_S", 0.05)

    async def story() -> None:
        commits = Commits()
        commits.refuse = 3
        async with watching(replaying(tmp_path), commits):
            async with asyncio.timeout(10):
                await commits.changed.wait()
        assert [event.kind for event in commits.events] == ["gpu_xid", "gpu_xid", "kernel_message"]

    asyncio.run(story())


def test_a_storm_shares_its_commits(tmp_path: Path) -> None:
    storm = [f"NVRM: Xid (PCI:0000:5e:00): 95, pid={n % 29}, name=x, Uncontained" for n in range(20_000)]

    class Counted(Commits):
        commits = 0

        async def commit(self, *arguments: Any) -> None:
            self.commits += 1
            await super().commit(*arguments)

    async def story() -> None:
        commits = Counted()
        async with watching(replaying(tmp_path, [*storm, "VFS: file-max limit 1 reached"]), commits) as book:
            async with asyncio.timeout(30):
                while not commits.events or commits.events[-1].kind != "kernel_message":
                    await commits.changed.wait()
                    commits.changed.clear()
            book.readings()
            series, values = book.readings()
            assert 20_000.0 in values, (series, values)
        assert len(commits.events) <= 30
        assert commits.commits < 100

    asyncio.run(story())


def test_a_reader_that_waits_for_room_can_be_stopped() -> None:
    class Endless:
        async def lines(self, after: str) -> AsyncGenerator[Line, None]:
            while True:
                yield Line("VFS: file-max limit 1 reached", 0.0, "p")

    async def story() -> None:
        commits = Commits()
        async with asyncio.timeout(10):
            async with watching(Endless(), commits):
                await commits.changed.wait()

    asyncio.run(story())


def test_without_a_log_what_nvml_tells_is_judged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.kernelwatch.CHECK_S", 0.02)

    async def story() -> None:
        commits = Commits()
        async with watching(Silence(), commits) as book:
            book.take_nvml("0000:5e:00", 79, 1000.0)
            async with asyncio.timeout(10):
                await commits.changed.wait()
        assert [event.kind for event in commits.events] == ["gpu_xid"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"MESSAGE": "plain", "__CURSOR": "c", "__REALTIME_TIMESTAMP": "5000000"}, "plain"),
        ({"MESSAGE": [102, 255, 111], "__CURSOR": "c", "__REALTIME_TIMESTAMP": "5000000"}, "f�o"),
        ({"MESSAGE": None, "__CURSOR": "c", "__REALTIME_TIMESTAMP": "5000000"}, None),
        ({"MESSAGE": [1, "x"], "__CURSOR": "c", "__REALTIME_TIMESTAMP": "5000000"}, None),
        ({"MESSAGE": "x", "__REALTIME_TIMESTAMP": "5000000"}, None),
        ({"MESSAGE": "x", "__CURSOR": "c", "__REALTIME_TIMESTAMP": "soon"}, None),
        (["no object"], None),
    ],
)
def test_an_entry_of_the_journal(entry: object, text: str | None) -> None:
    line = parse_entry(json.dumps(entry).encode())
    assert (line.text if line else None) == text


def test_what_is_no_json_is_no_entry() -> None:
    assert parse_entry(b"-- cursor: s=1\n") is None


def test_a_record_of_kmsg() -> None:
    raw = b"4,1234,98765432,-,caller=T1;NVRM: Xid (PCI:0000:5e:00): 79\n SUBSYSTEM=pci\n"
    assert parse_record(raw, 1000.0) == Line("NVRM: Xid (PCI:0000:5e:00): 79", 1098.765432, "1234")
    assert parse_record(b"12,1,5,-;systemd[1]: from user space", 0.0) is None
    assert parse_record(b"broken", 0.0) is None


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="needs to read /dev/kmsg")
def test_the_kernels_own_buffer_can_be_read_from_a_position() -> None:
    async def some(after: str, count: int) -> list[Line]:
        found = []
        async with asyncio.timeout(5):
            lines = Kmsg(SystemClock()).lines(after)
            async for line in lines:
                found.append(line)
                if len(found) == count:
                    break
            await lines.aclose()  # type: ignore[attr-defined]
        return found

    try:
        first = asyncio.run(some("", 3))
    except (OSError, TimeoutError):
        pytest.skip("the kernel's buffer is empty or closed here")
    assert [int(line.position) for line in first] == sorted({int(line.position) for line in first})
    [again] = asyncio.run(some(first[0].position, 1))
    assert (again.position, again.text) == (first[1].position, first[1].text)


def test_no_log_at_all_is_silence(tmp_path: Path) -> None:
    found = find_source(SystemClock(), journald=str(tmp_path / "socket"), kmsg=str(tmp_path / "kmsg"))
    assert isinstance(found, Silence)


def test_the_journal_comes_before_the_kernels_buffer_where_its_daemon_runs(tmp_path: Path) -> None:
    socket, kmsg = tmp_path / "socket", tmp_path / "kmsg"
    kmsg.touch()
    assert isinstance(find_source(SystemClock(), journald=str(socket), kmsg=str(kmsg)), Kmsg)
    socket.touch()
    found = find_source(SystemClock(), journald=str(socket), kmsg=str(kmsg))
    assert isinstance(found, Journal if shutil.which("journalctl") else Kmsg)


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="needs journalctl")
def test_the_real_command_takes_the_options() -> None:
    """On a host without a journal it says so and ends; an option that it does not know would be another status."""
    done = subprocess.run(
        ["journalctl", "-k", "-b", "-o", "json", "--output-fields=MESSAGE,__CURSOR", "--quiet", "--no-tail"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "unrecognized option" not in done.stderr
    for line in done.stdout.splitlines()[:5]:
        assert parse_entry(line.encode()) is not None
