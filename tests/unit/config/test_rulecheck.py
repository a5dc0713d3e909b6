"""Doubts about rules: each with a text that shows it at its place, and beside it one that must raise no doubt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import rulecheck, rulefile
from agent.config import Config, RemediationConfig
from agent.errors import ExpressionError, Fault
from agent.metrics import METRICS
from agent.model import Mode, make_labels
from agent.promql.evaluate import evaluate
from agent.promql.nodes import NAME
from agent.promql.parse import parse
from agent.promql.values import Vector
from agent.ruletest import MemorySource
from agent.rulevalues import bounds, labels

FILE = """\
groups:
  - name: g
    rules:
      - alert: A
        expr: {expr}
"""


def doubts(tmp_path: Path, text: str, config: Config | None = None) -> list[Fault]:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    path.chmod(0o644)
    rules, faults = rulefile.check([str(path)])
    assert rules is not None, faults
    return rulecheck.warnings(rules, config)


def messages(tmp_path: Path, text: str, config: Config | None = None) -> list[str]:
    return [fault.message for fault in doubts(tmp_path, text, config)]


def of_expr(tmp_path: Path, expr: str, more: str = "") -> list[str]:
    quoted = "'" + expr.replace("'", "''") + "'"
    found = doubts(tmp_path, FILE.format(expr=quoted) + "".join(f"        {line}\n" for line in more.splitlines()))
    assert {(fault.line, fault.column, fault.warning) for fault in found} <= {(5, 15, True)}
    return [fault.message for fault in found]


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (
            "node_memory_MemAvailable_byte > 1",
            'no collector makes "node_memory_MemAvailable_byte" (did you mean "node_memory_MemAvailable_bytes"?)',
        ),
        # labels
        (
            'node_load1{device="sda"} > 4',
            'no series of "node_load1" has the label "device", so nothing is selected: it has no labels',
        ),
        (
            'node_filesystem_readonly{mountpont="/data"} == 1',
            'no series of "node_filesystem_readonly" has the label "mountpont", so nothing is selected: '
            'it has device, fstype, mountpoint (did you mean "mountpoint"?)',
        ),
        (
            'node_filesystem_readonly{mountpont!="/data"} == 1',
            'no series of "node_filesystem_readonly" has the label "mountpont", so it chooses nothing: '
            'it has device, fstype, mountpoint (did you mean "mountpoint"?)',
        ),
        (
            "sum by (mountpoint) (node_network_receive_drop_total) / 2 > 1",
            'no series here has the label "mountpoint": they have device',
        ),
        (
            "node_filesystem_avail_bytes / on (mount) node_filesystem_size_bytes < 0.1",
            'no series here has the label "mount" (did you mean "mountpoint"?): they have device, fstype, mountpoint',
        ),
        # ranges
        (
            "node_filesystem_avail_bytes / node_filesystem_size_bytes < 10",
            '"node_filesystem_avail_bytes / node_filesystem_size_bytes < 10" is always true while there are data, so '
            'the alert never clears: "node_filesystem_avail_bytes / node_filesystem_size_bytes" lies between 0 and 1; '
            "write 0.1",
        ),
        (
            "eval_error_ratio > 5",
            '"eval_error_ratio > 5" is never true: "eval_error_ratio" lies between 0 and 1; write 0.05',
        ),
        (
            '80 < 1 - avg without (cpu) (rate(node_cpu_seconds_total{mode="idle"}[5m]))',
            '"80 < 1 - avg without (cpu) (rate(node_cpu_seconds_total{mode="idle"}[5m]))" is never true: '
            '"1 - avg without (cpu) (rate(node_cpu_seconds_total{mode="idle"}[5m]))" lies between 0 and 1; write 0.8',
        ),
        (
            "(1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes) * 100 > 100",
            '"(1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes) * 100 > 100" is never true: '
            '"(1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes) * 100" lies between 0 and 100',
        ),
        (
            "DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE) > 95",
            '"DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE) > 95" is never true: '
            '"DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)" lies between 0 and 1; write 0.95',
        ),
        (
            "DCGM_FI_DEV_GPU_TEMP > 850",
            '"DCGM_FI_DEV_GPU_TEMP > 850" is never true: "DCGM_FI_DEV_GPU_TEMP" lies between 0 and 200',
        ),
        (
            "security_audit_score < 0",
            '"security_audit_score < 0" is never true: "security_audit_score" lies between 0 and 100',
        ),
        ("redis_up == 2", '"redis_up == 2" is never true: "redis_up" lies between 0 and 1'),
        (
            "directory_files >= 0",
            '"directory_files >= 0" is always true while there are data, so the alert never clears: '
            '"directory_files" is never below 0',
        ),
        (
            "node_load1 > 4 and node_load5 >= 0",
            '"node_load5 >= 0" is always true and chooses nothing: "node_load5" is never below 0',
        ),
        # units
        (
            "node_filesystem_avail_bytes < 10",
            '"node_filesystem_avail_bytes" is in bytes and is compared with 10: write 10 * 1024^3 for GiB',
        ),
        (
            "max_over_time(DCGM_FI_DEV_GPU_UTIL[10m]) < 0.1",
            '"max_over_time(DCGM_FI_DEV_GPU_UTIL[10m])" is in percent, 0 to 100, and is compared with 0.1: write 10',
        ),
        (
            "DCGM_FI_DEV_FB_USED > 40 * 1024^3",
            '"DCGM_FI_DEV_FB_USED" is in MiB and is compared with 4.29497e+10: write 40960',
        ),
        (
            "redis_rdb_last_save_timestamp_seconds > 86400",
            '"redis_rdb_last_save_timestamp_seconds" counts seconds from 1970 and is compared with 86400: '
            "write time() - redis_rdb_last_save_timestamp_seconds",
        ),
        # never clears
        (
            "node_memory_SwapTotal_bytes - node_memory_SwapFree_bytes",
            '"node_memory_SwapTotal_bytes - node_memory_SwapFree_bytes" is compared with nothing: the alert stands '
            'while there are data and never clears; write "> …"',
        ),
        (
            "redis_up == bool 0",
            'with "bool" the result is 0 where the condition is false, and 0 is a result too: the alert never clears; '
            'leave "bool" out',
        ),
        (
            "sum(node_network_receive_errs_total) > 100",
            '"node_network_receive_errs_total" is a counter and only grows: once over the threshold the alert never '
            "clears; write increase(node_network_receive_errs_total[1h])",
        ),
        (
            "increase(log_matches_total[5m]) > 0",
            'series of "log_matches_total" end with their log file, and the alert would be held for ever: write '
            "on_missing: clear",
        ),
        (
            "gpu_process_memory_bytes > 10 * 1024^3",
            'series of "gpu_process_memory_bytes" end with their process, and the alert would be held for ever: write '
            "on_missing: clear",
        ),
        # known mistakes
        (
            "DCGM_FI_DEV_FB_USED / DCGM_FI_DEV_FB_FREE * 100 > 90",
            "used over free is no share of GPU memory; the total is used + free + reserved: write "
            "DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)",
        ),
        (
            "redis_mem_fragmentation_ratio > 1.5",
            '"redis_mem_fragmentation_ratio" is large on a small idle server too: add and '
            "redis_mem_fragmentation_bytes > 100 * 1024^2",
        ),
    ],
)  # fmt: skip
def test_a_doubtful_expression_is_named_with_its_remedy(tmp_path: Path, expr: str, message: str) -> None:
    assert of_expr(tmp_path, expr) == [message]


@pytest.mark.parametrize(
    "expr",
    [
        # A label that is chosen by what it is not, `instance` and `job` in matching, parts of a GPU.
        'node_filesystem_readonly{fstype!~"tmpfs|nfs.*"} == 1 and on (instance, mountpoint) node_filesystem_files > 0',
        'sum by (job, device) (rate(node_disk_written_bytes_total[5m])) > 1e8',
        'DCGM_FI_DEV_GPU_UTIL{GPU_I_ID="1"} < 5',
        'increase(log_lines_total{file=~".*"}[1h]) == 0 unless on () vector(0)',
        # Within range.
        "node_filesystem_avail_bytes / node_filesystem_size_bytes * 100 < 10",
        "100 - avg(rate(node_cpu_seconds_total[5m])) * 100 > 80",
        "sum(rate(node_cpu_seconds_total[5m])) > 12",
        "rate(node_disk_io_time_seconds_total[5m]) > 0.8",
        "redis_memory_used_bytes / redis_memory_max_bytes > 1.2",
        "redis_memory_max_bytes > 0",
        "node_hwmon_temp_celsius > 85",
        "predict_linear(node_filesystem_avail_bytes[6h], 86400) < 0",
        "delta(redis_connected_slaves[1m]) < 0",
        "time() - redis_rdb_last_save_timestamp_seconds > 86400",
        "node_boot_time_seconds > time() - 600",
        "DCGM_FI_DEV_FB_USED > 40960",
        # Clears.
        "absent(redis_up)",
        "vector(1)",
        'ALERTS{alertstate="firing"}',
        "(redis_up == 0)",
        "count(up == 0) > 1",
        "redis_up unless on () node_load1",
        "increase(node_network_receive_errs_total[5m]) > 100",
        # Ratio beside bytes.
        "redis_mem_fragmentation_ratio > 1.5 and redis_mem_fragmentation_bytes > 100 * 1024^2",
        "DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE) > 0.95",
    ],
)  # fmt: skip
def test_a_sound_expression_raises_no_doubt(tmp_path: Path, expr: str) -> None:
    assert of_expr(tmp_path, expr, "on_missing: clear" if "log_" in expr else "") == []


def test_what_a_recording_rule_makes_is_known(tmp_path: Path) -> None:
    text = FILE.format(expr="cache:share > 0.5") + "      - record: cache:share\n        expr: node_load1 / 4\n"
    assert messages(tmp_path, text) == []


def test_labels_that_a_pattern_captures_are_known(tmp_path: Path) -> None:
    patterns = "patterns:\n  - {name: oom, regex: 'oom on (?P<gpu>[0-9]+)'}\n"
    expr = "'increase(log_matches_total{LABEL=\"1\"}[5m]) > 0'\n        on_missing: clear"
    assert messages(tmp_path, FILE.format(expr=expr.replace("LABEL", "gpu")) + patterns) == []
    assert "file, gpu, pattern" in messages(tmp_path, FILE.format(expr=expr.replace("LABEL", "card")) + patterns)[0]


def test_words_that_want_a_label_the_alert_never_has(tmp_path: Path) -> None:
    summary = "{{ $labels.mount }} of {{ $labels.device }}{{ if $labels.gpu }} {{ $labels.gpu }}{{ end }}"
    words = f"annotations: {{summary: '{summary}'}}"
    [found] = doubts(tmp_path, FILE.format(expr="node_filesystem_readonly == 1") + f"        {words}\n")
    assert found.message == '"summary" names the label "mount", which the alert never has (did you mean "mountpoint"?)'
    assert (found.line, found.column) == (4, 16)
    own = "labels: {mount: '{{ $labels.mountpoint }}'}\n        " + words
    assert not doubts(tmp_path, FILE.format(expr="node_filesystem_readonly == 1") + f"        {own}\n")


def test_a_clear_of_other_labels_never_holds(tmp_path: Path) -> None:
    expr = "sum by (path) (directory_size_bytes) > 2e9\n        clear: "
    [found] = doubts(tmp_path, FILE.format(expr=expr + "sum(directory_size_bytes) < 1e9"))
    assert found.message == (
        '"clear" has no labels and "expr" has the labels path: the alert never clears; give both the same labels'
    )
    assert (found.line, found.column) == (6, 16)
    assert not doubts(tmp_path, FILE.format(expr=expr + "max by (path) (directory_size_bytes) < 1e9"))


def test_on_missing_beside_clear_is_doubted(tmp_path: Path) -> None:
    text = "groups: [{name: g, rules: [{alert: A, expr: 'up == 0', clear: 'up == 1', on_missing: fire}]}]\n"
    assert messages(tmp_path, text) == ['"on_missing: fire" has no effect beside "clear"']


def test_two_alerts_that_nothing_tells_apart_are_doubted(tmp_path: Path) -> None:
    rule = "{alert: A, expr: up == 0, labels: {severity: S}}"
    same = f"groups: [{{name: g, rules: [{rule}, {rule}]}}]\n"
    assert "has the same labels" in messages(tmp_path, same)[0]
    assert not messages(tmp_path, f"groups: [{{name: g, rules: [{rule}, {rule.replace('S}', 'T}')}]}}]\n")


# -- repairs ---------------------------------------------------------------------------------------------------------


def repair(name: str, expr: str, path: str, down_to: str = "1GiB") -> str:
    return (
        f"      - alert: {name}\n        expr: {expr}\n        remediation:\n          steps:\n"
        f"            - clean_cache: {{path: {path}, down_to: {down_to}}}\n"
    )


GROUPS = "groups:\n  - name: g\n    rules:\n"


@pytest.mark.parametrize(("down_to", "doubted"), [("8GiB", False), ("9.5GiB", True), ("10GiB", True), ("20GiB", True)])
def test_a_repair_that_stops_near_its_threshold_is_doubted(tmp_path: Path, down_to: str, doubted: bool) -> None:
    text = GROUPS + repair("A", 'directory_size_bytes{path="/tmp/c"} > 10 * 1024^3', "/tmp/c", down_to)
    assert any("not safely below" in message for message in messages(tmp_path, text)) is doubted


def test_a_repair_outside_the_roots_is_doubted_when_it_may_act(tmp_path: Path) -> None:
    text = GROUPS + repair("A", 'directory_size_bytes{path="/tmp/c/d"} > 10 * 1024^3', "/tmp/c/d")
    inside = Config(mode=Mode.ACT, remediation=RemediationConfig(roots=("/tmp/c",)))
    assert not messages(tmp_path, text, inside)
    assert not messages(tmp_path, text, Config())
    assert "under no root" in messages(tmp_path, text, Config(mode=Mode.ACT))[0]


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (
            "directory_size_bytes > 2e9",
            'the alert can be about any "path" and the step changes "/tmp/c" whichever it is: '
            'choose {path="…"} in "expr"',
        ),
        (
            "node_filesystem_readonly == 1",
            'the alert can be about any "mountpoint" and the step changes "/tmp/c" whichever it is: '
            'choose {mountpoint="…"} in "expr"',
        ),
        ("directory_size_bytes{path='/tmp/d'} > 2e9", 'the alert is about "/tmp/d" and the step changes "/tmp/c"'),
        ("directory_size_bytes{path='/tmp/c'} > 2e9", ""),
        ("directory_size_bytes{path='/tmp'} > 2e9", ""),
        ("node_filesystem_readonly{mountpoint='/'} == 1", ""),
        ("sum(directory_size_bytes) > 2e9", ""),
        ("node_load1 > 100", ""),
    ],
)
def test_a_repair_that_the_alert_is_not_about(tmp_path: Path, expr: str, message: str) -> None:
    found = doubts(tmp_path, GROUPS + repair("A", expr, "/tmp/c"))
    assert [(fault.line, fault.column, fault.message) for fault in found] == ([(8, 15, message)] if message else [])


def test_two_rules_that_would_repair_one_tree(tmp_path: Path) -> None:
    one = repair("A", "directory_size_bytes{path='/tmp/c'} > 2e9", "/tmp/c")
    other = repair("B", "directory_size_bytes{path='/tmp/c/d'} > 2e9", "/tmp/c/d")
    [found] = doubts(tmp_path, GROUPS + one + other)
    assert found.message.startswith('"B" would change "/tmp/c/d", which "A" repairs too (at ')
    assert (found.line, found.column) == (13, 15)
    assert not doubts(tmp_path, GROUPS + one + other.replace("/tmp/c/d", "/tmp/d"))
    assert not doubts(tmp_path, GROUPS + one + one.replace("2e9", "3e9\n        labels: {severity: critical}"))


# -- what the doubts rest on -----------------------------------------------------------------------------------------

KNOWN = [
    "node_load1",
    "redis_up",
    "DCGM_FI_DEV_GPU_UTIL",
    "node_hwmon_temp_celsius",
    "node_forks_total",
    "eval_error_ratio",
]


def expressions() -> st.SearchStrategy[str]:
    leaves = st.sampled_from([*KNOWN, "2", "0.5", "-3"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "> bool", "and", "or"]), inner).map(
                lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
            ),
            st.tuples(st.sampled_from(["max by (name)", "sum", "avg without (gpu)", "count", "-"]), inner).map(
                lambda parts: f"{parts[0]}({parts[1]})"
            ),
        ),
        max_leaves=6,
    )


@settings(max_examples=300, deadline=None)
@given(expressions(), st.data())
def test_what_is_foretold_holds_for_every_value(expr: str, data: st.DataObject) -> None:
    """Whatever values and labels the table allows, the result lies within the bounds and has no other labels."""
    try:
        node = parse(expr)
    except ExpressionError:
        return
    source = MemorySource()
    for name in KNOWN:
        metric = METRICS[name]
        low, high = (-50.0 if metric.low is None else metric.low), (150.0 if metric.high is None else metric.high)
        for index in range(data.draw(st.integers(0, 2))):
            held = {label: str(index) for label in metric.labels}
            source.add(make_labels({NAME: name, **held}), 0.0, data.draw(st.floats(low, high)))
    try:
        value = evaluate(node, source, 0.0)
    except ExpressionError:
        return
    found, names = bounds(node), labels(node)
    for held_labels, number in value.samples if isinstance(value, Vector) else ():
        slack = 1e-9 * (1 + abs(number))
        outside = number < found.low - slack or number > found.high + slack
        assert not outside, (expr, number, found)
        assert names is None or {name for name, _ in held_labels} - {NAME} <= names, (expr, held_labels, names)
