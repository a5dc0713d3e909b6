"""A select reaches as far as anything is kept: samples, then one point a minute, then one an hour."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from pathlib import Path

import pytest

from agent.cli import main
from agent.clock import ManualClock
from agent.model import STALE, Reading, Series
from agent.promql.nodes import NAME, Matcher, MatchOp
from agent.store import Reader, Retention, Store

A, B = Series("a"), Series("b", (("host", "x"),))
START = 1_700_002_800  # a whole hour
HOURS = 6
RAW_S, MINUTES_S = 1800, 3 * 3600
END = START + HOURS * 3600


def value(at: float) -> float:
    return at - START


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hours, a sample every ten seconds; B ends after one and a half and comes back after two."""
    folder = tmp_path_factory.mktemp("tiers") / "state"

    async def main() -> None:
        clock = ManualClock(wall=float(START))
        store = await Store.open(folder, clock=clock, limits=Retention(raw_s=RAW_S, minutes_s=MINUTES_S, hot_s=600))
        for n in range(HOURS * 360):
            at = START + 10 * n
            clock.advance(at - clock.wall())
            readings = [Reading(at, (A,), [value(at)])]
            if at == START + 5400:
                readings.append(Reading(at, (B,), [STALE]))
            elif not 5400 <= at - START < 7200:
                readings.append(Reading(at, (B,), [value(at)]))
            await store.metrics.append_tick(readings, clock.boot())
            if n % 6 == 5:
                await store.maintain(clock.wall())
        for _ in range(5):
            await store.maintain(clock.wall() + 30)
        await store.close()

    asyncio.run(main())
    return folder


def select(state_dir: Path, metric: str, start: float = START, end: float = END) -> tuple[list[float], list[float]]:
    with Reader.open(state_dir) as reader:
        found = reader.select([Matcher(NAME, MatchOp.EQUAL, metric)], start, end)
    return (list(found[0].times), list(found[0].values)) if found else ([], [])


def test_tiers_follow_each_other_without_a_gap_or_a_double(state_dir: Path) -> None:
    with Reader.open(state_dir) as reader:
        tiers = reader.tiers()
    assert [(tier.name, tier.step_s) for tier in tiers] == [("samples", 0), ("minutes", 60), ("hours", 3600)]
    raw, minutes, hours = (tier.since for tier in tiers)
    assert hours == START
    assert minutes <= END - MINUTES_S + 60
    assert raw <= END - RAW_S + 600
    times, _ = select(state_dir, "a")
    assert times == sorted(set(times))
    for before, after in pairwise(times):
        # A coarse point may stand up to its step before the finer ones begin, whose first stands at their step's end.
        assert after - before <= (3660 if before < minutes else 70 if before < raw else 10)


def test_each_point_is_the_last_of_its_time(state_dir: Path) -> None:
    times, values = select(state_dir, "a")
    for at, found in zip(times, values, strict=True):
        assert found in (value(at), value(at - 10)), "a roll-up's point stands at its end, ten seconds on"


def test_a_series_that_ended_is_not_carried_on(state_dir: Path) -> None:
    times, values = select(state_dir, "b")
    ended = [at for at, found in zip(times, values, strict=True) if math.isnan(found)]
    assert all(START + 5400 <= at <= START + 7260 for at in ended)


@pytest.mark.parametrize(
    ("start", "end"),
    [(START, START), (START + 3600, START + 3600), (END - 5, END), (START - 900, START - 1), (END, 2e9)],
)
def test_only_what_lies_within_is_given(state_dir: Path, start: float, end: float) -> None:
    times, _ = select(state_dir, "a", start, end)
    assert all(start <= at <= end for at in times)
    whole = [at for at in select(state_dir, "a")[0] if start <= at <= end]
    assert times == whole


def test_the_query_says_which_tier_it_used(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = state_dir.parent / "upkeep.yaml"
    config.write_text(f"state_dir: {state_dir}\n")
    config.chmod(0o600)
    asked = ["query", "--config", str(config), "--at"]
    assert main([*asked, f"{START + 3600 + 1800}", "a"]) == 0
    out, said = capsys.readouterr()
    assert out == "a 3590\n", "the hour's last stands until the next"
    assert "the last sample of each of the hours" in said
    assert main([*asked, f"{END - 10}", "a"]) == 0
    out, said = capsys.readouterr()
    assert (out, said) == (f"a {HOURS * 3600 - 10}\n", "")
