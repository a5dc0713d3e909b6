"""F6: whatever a writer, a rotation and a crash do to a log, each line that is still somewhere is read once.

A sequence is drawn, carried out on real files, and read by a tailer that crashes in between. Each line carries a serial
number. The kinds drawn here are lossless: rename and create, a writer that goes on in the renamed file, delete and
create, copytruncate without a write in between, date suffix, switch of a symbolic link, truncate and refill of a file
that was read to its end.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.logwatch.tailer import Tailer

SEQUENCES = int(os.environ.get("UPKEEP_TAIL_SEQUENCES", "300"))


class World:
    """A folder with one log, its writer, and a tailer with its committed state."""

    def __init__(self, folder: Path, glob: str, *, linked: bool) -> None:
        self.folder, self.glob = folder, str(folder / glob)
        self.path = folder / "app.log"
        self.names = 0
        self.unfinished = False
        self.linked = linked
        self.writers: list[BinaryIO] = []
        self.written: list[int] = []
        self.committed: list[int] = []
        self.read: list[int] = []
        self.state: dict[str, list[list[Any]]] = {}
        self.globs: list[str] = []
        self.boot = 1000.0
        self.start()
        self.sweep()
        self.commit()
        self.create()
        self.sweep()

    # the agent

    def start(self) -> None:
        self.tailer = Tailer([self.glob], self.state, self.globs)

    def stop(self) -> None:
        self.tailer.close()
        for writer in self.writers:
            writer.close()

    def crash(self) -> None:
        assert self.tailer is not None
        self.tailer.close()
        self.read = []
        self.start()

    def sweep(self, most_blocks: int = 1_000_000) -> None:
        assert self.tailer is not None
        self.boot += 1.0
        ready = self.tailer.sweep(self.boot)
        while ready and most_blocks:
            tail = ready.pop(0)
            block = self.tailer.read(tail, self.boot)
            if block is not None:
                most_blocks -= 1
                text = bytes(block.data[block.start : block.stop])
                assert text.count(b"\n") == block.lines or block.truncated
                self.read += [int(number) for number in re.findall(rb"n=(\d+);", text)]
                tail.position = block.after
                ready.append(tail)

    def commit(self) -> None:
        assert self.tailer is not None
        self.state = {origin: self.tailer.entry(origin) for origin in list(self.tailer._origins)}
        self.globs = [self.glob]
        self.committed += self.read
        self.read = []

    # the writer

    @property
    def writer(self) -> BinaryIO:
        return self.writers[-1]

    def create(self) -> None:
        target = self.path
        if self.linked:
            self.names += 1
            target = self.folder / f"data-{self.names}"
        self.writers.append(target.open("ab", buffering=0))
        if self.linked:
            fresh = self.folder / "fresh"
            fresh.symlink_to(target.name)
            fresh.rename(self.path)

    def write(self, count: int, ending: bytes = b"\n") -> None:
        for _ in range(count):
            self.finish_line()
            self.writer.write(b"2026-01-01T00:00:00 ERROR evaluation failed " + self._serial() + ending)

    def write_partial(self) -> None:
        self.finish_line()
        self.writer.write(b"ERROR half a line " + self._serial())
        self.unfinished = True

    def finish_line(self) -> None:
        if self.unfinished:
            self.writer.write(b" done\n")
        self.unfinished = False

    def _serial(self) -> bytes:
        self.written.append(len(self.written) + 1)
        return b"n=%d; %s" % (self.written[-1], b"x" * (self.written[-1] % 40))

    # rotations

    def shift(self, pattern: str = "app.log.{}") -> None:
        for number in range(9, 0, -1):
            old = self.folder / pattern.format(number)
            if old.exists():
                old.rename(self.folder / pattern.format(number + 1))

    def rename(self, late_lines: int = 0) -> None:
        self.finish_line()
        if self.linked:
            self.create()  # the link is switched, the old file stays
            return
        self.shift()
        self.path.rename(self.folder / "app.log.1")
        self.create()
        new = self.writers.pop()
        self.write(late_lines)
        self.writers.append(new)

    def date_suffix(self) -> None:
        self.finish_line()
        if self.linked:
            self.create()
            return
        self.names += 1
        self.path.rename(self.folder / f"app_{20260000 + self.names}.log")
        self.create()

    def copytruncate(self) -> None:
        self.finish_line()
        self.shift()
        shutil.copyfile(self.path, self.folder / "app.log.1")
        os.truncate(self.path, 0)

    def delete(self) -> None:
        self.finish_line()
        real = Path(os.path.realpath(self.path))
        real.unlink()
        if self.linked:
            self.path.unlink()
        self.create()

    def refill(self) -> None:
        """Truncate and fill again to the very same size; all of the old content was read."""
        self.finish_line()
        size = os.stat(self.path).st_size
        os.truncate(self.path, 0)
        if size > 100:
            head = b"refilled " + self._serial()
            self.writer.write(head + b"y" * (size - len(head) - 1) + b"\n")

    def look(self) -> None:
        """See names and sizes, read nothing."""
        self.sweep(0)
        self.commit()

    def read_all(self) -> None:
        self.sweep()
        self.commit()


STEPS: dict[str, Callable[[World], None]] = {
    "write": lambda world: world.write(3),
    "write_many": lambda world: world.write(400),
    "write_crlf": lambda world: world.write(2, b"\r\n"),
    "write_partial": World.write_partial,
    "finish_line": World.finish_line,
    "sweep": World.sweep,
    "read_some": lambda world: world.sweep(1),
    "read_all": World.read_all,
    "crash": World.crash,
}
ROTATIONS: dict[str, Callable[[World], None]] = {
    "rename": World.rename,
    "rename_late_writer": lambda world: world.rename(5),
    "date_suffix": World.date_suffix,
    "copytruncate": World.copytruncate,
    "delete": World.delete,
    "refill": World.refill,
}


def carry_out(world: World, steps: list[str]) -> None:
    for step in steps:
        if step in STEPS:
            STEPS[step](world)
            continue
        # A file made and rotated away between two looks was never at a watched path; what a deletion or a refill
        # destroys must have been read.
        world.finish_line()
        if step == "refill":
            world.read_all()
        elif step == "copytruncate":
            world.write(1)
            world.look()  # of an empty file nothing is known by which to find its copy
            world.write(7)
        else:
            world.look()
        ROTATIONS[step](world)
        if step in ("copytruncate", "delete"):
            world.read_all()  # while it is still held, or before the next copy
        else:
            world.look()


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    steps=st.lists(st.sampled_from([*STEPS, *ROTATIONS]), min_size=3, max_size=25),
    glob=st.sampled_from(["*.log", "app.log", "*.log*"]),
    linked=st.booleans(),
)
def test_every_line_is_read_once(steps: list[str], glob: str, linked: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), glob, linked=linked)
        try:
            carry_out(world, steps)
            world.finish_line()
            world.read_all()
            world.read_all()  # the copy that the first one found
        finally:
            world.stop()
        counted = sorted(world.committed)
        assert counted == sorted(set(counted)), "doubled"
        assert counted == world.written, f"lost {sorted(set(world.written) - set(counted))[:5]}"
