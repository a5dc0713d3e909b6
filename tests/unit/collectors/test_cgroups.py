"""Units and containers from a tree laid out as cgroup v2 shows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.collectors.cgroups import MOST, CgroupsCollector, Group, parse, samples
from agent.metrics import METRICS

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"


def lay(root: Path, path: str, current: int = 4096, most: str = "max", events: str = EVENTS) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.events").write_text(events)


def found(root: Path) -> dict[str, float]:
    reading = asyncio.run(CgroupsCollector(str(root)).collect(1.0))
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def test_units_containers_and_what_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")  # a host's own root has no memory.current
    container = "docker-" + "a" * 64 + ".scope"
    pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
    lay(tmp_path, "system.slice", 10**9)
    lay(tmp_path, "system.slice/nginx.service", 5000)
    lay(tmp_path, f"system.slice/{container}", 8000, "536870912")
    lay(tmp_path, f"{pod}", 100, "1073741824")
    lay(tmp_path, f"{pod}/cri-containerd-b.scope", 90, "1073741824")
    lay(tmp_path, "user.slice/user-0.slice/session-3.scope", 70)
    lay(tmp_path, "system.slice/run-r123.scope", 70)
    values = found(tmp_path)
    assert values['container_memory_usage_bytes{id="/system.slice/nginx.service"}'] == 5000
    assert values['container_oom_events_total{id="/system.slice/nginx.service"}'] == 2
    assert 'container_spec_memory_limit_bytes{id="/system.slice/nginx.service"}' not in values
    assert values[f'container_spec_memory_limit_bytes{{id="/system.slice/{container}"}}'] == 536870912
    assert {name.split('"')[1] for name in values} == {
        "/system.slice/nginx.service",
        f"/system.slice/{container}",
        f"/{pod}",
        f"/{pod}/cri-containerd-b.scope",
    }


def test_in_a_container_the_root_is_the_container(tmp_path: Path) -> None:
    lay(tmp_path, ".", 10**6, str(2 * 10**6))
    assert found(tmp_path) == {
        'container_memory_usage_bytes{id="/"}': 10**6,
        'container_oom_events_total{id="/"}': 2,
        'container_spec_memory_limit_bytes{id="/"}': 2 * 10**6,
    }


def test_an_old_kernel_counts_no_kills_apart_and_another_text_is_refused() -> None:
    assert parse("/", "1\n", "max\n", "low 0\nhigh 0\n") == Group("/", 1, None, 0)
    with pytest.raises(ValueError, match="invalid literal"):
        parse("/", "1\n", "9223372036854771712 bytes\n", EVENTS)


def test_more_groups_than_are_told_lose_the_small_ones_without_a_limit() -> None:
    large = [Group(f"/large{n}", 10**9, None, 0) for n in range(MOST)]
    told = {dict(sample.labels)["id"] for sample in samples([*large, Group("/limited", 1, 2, 0)], 1.0)}
    assert len(told) == MOST
    assert "/limited" in told


def test_a_host_without_version_2_has_nothing_to_say(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == {}
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert found(tmp_path) == {}


def test_this_host() -> None:
    reading = asyncio.run(CgroupsCollector().collect(1.0))
    assert len(reading.series) == len(reading.values) == len(set(reading.series)) <= 3 * MOST
    assert {METRICS[series.metric].source for series in reading.series} <= {CgroupsCollector.name}
