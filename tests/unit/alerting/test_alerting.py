from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.alerting import OnMissing, Timing, step
from agent.model import Alert, AlertState, Labels, make_labels
from agent.promql.evaluate import evaluate
from agent.promql.parse import parse
from agent.promql.values import Vector, drop_name
from tests.support import promtool
from tests.support.promqltest import MemorySource, metric_labels, sequence

DISK: Labels = make_labels(mount="/")
DATA: Labels = make_labels(mount="/data")
MINUTE = 60.0


def play(findings: str, timing: Timing, *, knowable: bool = True) -> list[Alert | None]:
    """One label set through time, a minute a letter: T true, F known to be false, - neither."""
    alerts: Mapping[Labels, Alert] = {}
    seen = []
    for minute, finding in enumerate(findings):
        breaches = {DISK: float(minute)} if finding == "T" else {}
        known = ({DISK} if finding == "F" else set()) if knowable else None
        alerts = step("DiskFull", alerts, breaches, known, timing, minute * MINUTE)
        seen.append(alerts.get(DISK))
    return seen


def states(findings: str, timing: Timing, *, knowable: bool = True) -> str:
    """As one letter a minute: p pending, f firing, m either of them while data are missing, i inactive, - forgotten."""
    letters = {AlertState.PENDING: "p", AlertState.FIRING: "f", AlertState.INACTIVE: "i"}
    return "".join(
        "-" if alert is None else "m" if alert.missing else letters[alert.state]
        for alert in play(findings, timing, knowable=knowable)
    )


@pytest.mark.parametrize(
    ("timing", "findings", "expected"),
    [
        (Timing(), "FTTFF", "-ffi-"),
        (Timing(for_s=120), "TTTTF", "ppffi"),
        (Timing(for_s=120), "TTFTTT", "ppippf"),
        (Timing(for_s=60, keep_firing_for_s=120), "TTFFFF", "pfffi-"),
        (Timing(for_s=60, keep_firing_for_s=120), "TTFTFFF", "pfffffi"),
        (Timing(for_s=60, keep_firing_for_s=120), "TFFF", "pi--"),
        # hold: missing neither clears nor fires, and the time from the first missing minute on does not count
        (Timing(for_s=180), "TT--TTF", "ppmmpfi"),
        (Timing(for_s=180), "TTTT--F", "pppfmmi"),
        (Timing(), "T----F", "fmmmmi"),
        (Timing(keep_firing_for_s=120), "TF-F", "ffmi"),
        (Timing(), "---T", "---f"),
        # clear: missing is false
        (Timing(on_missing=OnMissing.CLEAR), "T-F", "fi-"),
        (Timing(for_s=120, on_missing=OnMissing.CLEAR), "TT-TT", "ppipp"),
        (Timing(on_missing=OnMissing.CLEAR, keep_firing_for_s=120), "T---", "fffi"),
        # fire: who was once seen is missed
        (Timing(on_missing=OnMissing.FIRE), "--F-F", "--imi"),
        (Timing(for_s=120, on_missing=OnMissing.FIRE), "F----F", "immmmi"),
        (Timing(for_s=60, on_missing=OnMissing.FIRE), "T-TF", "pmfi"),
        # clear: hysteresis; known_false is what `clear` says
        (Timing(has_clear=True), "T--TF", "ffffi"),
        (Timing(for_s=120, has_clear=True), "T-TTT", "pippf"),
        (Timing(has_clear=True, keep_firing_for_s=120), "T-FFF", "ffffi"),
        (Timing(has_clear=True, on_missing=OnMissing.FIRE), "F--", "---"),
    ],
)
def test_timelines(timing: Timing, findings: str, expected: str) -> None:
    assert states(findings, timing) == expected


def test_absence_is_false_where_nothing_can_be_known() -> None:
    assert states("T-T", Timing(), knowable=False) == "fif"
    assert states("TT-T", Timing(for_s=60), knowable=False) == "pfip"


def test_a_missing_alert_under_fire_comes_to_fire() -> None:
    alerts = play("F---", Timing(for_s=120, on_missing=OnMissing.FIRE))
    assert [alert.state for alert in alerts if alert] == ["inactive", "pending", "pending", "firing"]


def test_what_an_alert_records() -> None:
    timing = Timing(for_s=60, keep_firing_for_s=60)
    alerts = play("TTFT", timing)
    assert alerts[1] == Alert("DiskFull", DISK, AlertState.FIRING, 1.0, active_since=0.0, fired_at=60.0)
    assert alerts[2] == dataclasses.replace(alerts[1], clear_since=120.0)
    assert alerts[3] == dataclasses.replace(alerts[1], value=3.0)


def test_a_breach_wins_over_known_false() -> None:
    alerts = step("R", {}, {DISK: 1.0}, {DISK}, Timing(), 0.0)
    assert step("R", alerts, {DISK: 1.0}, {DISK}, Timing(), 60.0)[DISK].state is AlertState.FIRING


def test_label_sets_are_apart() -> None:
    alerts = step("R", {}, {DISK: 1.0, DATA: 2.0}, set(), Timing(), 0.0)
    alerts = step("R", alerts, {DATA: 2.0}, {DISK}, Timing(), 60.0)
    assert {labels: alert.state for labels, alert in alerts.items()} == {DISK: "inactive", DATA: "firing"}


def test_an_unchanged_alert_is_the_same_object() -> None:
    alerts = step("R", {}, {DISK: math.nan}, set(), Timing(), 0.0)
    assert step("R", alerts, {DISK: math.nan}, set(), Timing(), 60.0)[DISK] is alerts[DISK]


def test_instants_of_today_add_up() -> None:
    at = 1_700_000_000.1
    alerts = step("R", {}, {DISK: 1.0}, set(), Timing(for_s=60), at)
    assert step("R", alerts, {DISK: 1.0}, set(), Timing(for_s=60), at + 60.0)[DISK].state is AlertState.FIRING


# --- laws --------------------------------------------------------------------------------------------------------

_timing = st.builds(
    Timing,
    for_s=st.sampled_from([0.0, 60.0, 150.0]),
    keep_firing_for_s=st.sampled_from([0.0, 60.0, 150.0]),
    on_missing=st.sampled_from(OnMissing),
    has_clear=st.booleans(),
)
_held = _timing.filter(lambda timing: timing.on_missing is OnMissing.HOLD and not timing.has_clear)
_findings = st.text("TF-", min_size=1, max_size=40)


_steps = st.lists(st.tuples(st.sampled_from("TF-"), st.sampled_from([1.0, 15.0, 60.0, 151.0])), min_size=1, max_size=40)
Seen = tuple[str, float, Alert | None]


def _unevenly(steps: list[tuple[str, float]], timing: Timing) -> list[Seen]:
    """What was found, when, and the alert then: evaluations come late, early, or after a night's sleep."""
    alerts: Mapping[Labels, Alert] = {}
    seen, at = [], 0.0
    for finding, pause_s in steps:
        at += pause_s
        breaches = {DISK: at} if finding == "T" else {}
        alerts = step("R", alerts, breaches, {DISK} if finding == "F" else set(), timing, at)
        seen.append((finding, at, alerts.get(DISK)))
    return seen


def _means(finding: str, timing: Timing, *, firing: bool) -> str:
    """What a finding says of an alert that stands: T true, F false, B between two thresholds, - nothing."""
    if finding != "-":
        return finding
    if timing.has_clear:
        return "B" if firing else "F"
    return {OnMissing.HOLD: "-", OnMissing.CLEAR: "F", OnMissing.FIRE: "T"}[timing.on_missing]


def _state(alert: Alert | None) -> AlertState:
    return AlertState.INACTIVE if alert is None else alert.state


@given(_steps, _timing)
def test_never_fires_before_it_was_true_for_long_enough(steps: list[tuple[str, float]], timing: Timing) -> None:
    seen = _unevenly(steps, timing)
    for index, (_, at, alert) in enumerate(seen):
        if _state(alert) is AlertState.FIRING and (index == 0 or _state(seen[index - 1][2]) is not AlertState.FIRING):
            true_s, later = 0.0, at
            for finding, earlier, _ in reversed(seen[:index]):
                # From an evaluation that sees it true to the next it counts as true; from one that misses it, not.
                meaning = _means(finding, timing, firing=False)
                if meaning == "F":
                    break
                true_s += (later - earlier) * (meaning == "T")
                later = earlier
            assert true_s >= timing.for_s
            assert _means(seen[index][0], timing, firing=False) == "T"


@given(_steps, _timing)
def test_never_clears_before_keep_firing_for(steps: list[tuple[str, float]], timing: Timing) -> None:
    seen = _unevenly(steps, timing)
    for index, (_, at, alert) in enumerate(seen):
        if index and _state(alert) is AlertState.INACTIVE and _state(seen[index - 1][2]) is AlertState.FIRING:
            since = math.inf
            for finding, earlier, _ in reversed(seen[: index + 1]):
                meaning = _means(finding, timing, firing=True)
                if meaning in "TB":
                    break
                since = earlier if meaning == "F" else since
            assert at - since >= timing.keep_firing_for_s


@given(_findings, _held)
def test_missing_neither_clears_nor_fires(findings: str, timing: Timing) -> None:
    alerts = play(findings, timing)
    for finding, before, now in zip(findings[1:], alerts, alerts[1:], strict=False):
        if finding == "-" and before is not None and before.state is not AlertState.INACTIVE:
            assert now is not None
            assert now.missing
            assert (now.state, now.active_since, now.fired_at) == (before.state, before.active_since, before.fired_at)


@given(_findings, _findings, _timing)
def test_clear_alone_ends_an_alert_with_hysteresis(findings: str, more: str, timing: Timing) -> None:
    alerts = play("T" + findings, Timing(has_clear=True, on_missing=timing.on_missing))
    for finding, before, now in zip(findings, alerts, alerts[1:], strict=False):
        if before and before.state is AlertState.FIRING and finding != "F":
            assert now is not None
            assert now.state is AlertState.FIRING


@given(_findings, _timing, st.integers(0, 40))
def test_saved_and_restored_it_goes_on_as_if_nothing_had_happened(findings: str, timing: Timing, cut: int) -> None:
    plain: Mapping[Labels, Alert] = {}
    stored: Mapping[Labels, Alert] = {}
    for minute, finding in enumerate(findings):
        breaches = {DISK: float(minute)} if finding == "T" else {}
        known: Collection[Labels] = {DISK} if finding == "F" else set()
        if minute == cut:
            stored = {labels: _restored(_saved(alert)) for labels, alert in stored.items()}
        plain = step("R", plain, breaches, known, timing, minute * MINUTE)
        stored = step("R", stored, breaches, known, timing, minute * MINUTE)
        assert stored == plain


def _saved(alert: Alert) -> str:
    return json.dumps(dataclasses.asdict(alert))


def _restored(text: str) -> Alert:
    fields = json.loads(text)
    labels = tuple((name, value) for name, value in fields["labels"])
    return Alert(**{**fields, "labels": labels, "state": AlertState(fields["state"])})


@given(_findings, _timing)
def test_inactive_is_said_once(findings: str, timing: Timing) -> None:
    alerts = play(findings, timing)
    for before, now in pairwise(alerts):
        if timing.on_missing is not OnMissing.FIRE and now and now.state is AlertState.INACTIVE:
            assert before is not None
            assert before.state is not AlertState.INACTIVE


# --- Prometheus --------------------------------------------------------------------------------------------------

_values = st.lists(st.sampled_from(["1", "9", "9", "9", "_", "stale"]), min_size=10, max_size=40).map(" ".join)
_durations = st.sampled_from(["0s", "1m", "3m", "5m"])
STEPS = 16


@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    series=st.dictionaries(st.sampled_from(['m{x="1"}', 'm{x="2"}', "m"]), _values, min_size=1),
    for_=_durations,
    keep=_durations,
    expr=st.sampled_from(["m > 5", "m", "avg_over_time(m[3m]) > 5", "absent(m)", "count(m > 5) by (x)"]),
)
def test_a_plain_rule_goes_through_the_states_of_prometheus(
    series: dict[str, str], for_: str, keep: str, expr: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rule = {"alert": "R", "expr": expr, "for": for_, "keep_firing_for": keep}
    questions = [
        promtool.Question('ALERTS{alertname="R"}', f"{minute}m" if minute else "0s") for minute in range(STEPS)
    ]
    theirs = promtool.ask(series, "1m", questions, tmp_path_factory.getbasetemp(), [rule])
    source = MemorySource()
    for name, values in series.items():
        samples = {index * MINUTE: value for index, value in enumerate(sequence(values)) if value is not None}
        source.add(metric_labels(name), samples)
    timing = Timing(for_s=60.0 * int(for_[0]), keep_firing_for_s=60.0 * int(keep[0]))
    alerts: Mapping[Labels, Alert] = {}
    node = parse(expr)
    for minute, answer in enumerate(theirs):
        value = evaluate(node, source, minute * MINUTE)
        assert isinstance(value, Vector)
        breaches = {drop_name(labels): number for labels, number in value.samples}
        alerts = step("R", alerts, breaches, None, timing, minute * MINUTE)
        assert isinstance(answer, dict)
        prometheus = {
            tuple(pair for pair in labels if pair[0] not in ("__name__", "alertname", "alertstate")): dict(labels)[
                "alertstate"
            ]
            for labels in answer
        }
        ours = {labels: alert.state.value for labels, alert in alerts.items() if alert.state is not AlertState.INACTIVE}
        assert ours == prometheus, f"{rule} at {minute}m of {series}"


def _identity_and_state(labels: Labels) -> tuple[Labels, str]:
    """An element of ``ALERTS`` as the label set of the alert and its state."""
    own = tuple(pair for pair in labels if pair[0] not in ("__name__", "alertname", "alertstate"))
    return own, dict(labels)["alertstate"]
