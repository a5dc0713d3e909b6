from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_world import CACHE, GIB, HOUR_S, Shape, World, cleaning, match, open_world, sample

from agent import cli
from agent.commands import act
from agent.model import ActionStatus, Event, Mode, Reading, Series, Severity, Verdict, make_labels
from agent.silencing import parse_matchers
from agent.store import Circuit
from agent.store.read import Reader
from reports.history import first_sample, tracks
from reports.overview import verdict
from reports.parameters import apply_command
from reports.period import Period
from reports.records import command, matchers
from reports.sections import SECTIONS
from reports.sections.actions import Actions
from reports.sections.alerts import Alerts
from reports.sections.coverage import Coverage
from reports.sections.host import Host
from reports.sections.logs import Logs, shape_of
from reports.sections.needs import Needs

BERLIN = ZoneInfo("Europe/Berlin")
END = 1_763_938_800.0
START = END - 2 * HOUR_S
LABELS = make_labels(path=CACHE, severity="warning")
PERIOD = Period("last", START, END, BERLIN)

Story = Callable[[World], Awaitable[None]]


def told(folder: Path, story: Story, *, until: float = END, period: Period = PERIOD) -> dict[str, object]:
    """All sections over two sampled hours in which ``story`` happened."""

    async def write() -> None:
        async with open_world(folder, START) as world:
            await sample(world, Shape(START, until, 60.0))
            await story(world)

    asyncio.run(write())
    with Reader.open(folder) as reader:
        return {section.name: section.build(reader, period) for section in SECTIONS}


def needs_of(folder: Path, story: Story, *, until: float = END) -> Needs:
    needs = told(folder, story, until=until)["needs"]
    assert isinstance(needs, Needs)
    return needs


async def nothing(_: World) -> None:
    return


def test_a_quiet_host_needs_nobody(tmp_path: Path) -> None:
    needs = needs_of(tmp_path, nothing)
    assert needs == Needs((), 0, True)
    assert verdict(needs) == "All quiet: nothing needs you"


def test_an_alert_that_is_being_repaired_needs_nobody_yet(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("EvaluationCacheTooLarge", LABELS, at=END - 60)
        running = replace(cleaning(alert, at=END - 50), status=ActionStatus.RUNNING, verdict=None, finished_at=None)
        await world.action(running)

    assert needs_of(tmp_path, story) == Needs((), 1, True)


@pytest.mark.parametrize(
    ("change", "why", "first_command"),
    [
        ({"verdict": Verdict.NO_EFFECT}, "Repair did not clear it: clean_cache had no effect.", "upkeep actions 1"),
        ({"verdict": Verdict.WORSE}, "Repair did not clear it: clean_cache made it worse.", "upkeep actions 1"),
        (
            {"verdict": Verdict.NO_EFFECT, "reason": "nothing_to_do", "started_at": None},
            "Repair did not clear it: clean_cache found nothing it may change.",
            "upkeep actions 1",
        ),
        (
            {"status": ActionStatus.OBSERVED, "verdict": None, "outcome": None},
            "Observe mode: clean_cache would free 2.1 GiB (12 items).",
            f"upkeep apply clean_cache path={CACHE} older_than=3d down_to=8GiB",
        ),
        (
            {"status": ActionStatus.REFUSED, "verdict": None, "outcome": None, "reason": "circuit_open"},
            "clean_cache was refused: circuit open.",
            f"upkeep circuit close clean_cache:cache:{CACHE}",
        ),
        (
            {"status": ActionStatus.REFUSED, "verdict": None, "outcome": None, "reason": "paused"},
            "clean_cache was refused: paused.",
            "upkeep resume",
        ),
    ],
)
def test_why_a_firing_alert_needs_a_person(
    tmp_path: Path, change: dict[str, object], why: str, first_command: str
) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("EvaluationCacheTooLarge", LABELS, at=END - 60)
        await world.action(replace(cleaning(alert, at=END - 50), **change))  # type: ignore[arg-type]

    [need] = needs_of(tmp_path, story).items
    assert need.why.replace("\u00a0", " ") == why
    assert need.commands[0] == first_command
    assert "upkeep explain EvaluationCacheTooLarge" in need.commands
    assert verdict(Needs((need,), 0, True)) == f"1 thing needs you: EvaluationCacheTooLarge {CACHE}"


def test_a_waiting_action_is_approved_by_its_number(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("EvaluationCacheTooLarge", LABELS, at=END - 60)
        waiting = replace(
            cleaning(alert, at=END - 50), status=ActionStatus.AWAITING_APPROVAL, verdict=None, outcome=None
        )
        await world.action(waiting)
        await world.action(replace(waiting, rule="", cause="job tidy", labels=(), attempt=2))

    alert_need, alone = needs_of(tmp_path, story).items
    assert alert_need.commands[0] == "upkeep approve 1"
    assert alone.commands == ("upkeep approve 2",)


def test_an_alert_for_information_alone_needs_nobody(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.alert("Curious", make_labels(severity="info"), at=END - 60)

    assert needs_of(tmp_path, story).items == ()


def test_the_worst_comes_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for name, severity in (
            ("A", "warning"),
            ("B", "critical"),
            ("C", "nonsense"),
            ("D", "error"),
            ("E", "warning"),
        ):
            await world.alert(name, make_labels(severity=severity), at=END - 60)

    needs = needs_of(tmp_path, story)
    assert [need.title for need in needs.items] == ["B", "D", "A", "C", "E"]
    assert verdict(needs) == "5 things need you: B, D, A and 2 more"


def test_a_job_that_failed_last_needs_a_person_one_that_recovered_does_not(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("X", LABELS, at=START, ended=START + 60)
        job = replace(cleaning(alert, at=END - 600), cause="job tidy", rule="", labels=())
        await world.action(replace(job, verdict=Verdict.FAILED))
        await world.action(replace(job, requested_at=END - 300, attempt=2))
        other = replace(job, resource="cache:/other", attempt=3, requested_at=END - 200)
        await world.action(replace(other, verdict=Verdict.FAILED, params={"path": "/other"}))

    [need] = needs_of(tmp_path, story).items
    assert need.title == "clean_cache did not succeed"
    assert need.commands == ("upkeep actions 3",)


def test_an_open_circuit_waits_for_a_person(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.store.ledger.open_circuit(Circuit("clean_cache", "cache:/x", END - 60, "twice without effect"))

    [need] = needs_of(tmp_path, story).items
    assert need.commands == ("upkeep circuit close clean_cache:cache:/x",)
    assert need.since == END - 60


def test_silence_of_the_agent_is_not_quiet(tmp_path: Path) -> None:
    [need] = needs_of(tmp_path, nothing, until=END - 1800).items
    assert need.title == "The agent stopped sampling"
    assert need.severity is Severity.ERROR
    assert verdict(Needs((need,), 0, True)) == "1 thing needs you: The agent stopped sampling"


# ── actions and alerts ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_did_not_help_comes_first_and_plans_do_not_add_up(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("EvaluationCacheTooLarge", LABELS, at=START + 60)
        for number in range(6):
            verdict = Verdict.NO_EFFECT if number == 2 else Verdict.FIXED
            action = cleaning(alert, at=START + 100 + number * 60, freed=0.0 if number == 2 else 1.0, verdict=verdict)
            await world.action(replace(action, attempt=number + 1))
        for number in range(3):
            planned = cleaning(
                alert, at=END - 300 + number, status=ActionStatus.OBSERVED, freed=5.0 + number, reason="observe_mode"
            )
            await world.action(replace(planned, attempt=10 + number))
        refused = cleaning(alert, at=END - 100, status=ActionStatus.REFUSED, reason="cooldown")
        await world.action(replace(refused, attempt=20))

    actions = told(tmp_path, story)["actions"]
    assert isinstance(actions, Actions)
    assert (actions.carried_out, actions.fixed, actions.without_effect) == (6, 5, 1)
    assert actions.bytes_freed == pytest.approx(5 * GIB, rel=1e-6)
    assert [story.verdict for story in actions.stories] == [Verdict.NO_EFFECT, Verdict.FIXED, Verdict.FIXED]
    assert [left.reason for left in actions.stories[0].left_alone] == ["hard_link", "open", "symlink"]
    assert actions.stories[1].items_done == 12
    assert actions.repair_s == 12.0
    [group] = actions.groups
    assert (group.times, group.fixed, group.without_effect) == (6, 5, 1)
    [would] = actions.would_have
    assert would.times == 3
    assert actions.would_free_bytes == pytest.approx(7 * GIB, rel=1e-6)
    assert [(held.reason, held.times) for held in actions.held] == [("cooldown", 1)]


def test_alerts_are_folded_and_counted_within_the_period(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.alert("Early", LABELS, at=START - 5000, ended=START - 4000)
        for at in (START - 600, START + 600, START + 1200):
            alert = await world.alert(
                "EvaluationCacheTooLarge", LABELS, at=at, ended=at + 900 if at < START else at + 60
            )
        await world.action(cleaning(alert, at=START + 1200))
        await world.alert("Still", make_labels(severity="critical"), at=END - 120)

    alerts = told(tmp_path, story)["alerts"]
    assert isinstance(alerts, Alerts)
    assert [row.rule for row in alerts.rows] == ["Still", "EvaluationCacheTooLarge"]
    assert (alerts.rows[0].firing_s, alerts.rows[0].still) == (120.0, True)
    assert (alerts.rows[1].times, alerts.rows[1].firing_s) == (3, 300.0 + 120.0)
    assert alerts.rows[1].answer == "clean_cache fixed"
    assert (alerts.fired, alerts.firing_now) == (4, 1)


# ── host, logs, coverage ─────────────────────────────────────────────────────────────────────────────────────────────


def test_mounts_are_told_once_fullest_first(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        labels = make_labels(device="/dev/md0", mountpoint="/data/bound", fstype="ext4")
        series = tuple(Series(f"node_filesystem_{name}_bytes", labels) for name in ("size", "avail"))
        reading = Reading(END - 1, series, [14_900 * GIB, 14_900 * GIB * 0.08])
        await world.store.metrics.append([reading])

    host = told(tmp_path, story)["host"]
    assert isinstance(host, Host)
    assert [mount.path for mount in host.mounts] == ["/data", "/", "/boot"]
    assert host.mounts[0].fill == pytest.approx(92, abs=0.2)
    assert host.mounts[0].level == "high"
    assert host.processors == 8
    assert host.memory_bytes == 128 * GIB


def test_log_matches_are_counted_by_the_readers_days(tmp_path: Path) -> None:
    period = Period("last", END - 26 * HOUR_S, END + 2 * HOUR_S, BERLIN)

    async def story(world: World) -> None:
        events = [
            match("oom", f"ERROR worker {n}: out of memory", at=END + offset) for n, offset in enumerate((-1, 0, 1))
        ]
        events += [match("oom", "ERROR something else", at=END - 5)]
        await world.store.metrics.add_events(events)

    logs = told(tmp_path, story, period=period)["logs"]
    assert isinstance(logs, Logs)
    assert logs.days == (date(2025, 11, 22), date(2025, 11, 23), date(2025, 11, 24))
    [row] = logs.patterns
    assert row.by_day == (0, 2, 2)
    assert [(line.times, line.newest) for line in row.top_lines] == [
        (3, "ERROR worker 2: out of memory"),
        (1, "ERROR something else"),
    ]


def test_lines_that_differ_in_numbers_have_one_shape() -> None:
    one = "2026-01-01T10:00:00.123Z ERROR job 7f3a9c1b22: 12.5 s on 0xdeadbeef"
    other = "2027-11-23 09:00:00,5 ERROR job 0011aabbcc: 7 s on 0x1"
    assert shape_of(one) == shape_of(other) == "# ERROR job #: # s on #"


def test_coverage_names_gaps_silences_and_troubles(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        event = Event("task_crashed", Severity.ERROR, "engine crashed: boom", "supervisor", END - 100)
        await world.store.metrics.add_events([event, replace(event, severity=Severity.INFO, kind="reloaded")])

    coverage = told(tmp_path, story, until=END - 1800)["coverage"]
    assert isinstance(coverage, Coverage)
    assert coverage.sampled == pytest.approx(75, abs=1)
    assert len(coverage.gaps) == 1
    assert [(trouble.kind, trouble.times) for trouble in coverage.troubles] == [("task_crashed", 1)]


def test_sleep_is_no_gap(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.clock.suspend(1800)
        await world.store.metrics.epochs.begin("resumed", 1800)

    coverage = told(tmp_path, story, until=END - 1800)["coverage"]
    assert isinstance(coverage, Coverage)
    assert (coverage.gaps, coverage.asleep_s, coverage.sampled) == ((), pytest.approx(1780), 100.0)


def test_history_is_read_from_samples_and_roll_ups_alike(tmp_path: Path) -> None:
    told(tmp_path, nothing)
    wanted = {"node_load1": {}, "node_cpu_seconds_total": {"mode": "idle"}}
    with Reader.open(tmp_path) as reader:
        raw = tracks(reader, wanted, START, END, averaged=("node_cpu_seconds_total",))
        rolled = tracks(reader, wanted, END - 2 * 86400, END, averaged=("node_cpu_seconds_total",))
        assert first_sample(reader) == START
    load = Series("node_load1")
    assert raw.keys() == rolled.keys() == {load, Series("node_cpu_seconds_total")}
    assert len(raw[load].times) == len(rolled[load].times) == 120
    assert list(raw[load].mean) == list(rolled[load].mean)
    assert (raw[load].step_s, rolled[load].step_s) == (60.0, 60.0)
    assert all(0.3 < share <= 1 for share in raw[Series("node_cpu_seconds_total")].rate().mean)


def test_more_series_than_sqlite_takes_arguments(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        series = tuple(Series("many", make_labels(n=f"{n:03}")) for n in range(301))
        for second in range(3):
            await world.store.metrics.append([Reading(END - 10 + second, series, [n + second for n in range(301)])])

    told(tmp_path, story)
    with Reader.open(tmp_path) as reader:
        found = tracks(reader, {"many": {}}, START, END)
    assert len(found) == 301
    for series, track in found.items():
        assert list(track.last) == [int(series.labels[0][1]) + second for second in range(3)]


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parameters_are_written_as_a_person_types_them() -> None:
    params = {"path": "/a b", "older_than": 5400.0, "down_to": 1536 << 20, "use": "mtime", "keep_used_within": 600.0}
    assert apply_command("clean_cache", params) == (
        "upkeep apply clean_cache 'path=/a b' older_than=90m down_to=1536MiB use=mtime"
    )
    assert apply_command("notify", {"message": "it's"}) == "upkeep apply notify 'message=it'\"'\"'s'"
    assert apply_command("unknown", {"x": 1, "y": None}) == "upkeep apply unknown x=1"


@given(
    st.text("ab /'\"=\\é", max_size=20),
    st.one_of(st.none(), st.integers(1, 10**9).map(lambda ms: ms / 1000)),
    st.integers(1, 2**50),
    st.sampled_from(["atime", "mtime"]),
    st.integers(0, 10**7).map(lambda ms: ms / 1000),
)
def test_the_command_line_reads_back_what_an_action_was_given(
    name: str, older: float | None, down: int, use: str, keep: float
) -> None:
    path = os.path.normpath(f"/cache/{name}".strip())
    given_params = {"path": path, "older_than": older, "down_to": down, "use": use, "keep_used_within": keep}
    line = apply_command("clean_cache", given_params)
    if line:  # a path with two blanks in a row, say, cannot be shown as it is
        assert act._params("clean_cache", shlex.split(line)[3:]) == pytest.approx(given_params)


def test_a_command_that_cannot_be_shown_whole_is_not_shown() -> None:
    assert command("upkeep", "explain", "a\nb") == ""
    assert command("upkeep", "explain", "a\u202eb") == ""
    assert command("upkeep", "explain", "x" * 1000) == ""
    assert command("rm", "$(reboot)") == "rm '$(reboot)'"


def test_matchers_quote_what_labels_hold() -> None:
    assert matchers("R", {"path": 'a"b\\'}) == f'alertname="R", path={json.dumps(chr(97) + chr(34) + "b" + chr(92))}'


def test_modes_are_named_as_the_ledger_names_them(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alert = await world.alert("EvaluationCacheTooLarge", LABELS, at=END - 60)
        await world.action(replace(cleaning(alert, at=END - 50), cause="person root", mode=Mode.ACT))

    actions = told(tmp_path, story)["actions"]
    assert isinstance(actions, Actions)
    assert actions.by_hand == 1


def test_the_command_line_takes_every_command_that_is_printed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        odd = make_labels(path='/tmp/a "b" \\c', severity="critical")
        for change in (
            {"status": ActionStatus.OBSERVED, "verdict": None, "outcome": None},
            {"status": ActionStatus.REFUSED, "verdict": None, "outcome": None, "reason": "paused"},
            {"status": ActionStatus.REFUSED, "verdict": None, "outcome": None, "reason": "circuit_open"},
            {"status": ActionStatus.AWAITING_APPROVAL, "verdict": None, "outcome": None},
        ):
            alert = await world.alert(f"Rule{change.get('reason', change['status'])}", odd, at=END - 60)
            await world.action(replace(cleaning(alert, at=END - 50), **change))  # type: ignore[arg-type]
        await world.store.ledger.open_circuit(Circuit("clean_cache", "cache:/x", END - 60, "twice without effect"))

    printed = {line for need in needs_of(tmp_path, story).items for line in need.commands}
    verbs = set()
    for line in printed:
        program, *words = shlex.split(line)
        assert program == "upkeep"
        arguments = cli.make_parser().parse_args(words)
        verbs.add(words[0])
        if words[0] == "silence":
            assert {m.name for m in parse_matchers(arguments.subject)} == {"alertname", "path", "severity"}
            assert {m.value for m in parse_matchers(arguments.subject)} >= {'/tmp/a "b" \\c', "critical"}
    assert verbs == {"apply", "approve", "circuit", "explain", "resume", "silence"}
