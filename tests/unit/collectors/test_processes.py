"""Processes by name: from written /proc texts, and on this host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.collectors.processes import (
    KERNEL,
    MOST,
    NAMES_KEPT,
    OTHERS,
    Groups,
    Process,
    ProcessesCollector,
    parse,
)
from agent.metrics import METRICS
from agent.model import Sample

TICKS = os.sysconf("SC_CLK_TCK")
CPU, MEMORY, COUNT = (f"namedprocess_namegroup_{name}" for name in ("cpu_seconds_total", "memory_bytes", "num_procs"))


def stat_line(name: str, *, user: int = 0, system: int = 0, started: int = 7, pages: int = 1, flags: int = 0) -> bytes:
    """The text of /proc/PID/stat as proc(5) gives it."""
    middle = ["S", 1, 1, 1, 0, -1, flags, 0, 0, 0, 0, user, system, 0, 0, 20, 0, 1, 0, started, 4096, pages]
    return f"42 ({name}) {' '.join(map(str, middle))} 18446744073709551615 0 0\n".encode()


def process(name: str, ticks: int = 0, started: int = 1, resident: int = 1) -> Process:
    return Process(name, ticks, 0, started, resident)


def by_name(samples: list[Sample], metric: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        if sample.metric == metric:
            name = dict(sample.labels)["groupname"]
            found[name] = found.get(name, 0.0) + sample.value
    return found


def test_a_name_may_hold_blanks_and_brackets() -> None:
    found = parse(stat_line("a) R (b", user=5, system=6, started=77, pages=3))
    assert found == Process("a) R (b", 5, 6, 77, 3 * os.sysconf("SC_PAGE_SIZE"))


def test_kernel_threads_are_one_group() -> None:
    assert parse(stat_line("kworker/0:1-events", flags=0x208040)).name == KERNEL


def test_time_counts_from_the_first_look_and_what_ends_is_kept() -> None:
    groups = Groups()
    groups.take([(1, process("old", 1000)), (2, process("old", 500))])
    assert by_name(groups.samples(1.0), CPU) == {"old": 0}
    groups.take([(1, process("old", 1000 + TICKS)), (3, process("new", 2 * TICKS, started=9))])
    assert by_name(groups.samples(2.0), CPU) == {"old": 1, "new": 2}
    assert by_name(groups.samples(2.0), COUNT) == {"old": 1, "new": 1}


def test_another_process_of_the_same_number_is_new() -> None:
    groups = Groups()
    groups.take([(1, process("worker", 900, started=1))])
    groups.take([(1, process("worker", TICKS, started=2))])
    assert by_name(groups.samples(1.0), CPU) == {"worker": 1}


def test_those_that_use_most_are_told_and_no_others() -> None:
    groups = Groups()
    groups.take([])
    groups.take([(n, process(f"p{n:02}", ticks=n * TICKS, resident=(40 - n) * 1000)) for n in range(40)])
    told = set(by_name(groups.samples(1.0), CPU))
    assert told == {f"p{n:02}" for n in (*range(MOST), *range(40 - MOST, 40))}
    groups.take([])
    assert groups.samples(2.0) == []


def test_one_at_the_edge_stays_and_one_far_below_goes() -> None:
    groups = Groups()
    groups.take([(n, process(f"p{n:02}", resident=(100 - n) * 1000)) for n in range(60)])
    assert "p00" in by_name(groups.samples(1.0), MEMORY)
    for resident, stays in ((85_500, True), (75_500, False), (85_500, False)):
        groups.take([(n, process(f"p{n:02}", resident=(100 - n) * 1000 if n else resident)) for n in range(60)])
        assert ("p00" in by_name(groups.samples(2.0), MEMORY)) is stays


def test_names_without_end_make_no_series_without_end() -> None:
    groups = Groups()
    groups.take([(n, process(f"job-{n}")) for n in range(NAMES_KEPT)])
    groups.take([(n, process(f"later-{n}", TICKS, resident=10**6)) for n in range(1000, 1100)])
    assert by_name(groups.samples(1.0), COUNT) == {OTHERS: 100}


@given(
    st.lists(
        st.dictionaries(st.integers(1, 6), st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(1, 3))),
        max_size=8,
    )
)
def test_times_only_grow(rounds: list[dict[int, tuple[str, int, int]]]) -> None:
    groups, before = Groups(), dict[str, float]()
    for running in rounds:
        groups.take([(pid, process(*each)) for pid, each in running.items()])
        now = by_name(groups.samples(1.0), CPU)
        assert all(now[name] >= before.get(name, 0.0) for name in now)
        before |= now


def test_hidden_processes_are_no_small_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "99").mkdir()
    (tmp_path / "99" / "stat").write_bytes(stat_line("own"))
    assert asyncio.run(ProcessesCollector(str(tmp_path)).collect(1.0)).series == ()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "stat").write_bytes(stat_line("init"))
    assert len(asyncio.run(ProcessesCollector(str(tmp_path)).collect(1.0)).series) == 2 * 4


def test_this_host() -> None:
    reading = asyncio.run(ProcessesCollector().collect(1.0))
    assert len(reading.series) == len(reading.values) == len(set(reading.series)) <= 4 * MOST * 4
    for series in reading.series:
        metric = METRICS[series.metric]
        assert metric.source == ProcessesCollector.name
        assert tuple(name for name, _ in series.labels) == tuple(sorted(metric.labels))
    memory = [value for series, value in zip(reading.series, reading.values, strict=True) if series.metric == MEMORY]
    assert max(memory) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 4
    assert max(memory) > 10**6
