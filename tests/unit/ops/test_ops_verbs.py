from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.ops import tree, verbs
from agent.ops.policy import Limits, Policy
from agent.ops.protocol import Hello, Measure, Measured, Prune, Survey, Tally, quote
from tests.support.hands import DAY_S, hands, item_of, put

NOW_NS = 1_700_000_000 * 10**9
MIB = 1024 * 1024


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def status(*, atime_s: float = 1e5, mtime_s: float = 1e5, mode: int = 0o100644, nlink: int = 1, device: int = 1):  # type: ignore[no-untyped-def]
    """A status whose times are that many seconds before NOW."""
    atime_ns, mtime_ns = (NOW_NS - round(age * 1e9) for age in (atime_s, mtime_s))
    fields = [mode, 7, device, nlink, 0, 0, 4096, *(t // 10**9 for t in (atime_ns, mtime_ns, NOW_NS))]
    extra = {"st_atime_ns": atime_ns, "st_mtime_ns": mtime_ns, "st_blocks": 8}
    return os.stat_result([*fields], extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "use", "reason"),
    [
        (status(), "atime", ""),
        (status(mode=0o120777), "atime", "symlink"),
        (status(mode=0o010644), "atime", "special_file"),
        (status(mode=0o140644), "atime", "special_file"),
        (status(device=2), "atime", "other_device"),
        (status(nlink=2), "atime", "hard_link"),
        (status(atime_s=599), "atime", "young"),
        (status(mtime_s=599), "atime", "young"),
        (status(atime_s=599), "mtime", "young"),
        (status(atime_s=601, mtime_s=601), "atime", ""),
        (status(atime_s=-30), "atime", "young"),
        (status(atime_s=-61), "atime", "implausible_time"),
        (status(mtime_s=-61), "mtime", "implausible_time"),
        (status(mtime_s=11 * 366 * DAY_S), "mtime", "implausible_time"),
        (status(mtime_s=1_700_000_000), "mtime", "implausible_time"),
        (status(mtime_s=1_700_000_000), "atime", ""),
        (status(mtime_s=1_700_000_000, atime_s=1_700_000_000), "atime", "implausible_time"),
    ],
)
def test_d5_d6_why_a_file_stays_whatever_its_turn(found: os.stat_result, use: verbs.Use, reason: str) -> None:
    assert verbs.Rule(use, 600.0, 1, NOW_NS).reason_to_keep(found) == reason


TIMES = st.floats(-1e5, 4e8)


@given(TIMES, TIMES, st.sampled_from(["atime", "mtime"]), st.floats(0, 1e6))
def test_law_nothing_used_or_written_within_the_guard_may_go(
    atime_s: float, mtime_s: float, use: verbs.Use, guard_s: float
) -> None:
    rule = verbs.Rule(use, guard_s, 1, NOW_NS)
    if min(atime_s, mtime_s) < guard_s - 1e-6:
        assert rule.reason_to_keep(status(atime_s=atime_s, mtime_s=mtime_s)) != ""


def test_the_oldest_go_first_until_the_tree_is_small_enough(cache: Path) -> None:
    for day in (5, 1, 4, 2, 3):
        put(cache / f"d{day % 2}" / f"age{day}", size=MIB, age_s=day * DAY_S)
    with hands(Policy((str(cache),))) as peer:
        items, _, totals = peer.survey(str(cache), down_to_bytes=3 * MIB - 1)
        assert [item.path for item in items] == ["d1/age5", "d0/age4", "d1/age3"]
        assert totals.files == 5
        _, end = peer.prune(str(cache), items)
        assert (end.files, end.bytes_removed) == (3, 3 * MIB)
    assert sorted(path.name for path in cache.rglob("age*")) == ["age1", "age2"]


def test_all_that_are_too_old_go_then_on_to_the_size(cache: Path) -> None:
    for day in (1, 2, 3, 4, 5):
        put(cache / f"age{day}", size=MIB, age_s=day * DAY_S + 60)
    with hands(Policy((str(cache),))) as peer:

        def ages(older_than_days: float | None, down_to_bytes: int | None) -> list[str]:
            seconds = None if older_than_days is None else older_than_days * DAY_S
            return [
                item.path[3:] for item in peer.survey(str(cache), older_than_s=seconds, down_to_bytes=down_to_bytes)[0]
            ]

        assert ages(3, None) == ["5", "4", "3"]
        assert ages(3, 10 * MIB) == ["5", "4", "3"]
        assert ages(5, 4 * MIB) == ["5", "4"]
        assert ages(30, None) == []
        assert ages(None, None) == []


def test_use_mtime_goes_by_the_last_write_and_still_spares_what_was_just_read(cache: Path) -> None:
    put(cache / "old_read_now", age_s=9 * DAY_S, atime_age_s=10)
    put(cache / "old_read_yesterday", age_s=9 * DAY_S, atime_age_s=DAY_S)
    with hands(Policy((str(cache),))) as peer:
        assert [i.path for i in peer.survey(str(cache), older_than_s=7 * DAY_S, use="mtime")[0]] == [
            "old_read_yesterday"
        ]
        assert peer.survey(str(cache), older_than_s=7 * DAY_S, use="atime")[0] == []


def test_a_limit_takes_the_oldest_and_leaves_the_rest_to_the_next_run(cache: Path) -> None:
    for number in range(50):
        put(cache / f"{number:02}", age_s=(number + 1) * DAY_S)
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0, limit=7)
    assert [item.path for item in items] == ["49", "48", "47", "46", "45", "44", "43"]


def test_d7_sizes_are_blocks_each_inode_once_as_du_says(cache: Path) -> None:
    put(cache / "plain", size=3 * MIB)
    put(cache / "deep/er/small", size=1)
    with open(cache / "sparse", "wb") as file:
        file.truncate(1 << 30)
    os.link(cache / "plain", cache / "deep/again")
    os.link(cache / "plain", cache.parent / "outside")
    with hands(Policy((str(cache),))) as peer:
        measured = peer.ask(Measure(str(cache), ""))[-1]
        _, _, totals = peer.survey(str(cache), older_than_s=60.0)
    du = subprocess.run(["du", "-s", "-B1", os.fspath(cache)], check=True, capture_output=True)
    assert isinstance(measured, Measured)
    assert measured.bytes == totals.bytes == int(du.stdout.split()[0])
    assert measured.files == totals.files == 3
    assert not measured.partial


def test_d7_freed_is_what_the_file_system_gained(cache: Path) -> None:
    put(cache / "big", size=32 * MIB)
    os.sync()
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        _, end = peer.prune(str(cache), items)
    assert end.bytes_removed == 32 * MIB
    # Others write to this file system too; what they do meanwhile is far less.
    assert abs(end.bytes_freed - end.bytes_removed) < 16 * MIB


def test_left_alone_is_counted_in_full_and_shown_by_example(cache: Path) -> None:
    for number in range(verbs.EXAMPLES_PER_REASON + 20):
        (cache / f"link{number}").symlink_to("nowhere")
    put(cache / "young", age_s=5)
    with hands(Policy((str(cache),))) as peer:
        items, left, totals = peer.survey(str(cache), older_than_s=60.0)
    assert items == []
    assert totals.left == (Tally("symlink", verbs.EXAMPLES_PER_REASON + 20, 0), Tally("young", 1, 4096))
    assert len(left) == verbs.EXAMPLES_PER_REASON + 1


def test_what_changed_between_plan_and_prune_stays(cache: Path) -> None:
    names = ["written", "read", "replaced", "linked", "gone", "became_link", "became_folder", "same"]
    for name in names:
        put(cache / name)
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        old = time.time() - 2 * DAY_S
        put(cache / "written", age_s=DAY_S)
        os.utime(cache / "read", (time.time() - DAY_S, (cache / "read").stat().st_mtime))
        put(cache / "new", age_s=DAY_S).rename(cache / "replaced")
        os.link(cache / "linked", cache.parent / "elsewhere")
        (cache / "gone").unlink()
        (cache / "became_link").unlink()
        (cache / "became_link").symlink_to(cache / "same")
        (cache / "became_folder").unlink()
        (cache / "became_folder").mkdir()
        os.utime(cache / "became_folder", (old, old))
        results, end = peer.prune(str(cache), items)
    assert results == {
        "written": "changed",
        "read": "used_since",
        "replaced": "changed",
        "linked": "hard_link",
        "gone": "gone",
        "became_link": "symlink",
        "became_folder": "special_file",
        "same": "done",
    }
    assert end.files == 1


def test_names_of_every_kind_come_back_and_go(cache: Path) -> None:
    names = [b"-rf", b"$(reboot)", b"a\nb", b"\xff\xfe", b"back\\slash", "größe \u202e".encode(), b"n" * 255, b"'; --"]
    for name in names:
        path = os.fsencode(cache) + b"/" + name
        with open(path, "wb") as file:
            file.write(b"x")
        os.utime(path, (time.time() - DAY_S,) * 2)
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        assert {item.path for item in items} == set(map(quote, names))
        results, _ = peer.prune(str(cache), items)
    assert set(results.values()) == {"done"}
    assert os.listdir(cache) == []


def test_d9_the_caps_of_the_policy_hold(cache: Path) -> None:
    for number in range(6):
        put(cache / str(number), size=MIB, age_s=(9 - number) * DAY_S)
    policy = Policy((str(cache),), Limits(actions_per_hour=2, files_per_action=5, bytes_per_action=2 * MIB))
    clock = ManualClock(time.time())
    with hands(policy, clock) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        assert peer.refusal(Prune(str(cache), "", "atime", 0, 6)) == "over_file_cap"
        # A size that the agent understates does not get past the cap either.
        lies = [item.__class__(item.path, 0, *list(_identity(item))) for item in items[:5]]
        results, _ = peer.prune(str(cache), lies)
        assert list(results.values()) == ["done", "done", "over_byte_cap", "over_byte_cap", "over_byte_cap"]
        peer.prune(str(cache), items[2:3])
        assert peer.refusal(Prune(str(cache), "", "atime", 0, 1)) == "rate_limit"
        clock.advance(3601)
        assert peer.refusal(Prune(str(cache), "", "atime", 0, 0)) == ""


def _identity(item: verbs.Item) -> tuple[int, int, int, int]:
    return item.device, item.inode, item.mtime_ns, item.atime_ns


def test_d5_after_a_step_of_the_clock_no_age_is_judged_for_an_hour(cache: Path) -> None:
    put(cache / "file", age_s=60)
    clock = ManualClock(time.time())
    survey = Survey(str(cache), "", 3600.0, None, "atime", 600.0, 10)
    with hands(Policy((str(cache),)), clock) as peer:
        clock.step_wall(400 * DAY_S)
        assert peer.refusal(survey) == "clock_jumped"
        assert peer.refusal(Prune(str(cache), "", "atime", 0, 1)) == "clock_jumped"
        assert peer.refusal(Measure(str(cache), "")) == ""
        clock.step_wall(-400 * DAY_S)
        clock.advance(10)
        assert peer.refusal(survey) == "clock_jumped"
        clock.advance(3600)
        assert peer.refusal(survey) == ""
        clock.step_wall(1800)
        assert peer.refusal(survey) == ""


def test_d5_hands_believe_an_agent_that_saw_the_clock_step_and_forget_nothing_for_one_that_did_not(cache: Path) -> None:
    clock = ManualClock(time.time())
    survey = Survey(str(cache), "", 3600.0, None, "atime", 600.0, 10)
    with hands(Policy((str(cache),)), clock) as peer:
        peer.ask(Hello(1, 1e9))
        assert peer.refusal(survey) == "clock_jumped"
        peer.ask(Hello(1, 0.0))
        peer.ask(Hello(1, -1e9))
        assert peer.refusal(survey) == "clock_jumped"
        clock.advance(3600)
        assert peer.refusal(survey) == ""


@pytest.mark.parametrize(
    "request_",
    [
        Survey("{root}", "", 0.0, None, "atime", 600.0, 10),
        Survey("{root}", "", -1.0, None, "atime", 600.0, 10),
        Survey("{root}", "", None, 0, "atime", 600.0, 10),
        Survey("{root}", "", None, -1, "atime", 600.0, 10),
        Survey("{root}", "", 1.0, None, "atime", -1.0, 10),
        Survey("{root}", "", 1.0, None, "atime", 600.0, 0),
        Prune("{root}", "", "atime", 600.0, -1),
        Prune("{root}", "", "atime", -600.0, 1),
    ],
)
def test_d8_a_threshold_of_nothing_never_means_everything(cache: Path, request_: Survey | Prune) -> None:
    put(cache / "file")
    with hands(Policy((str(cache),))) as peer:
        asked = type(request_)(str(cache), *(getattr(request_, name) for name in request_.__slots__[1:]))
        assert peer.refusal(asked) == "bad_request"
    assert (cache / "file").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda cache: None, "missing"),
        (lambda cache: cache.symlink_to("/etc"), "symlink"),
        (lambda cache: cache.write_text("x"), "no_folder"),
        (lambda cache: os.mkfifo(cache), "no_folder"),
    ],
)
def test_d8_a_root_that_is_not_a_folder_is_a_named_reason(tmp_path: Path, make, reason: str) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "root"
    make(root)
    with hands(Policy((str(root),))) as peer:
        assert peer.refusal(Measure(str(root), "")) == reason
        root.unlink(missing_ok=True)
        root.mkdir()
        assert peer.refusal(Measure(str(root), "")) == "", "it is opened afresh each time"


def test_d8_a_glob_root_needs_a_sticky_folder_and_a_match(tmp_path: Path) -> None:
    put(tmp_path / "benchmark_1/x")
    put(tmp_path / "other/x")
    (tmp_path / "benchmark_2").symlink_to(tmp_path / "other")
    root = str(tmp_path / "bench*")
    with hands(Policy((root,))) as peer:
        assert peer.refusal(Measure(root, "benchmark_1")) == "not_sticky"
        tmp_path.chmod(0o1777)
        assert peer.refusal(Measure(root, "benchmark_1")) == ""
        assert peer.refusal(Measure(root, "benchmark_2")) == "symlink"
        for path in ("", "other", "other/benchmark_1", "../x"):
            assert peer.refusal(Measure(root, path)) in ("outside_roots", "bad_path")


def test_a_way_through_a_link_a_lock_or_a_protected_name_is_refused(cache: Path) -> None:
    put(cache / "real/x")
    put(cache / "lost+found/x")
    (cache / "link").symlink_to("real")
    with hands(Policy((str(cache),))) as peer:
        assert peer.refusal(Measure(str(cache), "link")) == "symlink"
        assert peer.refusal(Measure(str(cache), "lost+found")) == "protected"
        assert peer.refusal(Measure(str(cache), "real")) == ""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_d5_on_a_noatime_mount_the_last_use_is_unknown_and_only_mtime_acts(cache: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noatime", "tmpfs", os.fspath(cache)], check=True)
    try:
        put(cache / "file")
        with hands(Policy((str(cache),))) as peer:
            items, _, totals = peer.survey(str(cache), older_than_s=60.0)
            assert (items, totals.last_use) == ([], "unknown")
            assert peer.refusal(Prune(str(cache), "", "atime", 0, 1)) == "use_unknown"
            items, _, _ = peer.survey(str(cache), older_than_s=60.0, use="mtime")
            assert peer.prune(str(cache), items, use="mtime")[0] == {"file": "done"}
        subprocess.run(["mount", "-o", "remount,ro", os.fspath(cache)], check=True)
    finally:
        subprocess.run(["umount", os.fspath(cache)], check=True)


def test_e6_a_prune_stops_before_the_next_item_when_the_peer_has_gone(cache: Path) -> None:
    items = [item_of(put(cache / str(number)), cache) for number in range(10)]
    answers = iter([False, False, False, True])
    base = os.open(cache, tree.DIRECTORY)
    try:
        request = Prune(str(cache), "", "atime", 0.0, 10)
        caps = verbs.Caps(2**40, lambda: next(answers))
        assert list(verbs.prune(base, request, iter([tuple(items)]), caps, time.time_ns)) == []
    finally:
        os.close(base)
    assert len(list(cache.iterdir())) == 7


def test_a_file_that_may_not_be_opened_counts_as_perhaps_in_use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: int, name: bytes, flags: int) -> int:
        raise PermissionError(13, "Permission denied", name)

    put(cache / "file")
    with hands(Policy((str(cache),))) as peer:
        items, _, _ = peer.survey(str(cache), older_than_s=60.0)
        monkeypatch.setattr(tree, "open_beneath", refuse)
        assert peer.prune(str(cache), items)[0] == {"file": "in_use_unknown"}
    assert (cache / "file").exists()


def test_items_outside_of_what_a_survey_would_name_are_refused_one_by_one(cache: Path) -> None:
    victim = put(cache.parent / "victim")
    put(cache / "lost+found")
    with hands(Policy((str(cache),))) as peer:
        real = item_of(victim, cache.parent)
        wishes = ["../victim", "/" + str(victim), "", ".", "..", "a/../../victim", "\\x2e\\x2e/victim", "lost+found"]
        lies = [type(real)(path, real.bytes, *_identity(real)) for path in wishes]
        results, end = peer.prune(str(cache), lies)
    assert set(results.values()) == {"bad_path", "protected"}
    assert end.files == 0
    assert victim.exists()
