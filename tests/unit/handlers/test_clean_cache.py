from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.errors import UpkeepError
from agent.handlers import Handler, Tools, make
from agent.model import Plan
from agent.ops.client import OpsClient
from agent.ops.policy import Policy
from tests.support.hands import DAY_S, put

MIB = 1024 * 1024


class Told:
    """A notifier that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def notify(self, message: str) -> None:
        self.messages.append(message)


async def write_report(period: str) -> str:
    return f"/reports/{period}.html"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def with_handler(
    root: Path, params: dict[str, object], work: Callable[[Handler], Awaitable[None]], told: Told | None = None
) -> None:
    async def main() -> None:
        ops = OpsClient.spawn(Policy((str(root),)), SystemClock())
        try:
            await work(make("clean_cache", {"path": str(root), **params}, Tools(ops, told or Told(), write_report)))
        finally:
            await ops.close()

    asyncio.run(main())


def test_a_plan_says_what_why_and_what_not_and_changes_nothing(cache: Path) -> None:
    for day in range(1, 11):
        put(cache / f"day{day:02}", size=MIB, age_s=day * DAY_S)
    os.link(put(cache / "linked", age_s=20 * DAY_S), cache.parent / "elsewhere")
    (cache / "link").symlink_to("/etc/passwd")

    async def work(handler: Handler) -> None:
        assert handler.resource() == f"path:{cache}"
        with open(cache / "day10", "rb"):
            plan = await handler.plan(0.0)
        assert [item.target for item in plan.items] == [f"{cache}/day{day:02}" for day in (9, 8, 7, 6, 5)]
        assert {(skipped.target, skipped.reason) for skipped in plan.skipped} == {
            (f"{cache}/day10", "open"),
            (f"{cache}/linked", "hard_link"),
            (f"{cache}/link", "symlink"),
        }
        assert (plan.considered_items, plan.bytes, plan.refused) == (11, 5 * MIB, "")
        assert plan.considered_bytes >= 10 * MIB
        assert plan.summary.startswith(f"remove 5 of 11 files from {cache}, 5.0 MiB of 10.0 MiB, oldest use first")
        assert plan.summary.endswith("left alone: 1 hard-linked, 1 open, 1 symbolic")
        assert len(list(cache.iterdir())) == 12

    with_handler(cache, {"older_than": 7.5 * DAY_S, "down_to": 6 * MIB - 1}, work)


def test_applying_a_plan_frees_what_it_says_and_a_second_run_has_nothing_to_do(cache: Path) -> None:
    for day in range(1, 9):
        put(cache / f"sub/day{day}", size=MIB, age_s=day * DAY_S)

    async def work(handler: Handler) -> None:
        plan = await handler.plan(0.0)
        outcome = await handler.apply(plan)
        assert {(item.result, item.bytes) for item in outcome.items} == {("done", MIB)}
        assert [item.target for item in outcome.items] == [item.target for item in plan.items]
        assert (outcome.bytes_removed, outcome.error) == (4 * MIB, "")
        assert (await handler.plan(0.0)).items == ()
        # The same plan again, as after a crash whose outcome was lost.
        again = await handler.apply(plan)
        assert ({item.result for item in again.items}, again.bytes_removed) == ({"gone"}, 0)

    with_handler(cache, {"down_to": 4 * MIB + 100_000}, work)
    assert sorted(path.name for path in (cache / "sub").iterdir()) == ["day1", "day2", "day3", "day4"]


def test_a_plan_that_was_cut_applies_as_it_is_and_one_for_nothing_asks_nobody(cache: Path) -> None:
    for day in range(1, 5):
        put(cache / f"day{day}", age_s=day * DAY_S)

    async def work(handler: Handler) -> None:
        plan = await handler.plan(0.0)
        cut = Plan(plan.handler, plan.resource, plan.summary, plan.items[:1])
        assert [item.target for item in (await handler.apply(cut)).items] == [f"{cache}/day4"]
        assert (await handler.apply(Plan("clean_cache", "x", ""))).items == ()

    with_handler(cache, {"older_than": 60.0}, work)
    assert len(list(cache.iterdir())) == 3


def test_names_that_cannot_be_printed_are_planned_and_removed_like_any_other(cache: Path) -> None:
    odd = cache / os.fsdecode(b"new\nline \xff")
    odd.parent.mkdir(exist_ok=True)
    put(odd)

    async def work(handler: Handler) -> None:
        plan = await handler.plan(0.0)
        assert plan.items[0].target == f"{cache}/new\\x0aline \\xff"
        assert (await handler.apply(plan)).items[0].result == "done"

    with_handler(cache, {"older_than": 60.0}, work)
    assert not odd.exists()


@pytest.mark.parametrize(
    ("make_path", "reason"),
    [
        (lambda path: path.rmdir(), "missing"),
        (lambda path: (path.rmdir(), path.symlink_to("/etc")), "symlink"),
        (lambda path: (path.rmdir(), path.write_text("x")), "no_folder"),
    ],
)
def test_a_cache_that_cannot_be_cleaned_is_a_refused_plan_with_its_reason(
    cache: Path, make_path: Callable[[Path], object], reason: str
) -> None:
    make_path(cache)

    async def work(handler: Handler) -> None:
        plan = await handler.plan(0.0)
        assert (plan.refused, plan.items) == (reason, ())
        assert plan.summary.startswith("cannot use")
        assert (await handler.apply(plan)).items == ()

    with_handler(cache, {"older_than": 60.0}, work)


def test_a_path_under_no_root_is_a_refused_plan(cache: Path) -> None:
    async def work(handler: Handler) -> None:
        assert (await handler.plan(0.0)).refused == "outside_roots"

    with_handler(cache, {"older_than": 60.0, "path": "/var/tmp/elsewhere"}, work)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"path": "/tmp/x"}, "without a goal"),
        ({"path": "/tmp/x", "older_than": 0.0}, '"older_than"'),
        ({"path": "/tmp/x", "down_to": 0}, '"down_to"'),
        ({"path": "/tmp/x", "down_to": 5, "shell": "rm"}, "shell"),
        ({"down_to": 5}, "path"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_wherever_they_come_from(
    params: dict[str, object], words: str
) -> None:
    with pytest.raises(UpkeepError, match=words):
        make("clean_cache", params, None)  # type: ignore[arg-type]
