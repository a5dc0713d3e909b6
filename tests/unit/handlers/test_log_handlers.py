"""``rotate_logs`` and ``clean_logs``: what they plan, and what the real hands then do."""

from __future__ import annotations

import asyncio
import gzip
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import specs
from agent.clock import SystemClock
from agent.errors import UpkeepError
from agent.handlers import Tools, make
from agent.model import Outcome, Plan
from agent.ops.client import OpsClient
from agent.ops.lognames import Archive, archive
from agent.ops.policy import Policy, check
from tests.support.hands import DAY_S, put


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def carried_out(
    folder: Path, handler: str, *, at: float | None = None, root: Path | None = None, **params: object
) -> tuple[Plan, Outcome]:
    """The plan and its outcome, by hands of their own."""

    async def main() -> tuple[Plan, Outcome]:
        ops = OpsClient.spawn(Policy((str(root or folder),)), SystemClock())

        class Silent:
            async def notify(self, message: str) -> None:
                raise AssertionError(message)

        async def write_report(period: str) -> str:
            raise AssertionError(period)

        try:
            made = make(handler, {"directory": str(folder), **params}, Tools(ops, Silent(), write_report))
            assert made.resource() == f"path:{folder}"
            plan = await made.plan(time.time() if at is None else at)
            return plan, await made.apply(plan)
        finally:
            await ops.close()

    return asyncio.run(main())


def content(folder: Path) -> dict[str, str]:
    """Each file's text by its name; archives unpacked."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            found[str(path.relative_to(folder))] = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return found


def steps(plan: Plan, folder: Path) -> list[tuple[str, str]]:
    return [(item.change, item.target.removeprefix(f"{folder}/")) for item in plan.items]


def test_old_logs_are_compressed_older_ones_removed_and_a_second_run_has_nothing_to_do(logs: Path) -> None:
    for age in (6, 8, 29, 31):
        put(logs / f"sub/{age}.log", age_s=age * DAY_S)
    put(logs / "old.log.3", age_s=31 * DAY_S)
    put(logs / "old_20260101_000000.log.gz", age_s=31 * DAY_S)
    put(logs / "notes.txt", age_s=99 * DAY_S)
    put(logs / "x.login", age_s=99 * DAY_S)
    plan, outcome = carried_out(logs, "clean_logs")
    assert sorted(steps(plan, logs)) == [
        ("compress", "sub/29.log"),
        ("compress", "sub/8.log"),
        ("remove", "old.log.3"),
        ("remove", "old_20260101_000000.log.gz"),
        ("remove", "sub/31.log"),
    ]
    assert {item.result for item in outcome.items} == {"done"}
    assert sorted(content(logs)) == ["notes.txt", "sub/29.log.gz", "sub/6.log", "sub/8.log.gz", "x.login"]
    assert abs((logs / "sub/29.log.gz").stat().st_mtime - (time.time() - 29 * DAY_S)) < 60
    assert carried_out(logs, "clean_logs")[0].items == ()


def test_the_whole_days_are_the_edge(logs: Path) -> None:
    now = time.time()
    for name, age_s in (("at.log", 30 * DAY_S), ("over.log", 30 * DAY_S + 1)):
        put(logs / name)
        os.utime(logs / name, (int(now) - age_s,) * 2)
    plan, _ = carried_out(logs, "clean_logs", at=float(int(now)), compress_after=None)
    assert steps(plan, logs) == [("remove", "over.log")]


def test_a_log_in_use_is_planned_and_left(logs: Path) -> None:
    put(logs / "a.log", age_s=8 * DAY_S)
    with open(logs / "a.log", "rb"):
        _, outcome = carried_out(logs, "clean_logs")
    assert [(item.result, item.bytes) for item in outcome.items] == [("open", 0)]
    assert (logs / "a.log").exists()


@pytest.mark.parametrize("how", ["rename", "copytruncate"])
def test_numbers_shift_the_oldest_goes_and_the_new_archive_is_compressed(logs: Path, how: str) -> None:
    for name, text in (("a.log", "new\n"), ("a.log.1", "one\n"), ("a.log.2", "two\n"), ("a.log.7", "stray\n")):
        (logs / name).write_text(text)
    plan, outcome = carried_out(
        logs, "rotate_logs", how=how, naming="number", larger_than=4, keep=4, compress="next_time"
    )
    assert steps(plan, logs) == [
        ("shift", "a.log.2"),
        ("shift", "a.log.1"),
        ("rotate", "a.log"),
        ("compress", "a.log.2"),
        ("compress", "a.log.3"),
        ("compress", "a.log.7"),
    ]
    assert {item.result for item in outcome.items} == {"done"}
    assert content(logs) == {
        "a.log": "",
        "a.log.1": "new\n",
        "a.log.2.gz": "one\n",
        "a.log.3.gz": "two\n",
        "a.log.7.gz": "stray\n",
    }
    (logs / "a.log").write_text("next\n")
    plan, _ = carried_out(logs, "rotate_logs", how=how, naming="number", larger_than=4, keep=2, compress="never")
    assert steps(plan, logs)[:3] == [("remove", "a.log.2.gz"), ("remove", "a.log.3.gz"), ("remove", "a.log.7.gz")]
    assert content(logs) == {"a.log": "", "a.log.1": "next\n", "a.log.2": "new\n"}


def test_the_default_is_a_stamp_and_gzip_over_100_mb_in_place(logs: Path) -> None:
    (logs / "big.log").write_bytes(b"x" * 99 + b"\n")
    os.truncate(logs / "big.log", 0)
    with open(logs / "big.log", "wb") as file:
        file.write(b"0123456789\n" * 9_090_909 + b"\n")
    (logs / "small.log").write_bytes(b"x" * 1000)
    inode = (logs / "big.log").stat().st_ino
    plan, outcome = carried_out(logs, "rotate_logs", at=1_800_000_000.0)
    assert steps(plan, logs) == [("rotate", "big.log"), ("compress", "big_20270115_080000.log")]
    assert {item.result for item in outcome.items} == {"done"}
    assert sorted(path.name for path in logs.iterdir()) == ["big.log", "big_20270115_080000.log.gz", "small.log"]
    assert ((logs / "big.log").stat().st_size, (logs / "big.log").stat().st_ino) == (0, inode)


def test_time_goes_by_the_newest_archive(logs: Path) -> None:
    (logs / "a.log").write_text("new\n")
    put(logs / "a.log-20260101", age_s=DAY_S / 2)
    params: dict[str, Any] = {"naming": "date", "larger_than": None, "every": DAY_S}
    params |= {"compress": "never", "how": "rename"}
    assert carried_out(logs, "rotate_logs", **params)[0].items == ()
    os.utime(logs / "a.log-20260101", (time.time() - 2 * DAY_S,) * 2)
    plan, _ = carried_out(logs, "rotate_logs", at=1_800_000_000.0, **params, delete_after=None)
    assert steps(plan, logs) == [("rotate", "a.log")]
    assert (logs / "a.log-20270115").read_text() == "new\n"


def test_a_name_that_is_taken_makes_the_log_wait(logs: Path) -> None:
    (logs / "a.log").write_text("new\n")
    (logs / "a.log-20270115").write_text("stray\n")
    _, outcome = carried_out(
        logs, "rotate_logs", at=1_800_000_000.0, naming="date", larger_than=1, compress="never", delete_after=None
    )
    assert [item.result for item in outcome.items] == ["target_exists"]
    assert content(logs) == {"a.log": "new\n", "a.log-20270115": "stray\n"}


def test_a_signal_that_cannot_be_sent_is_an_error_of_the_action(logs: Path) -> None:
    (logs / "a.log").write_text("new\n")
    _, outcome = carried_out(logs, "rotate_logs", how="rename", larger_than=1, signal="web.service", compress="never")
    assert [item.result for item in outcome.items] == ["done"]
    assert 'cannot signal "web.service": the policy does not name it' in outcome.error


def test_a_folder_under_no_root_is_refused_in_the_plan(tmp_path: Path, logs: Path) -> None:
    (tmp_path / "other").mkdir()
    for handler in ("clean_logs", "rotate_logs"):
        plan, outcome = carried_out(tmp_path / "other", handler, root=logs)
        assert (plan.refused, plan.items, outcome) == ("outside_roots", (), Outcome())


@pytest.mark.parametrize(
    ("handler", "params", "word"),
    [
        ("clean_logs", {"compress_after": None, "delete_after": None}, "without a goal"),
        ("clean_logs", {"delete_after": 0.0}, "delete_after"),
        ("clean_logs", {"compress_after": 0.0}, "compress_after"),
        ("rotate_logs", {"larger_than": None}, "which logs"),
        ("rotate_logs", {"larger_than": 0}, "larger_than"),
        ("rotate_logs", {"every": 0.0}, "every"),
        ("rotate_logs", {"keep": 0}, "keeps nothing"),
        ("rotate_logs", {"delete_after": 0.0}, "delete_after"),
        ("rotate_logs", {"signal": "x.service"}, "copytruncate"),
        ("rotate_logs", {"names": "*"}, '"names"'),
        ("rotate_logs", {"names": "../*.log"}, '"names"'),
    ],
)
def test_what_makes_no_sense_is_refused(handler: str, params: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        specs.HANDLERS[handler](**{"directory": "/var/log/benchmark", **params})  # type: ignore[arg-type]
    with pytest.raises(UpkeepError):
        make(handler, {"directory": "/x", **params}, None)  # type: ignore[arg-type]


@given(
    st.builds(lambda stem: stem + ".log", st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40)),
    st.one_of(
        st.tuples(st.just("number"), st.integers(1, 999_999).map(str)),
        st.tuples(st.just("date"), st.integers(10_000_000, 99_999_999).map(str)),
        st.tuples(st.just("stamp"), st.from_regex(r"[0-9]{8}_[0-9]{6}", fullmatch=True)),
    ),
    st.booleans(),
)
def test_an_archives_name_says_what_it_was_made_of(log: str, mark: tuple[str, str], packed: bool) -> None:
    made = Archive(log, mark[0], mark[1], packed)  # type: ignore[arg-type]
    assert archive(made.name()) == made


def test_other_names_are_no_archives() -> None:
    for name in (
        "a.log",
        "a.log.gz",
        "a.log.0",
        "a.log.01",
        "a.log-2026",
        "a.log.1.bz2",
        ".log.1",
        "a.txt.1",
        "a.login.1",
    ):
        assert archive(name) is None, name


def test_a_policy_names_services_whole() -> None:
    assert check(Policy(units=("benchmark-framework.service", "x@1.service"))) == []
    for unit in ("", "web", "-H.socket", "a b.service", "web.service\n", "../web.service"):
        assert len(check(Policy(units=(unit,)))) == 1, unit
