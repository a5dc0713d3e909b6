"""Processors, memory and pressure from captured text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors.system import (
    MODES,
    TICKS_PER_SECOND,
    LoadParser,
    OpenFilesParser,
    PressureCollector,
    PressureParser,
    StatParser,
    SystemCollector,
    memory_parser,
    paging_parser,
)
from agent.model import Series

PROC = Path(__file__).parents[2] / "testdata" / "proc"
VM = PROC / "vm"


def stat_text(processors: dict[int, list[int]], *, width: int = 10) -> bytes:
    """A /proc/stat with these processors and their first columns."""
    rows = [f"cpu{n} " + " ".join(map(str, (ticks + [0] * width)[:width])) for n, ticks in processors.items()]
    total = "cpu  " + " ".join(["7"] * width)
    rest = [
        "intr 131430 0 44 0",
        "ctxt 289153",
        "btime 1795475040",
        "processes 6414",
        "procs_running 2",
        "procs_blocked 1",
    ]
    return "\n".join([total, *rows, *rest, "softirq 9 1", ""]).encode()


def named(parser: StatParser, raw: bytes) -> dict[str, float]:
    values = parser.parse(raw)
    return {str(series): value for series, value in zip(parser.series, values, strict=True)}


def test_the_captured_stat_gives_each_processor_and_mode_in_seconds() -> None:
    values = named(StatParser(), (VM / "stat").read_bytes())
    lines = (VM / "stat").read_text().splitlines()
    columns = lines[1].split()
    assert lines[1].startswith("cpu0 ")
    for mode, ticks in zip(MODES, columns[1:9], strict=True):
        assert values[f'node_cpu_seconds_total{{cpu="0",mode="{mode}"}}'] == int(ticks) / TICKS_PER_SECOND
    assert values["node_boot_time_seconds"] == 1795475040
    assert values["node_intr_total"] == int(next(line for line in lines if line.startswith("intr ")).split()[1])
    assert sum(name.startswith("node_cpu") for name in values) == 2 * len(MODES)


def test_series_are_the_same_object_while_the_layout_holds() -> None:
    parser = StatParser()
    parser.parse(stat_text({0: [1, 2, 3, 4], 1: [5, 6, 7, 8]}))
    first = parser.series
    parser.parse(stat_text({0: [2, 2, 3, 4], 1: [5, 6, 7, 9]}))
    assert parser.series is first


def test_a_processor_that_is_switched_off_and_on_again() -> None:
    parser = StatParser()
    three = {n: [1000 * TICKS_PER_SECOND] * 4 for n in range(3)}
    assert len(named(parser, stat_text(three))) == 3 * 8 + 6
    without = {n: three[n] for n in (0, 2)}
    values = named(parser, stat_text(without))
    assert 'node_cpu_seconds_total{cpu="1",mode="user"}' not in values
    assert values['node_cpu_seconds_total{cpu="2",mode="user"}'] == 1000
    back = {**three, 1: [5, 0, 0, 0]}
    assert named(parser, stat_text(back))['node_cpu_seconds_total{cpu="1",mode="user"}'] == 5 / TICKS_PER_SECOND


def test_a_column_that_runs_back_a_little_is_held_and_one_that_starts_over_is_not() -> None:
    parser = StatParser()
    idle = 'node_cpu_seconds_total{cpu="0",mode="idle"}'
    assert named(parser, stat_text({0: [0, 0, 0, 1000]}))[idle] == 1000 / TICKS_PER_SECOND
    assert named(parser, stat_text({0: [0, 0, 0, 999]}))[idle] == 1000 / TICKS_PER_SECOND
    assert named(parser, stat_text({0: [0, 0, 0, 1001]}))[idle] == 1001 / TICKS_PER_SECOND
    assert named(parser, stat_text({0: [0, 0, 0, 3]}))[idle] == 3 / TICKS_PER_SECOND


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=8, max_size=8), min_size=1, max_size=300))
def test_any_number_of_processors_is_read_back_as_written(ticks: list[list[int]]) -> None:
    values = StatParser().parse(stat_text(dict(enumerate(ticks))))
    expected = [count / TICKS_PER_SECOND for row in ticks for count in row]
    assert values[: len(expected)] == expected


def test_an_old_kernel_without_steal_lacks_that_mode_only() -> None:
    values = named(StatParser(), stat_text({0: [1, 2, 3, 4, 5, 6, 7]}, width=7))
    assert 'node_cpu_seconds_total{cpu="0",mode="steal"}' not in values
    assert values['node_cpu_seconds_total{cpu="0",mode="softirq"}'] == 7 / TICKS_PER_SECOND


def test_text_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no line 'intr'"):
        StatParser().parse(b"cpu 1 2 3\n")


def test_meminfo_is_in_bytes_and_huge_pages_are_counts() -> None:
    parser = memory_parser()
    raw = (VM / "meminfo").read_bytes()
    numbers = parser.parse(raw)
    values = dict(zip(parser.series, numbers, strict=True))
    written = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in raw.decode().splitlines()}
    assert values[Series("node_memory_MemAvailable_bytes")] == written["MemAvailable"] * 1024
    assert values[Series("node_memory_HugePages_Total")] == written["HugePages_Total"]
    assert Series("node_memory_HardwareCorrupted_bytes") not in values


def test_a_field_that_appears_or_goes_is_learned() -> None:
    parser = memory_parser()
    assert parser.parse(b"MemTotal: 10 kB\nMemFree: 4 kB\n") == [10240, 4096]
    assert parser.parse(b"MemTotal: 10 kB\n") == [10240]
    assert parser.series == (Series("node_memory_MemTotal_bytes"),)
    assert parser.parse(b"MemTotal: 10 kB\nSomething: 1 kB\nMemFree: 5 kB\n") == [10240, 5120]
    assert parser.parse(b"") == []
    assert parser.series == ()


def test_vmstat_gives_the_named_lines() -> None:
    parser = paging_parser()
    values = parser.parse((VM / "vmstat").read_bytes())
    assert {series.metric for series in parser.series} == {
        f"node_vmstat_{name}"
        for name in ("pgpgin", "pgpgout", "pswpin", "pswpout", "pgfault", "pgmajfault", "oom_kill")
    }
    assert len(values) == 7


def test_pressure_is_in_seconds_and_of_cpu_only_waiting_counts() -> None:
    raw = b"some avg10=0.10 avg60=0.42 avg300=0.29 total=6618002\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=250\n"
    assert PressureParser("cpu").parse(raw) == [6.618002]
    assert PressureParser("io").parse(raw) == [6.618002, 0.00025]


def test_the_small_files() -> None:
    assert LoadParser().parse(b"0.01 1.50 12.25 1/88 6414\n") == [0.01, 1.5, 12.25]
    assert OpenFilesParser().parse(b"484\t0\t2466183\n") == [484, 2466183]


def test_the_collector_reads_a_captured_proc_whole() -> None:
    collector = SystemCollector(str(VM))
    first = asyncio.run(collector.collect(5.0))
    second = asyncio.run(collector.collect(6.0))
    assert len(first.series) == len(first.values) == len(set(first.series))
    assert second.series is first.series
    assert second.values[-1] == 6.0


def test_a_kernel_without_pressure_lacks_those_series_only(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_bytes((VM / "vmstat").read_bytes())
    reading = asyncio.run(PressureCollector(str(tmp_path)).collect(5.0))
    assert {series.metric.partition("_vmstat_")[0] for series in reading.series} == {"node"}
    assert len(reading.series) == len(reading.values) == 7
    whole = asyncio.run(PressureCollector(str(VM)).collect(5.0))
    assert len(whole.series) == len(whole.values) == 7 + 2 + 5
