"""Which collectors a configuration makes, and how often they run."""

from __future__ import annotations

from agent.collectors import SLOW_INTERVAL_S, Closing, Source, build
from agent.config import Collect, CollectorConfig, Directories, SeldomConfig


def by_name(sources: list[Source]) -> dict[str, Source]:
    return {source.collector.name: source for source in sources}


def test_the_default_reads_the_host_and_the_agent_itself() -> None:
    sources = by_name(build(Collect()))
    assert [name for name, source in sources.items() if source.interval_s == 5.0] == [
        "system",
        "filesystem",
        "disk",
        "network",
    ]
    assert sources["directories"].interval_s == sources["hardware"].interval_s == 60.0
    assert sources["processes"].interval_s == sources["cgroups"].interval_s == 30.0
    assert sources["updates"].interval_s == 3600.0
    for name in ("system:pressure", "filesystem:remote", "network:links", "self"):
        assert sources[name].interval_s == SLOW_INTERVAL_S


def test_what_is_switched_off_is_not_built_and_an_interval_of_its_own_counts() -> None:
    config = Collect(
        interval=1.0,
        system=None,
        processes=None,
        cgroups=SeldomConfig(90.0),
        disk=CollectorConfig(30.0),
        directories=Directories(paths=()),
    )
    sources = by_name(build(config))
    assert "system" not in sources
    assert "system:pressure" not in sources
    assert "directories" not in sources
    assert "processes" not in sources
    assert sources["cgroups"].interval_s == 90.0
    assert sources["disk"].interval_s == 30.0
    assert sources["network"].interval_s == 1.0


def test_what_asks_others_is_never_inline_and_what_has_a_child_can_be_closed() -> None:
    sources = by_name(build(Collect()))
    waiting = {name for name, source in sources.items() if not source.inline}
    assert waiting == {"filesystem:remote", "directories", "hardware", "cgroups", "processes", "updates"}
    for name in ("filesystem:remote", "directories", "hardware"):
        assert isinstance(sources[name].collector, Closing)


def test_a_walk_is_not_given_up_before_its_own_patience_ends() -> None:
    source = by_name(build(Collect(directories=Directories(paths=("/tmp/a", "/tmp/b")))))["directories"]
    assert source.deadline_s is not None
    assert source.deadline_s > 2 * 120.0
