"""The framework's table: each row once, and files that are locked, hostile or of another kind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from agent.collectors import evaluation
from agent.collectors.evaluation import HELD_S, EvaluationCollector, instant, parse
from agent.model import Event, Reading

NOW = 1_800_000_000.0
TABLE = "CREATE TABLE performance_metrics (timestamp, domain TEXT, avg_latency REAL, throughput REAL, error_rate REAL)"


def values(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


class Table:
    """A collector on a file, and the events it told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[Event] = []
        self.collector = EvaluationCollector(str(path), self._tell)

    async def _tell(self, event: Event) -> None:
        self.told.append(event)

    def run(self, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as link:
            for statement in statements:
                link.execute(statement)
            link.commit()

    def add(self, at: object, domain: object = "math", figures: str = "1.0, 2.0, 0.1") -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as link:
            link.execute(f"INSERT INTO performance_metrics VALUES (?, ?, {figures})", (at, domain))
            link.commit()

    def read(self, at: float = NOW) -> dict[str, float]:
        return values(asyncio.run(self.collector.collect(at)))

    @property
    def reasons(self) -> list[str]:
        return [dict(event.labels).get("reason", "") for event in self.told]


@pytest.fixture(params=["delete", "wal"])
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Table:
    made = Table(tmp_path / "a ü?&#.db")
    made.run(f"PRAGMA journal_mode = {request.param}", TABLE)
    return made


def test_each_row_counts_once_and_the_last_figures_are_held(table: Table) -> None:
    table.add(NOW - 10, figures="1.0, 10.0, 0.0")
    table.add(NOW - 5, figures="3.0, 20.0, 0.5")
    table.add(NOW - 5, "code", "7.0, NULL, 'x'")
    first = {
        'eval_latency_seconds{domain="math"}': 2.0,
        'eval_throughput{domain="math"}': 15.0,
        'eval_error_ratio{domain="math"}': 0.25,
        'eval_latency_seconds{domain="code"}': 7.0,
    }
    assert table.read() == first
    assert table.read(NOW + 60) == first
    table.add(NOW + 50, figures="9.0, 1.0, 0.0")
    assert table.read(NOW + 60)['eval_latency_seconds{domain="math"}'] == 9.0
    assert set(table.read(NOW - 5 + HELD_S)) == {name for name in first if "math" in name}
    assert table.read(NOW + 50 + HELD_S) == {}
    assert not table.told


def test_old_rows_say_nothing_of_now_and_a_table_made_anew_is_read_from_its_beginning(table: Table) -> None:
    for _ in range(3):
        table.add(NOW - HELD_S)
    assert table.read() == {}
    table.run("DROP TABLE performance_metrics", TABLE)
    table.add(NOW, figures="5.0, 5.0, 0.5")
    assert table.read()['eval_latency_seconds{domain="math"}'] == 5.0


def test_a_backlog_is_read_from_its_end(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect(table.path)) as link:
        rows = [(NOW - 1, "math", float(number), 1.0, 0.0) for number in range(20_000)]
        link.executemany("INSERT INTO performance_metrics VALUES (?, ?, ?, ?, ?)", rows)
        link.commit()
    mean = sum(range(15_000, 20_000)) / 5000
    assert table.read()['eval_latency_seconds{domain="math"}'] == mean


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (1_800_000_000, 1_800_000_000.0),
        (1_800_000_000_250, 1_800_000_000.25),
        ("1800000000.5", 1_800_000_000.5),
        ("2027-01-15T08:00:00+00:00", 1_800_000_000.0),
        ("yesterday", None),
        (None, None),
        (float("inf"), None),
        ("", None),
    ],
)
def test_instants(written: object, seconds: float | None) -> None:
    assert instant(written) == seconds


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.5"])
def test_an_instant_without_a_zone_is_local(form: str) -> None:
    assert instant(time.strftime(form, time.localtime(NOW))) == NOW + (0.5 if form.endswith("5") else 0)


def test_rows_without_instant_domain_or_from_the_future_are_passed_over() -> None:
    rows = [
        (None, "a", 1, 1, 1),
        (NOW, "", 1, 1, 1),
        (NOW, 3, 1, 1, 1),
        (NOW + 3600, "a", 1, 1, 1),
        (NOW, "b", 1, 1, 1),
    ]
    assert [row.domain for row in parse(rows, NOW)] == ["b"]


# -- files that are not as they should be --


def test_absent_then_there(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.db")
    assert table.read() == table.read() == {}
    assert table.reasons == ["absent"]
    table.run(TABLE)
    table.add(NOW)
    assert table.read()
    assert table.reasons == ["absent", ""]


def test_locked_keeps_what_is_held(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.db")
    table.run(TABLE)
    table.add(NOW)
    before = table.read()
    with contextlib.closing(sqlite3.connect(table.path)) as link:
        link.execute("BEGIN EXCLUSIVE")
        assert table.read() == before
    assert table.reasons == ["locked"]
    assert table.read() == before
    assert table.reasons == ["locked", ""]


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE other (a)",),
        ("CREATE TABLE performance_metrics (timestamp, domain, avg_latency, throughput)",),
        (TABLE.replace(")", ", PRIMARY KEY (domain)) WITHOUT ROWID"),),
        (
            "CREATE VIEW performance_metrics AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i AS timestamp, '' AS domain, 1 AS avg_latency, 1 AS throughput, 1 AS error_rate FROM n",
        ),
    ],
)
def test_another_schema(tmp_path: Path, statements: tuple[str, ...]) -> None:
    table = Table(tmp_path / "metrics.db")
    table.run(*statements)
    began = time.monotonic()
    assert table.read() == {}
    assert table.reasons == ["schema"]
    assert time.monotonic() - began < 5


def test_no_database_a_cut_one_a_pipe_and_a_folder(tmp_path: Path) -> None:
    good = Table(tmp_path / "good.db")
    good.run(TABLE)
    for _ in range(300):
        good.run(f"INSERT INTO performance_metrics VALUES ({NOW}, '{'x' * 500}', 1, 1, 1)")
    raw = good.path.read_bytes()
    (tmp_path / "text.db").write_text("no database at all " * 100, encoding="ascii")
    (tmp_path / "cut.db").write_bytes(raw[: len(raw) // 2])
    os.mkfifo(tmp_path / "pipe.db")
    (tmp_path / "folder.db").mkdir()
    for name, reason in (("text", "damaged"), ("cut", "damaged"), ("pipe", "unreadable"), ("folder", "unreadable")):
        table = Table(tmp_path / f"{name}.db")
        assert table.read() == {}
        assert table.reasons == [reason], name


def test_a_huge_value_is_refused_and_blobs_are_passed_over(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.db")
    table.run(TABLE)
    table.add(NOW, figures="x'00', 1, 1")
    assert table.read() == {}
    assert table.reasons == []
    table.run(f"INSERT INTO performance_metrics VALUES ({NOW}, printf('%.*c', 300000000, 'x'), 1, 1, 1)")
    assert table.read() == {}
    assert table.reasons == ["damaged"]


def test_a_reader_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "metrics.db")
    table.run(TABLE)
    monkeypatch.setattr(evaluation, "PATIENCE_S", 0.3)
    with contextlib.closing(sqlite3.connect(table.path)) as link:
        link.execute("BEGIN EXCLUSIVE")  # the reader waits a second for it
        assert table.read() == {}
    assert table.reasons == ["silent"]


def test_nothing_is_written(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.db")
    table.run("PRAGMA journal_mode = wal", TABLE)
    table.add(NOW)
    before = table.path.read_bytes()
    tmp_path.chmod(0o555)
    try:
        assert table.read()
    finally:
        tmp_path.chmod(0o755)
    assert table.path.read_bytes() == before
