"""Rule unit tests in promtool's file format, run in virtual time on the very functions the engine uses.

https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/ describes the format; ``action_test``
is ours: which handlers the rules have asked for by then.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Generic, TypeVar, cast

from agent import handlers, rulefile, yamlfile
from agent.engine import alert_samples, annotation, judge, kept, rung
from agent.errors import ExpressionError, Fault
from agent.located import (
    MISSING,
    Duration,
    Faults,
    FromNode,
    MappingNode,
    Node,
    Scalar,
    SequenceNode,
    build,
    parse_duration,
)
from agent.model import STALE, Action, Alert, AlertState, Labels, Mode, make_labels
from agent.promql import values
from agent.promql.evaluate import evaluate
from agent.promql.nodes import NAME, Matcher, MatchOp, VectorSelector
from agent.promql.parse import parse
from agent.promql.values import Points
from agent.rulefile import AlertRule, Group, RecordingRule, RuleSet, Step

DEFAULT_INTERVAL_S = 60.0
MOST_VALUES = 10_000_000

T = TypeVar("T")


# -- series in promtool's notation -----------------------------------------------------------------------------------

_WORD = re.compile(
    r"(?:(?P<special>_|stale)|(?P<start>[-+]?(?:inf|nan|[\d.]+(?:e[-+]?\d+)?))"
    r"(?P<step>[-+][\d.]+(?:e[-+]?\d+)?)?)(?:x(?P<times>\d+))?",
    re.IGNORECASE,
)


def expand(notation: str) -> list[float | None]:
    """``1+2x3 _ stale`` as the values it stands for: 1 3 5 7, a gap (None), and the stale marker.

    Raises
    ------
    ValueError
        Naming the word that cannot be read.
    """
    found: list[float | None] = []
    for word in notation.split():
        match = _WORD.fullmatch(word)
        if match is None:
            raise ValueError(f'cannot read "{word}" as values: write 1, 1+2x3, 1x3, _ or stale')
        times = int(match["times"] or 0)
        if len(found) + times > MOST_VALUES:
            raise ValueError(f'cannot expand "{word}": more than {MOST_VALUES} values')
        if match["special"]:
            gap = None if match["special"] == "_" else STALE
            found += [gap] * max(times, 1)
        else:
            start, step = float(match["start"]), float(match["step"] or 0)
            found += [start + index * step if index else start for index in range(times + 1)]
    return found


def series_labels(text: str) -> Labels:
    """``name{a="b"}`` as labels, the name under ``__name__``.

    Raises
    ------
    ValueError
        When it is no series.
    """
    if text.strip() in ("", "{}"):
        return ()
    try:
        node = parse(text)
    except ExpressionError as error:
        raise ValueError(f'cannot read "{text}" as a series: {error}') from None
    if not isinstance(node, VectorSelector) or any(matcher.op is not MatchOp.EQUAL for matcher in node.matchers):
        raise ValueError(f'cannot read "{text}" as a series: write NAME{{LABEL="VALUE"}}')
    return make_labels({matcher.name: matcher.value for matcher in node.matchers})


@dataclass(slots=True)
class _Column:
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class MemorySource:
    """Series in memory, as the evaluator asks for them; samples come in the order of time."""

    def __init__(self) -> None:
        self._columns: dict[Labels, _Column] = {}

    def add(self, labels: Labels, at: float, value: float) -> None:
        column = self._columns.setdefault(labels, _Column())
        column.times.append(at)
        column.values.append(value)

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> Iterator[Points]:
        for labels, column in self._columns.items():
            held = dict(labels)
            if all(matcher.matches(held.get(matcher.name, "")) for matcher in matchers):
                last = bisect_right(column.times, end)
                yield Points(labels, column.times[:last], column.values[:last])

    def end(self) -> float:
        return max((column.times[-1] for column in self._columns.values() if column.times), default=0.0)


# -- handlers that are not used ----------------------------------------------------------------------------------------


class _NoTools:
    """Stands for every edge: to be asked for its resource a handler needs none of them."""

    def __getattr__(self, name: str) -> _NoTools:
        return self


def bare_handler(rung: Step) -> handlers.Handler:
    """The handler of a rung, to be asked for what it is and not to be used."""
    params = {each: getattr(rung.spec, each) for each in rung.spec.__dataclass_fields__}
    return handlers.make(rung.handler, params, cast(handlers.Tools, _NoTools()))


# -- what is written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placed(Generic[T]):
    value: T
    line: int


def _placed(cls: type[T]) -> FromNode:
    """The dataclass and the line it stands on, for the message of a test that fails."""

    def built(node: Node, faults: Faults) -> object:
        value = build(cls, node, faults)
        return MISSING if value is None else _Placed(value, node.line)

    return FromNode(built)


def _number(node: Scalar) -> float:
    try:
        return float(node.text)
    except ValueError:
        raise ValueError(f'cannot read "{node.text}" as a number') from None


def _time(node: Scalar) -> float:
    return parse_duration(node.text)


def _values(node: Scalar) -> tuple[float | None, ...]:
    return tuple(expand(node.text))


def _series(node: Scalar) -> Labels:
    return series_labels(node.text)


@dataclass(frozen=True, slots=True)
class _InputSeries:
    series: Annotated[Labels, _series]
    values: Annotated[tuple[float | None, ...], _values]


@dataclass(frozen=True, slots=True)
class _ExpectedAlert:
    exp_labels: Mapping[str, str] = field(default_factory=dict)
    exp_annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _AlertTest:
    eval_time: Annotated[float, _time]
    alertname: str
    exp_alerts: tuple[_ExpectedAlert, ...] = ()


@dataclass(frozen=True, slots=True)
class _ExpectedSample:
    value: Annotated[float, _number]
    labels: Annotated[Labels, _series] = ()


@dataclass(frozen=True, slots=True)
class _ExprTest:
    expr: str
    eval_time: Annotated[float, _time]
    exp_samples: tuple[_ExpectedSample, ...] = ()


@dataclass(frozen=True, slots=True)
class _ExpectedAction:
    handler: str
    alertname: str = ""
    resource: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True)
class _ActionTest:
    eval_time: Annotated[float, _time]
    exp_actions: tuple[_ExpectedAction, ...] = ()


@dataclass(frozen=True, slots=True)
class _Test:
    name: str = ""
    interval: Duration | None = None
    input_series: tuple[_InputSeries, ...] = ()
    alert_rule_test: tuple[Annotated[_Placed[_AlertTest], _placed(_AlertTest)], ...] = ()
    promql_expr_test: tuple[Annotated[_Placed[_ExprTest], _placed(_ExprTest)], ...] = ()
    action_test: tuple[Annotated[_Placed[_ActionTest], _placed(_ActionTest)], ...] = ()
    external_labels: Mapping[str, str] = field(default_factory=dict)
    external_url: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    rule_files: tuple[str, ...] = ()
    evaluation_interval: Duration = DEFAULT_INTERVAL_S
    group_eval_order: tuple[str, ...] = ()
    mode: Mode = Mode.ACT
    tests: tuple[Annotated[_Placed[_Test], _placed(_Test)], ...] = ()


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one test file: how many checks were made, and what failed, each with its place."""

    path: str
    tests: int
    failures: tuple[str, ...]


def run_file(path: str, instead: Mapping[str, str] | None = None) -> Result:
    """Run every test of one file; faults of the file and of its rule files are failures.

    Parameters
    ----------
    instead
        Other files to read in the place of rule files, by absolute path: a text that is not installed yet.
    """
    parsed = yamlfile.read([path])[path]
    faults = Faults(path)
    faults.found.extend(parsed.faults)
    written = build(_File, parsed.root, faults) if parsed.root is not None else None
    if written is None or faults.errors:
        wrong = faults.found or [Fault(path, 0, 0, "cannot test: the file is empty")]
        return Result(path, 0, tuple(map(str, wrong)))
    folder = os.path.dirname(path)
    files = [os.path.join(folder, name) for name in written.rule_files]
    files = [(instead or {}).get(os.path.abspath(file), file) for file in files]
    rules, found = rulefile.check(files)
    if rules is None:
        return Result(path, 0, tuple(str(fault) for fault in found if not fault.warning))
    runs = [_Run(path, placed, written, rules) for placed in written.tests]
    for run in runs:
        run.play()
    return Result(path, sum(run.checks for run in runs), tuple(text for run in runs for text in run.failures))


def files_of(path: str) -> list[str]:
    """A test file and the rule files it names, also where it is faulty otherwise: what a watcher must look at."""
    root = yamlfile.read([path], apart=False)[path].root
    named = root.get("rule_files") if isinstance(root, MappingNode) else None
    names = [each.text for each in named.items if isinstance(each, Scalar)] if isinstance(named, SequenceNode) else []
    return [path, *(os.path.join(os.path.dirname(path), name) for name in names)]


class _Run:
    """One test: time goes from 0 in steps of the evaluation interval, and each check is made when its time has come."""

    def __init__(self, path: str, test: _Placed[_Test], file: _File, rules: RuleSet) -> None:
        self.failures: list[str] = []
        self.checks = 0
        self._path = path
        self._test = test.value
        self._step_s = file.evaluation_interval
        self._mode = file.mode
        self._groups = _ordered(rules.groups, file.group_eval_order)
        self._source = MemorySource()
        self._states: dict[int, Mapping[Labels, Alert]] = {}
        self._actions: list[Action] = []
        self._load(self._test.interval or file.evaluation_interval)

    def play(self) -> None:
        test = self._test
        times = [placed.value.eval_time for placed in test.alert_rule_test]
        times += [asked.value.eval_time for asked in test.promql_expr_test]
        times += [wanted.value.eval_time for wanted in test.action_test]
        end, at = max(times, default=0.0), 0.0
        while at <= end:
            self._evaluate(at)
            for placed in test.alert_rule_test:
                if at <= placed.value.eval_time < at + self._step_s:
                    self._check_alerts(placed, at)
            for each in test.action_test:
                if at <= each.value.eval_time < at + self._step_s:
                    self._check_actions(each)
            at += self._step_s
        for each_expr in test.promql_expr_test:
            self._check_expr(each_expr)

    def _load(self, interval_s: float) -> None:
        for each in self._test.input_series:
            for index, value in enumerate(each.values):
                if value is not None:
                    self._source.add(each.series, index * interval_s, value)

    def _evaluate(self, at: float) -> None:
        for group in self._groups:
            for rule in group.rules:
                try:
                    self._apply(rule, at)
                except ExpressionError as error:
                    self._fail(rule.place.line, f"{rule.name} at {_duration(at)}: {error}", rule.place.path)

    def _apply(self, rule: rulefile.Rule, at: float) -> None:
        if isinstance(rule, RecordingRule):
            for labels, value in _samples(evaluate(rule.expr.node, self._source, at)):
                merged = {**dict(labels), **rule.labels, NAME: rule.name}
                self._source.add(make_labels(merged), at, value)
            return
        before = self._states.get(id(rule), {})
        states = judge(rule, before, self._source, at)
        for labels, alert in states.items():
            was = before.get(labels)
            if alert.state is AlertState.FIRING and (was is None or was.state is not AlertState.FIRING):
                request = rung(rule, alert, 0, self._mode, at)
                if request is not None and rule.remediation is not None:
                    resource = bare_handler(rule.remediation.steps[0]).resource()
                    self._actions.append(replace(request, resource=resource))
        for series, value in alert_samples(before, states).items():
            self._source.add(make_labels({**dict(series.labels), NAME: series.metric}), at, value)
        self._states[id(rule)] = kept(rule, states)

    # -- checks --

    def _check_alerts(self, placed: _Placed[_AlertTest], at: float) -> None:
        self.checks += 1
        test = placed.value
        expected = sorted(
            (
                make_labels({**dict(each.exp_labels), "alertname": test.alertname}),
                make_labels(dict(each.exp_annotations)),
            )
            for each in test.exp_alerts
        )
        found = sorted(self._firing(test.alertname, at))
        if found != expected:
            what = f"alertname: {test.alertname}, time: {_duration(test.eval_time)}"
            pending = "\n".join(self._pending(test.alertname, at))
            self._fail(
                placed.line, f"{what}\n{_alerts_difference(expected, found)}" + (f"\n{pending}" if pending else "")
            )

    def _pending(self, name: str, at: float) -> Iterator[str]:
        """The alerts of that name that do not fire yet: the usual reason why an expected one is not there."""
        for group in self._groups:
            for rule in group.rules:
                for alert in self._states.get(id(rule), {}).values() if rule.name == name else ():
                    if isinstance(rule, AlertRule) and alert.state is AlertState.PENDING:
                        left = _duration(rule.timing.for_s - (at - alert.active_since))
                        labels = make_labels(dict(alert.labels), alertname=name)
                        yield f"    pending, fires in {left}: {_braces(labels)}"

    def _firing(self, name: str, at: float) -> Iterator[tuple[Labels, Labels]]:
        for group in self._groups:
            for rule in group.rules:
                if not isinstance(rule, AlertRule) or rule.name != name:
                    continue
                for alert in self._states.get(id(rule), {}).values():
                    if alert.state is AlertState.FIRING:
                        told = {key: annotation(rule, key, alert, self._source, at) for key in rule.annotations}
                        yield make_labels(dict(alert.labels), alertname=name), make_labels(told)

    def _check_expr(self, placed: _Placed[_ExprTest]) -> None:
        self.checks += 1
        test = placed.value
        what = f"expr: {test.expr}, time: {_duration(test.eval_time)}"
        try:
            found = sorted(_samples(evaluate(parse(test.expr), self._source, test.eval_time)))
        except ExpressionError as error:
            self._fail(placed.line, f"{what}\n{error}")
            return
        expected = sorted((each.labels, each.value) for each in test.exp_samples)
        same = len(found) == len(expected) and all(
            mine[0] == theirs[0] and _close(mine[1], theirs[1]) for mine, theirs in zip(found, expected, strict=True)
        )
        if not same:
            self._fail(placed.line, f"{what}\n{_difference(expected, found)}")

    def _check_actions(self, placed: _Placed[_ActionTest]) -> None:
        """In order of asking; what an expectation leaves out is not compared."""
        self.checks += 1
        test = placed.value
        status = "observed" if self._mode is Mode.OBSERVE else "requested"
        found = [(action.handler, action.rule, action.resource, status) for action in self._actions]
        expected = [(each.handler, each.alertname, each.resource, each.status) for each in test.exp_actions]
        fits = len(found) == len(expected) and all(
            all(want in ("", have) for want, have in zip(wanted, had, strict=True))
            for wanted, had in zip(expected, found, strict=True)
        )
        if not fits:
            self._fail(placed.line, f"actions, time: {_duration(test.eval_time)}\n{_difference(expected, found)}")

    def _fail(self, line: int, text: str, path: str | None = None) -> None:
        name = f'test "{self._test.name}": ' if self._test.name else ""
        self.failures.append(f"{path or self._path}:{line}: {name}{text}")


def _ordered(groups: Sequence[Group], order: Sequence[str]) -> list[Group]:
    """Groups in the order asked for; those not named follow as they stand."""
    places = {name: index for index, name in enumerate(order)}
    return sorted(groups, key=lambda group: places.get(group.name, len(order)))


def _samples(value: values.Value) -> Sequence[tuple[Labels, float]]:
    if isinstance(value, values.Vector):
        return value.samples
    if isinstance(value, values.Scalar):
        return [((), value.value)]
    raise ExpressionError("cannot compare this: it gives neither a vector nor a scalar")


def _close(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=1e-9)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{seconds:g}s"


def _alerts_difference(expected: Sequence[tuple[Labels, Labels]], found: Sequence[tuple[Labels, Labels]]) -> str:
    """What differs and nothing else: alerts that lack or are too many, beside the nearest; annotations line by line."""
    wanted, had = Counter(expected), Counter(found)
    missing, extra = list((wanted - had).elements()), list((had - wanted).elements())
    lines: list[str] = []
    for labels, told in missing:
        twin = next((each for each in extra if each[0] == labels), None)
        near = twin or max(extra, key=lambda each: len(set(each[0]) & set(labels)), default=None)
        if near is None:
            lines.append(f"    exp: {_braces(labels)}\n    got: nothing")
            continue
        extra.remove(near)
        if twin:
            lines.append(f"    {_braces(labels)}")
        else:
            lines += _pairs_difference("label ", labels, near[0])
        lines += _pairs_difference("", told, near[1])
    lines += [f"    exp: nothing\n    got: {_braces(labels)}" for labels, _ in extra]
    return "\n".join(lines)


def _pairs_difference(kind: str, expected: Labels, found: Labels) -> list[str]:
    wanted, had = dict(expected), dict(found)
    lines = []
    for name in sorted(wanted.keys() | had.keys()):
        if wanted.get(name) != had.get(name):
            lines += [
                f"      exp {kind}{name}: {_told(wanted.get(name))}",
                f"      got {kind}{name}: {_told(had.get(name))}",
            ]
    return lines


def _told(text: str | None) -> str:
    return "nothing" if text is None else f'"{text}"'


def _braces(labels: Labels) -> str:
    return "{" + ", ".join(f'{name}="{text}"' for name, text in labels) + "}"


def _difference(expected: Sequence[object], found: Sequence[object]) -> str:
    lines = [f"    exp: {_words(each)}" for each in expected] or ["    exp: nothing"]
    lines += [f"    got: {_words(each)}" for each in found] or ["    got: nothing"]
    return "\n".join(lines)


def _words(value: object) -> str:
    """A value of a comparison as its reader wrote it."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple):
        labels, number = value
        return f"{_braces(labels)} {number:g}"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)
