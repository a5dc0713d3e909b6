"""The table of metric names and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.metrics import METRICS, SOURCES, nearest, reference

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


def test_the_reference_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "make it again: python -m agent.metrics"


def test_each_metric_is_whole() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.source in SOURCES
        assert metric.help.endswith(".")
        assert metric.type == "counter" or not name.endswith("_total") or metric.source == "gpu"
        if name.endswith(("_bytes", "_seconds", "_celsius", "_hertz", "_watts")):
            assert metric.unit == name.rpartition("_")[2]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("node_filesystem_free", "node_filesystem_free_bytes"),
        ("node_cpu", "node_cpu_seconds_total"),
        ("node_memory_MemAvailble_bytes", "node_memory_MemAvailable_bytes"),
        ("directory_size", "directory_size_bytes"),
        ("DCGM_FI_DEV_GPU_TMP", "DCGM_FI_DEV_GPU_TEMP"),
        ("redis_memory_used", "redis_memory_used_bytes"),
        ("something_else_entirely", None),
    ],
)
def test_the_nearest_name(written: str, meant: str | None) -> None:
    assert nearest(written) == meant
