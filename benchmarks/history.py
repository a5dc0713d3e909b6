"""What a sample takes once it is history, and how fast a week of it is read: beside Prometheus, rows, DuckDB, Parquet.

The same twelve million samples go through the agent's own store and into each peer: those of 200 series made up as a
host has them, and those of a real host where UPKEEP_BENCH_HISTORY names the state directory of an agent that sampled
one once a second; its recording is repeated until there are enough, counters going on where they were.
"""

from __future__ import annotations

import heapq
import importlib.util
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import uvloop

from agent.clock import ManualClock
from agent.model import Reading, Series
from agent.promql.evaluate import evaluate
from agent.promql.parse import parse
from agent.store import Reader, Retention, Store, chunk
from agent.store.chunk import WINDOW_S
from benchmarks.common import Goal, Result
from benchmarks.store import Host

SAMPLES = int(os.environ.get("UPKEEP_BENCH_SAMPLES", "12000000"))
SERIES = 200
WEEK_S = 7 * 86400
START = 1_700_000_400
PROMTOOL = shutil.which("promtool")


@dataclass(frozen=True, slots=True)
class Column:
    """One series of the data; all columns of a group share their instants, in milliseconds."""

    series: Series
    instants: array[int]
    values: array[float]


Data = Sequence[Sequence[Column]]
"""Groups, each read at the same instants by one collector."""


def measure() -> Iterable[Result]:
    """All figures, from one run."""
    sets: list[tuple[str, Callable[[], Data]]] = [("made up", made_up)]
    if recorded := os.environ.get("UPKEEP_BENCH_HISTORY"):
        sets.append(("a real host", lambda: repeated(recording(Path(recorded)))))
    for name, make in sets:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            yield from compared(name, make(), Path(folder))


def compared(name: str, data: Data, folder: Path) -> Iterator[Result]:
    """Bytes a sample, and the reading of a week."""
    samples = sum(len(column.values) for group in data for column in group)
    packed, whole = uvloop.run(ingested(data, folder / "state"))
    what = f"bytes a sample, {name}"
    narrow = narrow_rows(data, folder / "narrow.db")
    tsdb = prometheus(data, folder)
    peer = "Prometheus' blocks" if tsdb else "no promtool"
    yield Result("history", f"{what}, packed", "B", packed, Goal(0.5), peer, tsdb and tsdb / samples)
    yield Result("history", f"{what}, packed", "B", packed, Goal(0.1), "narrow rows", narrow / samples)
    for other, size in (("DuckDB", duckdb(data, folder)), ("Parquet, zstd", parquet(data, folder))):
        yield Result("history", f"{what}, packed", "B", packed, None, other, size and size / samples)
    yield Result(
        "history", f"{what}, whole file with minutes and hours", "B", whole, None, peer, tsdb and tsdb / samples
    )
    week(folder / "state")
    yield from read(name, folder / "state")


# The data.


def made_up() -> Data:
    """Two hundred series: a third constant, a third counters, the rest gauges, a sample a second."""
    host, ticks = Host(), SAMPLES // SERIES
    groups = [[array("d") for _ in group] for group in host.series]
    for _ in range(ticks):
        for columns, reading in zip(groups, host.readings(0.0), strict=True):
            for column, value in zip(columns, reading.values, strict=True):
                column.append(value)
    instants = array("q", [(START + n) * 1000 for n in range(ticks)])
    return [
        [Column(series, instants, values) for series, values in zip(group, columns, strict=True)]
        for group, columns in zip(host.series, groups, strict=True)
    ]


def recording(state_dir: Path) -> Data:
    """All series of an agent's store that were there from beginning to end, as its hot rows hold them."""
    groups = []
    with Reader.open(state_dir) as reader:
        _, spans = reader.sql("SELECT layout, min(id), max(id) FROM main.tick GROUP BY layout")
        first, last = min(int(str(low)) for _, low, _ in spans), max(int(str(high)) for _, _, high in spans)
        for layout, low, high in spans:
            if int(str(high)) - int(str(low)) < 0.95 * (last - first):
                continue
            _, rows = reader.sql("SELECT id / 1000, vals FROM main.tick WHERE layout = ? ORDER BY id", (layout,))
            _, slots = reader.sql(
                "SELECT metric, labels FROM main.slot JOIN main.series ON series.id = slot.series WHERE layout = ?"
                " ORDER BY position",
                (layout,),
            )
            instants = array("q", [int(str(at)) for at, _ in rows])
            table = zip(*(json.loads(str(vals))[: len(slots)] for _, vals in rows), strict=True)  # without checksums
            groups.append(
                [
                    Column(Series(str(metric), tuple(json.loads(str(labels)).items())), instants, array("d", values))
                    for (metric, labels), values in zip(slots, table, strict=True)
                    if all(isinstance(value, int | float) for value in values)
                ]
            )
    return [group for group in groups if group]


def repeated(data: Data) -> Data:
    """The same again and again, until there are enough samples; counters go on where they were."""
    begun = min(column.instants[0] for group in data for column in group)
    span = max(column.instants[-1] for group in data for column in group) - begun + 1000
    turns = -(-SAMPLES // sum(len(column.values) for group in data for column in group))
    return [
        [
            Column(
                column.series,
                array("q", [at - begun + START * 1000 + n * span for n in range(turns) for at in column.instants]),
                array("d", [value + n * _grown(column) for n in range(turns) for value in column.values]),
            )
            for column in group
        ]
        for group in data
    ]


def _grown(column: Column) -> float:
    return column.values[-1] - column.values[0] if column.series.metric.endswith("_total") else 0.0


# What it takes: ours, and the peers'.


async def ingested(data: Data, state_dir: Path) -> tuple[float, float]:
    """Bytes a sample: of the packed samples, and of the whole file; all through the agent's own way."""
    clock = ManualClock(wall=float(START - 1))
    store = await Store.open(state_dir, clock=clock, limits=Retention(hot_s=0, max_size_bytes=8 << 30))
    names = [tuple(column.series for column in group) for group in data]
    rows = heapq.merge(*([(at, g, n) for n, at in enumerate(group[0].instants)] for g, group in enumerate(data)))
    for second, due in groupby(rows, key=lambda row: row[0] // 1000):
        clock.advance(second + 1 - clock.wall())
        readings = [Reading(at / 1000, names[g], [column.values[n] for column in data[g]]) for at, g, n in due]
        await store.metrics.append_tick(readings, clock.boot())
        if second % 60 == 0:
            await store.maintain(clock.wall())
    for _ in range(20):
        clock.advance(60)
        await store.maintain(clock.wall())
    await store.close()
    with closing(sqlite3.connect(state_dir / "metrics.db")) as file:
        [(packed,)] = file.execute("SELECT sum(length(data)) FROM chunk").fetchall()
        hot = sum(len(json.loads(vals)) for (vals,) in file.execute("SELECT vals FROM tick"))
        file.execute("VACUUM")
    samples = sum(len(column.values) for group in data for column in group)
    return packed / (samples - hot), (state_dir / "metrics.db").stat().st_size / samples


def narrow_rows(data: Data, path: Path) -> int:
    """One row a sample, indexed by series, as most tools that use SQLite have it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE sample (ts INTEGER, series INTEGER, value REAL);"
        )
        file.execute("BEGIN")
        for number, column in enumerate(column for group in data for column in group):
            rows = zip(column.instants, [number] * len(column.values), column.values, strict=True)
            file.executemany("INSERT INTO sample VALUES (?, ?, ?)", rows)
        file.execute("COMMIT")
        file.execute("CREATE INDEX by_series ON sample (series, ts)")
    return path.stat().st_size


def prometheus(data: Data, folder: Path) -> int | None:
    """The blocks that promtool makes of the same samples: chunks and index."""
    if PROMTOOL is None:
        return None
    text, blocks = folder / "samples.om", folder / "blocks"
    with text.open("w", encoding="utf-8") as out:
        for column in (column for group in data for column in group):
            labels = ",".join(f"{name}={json.dumps(value)}" for name, value in column.series.labels)
            name = f"{column.series.metric}{{{labels}}}"
            out.writelines(
                f"{name} {value!r} {instant / 1000!r}\n"
                for instant, value in zip(column.instants, column.values, strict=True)
            )
        out.write("# EOF\n")
    command = [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    text.unlink()
    return sum(file.stat().st_size for file in blocks.rglob("*") if file.is_file())


def duckdb(data: Data, folder: Path) -> int | None:
    """DuckDB's own file, loaded from the Parquet one."""
    if importlib.util.find_spec("duckdb") is None or parquet(data, folder) is None:
        return None
    module = importlib.import_module("duckdb")
    path = folder / "samples.duckdb"
    with closing(module.connect(str(path))) as file:
        file.execute(f"CREATE TABLE sample AS FROM '{folder / 'samples.parquet'}' ORDER BY series, ts")
        file.execute("CHECKPOINT")
    return path.stat().st_size


def parquet(data: Data, folder: Path) -> int | None:
    """Columns sorted by series and time, with pyarrow's own choice of encodings."""
    if importlib.util.find_spec("pyarrow") is None:
        return None
    path = folder / "samples.parquet"
    if not path.exists():
        pyarrow, writer = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        columns = [column for group in data for column in group]
        tables = [
            pyarrow.table(
                {
                    "series": pyarrow.array(array("i", [number]) * len(column.values), pyarrow.int32()),
                    "ts": pyarrow.array(column.instants, pyarrow.int64()),
                    "value": pyarrow.array(column.values, pyarrow.float64()),
                }
            )
            for number, column in enumerate(columns)
        ]
        writer.write_table(pyarrow.concat_tables(tables), path, compression="zstd")
    return path.stat().st_size


# How fast it is read.


def week(state_dir: Path) -> None:
    """Make seven days of what the store holds: its own chunks, minutes and hours again and again, later each time."""
    with closing(sqlite3.connect(state_dir / "metrics.db", isolation_level=None)) as file:
        file.execute("BEGIN")
        chunks = file.execute("SELECT id, layout, data FROM chunk ORDER BY id").fetchall()
        begun = {number // 1000 // WINDOW_S for number, _, _ in chunks}
        windows = [list(rows) for _, rows in groupby(chunks, key=lambda row: row[0] // 1000 // WINDOW_S)]
        first = max(begun) + 1
        for n in range(WEEK_S // WINDOW_S - len(begun)):
            for number, layout, data in windows[n % len(windows)]:
                later_s = (first + n) * WINDOW_S - number // 1000 // WINDOW_S * WINDOW_S
                file.execute(
                    "INSERT INTO chunk VALUES (?, ?, ?)", (number + later_s * 1000, layout, moved(data, later_s * 1000))
                )
        file.execute("DELETE FROM tick")
        hours = file.execute("SELECT id, layout, vals, counts FROM hour ORDER BY id").fetchall()
        for n in range(WEEK_S // 3600 - len(hours)):
            row = hours[n % len(hours)][1:]
            file.execute("INSERT INTO hour VALUES (?, ?, ?, ?)", (hours[-1][0] + (n + 1) * 3600, *row))
        file.execute("COMMIT")


def moved(data: bytes, by_ms: int) -> bytes:
    """A chunk whose instants are later."""
    parts = [chunk.part(data, n) for n in range(int.from_bytes(data[:4], "little") // 4 - 1)]
    instants = [instant + by_ms for instant in chunk.decode_integers(parts[0])]
    return chunk.pack([chunk.encode_integers(instants), *parts[1:]])


def read(name: str, state_dir: Path) -> Iterator[Result]:
    """A week of one series through PromQL, and of all by the hour through SQL."""
    with Reader.open(state_dir) as reader:
        [(last,)] = reader.sql("SELECT max(id) / 1000 + 599 FROM main.chunk")[1]
        chosen = [(str(m), str(labels)) for m, labels in reader.sql("SELECT metric, labels FROM main.series")[1]]
    selectors = [
        f"{metric}{{{','.join(f'{k}={json.dumps(v)}' for k, v in json.loads(labels).items())}}}"
        for metric, labels in chosen[:: max(1, len(chosen) // 7)]
    ]
    for what, call in (("mean", "avg_over_time({}[7d])"), ("p95", "quantile_over_time(0.95, {}[7d])")):
        took = [_evaluated_ms(state_dir, call.format(selector), float(str(last))) for selector in selectors]
        yield Result(
            "history", f"{what} of a week of one series, {name}", "ms", statistics.median(took), Goal(250, "ours")
        )
    took = []
    for _ in range(5):
        before = time.perf_counter()
        with Reader.open(state_dir) as reader:
            rows = reader.sql("SELECT metric, labels, time, mean FROM hours")[1]
        took.append((time.perf_counter() - before) * 1e3)
    assert len(rows) >= len(chosen) * (WEEK_S // 3600 - 1)
    yield Result("history", f"hourly means of a week, {name}", "ms", statistics.median(took), Goal(400, "ours"))


def _evaluated_ms(state_dir: Path, query: str, at: float) -> float:
    before = time.perf_counter()
    with Reader.open(state_dir) as reader:
        value = evaluate(parse(query), reader, at)
    took = (time.perf_counter() - before) * 1e3
    assert len(getattr(value, "samples", ())) == 1, (query, value)
    return took
