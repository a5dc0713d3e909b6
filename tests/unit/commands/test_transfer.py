"""``upkeep export`` and ``import`` as people type them: judged by promtool and a strict parser, and flat in memory."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import promtool
from tests.support.running import REPOSITORY, Host, scratch_host, until, upkeep

_LINE = re.compile(r'([a-zA-Z_:][\w:]*)((?:\{(?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+\})?) (\S+) (\d+\.\d{3})', re.ASCII)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with scratch_host(tmp_path) as made:
        yield made


@pytest.fixture
def sampled(host: Host) -> Host:
    """A host with real samples of its own, the agent stopped."""
    upkeep("run", "--once", config=host.config)
    upkeep("run", "--once", config=host.config)
    return host


def lines_of(text: str) -> list[tuple[str, str, str, str]]:
    """Every line of OpenMetrics text that is no comment, held against the specification's order."""
    assert text.endswith("\n# EOF\n")
    found: list[tuple[str, str, str, str]] = []
    families: set[str] = set()
    family, last = "", ("", 0.0)
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            family = line.split()[2]
            assert family not in families, f"{family} comes twice"
            families.add(family)
            continue
        if line.startswith("# "):
            assert line.split()[2] == family
            continue
        parts = _LINE.fullmatch(line)
        assert parts, line
        name, labels, value, at = parts.groups()
        assert name.removesuffix("_total").removesuffix("_info") == family or name == family, line
        key = (name + labels, float(at))
        assert key[0] != last[0] or key[1] > last[1], f"{line} is not later"
        last = key
        found.append((name, labels, value, at))
    return found


def test_what_an_agent_sampled_is_exported_while_it_runs(host: Host) -> None:
    host.start()
    until(lambda: "node_load1" in upkeep("export", config=host.config).stdout, "a commit")
    text = upkeep("export", config=host.config).stdout
    assert len({name for name, *_ in lines_of(text)}) > 60
    refused = upkeep("import", str(host.config), config=host.config, status=1).stderr
    assert "another agent runs there" in refused
    assert "stop it first" in refused
    host.stop()


def test_promtool_makes_blocks_of_an_export(sampled: Host, tmp_path: Path) -> None:
    out = tmp_path / "history.om"
    said = upkeep("export", "--out", str(out), config=sampled.config).stdout
    exported = lines_of(out.read_text())
    assert said.startswith(f"{len(exported)} samples of ")
    assert list(tmp_path.glob("*.new")) == []
    made = [promtool.needed(), "tsdb", "create-blocks-from", "openmetrics", str(out), str(tmp_path / "tsdb")]
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "tsdb/wal").mkdir()  # it reads a server's folder
    dumped = subprocess.run(
        [promtool.needed(), "tsdb", "dump", str(tmp_path / "tsdb")], capture_output=True, text=True, check=True
    ).stdout
    theirs = {}
    for line in dumped.splitlines():
        labels, value, at = line.rsplit(" ", 2)
        theirs[frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), int(at)] = float(value)
    ours = {}
    for name, labels, value, at in exported:
        pairs = [("__name__", name), *re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)]
        ours[frozenset(pairs), round(float(at) * 1000)] = float(value)
    assert theirs == ours


def test_a_host_moves_with_its_history(sampled: Host, tmp_path: Path) -> None:
    text = tmp_path / "history.om"
    upkeep("export", "--out", str(text), config=sampled.config)
    (tmp_path / "other").mkdir()
    with scratch_host(tmp_path / "other") as other:
        done = json.loads(upkeep("import", str(text), "--json", config=other.config).stdout)
        assert done["samples"] == len(lines_of(text.read_text()))
        assert upkeep("export", config=other.config).stdout == text.read_text()
        again = upkeep("import", str(sampled.state / "metrics.db"), config=other.config).stdout
        assert again == f"imported 0 samples of 0 series ({done['samples']} were there already)\n"
        [row] = json.loads(
            upkeep(
                "sql", "--json", "SELECT count(*) AS n FROM samples WHERE metric = 'node_load1'", config=other.config
            ).stdout
        )
        assert row == {"n": 2}
        assert not list(other.state.glob(".import-*"))


def test_another_agents_file_is_read_with_its_log_and_of_an_earlier_version(sampled: Host, tmp_path: Path) -> None:
    text = upkeep("export", config=sampled.config).stdout
    theirs = tmp_path / "theirs.db"
    with closing(sqlite3.connect(sampled.state / "metrics.db", isolation_level=None)) as running:
        running.execute("PRAGMA journal_mode = WAL")
        running.execute("DELETE FROM event")
        for companion in ("", "-wal"):
            shutil.copy(f"{sampled.state / 'metrics.db'}{companion}", f"{theirs}{companion}")
    before = theirs.read_bytes()
    (tmp_path / "other").mkdir()
    with scratch_host(tmp_path / "other") as other:
        upkeep("import", str(theirs), config=other.config)
        assert upkeep("export", config=other.config).stdout == text
    assert theirs.read_bytes() == before


def test_selectors_and_ranges_choose(sampled: Host) -> None:
    two = upkeep("export", "node_load1", 'node_cpu_seconds_total{mode=~"idle|user"}', config=sampled.config).stdout
    assert {name for name, *_ in lines_of(two)} == {"node_load1", "node_cpu_seconds_total"}
    at = float(lines_of(two)[-1][3])
    late = upkeep("export", "node_load1", "--start", f"{at:.3f}", config=sampled.config).stdout
    assert len(lines_of(late)) <= 1
    assert upkeep("export", "node_load1", "--end", "2001-01-01", config=sampled.config).stdout == "# EOF\n"
    csv = upkeep("export", "node_load1", "--format", "csv", config=sampled.config).stdout.splitlines()
    assert csv[0] == "time,metric,labels,value"
    assert re.fullmatch(r'20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,node_load1,"\{\}",\d+\.\d+', csv[1])
    for wrong, why in (
        ("nowhere", "no series is named so"),
        ("rate(node_load1[5m])", "write a selector"),
        ("node_load1 offset 5m", "write a selector"),
    ):
        assert why in upkeep("export", wrong, config=sampled.config, status=1).stderr


def test_bad_input_is_told_by_line_and_column_and_nothing_is_taken(sampled: Host, tmp_path: Path) -> None:
    bad = tmp_path / "bad.prom"
    now_ms = round(time.time() * 1000)
    good = [f"node_load1 {n} {now_ms - n * 1000}" for n in range(100)]
    bad.write_text("\n".join([*good, "node_load1 x 1", *good, 'node_load1{a="b} 1 2', ""]))
    before = upkeep("export", config=sampled.config).stdout
    refused = upkeep("import", str(bad), config=sampled.config, status=1)
    assert refused.stdout == ""
    assert refused.stderr.splitlines() == [
        f'{bad}:101:12: cannot read "x" as a value',
        f"{bad}:202:11: the braces or a quotation mark are not closed",
    ]
    assert upkeep("export", config=sampled.config).stdout == before
    assert upkeep("import", str(tmp_path / "none"), config=sampled.config, status=1).stderr.startswith("cannot read")
    assert "not a regular file" in upkeep("import", "/dev/null", config=sampled.config, status=1).stderr
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    assert "not a metrics file" in upkeep("import", str(foreign), config=sampled.config, status=1).stderr
    assert not list(sampled.state.glob(".import-*"))


@pytest.mark.slow
def test_a_killed_import_is_as_if_it_had_never_begun(sampled: Host, tmp_path: Path) -> None:
    first_s = int(time.time()) // 600 * 600 - 200_000
    text = tmp_path / "history.om"
    text.write_text("".join(f"load {n} {first_s + n}\n" for n in range(150_000)) + "# EOF\n")
    before = upkeep("export", config=sampled.config).stdout
    command = [sys.executable, "-P", "-m", "agent", "import", str(text), "--config", str(sampled.config)]
    for delay_s in (0.4, 0.8, 1.2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as running:
            time.sleep(delay_s)
            running.kill()
            ended = running.stdout.read() if running.stdout else b""
        after = upkeep("export", config=sampled.config).stdout
        assert after == before or (ended and after.count("\nload ") == 150_000)
        with closing(sqlite3.connect(sampled.state / "metrics.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    upkeep("import", str(text), config=sampled.config)
    assert upkeep("export", "load", config=sampled.config).stdout.count("\nload ") == 150_000


MEASURE = """
import json, resource, sys
from agent.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), file=sys.stderr)
"""


def peak_kib(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    status, peak = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return int(peak)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(host: Host, tmp_path: Path) -> None:
    now_s = int(time.time()) // 600 * 600
    peaks = {}
    for count in (100_000, 800_000):
        text = tmp_path / f"{count}.om"
        with text.open("w") as file:
            for series in range(8):
                for n in range(count // 8):
                    file.write(f'load{{n="{series}"}} {n % 977 / 8} {now_s - 300_000 + n}\n')
            file.write("# EOF\n")
        shutil.rmtree(host.state, ignore_errors=True)
        upkeep("run", "--once", config=host.config)
        taken = peak_kib("import", str(text), "--config", str(host.config))
        given = peak_kib("export", "load", "--out", str(tmp_path / "out"), "--config", str(host.config))
        peaks[count] = (taken, given)
        head = 2  # TYPE and HELP
        with (tmp_path / "out").open() as file:
            assert sum(1 for _ in file) == count + head + 1
    small, large = peaks[100_000], peaks[800_000]
    assert large[0] < small[0] + 80 * 1024  # what is held before it becomes chunks
    assert large[1] < small[1] + 30 * 1024
