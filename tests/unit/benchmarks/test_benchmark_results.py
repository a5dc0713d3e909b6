"""The figures of the performance table: how they are compared, measured and written down."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as door
from benchmarks.common import Goal, Result, as_installed, children, cpu_s, percentile, pss_bytes, table

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("result", "ratio", "met"),
    [
        (Result("b", "m", "ms", 1.0, Goal(0.35), "peer", 4.0), 0.25, True),
        (Result("b", "m", "ms", 2.0, Goal(0.35), "peer", 4.0), 0.5, False),
        (Result("b", "m", "ms", 1.4, Goal(0.35), "peer", 4.0), 0.35, True),
        (Result("b", "m", "MB/s", 9.0, Goal(2.0, sense=">="), "peer", 3.0), 3.0, True),
        (Result("b", "m", "MB/s", 5.0, Goal(2.0, sense=">="), "peer", 3.0), 5 / 3, False),
        (Result("b", "m", "MiB", 37.0, Goal(36.0, "ours"), "peer", 1.0), 37.0, False),
        (Result("b", "m", "GB/s", 1.6, Goal(1.5, "ours", ">=")), None, True),
        (Result("b", "m", "ms", 1.0, Goal(0.35), "peer: not installed"), None, None),
        (Result("b", "m", "ms", 1.0), None, None),
    ],
)
def test_a_goal_is_met_by_the_ratio_or_by_the_figure(result: Result, ratio: float | None, met: bool | None) -> None:
    assert (result.ratio, result.met) == (ratio, met)
    told = json.loads(result.line())
    assert told["met"] is met
    assert told["ratio"] == (None if ratio is None else pytest.approx(ratio, rel=1e-3))


def test_a_line_is_what_machines_were_promised() -> None:
    line = Result("store", "bytes_per_sample", "B", 1.5, Goal(0.5), "prometheus 2.42", 3.9).line()
    assert json.loads(line) == {
        "benchmark": "store", "metric": "bytes_per_sample", "unit": "B", "ours": 1.5, "peer": "prometheus 2.42",
        "theirs": 3.9, "ratio": 0.3846, "goal": "<= 0.5", "met": True,
    }  # fmt: skip


def test_a_missed_goal_and_an_absent_peer_are_said_in_the_table() -> None:
    lines = table(
        [Result("b", "slow", "ms", 9.0, Goal(5, "ours")), Result("b", "m", "ms", 1.0, Goal(0.5), "rg: absent")]
    )
    assert lines.splitlines()[2:] == [
        "| b | slow | 9 ms |  |  |  | <= 5 | **no** |",
        "| b | m | 1 ms | rg: absent |  |  | ratio <= 0.5 | not compared |",
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


BURN = "import time\nwhile time.process_time() < 0.15: pass\n"
FAMILY = f"""
import subprocess, sys
subprocess.run([sys.executable, "-S", "-c", {BURN!r}])
{BURN}
stays = {BURN!r} + "print(1, flush=True); input()"
child = subprocess.Popen([sys.executable, "-S", "-c", stays], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


def test_the_cost_of_a_process_holds_its_children() -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        spent_s, held, childs = cpu_s(process.pid), pss_bytes(process.pid), children(process.pid)
        alone = pss_bytes(child)
        process.communicate(b"\n")
    assert childs == [child]
    assert 0.4 <= spent_s < 2  # three times 0.15: its own, an ended child's, a living child's
    assert held > alone > 1 << 20


def test_python_keeps_what_it_compiles() -> None:
    assert "PYTHONDONTWRITEBYTECODE" not in as_installed()
    assert as_installed()["PYTHONPYCACHEPREFIX"]


def test_every_benchmark_goes_through_the_door() -> None:
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__main__", "common"}
    assert files == set(door.NAMES)
    for name in door.NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").measure)


def test_an_unknown_name_is_refused_and_the_known_are_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "idel"], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "unknown benchmark: idel" in done.stderr


def test_both_pages_change_between_their_marks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "performance.md"
    promises = [
        Result("idle", "m", "ms", 1.0, Goal(0.35), "peer", 4.0),
        Result("latency", "n", "s", 3.0, Goal(2, "ours")),
    ]
    results = [*promises, Result("store", "o", "us", 3.0, Goal(4, "ours")), Result("idle", "p", "s", 1.0)]
    for name, path in (("README", readme), ("PAGE", page)):
        path.write_text(f"before\n{door.BEGIN}\nold\n{door.END}\nafter\n")
        monkeypatch.setattr(door, name, path)
    monkeypatch.setattr(door, "_measured", lambda names: iter(results))
    monkeypatch.setattr(sys, "argv", ["bench", "idle", "--json", "--readme"])
    assert door.main() == 1  # one goal is missed
    assert [json.loads(line)["met"] for line in capsys.readouterr().out.splitlines()] == [True, False, True, None]
    for path, shown in ((readme, promises), (page, results)):
        text = path.read_text()
        assert text.startswith(f"before\n{door.BEGIN}\n{table(shown)}\n")
        assert text.endswith(f"\n{door.END}\nafter\n")
        assert "old" not in text


@pytest.mark.parametrize("path", ["README.md", "docs/reference/performance.md"])
def test_the_pages_hold_what_was_measured(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.split(door.BEGIN)[1].split(door.END)[0].splitlines() if line[:1] == "|"]
    assert {"idle", "latency"} <= {row[0].strip("| ") for row in rows[2:]} <= set(door.NAMES)
