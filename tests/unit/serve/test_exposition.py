"""The text of /metrics: read back by rules of our own, and by promtool."""

from __future__ import annotations

import math
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.metrics import METRICS
from agent.model import Series, make_labels
from agent.serve.exposition import expose, wants_openmetrics
from tests.support import promtool

_LINE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)', re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PLAIN = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Found:
    """Samples by name and labels; every line that is no comment must be one."""
    found: Found = {}
    for line in page.decode().split("\n"):
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            assert match, line
            pairs = _LABEL.findall(match[2] or "")
            labels = tuple((name, re.sub(r"\\.", lambda m: _PLAIN[m[0]], value)) for name, value in pairs)
            assert (match[1], labels) not in found
            found[match[1], labels] = float(match[3])
    return found


printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1)
labels = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), printable | st.just("a\nb"), max_size=3)
names = st.sampled_from([*METRICS][:60]).filter(lambda name: name != "up") | st.just("job:made_by:rule")


@given(st.dictionaries(st.tuples(names, labels.map(lambda each: make_labels(each))), st.floats(), max_size=12))
def test_what_is_exposed_reads_back_bit_by_bit(values: Found) -> None:
    samples = [(Series(*key), value) for key, value in sorted(values.items(), key=lambda item: item[0][0])]
    for openmetrics in (False, True):
        found = read(expose(samples, openmetrics=openmetrics))
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert found[key] == value or (math.isnan(found[key]) and math.isnan(value))


def test_every_known_metric_has_its_type_and_help_once() -> None:
    every = [(Series(name, make_labels(device="sda")), 1.0) for name in METRICS]
    page = expose(every).decode()
    for name, metric in METRICS.items():
        if name != "up":
            kind = "gauge" if metric.type == "info" else metric.type
            assert page.count(f"\n# TYPE {name} {kind}\n") + page.startswith(f"# TYPE {name} ") == 1
            assert page.count(f"# HELP {name} ") == 1
    assert not re.search(r"^up\b", page, re.M), "the scraper makes its own"


def test_openmetrics_names_families_without_their_suffix() -> None:
    page = expose(
        [
            (Series("node_cpu_seconds_total", (("cpu", "0"),)), 2.0),
            (Series("DCGM_FI_DEV_POWER_VIOLATION"), 3.0),
            (Series("redis_instance_info", (("name", "main"),)), 1.0),
            (Series("node_netstat_Tcp_InErrs"), 4.0),
            (Series("upkeep_samples_total"), 5.0),
            (Series("upkeep_samples"), 6.0),
        ],
        openmetrics=True,
    ).decode()
    assert "# TYPE node_cpu_seconds counter\n# UNIT node_cpu_seconds seconds\n" in page
    assert '\nnode_cpu_seconds_total{cpu="0"} 2.0\n' in page
    assert "# TYPE DCGM_FI_DEV_POWER_VIOLATION unknown\n" in page, "a counter here must end in _total"
    assert "# TYPE redis_instance info\n" in page
    assert "# TYPE node_netstat_Tcp_InErrs unknown\n" in page
    assert "# TYPE upkeep_samples_total unknown\n" in page, "a rule's name must not clash with the family"
    assert page.endswith("\n# EOF\n")


def test_nothing_at_all_is_a_page_too() -> None:
    assert expose([]) == b""
    assert expose([], openmetrics=True) == b"# EOF\n"


def test_bytes_and_controls_that_no_line_should_carry_are_written_out() -> None:
    page = expose([(Series("directory_files", (("path", '/tmp/\udcff\x1b[31m\r\x00\\"'),)), 1.0)])
    assert b'{path="/tmp/\\\\udcff\\\\x1b[31m\\\\x0d\\\\x00\\\\\\""} 1.0' in page


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4", True),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.3", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=high", False),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
    ],
)
def test_openmetrics_is_given_to_those_who_prefer_it(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


def test_promtool_finds_fault_with_borrowed_names_only() -> None:
    hostile = 'back\\slash "quote" new\nline \x1b \udcff ümläut {brace} #'
    samples = [(Series(name, make_labels(path=hostile)), 1.0) for name in METRICS]
    page = expose([*samples, (Series("job:made_by:rule"), math.nan), (Series("other:rule"), math.inf)])
    command = [promtool.needed(), "check", "metrics"]
    done = subprocess.run(command, input=page, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode()
    faults = [line for line in said.splitlines() if line.strip()]
    borrowed = ("node_", "DCGM_FI_", "redis_")
    ours = [line for line in faults if not line.startswith(borrowed) and "should not contain ':'" not in line]
    assert not ours, "\n".join(ours)
    assert any("should not contain ':'" in line for line in faults), "it read as far as what rules recorded"
