"""What rules would have done over a host's own history, by the very functions the engine judges with.

Time goes in blocks of some hours: each selector is read once for a block, each expression evaluated for all instants
of it, and the state machine stepped through them. A recording rule's results are seen by the rules after it; ``ALERTS``
is what the agent really stored. What a repair would have changed is unknown: a ladder is followed to its first rung.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.alerting import OnMissing, step
from agent.engine import States, alert_labels, kept
from agent.errors import ExpressionError
from agent.model import AlertState, Labels, make_labels
from agent.promql.evaluate import evaluate, evaluate_range
from agent.promql.nodes import NAME, Expr, Kind, Matcher, MatchOp, Subquery, kind, walk
from agent.promql.values import Points, Source, Vector
from agent.rulefile import AlertRule, Group, RecordingRule, RuleSet
from agent.ruletest import MemorySource, bare_handler

BLOCK_S = 6 * 3600.0
MOST_STEPS = 100_000
"""Of subqueries in one call, well within what the evaluator allows."""


@dataclass(frozen=True, slots=True)
class Firing:
    """One alert that would have fired: ``ended_at`` is None where it would still stand at the end."""

    labels: Labels
    fired_at: float
    value: float
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The first rung of a ladder for one firing: when it would have had its turn, or which brake would have held it
    until the alert ended."""

    firing: Firing
    handler: str
    resource: str
    at: float
    held: str = ""
    harmless: bool = False
    """It only tells: carried out in observe mode too."""


@dataclass(frozen=True, slots=True)
class Tested:
    """What became of one rule. ``unseen`` are metrics that it selects and that gave no sample in all the time."""

    rule: AlertRule
    firings: tuple[Firing, ...]
    asked: tuple[Asked, ...]
    unseen: frozenset[str]
    failed: int = 0
    error: str = ""
    """Why it could not be judged at ``failed`` of its instants: the last reason."""


def run(
    rules: RuleSet,
    source: Source,
    start: float,
    end: float,
    progress: Callable[[float, float], None] = lambda done, whole: None,
) -> list[Tested]:
    """Judge every rule at each multiple of its group's interval from ``start`` to ``end``, in seconds since the epoch.

    Parameters
    ----------
    source
        The history, such as a :class:`agent.store.Reader`.
    progress
        Told the seconds of history done and the seconds in all.
    """
    recorded = frozenset(rule.name for group in rules.groups for rule in group.rules if isinstance(rule, RecordingRule))
    past = _Past(source, recorded)
    runs = [_Run(group, rule) for group in rules.groups for rule in group.rules]
    at = start
    while at < end:
        until = min(end, at + max(BLOCK_S, _lookback_s(rules)))
        past.forget()
        for position, each in enumerate(runs):
            each.play(past, at, until, last=until == end)
            progress(at - start + (until - at) * (position + 1) / len(runs), end - start)
        at = until
    tested = [each for each in runs if isinstance(each.rule, AlertRule)]
    asked = _asked([(each.rule, firing) for each in tested for firing in each.firings])  # type: ignore[misc]
    return [each.result(asked, past) for each in tested]


def _lookback_s(rules: RuleSet) -> float:
    """A block is no shorter than what rules look back, so that nothing is read more than twice."""
    reaches = [rule.expr.lookback_s for group in rules.groups for rule in group.rules]
    return max((reach for reach in reaches if math.isfinite(reach)), default=0.0)


# -- the past --------------------------------------------------------------------------------------------------------


class _Past:
    """The history, each selector read once for a block, and what recording rules made of it."""

    def __init__(self, source: Source, recorded: frozenset[str]) -> None:
        self.seen: set[str] = set()
        self.made = MemorySource()
        self._source = source
        self._recorded = recorded
        self._read: dict[tuple[Matcher, ...], tuple[float, float, list[Points]]] = {}

    def forget(self) -> None:
        self._read.clear()

    def select(self, matchers: Sequence[Matcher], start: float, end: float) -> list[Points]:
        name = next((each.value for each in matchers if each.name == NAME and each.op is MatchOp.EQUAL), "")
        if name in self._recorded:
            found = list(self.made.select(matchers, start, end))
        else:
            key = tuple(matchers)
            since, until, found = self._read.get(key, (math.inf, -math.inf, []))
            if start < since or end > until:
                since, until = min(start, since), max(end, until)
                found = list(self._source.select(matchers, since, until))
                self._read[key] = since, until, found
        if found:
            self.seen.add(name)
        return found


# -- one rule --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One rule on its way through time."""

    group: Group
    rule: AlertRule | RecordingRule
    states: States = field(default_factory=dict)
    firings: list[Firing] = field(default_factory=list)
    failed: int = 0
    error: str = ""
    _names: dict[Labels, Labels] = field(default_factory=dict)

    def play(self, past: _Past, start: float, end: float, *, last: bool) -> None:
        for instants in _calls(self.rule, self.group.interval_s, start, end, last=last):
            if isinstance(self.rule, AlertRule):
                self._judge(self.rule, past, instants)
            else:
                self._record(self.rule, past, instants)

    def result(self, asked: Mapping[int, Asked], past: _Past) -> Tested:
        assert isinstance(self.rule, AlertRule)
        mine = tuple(asked[id(firing)] for firing in self.firings if id(firing) in asked)
        unseen = self.rule.metrics - past.seen
        return Tested(self.rule, tuple(self.firings), mine, unseen, self.failed, self.error)

    def _record(self, rule: RecordingRule, past: _Past, instants: range) -> None:
        for at_ms, found in zip(instants, self._values(rule.expr.node, past, instants), strict=True):
            for labels, value in (found or {}).items():
                past.made.add(make_labels({**dict(labels), **rule.labels, NAME: rule.name}), at_ms / 1000, value)

    def _judge(self, rule: AlertRule, past: _Past, instants: range) -> None:
        found = self._values(rule.expr.node, past, instants)
        opposite = rule.clear.node if rule.clear else rule.expr.false_node
        # Under `fire` each label set that is known to be false is to be missed later; else only an alert whose
        # condition is no longer seen wants to know why.
        learning = rule.timing.on_missing is OnMissing.FIRE and opposite is not None
        false = self._values(opposite, past, instants) if learning and opposite is not None else None
        for index, (at_ms, elements) in enumerate(zip(instants, found, strict=True)):
            at = at_ms / 1000
            if elements is None or not (elements or self.states or learning):
                continue
            breaches = self._named(rule, elements, past, at)
            gone: dict[Labels, float] | None = {}
            if false is not None:
                gone = false[index]
            elif opposite is not None and self.states.keys() - breaches.keys():
                gone = self._value(opposite, past, at)
            if gone is not None:  # else it cannot be evaluated, and the states stay as they are
                known = None if opposite is None else self._named(rule, gone, past, at).keys()
                self._take(rule, step(rule.name, self.states, breaches, known, rule.timing, at), at)

    def _take(self, rule: AlertRule, after: States, at: float) -> None:
        standing = sum(alert.state is not AlertState.INACTIVE for alert in after.values())
        if self.group.limit and standing > self.group.limit:
            self._fail(f"{standing} alerts are more than the group's limit of {self.group.limit}")
            return
        for labels, alert in after.items():
            before = self.states.get(labels)
            fired = before is not None and before.state is AlertState.FIRING
            if alert.state is AlertState.FIRING and not fired:
                self.firings.append(Firing(labels, at, alert.value))
            elif alert.state is AlertState.INACTIVE and fired:
                self._end(labels, at)
        self.states = kept(rule, after)

    def _end(self, labels: Labels, at: float) -> None:
        index = next(i for i in reversed(range(len(self.firings))) if self.firings[i].labels == labels)
        self.firings[index] = replace(self.firings[index], ended_at=at)

    def _named(self, rule: AlertRule, elements: Mapping[Labels, float], past: _Past, at: float) -> dict[Labels, float]:
        """Elements by the labels of their alerts, which are remembered where they do not depend on the value."""
        found = {}
        for labels, value in elements.items():
            name = self._names.get(labels)
            if name is None:
                name = alert_labels(rule, labels, value, past, at)
                if not any("{{" in template.text for template in rule.labels.values()):
                    self._names[labels] = name
            found[name] = value
        return found

    def _values(self, node: Expr, past: _Past, instants: range) -> list[dict[Labels, float] | None]:
        """The elements at each instant; None where the expression cannot be evaluated."""
        if kind(node) is not Kind.VECTOR:
            self._fail("it gives no vector", len(instants))
            return [None] * len(instants)
        try:
            matrix = evaluate_range(node, past, instants[0] / 1000, instants[-1] / 1000, instants.step / 1000)
        except ExpressionError:
            return [self._value(node, past, at_ms / 1000) for at_ms in instants]
        found: list[dict[Labels, float] | None] = [{} for _ in instants]
        for points in matrix.series:
            for at, value in zip(points.times, points.values, strict=True):
                elements = found[(round(at * 1000) - instants.start) // instants.step]
                if elements is not None:
                    elements[points.labels] = value
        return found

    def _value(self, node: Expr, past: _Past, at: float) -> dict[Labels, float] | None:
        try:
            value = evaluate(node, past, at)
        except ExpressionError as error:
            self._fail(str(error))
            return None
        return dict(value.samples) if isinstance(value, Vector) else None

    def _fail(self, error: str, times: int = 1) -> None:
        self.failed += times
        self.error = error


def _calls(
    rule: AlertRule | RecordingRule, interval_s: float, start: float, end: float, *, last: bool
) -> Iterator[range]:
    """The rule's instants from ``start`` to before ``end`` (the last one included in the last block), in milliseconds,
    as many at once as the evaluator takes."""
    every = round(interval_s * 1000)
    first = -(-round(start * 1000) // every) * every
    instants = range(first, round(end * 1000) + last, every)
    parts = list(walk(rule.expr.node)) + (
        list(walk(rule.clear.node)) if isinstance(rule, AlertRule) and rule.clear else []
    )
    cost = math.prod(part.range_ms // (part.step_ms or 60_000) + 1 for part in parts if isinstance(part, Subquery))
    most = max(1, MOST_STEPS // cost)
    for index in range(0, len(instants), most):
        yield instants[index : index + most]


# -- what would have been done ---------------------------------------------------------------------------------------


def _asked(fired: Sequence[tuple[AlertRule, Firing]]) -> dict[int, Asked]:
    """The first rung for each firing, by the firing's identity; cooldowns are a resource's, over all rules."""
    last: dict[tuple[str, str, Labels], float] = {}
    started: defaultdict[str, list[float]] = defaultdict(list)
    found: dict[int, Asked] = {}
    for rule, firing in sorted(fired, key=lambda pair: pair[1].fired_at):
        if rule.remediation is None or not rule.remediation.steps:
            continue
        fix, chosen = rule.remediation, rule.remediation.steps[0]
        handler = bare_handler(chosen)
        key = (chosen.handler, handler.resource(), firing.labels if handler.harmless else ())
        at, held = firing.fired_at, ""
        if key in last and at < last[key] + fix.cooldown_s:
            at, held = last[key] + fix.cooldown_s, "cooldown"
        if fix.limit and len(started[rule.name]) >= fix.limit.count:
            free = started[rule.name][-fix.limit.count] + fix.limit.per_s
            at, held = (free, "rule_limit") if free > at else (at, held)
        never = firing.ended_at is not None and at >= firing.ended_at
        found[id(firing)] = Asked(
            firing, chosen.handler, handler.resource(), at, held if never else "", handler.harmless
        )
        if not never:
            last[key] = at
            started[rule.name].append(at)
    return found
