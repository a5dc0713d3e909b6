"""Walks of 300,000 files in 5,000 folders beside ``du``: whole, and again while nothing changed."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.fs import walk
from benchmarks.common import Goal, Result, version_of

FOLDERS, FILES_A_FOLDER = 5000, 60
OLD_S = 1_600_000_000.0
ROUNDS = 5


def measure() -> Iterable[Result]:
    """Ours and du's in turn, on a tree that is in the kernel's memory; and our peak memory.

    The whole walk by processor time, programs' starts included: ours stands back for others by design, so a busy host
    would only slow its wall time. The walk again by its own wall time, since starting Python costs a third as much.
    """
    ours, again, again_s, theirs, their_s = [], [], [], [], []
    memory = os.memfd_create("walk")
    with tempfile.TemporaryDirectory() as root:
        fill(Path(root))
        time.sleep(walk.FRESH_S)
        whole, kept = walk.command("-", root), walk.command(str(memory), root)
        ended(kept, memory)
        for _ in range(ROUNDS + 1):
            ours.append(ended(whole).cpu_s)
            du = ended(["du", "-sx", "--block-size=1", root])
            theirs.append(du.cpu_s)
            their_s.append(du.wall_s)
            walked = ended(kept, memory)
            again.append(walked.cpu_s)
            again_s.append(float(walked.output.split()[-1]))
        resident_bytes = peak_bytes(whole)
    os.close(memory)
    peer = (version_of("du") or "du").replace(" (GNU coreutils)", "")
    cpu, cpu_again, wall_again, du_cpu, du_wall = (
        1000 * statistics.median(rounds[1:]) for rounds in (ours, again, again_s, theirs, their_s)
    )
    for metric, our_ms, goal, their_ms in (
        ("CPU of a walk of 300,000 files", cpu, Goal(1.6), du_cpu),
        ("walk again, nothing changed", wall_again, Goal(0.05), du_wall),
        ("CPU of the same, the program's start included", cpu_again, None, du_cpu),
    ):
        yield Result("directories", metric, "ms", our_ms, goal, peer, their_ms)
    yield Result("directories", "peak memory of the walk", "MiB", resident_bytes / 2**20, Goal(15.0, "ours"))


def fill(root: Path) -> None:
    """A tree three levels deep with files of up to five kilobytes, written long ago."""
    for number in range(FOLDERS):
        folder = root / str(number % 25) / str(number)
        folder.mkdir(parents=True)
        for file in range(FILES_A_FOLDER):
            path = folder / f"result-{file}.json"
            path.write_bytes(b"x" * (file * 80))
            os.utime(path, (OLD_S, OLD_S))


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command cost, and what it printed."""

    cpu_s: float
    wall_s: float
    output: str


def ended(command: Sequence[str], *descriptors: int) -> Ended:
    """Run a command, with some of our open files, to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, pass_fds=descriptors).stdout
    wall_s, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Ended(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall_s, output)


def peak_bytes(command: Sequence[str]) -> int:
    """The most memory that a command held, read while it runs: what wait4(2) says counts the memory of who forked."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(ProcessLookupError), open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                peak = max([peak, *(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))])
            time.sleep(0.005)
    return peak
