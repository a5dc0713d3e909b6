"""Log scanning beside ripgrep and GNU grep, and the time from an appended line to its committed event.

``UPKEEP_BENCH_LOG_MB`` sets the size of the generated log (300).
CPU time of one thread is compared, in turns, so that a busy machine slows all alike. All must find the same lines.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import uvloop

from agent.clock import SystemClock
from agent.logwatch.patterns import Matcher, Pattern, compile_patterns
from agent.logwatch.runner import LogWatch
from agent.logwatch.tailer import BLOCK_BYTES, Tailer
from agent.model import Event, Reading
from agent.store import Retention, Store
from benchmarks.common import Goal, Result

SIZE_MB = int(os.environ.get("UPKEEP_BENCH_LOG_MB", "300"))
TURNS = 3
LOOP_SHARE = 40
"""The loop of today reads this fraction of the log: all of it would take minutes."""
BURST_PER_S, BURST_S = 2000, 5

SHIPPED = [
    r"ERROR.*evaluation failed",
    r"CRITICAL.*system overload",
    r"WARNING.*high latency",
    r"ERROR.*CUDA out of memory(?:.*GPU (?P<gpu>\d+))?",
]
LEVELS = ["ERROR", "CRITICAL", "WARNING"]
WORDS = ["batch", "worker", "queue", "shard", "tensor", "cache", "model", "loader", "token", "prompt", "metric"]
SUBJECTS = ["lease", "quorum", "ledger", "cursor", "digest", "vector", "index", "segment", "window", "policy"]
"""Of the further patterns: in no ordinary line, as it is with what people watch for."""


def measure() -> Iterable[Result]:
    """Throughput and latency, each promise with its goal."""
    with tempfile.TemporaryDirectory() as folder:
        yield from scanning(Path(folder))
        yield from latency(Path(folder))


def scanning(folder: Path) -> list[Result]:
    """Throughput at 4, 50 and 200 patterns."""
    regexes = {count: SHIPPED + _more_patterns(count - len(SHIPPED)) for count in (4, 50, 200)}
    log = folder / "bench.log"
    lines = _generate(log, SIZE_MB << 20)
    subprocess.run(["cat", str(log)], check=True, stdout=subprocess.DEVNULL)  # into the page cache
    results: list[Result] = []
    for count, chosen in regexes.items():
        results += _compare(log, chosen, count, lines, folder)
    log.unlink()
    return results


def _compare(log: Path, regexes: list[str], count: int, lines: int, folder: Path) -> list[Result]:
    size = log.stat().st_size
    listed = folder / "patterns"
    # Without the optional tail and its group, which changes no line's verdict: grep has no groups.
    listed.write_text("\n".join(regex.split("(?:")[0] for regex in regexes) + "\n")
    peers: dict[str, list[str]] = {}
    if shutil.which("rg"):
        peers["ripgrep 13"] = ["rg", "-j1", "-a", "--no-unicode", "--no-mmap", "-c", "-f", str(listed), str(log)]
    peers["GNU grep"] = ["grep", "-cE", "-f", str(listed), str(log)]
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    found: dict[str, int] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tailed: list[float] = []
    # One matcher for all turns, as the agent has one for its life; the first turn pays for its compilations.
    matcher = compile_patterns([Pattern(f"p{number}", regex) for number, regex in enumerate(regexes)])
    for _ in range(TURNS):
        seconds, found["ours"] = _ours(log, matcher)
        ours.append(seconds)
        seconds, found["ours, tailed"] = _tailed(log, matcher)
        tailed.append(seconds)
        for name, command in peers.items():
            seconds, found[name] = _child(command)
            theirs[name].append(seconds)
    added_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if len(set(found.values())) != 1:
        raise SystemExit(f"the engines disagree at {count} patterns: {found}")
    ours_mb = size / min(ours) / 1e6
    results = [
        _result(f"scan_{count}_patterns", "MB/s of CPU", ours_mb, name, size / min(times) / 1e6, _least(name, count))
        for name, times in theirs.items()
    ]
    loop_mb = _loop(log, regexes, lines)
    results.append(_result(f"scan_{count}_patterns", "MB/s of CPU", ours_mb, "re.search loop", loop_mb, 40.0))
    tailed_mb = size / min(tailed) / 1e6
    results.append(_result(f"tail_{count}_patterns", "MB/s of CPU", tailed_mb, "re.search loop", loop_mb, None))
    results.append(_limit(f"scan_{count}_added_rss", "MiB", added_mib, most=24.0))
    results.append(_limit(f"scan_{count}_speed", "GB/s of CPU", ours_mb / 1000, least=1.5))
    return results


def _least(peer: str, count: int) -> float | None:
    """The ratio that is promised; None beside a peer that is only shown."""
    if peer != "ripgrep 13":
        return None
    return 0.6 if count == 4 else 2.0


def _ours(log: Path, matcher: Matcher) -> tuple[float, int]:
    """Matching alone, as the peers do: blocks of whole lines into one buffer, and which lines match."""
    buffer = bytearray(BLOCK_BYTES)
    began = time.process_time()
    fd = os.open(log, os.O_RDONLY)
    offset = found = 0
    while size := os.preadv(fd, [buffer], offset):
        stop = buffer.rfind(b"\n", 0, size) + 1
        found += _matching_lines(matcher, buffer, 0, stop)
        offset += stop
    os.close(fd)
    return time.process_time() - began, found


def _tailed(log: Path, matcher: Matcher) -> tuple[float, int]:
    """The whole tailer: lines counted, places hashed, long lines looked for."""
    tailer = Tailer([str(log)], known_globs=[str(log)])
    began = time.process_time()
    (tail,) = tailer.sweep(0.0)
    found = 0
    while (block := tailer.read(tail, 0.0)) is not None:
        found += _matching_lines(matcher, block.data, block.start, block.stop)
        tail.position = block.after
    seconds = time.process_time() - began
    tailer.close()
    return seconds, found


def _matching_lines(matcher: Matcher, data: bytes | bytearray, start: int, stop: int) -> int:
    return len({match.start for match in matcher.scan(data, start, stop)})


def _child(command: Sequence[str]) -> tuple[float, int]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(done.stdout)


def _loop(log: Path, regexes: Sequence[str], lines: int) -> float:
    """The loop that scripts use: each pattern on each line."""
    share = max(1000, lines // LOOP_SHARE // max(1, len(regexes) // 4))
    size = 0
    began = time.process_time()
    with log.open(errors="replace") as file:
        for _, line in zip(range(share), file, strict=False):
            size += len(line)
            for regex in regexes:
                re.search(regex, line)
    return size / (time.process_time() - began) / 1e6


def latency(folder: Path) -> list[Result]:
    """From the write of a line to its event in the store."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_latency(folder))


async def _latency(folder: Path) -> list[Result]:
    state, log = folder / "state", folder / "app.log"
    state.mkdir()
    log.touch()
    clock = SystemClock()
    store = await Store.open(state, clock=clock, limits=Retention())
    seen: dict[int, float] = {}
    committed = asyncio.Event()

    async def commit(
        events: Sequence[Event], readings: Sequence[Reading], offsets: Mapping[str, Mapping[str, object]]
    ) -> None:
        await store.metrics.commit_log(events, readings, offsets)
        at = time.perf_counter()
        seen.update((int(event.message.rsplit("n=")[1]), at) for event in events if event.kind == "log_match")
        if events:
            committed.set()

    patterns = [Pattern(f"p{number}", regex) for number, regex in enumerate(SHIPPED)]
    watch = LogWatch([str(log)], compile_patterns(patterns), commit, clock, events_per_s=1_000_000)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0.5)
    quiet = await _append_quietly(log, seen, committed)
    burst, cpu_share = await _append_in_a_burst(log, seen)
    task.cancel()
    await asyncio.wait({task})
    await store.close()
    return [
        _limit("append_to_event_quiet_p50", "ms", _percentile(quiet, 50), most=5.0),
        _limit("append_to_event_quiet_p99", "ms", _percentile(quiet, 99), most=5.0),
        _limit("append_to_event_2000_per_s_p50", "ms", _percentile(burst, 50), most=30.0),
        _limit("append_to_event_2000_per_s_p99", "ms", _percentile(burst, 99), most=30.0),
        _limit("cpu_at_2000_per_s", "% of a core", 100 * cpu_share, most=5.0),
    ]


async def _append_quietly(
    log: Path, seen: Mapping[int, float], committed: asyncio.Event, count: int = 200
) -> list[float]:
    taken: list[float] = []
    with log.open("a", buffering=1) as file:
        for number in range(count):
            await asyncio.sleep(random.uniform(0.05, 0.12))
            began = time.perf_counter()
            file.write(f"ERROR evaluation failed n={number}\n")
            await committed.wait()
            committed.clear()
            taken.append(1000 * (seen[number] - began))
    return taken


async def _append_in_a_burst(log: Path, seen: dict[int, float]) -> tuple[list[float], float]:
    """A writer process appends at a steady rate, one line in twenty an error; the agent's CPU is this process's."""
    seen.clear()
    count = BURST_PER_S * BURST_S
    program = (
        "import sys,time\n"
        "log=open(sys.argv[1],'a',buffering=1); n=int(sys.argv[2]); rate=int(sys.argv[3]); began=time.perf_counter()\n"
        "for i in range(n):\n"
        "    wait=began+i/rate-time.perf_counter()\n"
        "    if wait>0: time.sleep(wait)\n"
        "    at=time.perf_counter()\n"
        "    log.write(f'ERROR evaluation failed n={i}\\n' if i%20==0 else f'INFO all is well with request {i}\\n')\n"
        "    if i%20==0: print(i, at)\n"
    )
    before = time.process_time()
    began = time.perf_counter()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(log), str(count), str(BURST_PER_S), stdout=subprocess.PIPE
    )
    output, _ = await child.communicate()
    share = (time.process_time() - before) / (time.perf_counter() - began)
    await asyncio.sleep(1.5)
    # CLOCK_MONOTONIC is one for all processes.
    written = {int(line.split()[0]): float(line.split()[1]) for line in output.decode().splitlines()}
    return [1000 * (seen[number] - at) for number, at in written.items()], share


def _generate(path: Path, size: int) -> int:
    """A log of about 124 bytes a line, one in a thousand matching; the same at each run."""
    chance = random.Random(7)
    matching = ["ERROR worker 3: evaluation failed", "WARNING high latency", "ERROR: CUDA out of memory. GPU 1"]
    block: list[str] = []
    for number in range(20_000):
        level = "ERROR" if number % 50 == 0 else "INFO"
        text = " ".join(chance.choices(WORDS, k=11))
        if number % 1000 == 0:
            text = f"{chance.choice(matching)} {text}"
            level = "INFO"
        block.append(f"2026-01-01T00:00:00.{number % 1000:03d} {level} [{chance.randrange(64):02d}] {text}\n")
    data = "".join(block).encode()
    times = max(1, size // len(data))
    with path.open("wb") as file:
        for _ in range(times):
            file.write(data)
    return times * len(block)


def _more_patterns(count: int) -> list[str]:
    chance = random.Random(11)
    made: list[str] = []
    while len(made) < count:
        one, other = chance.sample(SUBJECTS, 2)
        regex = f"{chance.choice(LEVELS)}.*{one} {other} (failed|lost|late) {len(made)}"
        if regex not in made:
            made.append(regex)
    return made


def _result(metric: str, unit: str, ours: float, peer: str, theirs: float, bound: float | None) -> Result:
    return Result("logs", metric, unit, ours, Goal(bound, sense=">=") if bound is not None else None, peer, theirs)


def _limit(metric: str, unit: str, ours: float, *, most: float = float("inf"), least: float = 0.0) -> Result:
    return Result("logs", metric, unit, ours, Goal(least, "ours", ">=") if least else Goal(most, "ours"))


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
