"""A full walk of 100,000 files beside ``du``, the program's start included."""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.fs import walk
from benchmarks.common import Goal, Result, version_of

FOLDERS, FILES_A_FOLDER = 1000, 100
ROUNDS = 5


def measure() -> Iterable[Result]:
    """Processor time, ours and du's in turn, on a tree that is in the kernel's memory; and our peak memory.

    Not wall time: ours stands back for others by design, so a busy host would only slow us.
    """
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as root:
        fill(Path(root))
        walk_it = [sys.executable, "-I", "-S", walk.__file__, root]
        for _ in range(ROUNDS + 1):
            ours.append(cpu_of(walk_it))
            theirs.append(cpu_of(["du", "-sx", "--block-size=1", root]))
        resident_bytes = peak_bytes(walk_it)
    peer = (version_of("du") or "du").replace(" (GNU coreutils)", "")
    milliseconds = [1000 * statistics.median(rounds[1:]) for rounds in (ours, theirs)]
    yield Result(
        "directories", "CPU of a walk of 100,000 files", "ms", milliseconds[0], Goal(1.6), peer, milliseconds[1]
    )
    yield Result("directories", "peak memory of the walk", "MiB", resident_bytes / 2**20, Goal(15.0, "ours"))


def fill(root: Path) -> None:
    """A tree three levels deep with files of up to five kilobytes."""
    for number in range(FOLDERS):
        folder = root / str(number % 25) / str(number)
        folder.mkdir(parents=True)
        for file in range(FILES_A_FOLDER):
            (folder / f"result-{file}.json").write_bytes(b"x" * (file * 50))


def cpu_of(command: Sequence[str]) -> float:
    """Processor seconds that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def peak_bytes(command: Sequence[str]) -> int:
    """The most memory that a command held, read while it runs: what wait4(2) says counts the memory of who forked."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(ProcessLookupError), open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                peak = max([peak, *(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))])
            time.sleep(0.005)
    return peak
