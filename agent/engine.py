"""Judge rules: on every commit the rules that select what was committed, and each group once per interval.

What a rule means is in the pure functions; the runner below them only decides *when*, and stores an alert together
with the action it asks for in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from agent import faultpoint
from agent.alerting import OnMissing, step
from agent.clock import Clock
from agent.errors import ExpressionError, StoreError, UpkeepError
from agent.model import (
    STALE,
    Action,
    ActionStatus,
    Alert,
    AlertState,
    Event,
    Labels,
    Mode,
    Reading,
    Series,
    Severity,
    make_labels,
)
from agent.promql.evaluate import Memory, evaluate
from agent.promql.nodes import Expr
from agent.promql.values import Source, Vector
from agent.rulefile import AlertRule, Group, RecordingRule, Rule, RuleSet
from agent.store import Ledger

log = logging.getLogger(__name__)

States = Mapping[Labels, Alert]
T = TypeVar("T")


# -- what a rule means -----------------------------------------------------------------------------------------------


def breaches(rule: AlertRule, source: Source, at: float, memory: Memory | None = None) -> dict[Labels, float]:
    """The label sets for which the rule's expression is true at ``at``, with the value each has."""
    return _labelled(rule, rule.expr.node, source, at, memory)


def known_false(rule: AlertRule, source: Source, at: float, memory: Memory | None = None) -> frozenset[Labels] | None:
    """The label sets for which data are there and the condition does not hold; None where absence says so.

    It is asked as an expression, the inverse of the rule's own condition, so that data which went missing are not
    mistaken for data which got better.
    """
    node = rule.expr.false_node
    return None if node is None else frozenset(_labelled(rule, node, source, at, memory))


def judge(rule: AlertRule, previous: States, source: Source, at: float, memory: Memory | None = None) -> States:
    """The rule's alerts at ``at``, given those before; those that ended are returned once as inactive."""
    found = breaches(rule, source, at, memory)
    gone: frozenset[Labels] | None = frozenset()
    # The second expression speaks of alerts that stand; without any there is nothing to ask it.
    if previous or rule.timing.on_missing is OnMissing.FIRE:
        if rule.clear:
            gone = frozenset(_labelled(rule, rule.clear.node, source, at, memory))
        else:
            gone = known_false(rule, source, at, memory)
    return step(rule.name, previous, found, gone, rule.timing, at)


def kept(rule: AlertRule, states: States) -> States:
    """What the next step must know: under ``on_missing: fire`` also the label sets that may be missed."""
    if rule.timing.on_missing is OnMissing.FIRE:
        return states
    return {labels: alert for labels, alert in states.items() if alert.state is not AlertState.INACTIVE}


def alert_samples(before: States, after: States) -> dict[Series, float]:
    """``ALERTS{alertname,alertstate,…}`` as Prometheus writes it: 1 for each that stands, stale for each that went."""
    gone = {_alert_series(alert): STALE for alert in before.values() if alert.state is not AlertState.INACTIVE}
    stand = {_alert_series(alert): 1.0 for alert in after.values() if alert.state is not AlertState.INACTIVE}
    return {**gone, **stand}


def _alert_series(alert: Alert) -> Series:
    return Series("ALERTS", make_labels(dict(alert.labels), alertname=alert.rule, alertstate=alert.state.value))


def _labelled(rule: AlertRule, node: Expr, source: Source, at: float, memory: Memory | None) -> dict[Labels, float]:
    value = evaluate(node, source, at, memory=memory)
    if not isinstance(value, Vector):
        # As Prometheus: a scalar expression is an alert without labels.
        raise ExpressionError(f'cannot judge "{rule.expr.text}": it gives no vector')
    return {alert_labels(rule, labels, number, source, at): number for labels, number in value.samples}


def alert_labels(rule: AlertRule, labels: Labels, value: float, source: Source, at: float) -> Labels:
    """An alert's identity: the labels of the result without the metric's name, and the rule's own."""
    merged = {name: text for name, text in labels if name != "__name__"}
    for name, template in rule.labels.items():
        merged[name] = template.expand(labels, value, _query(source, at))
    return tuple(sorted((name, text) for name, text in merged.items() if text))


def annotation(rule: AlertRule, name: str, alert: Alert, source: Source, at: float) -> str:
    """One annotation in words for one alert; empty when the rule has none of that name."""
    template = rule.annotations.get(name)
    return template.expand(alert.labels, alert.value, _query(source, at)) if template else ""


def _query(source: Source, at: float) -> Callable[[object], object]:
    return lambda node: evaluate(node, source, at)  # type: ignore[arg-type]


def rung(rule: AlertRule, alert: Alert, index: int, mode: Mode, at: float, *, summary: str = "") -> Action | None:
    """The action for one rung of a rule's ladder; None where the ladder ends, or for a rule without one.

    ``summary`` is the alert in words: what tells a person adds it to its message. It is text for eyes, and no other
    parameter of any step ever comes from data.
    """
    if rule.remediation is None or index >= len(rule.remediation.steps):
        return None
    chosen = rule.remediation.steps[index]
    params = dataclasses.asdict(chosen.spec)
    if summary and "message" in params:
        params["message"] = f"{params['message']}: {summary}"
    return Action(
        id=0,
        cause=f"alert {rule.name}",
        rule=rule.name,
        labels=alert.labels,
        fired_at=alert.fired_at or at,
        step=index,
        attempt=1,
        handler=chosen.handler,
        params=params,
        resource="",
        status=ActionStatus.REQUESTED,
        requested_at=at,
        mode=rule.remediation.mode or mode,
    )


REST_SHARE = 1 / 240
LONGEST_REST_S = 3600.0

LEAST_STEP_S = 1.0
"""Less is reading two clocks one after the other."""

LONGEST_SLEEP_S = 15.0
"""However far the next group is: the watchdog wants to hear, and a timer does not count while the host is suspended."""


# -- the runner ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Judged:
    """A rule and the alerts it has now."""

    rule: AlertRule
    states: States
    limit: int = 0
    """More alerts than this, if it is not 0, are an error of the rule, as in Prometheus."""
    lookback_s: float = 0.0
    failing: bool = False
    rests_until: float = -math.inf
    """On the boot clock: a rule that must read the files is not judged again before."""


@dataclass(slots=True)
class _Scheduled:
    group: Group
    due: float
    recording: list[RecordingRule]
    judged: list[_Judged]


class Engine:
    """Keeps every rule's alerts up to date.

    Parameters
    ----------
    recent, history
        Sources: samples in memory, and a function that opens a reader over everything kept, for expressions that look
        further back than memory reaches.
    ledger
        Where alerts and the actions they ask for are stored, in one transaction.
    append
        Stores what recording rules compute.
    record
        Stores events.
    requested
        Called after a commit that asked for actions; it wakes dispatch.
    changed
        Called after a commit of alerts; it wakes whoever tells people of them.
    progress
        Called each time round, for the watchdog.
    """

    def __init__(
        self,
        rules: RuleSet,
        *,
        mode: Mode,
        clock: Clock,
        recent: Source,
        reach_s: Callable[[], float],
        history: Callable[[], contextlib.AbstractContextManager[Source]],
        ledger: Ledger,
        append: Callable[[list[Reading]], Awaitable[None]],
        record: Callable[[list[Event]], Awaitable[None]],
        requested: Callable[[], None],
        progress: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._mode = mode
        self._clock = clock
        self._recent = recent
        self._reach_s = reach_s
        self._history = history
        self._ledger = ledger
        self._append = append
        self._record = record
        self._requested = requested
        self._changed = changed
        self._progress = progress
        self._woken: set[str] = set()
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._judged: dict[str, _Judged] = {}
        self._selecting: dict[str, list[_Judged]] = {}
        """Which rules select a metric, by its name."""
        self._memory = Memory()
        self._ahead = clock.wall() - clock.boot()
        self._schedule: list[_Scheduled] = []
        self._rules = RuleSet()
        self._adopt(rules, {})

    @property
    def rules(self) -> RuleSet:
        return self._rules

    def alerts(self) -> list[Alert]:
        """Every alert that is pending or firing now."""
        standing = (alert for judged in self._judged.values() for alert in judged.states.values())
        return [alert for alert in standing if alert.state is not AlertState.INACTIVE]

    def alert(self, name: str, labels: Labels) -> Alert | None:
        """The alert of that name and those labels, if it is pending or firing."""
        for judged in self._judged.values():
            alert = judged.states.get(labels) if judged.rule.name == name else None
            if alert is not None and alert.state is not AlertState.INACTIVE:
                return alert
        return None

    def rule_named(self, name: str, labels: Labels) -> AlertRule | None:
        """The rule that made an alert: the one of that name whose own fixed labels the alert carries."""
        held = [judged.rule for judged in self._judged.values() if judged.rule.name == name]
        carrying = [rule for rule in held if _carries(rule, labels)]
        return next(iter(carrying or held), None)

    def wake(self, metrics: Iterable[str]) -> None:
        """Samples of these metrics were committed: judge the rules that select them at once."""
        self._woken.update(metrics)
        self._wake.set()

    async def restore(self) -> None:
        """Take up the alerts of the ledger, pending timers included."""
        for alert in await self._ledger.alerts():
            rule = self.rule_named(alert.rule, alert.labels)
            if rule is None:
                await self._close([alert])
                continue
            judged = self._judged[_key(rule)]
            judged.states = {**judged.states, alert.labels: alert}

    async def replace(self, rules: RuleSet) -> None:
        """Take another rule set; alerts of rules that stay keep their state, those of rules that went are closed."""
        async with self._busy:
            before, staying = self._judged, {_key(rule) for rule in rules.alert_rules}
            gone = [alert for key, old in before.items() if key not in staying for alert in old.states.values()]
            await self._close(gone)  # first, for it may fail, and then nothing is replaced
            self._adopt(rules, {key: judged.states for key, judged in before.items()})

    async def run(self) -> None:
        """Judge for ever."""
        while True:
            await self._sleep()
            async with self._busy:
                boot, at = self._clock.boot(), self._now()
                woken, self._woken = self._woken, set()
                self._wake.clear()
                for entry in self._schedule:
                    if entry.due <= boot:
                        # Intervals missed while asleep or starved are one evaluation, not a burst.
                        entry.due = boot + entry.group.interval_s
                        await self._judge_group(entry, at)
                        await asyncio.sleep(0)  # a handler must not wait for all groups
                if woken:
                    selecting = {id(each): each for metric in woken for each in self._selecting.get(metric, ())}
                    await self._judge_rules(selecting.values(), at)
            self._progress()

    async def once(self) -> None:
        """Judge every group now, for ``upkeep run --once``."""
        for entry in self._schedule:
            await self._judge_group(entry, self._now())

    def request(self, rule: AlertRule, alert: Alert, index: int, at: float) -> Action | None:
        """The action for one rung of a rule's ladder, its message in the words of the alert's summary."""
        try:
            summary = annotation(rule, "summary", alert, self._recent, at)
        except Exception as error:  # an action is not to go unasked for want of words
            log.warning("summary_failed rule=%s error=%r", rule.name, error)
            summary = ""
        return rung(rule, alert, index, self._mode, at, summary=summary)

    def annotations(self, alert: Alert, at: float) -> dict[str, str]:
        """All annotations of an alert's rule in words; one that cannot be made says why in its place, as Prometheus."""
        rule = self.rule_named(alert.rule, alert.labels)
        words: dict[str, str] = {}
        for name in rule.annotations if rule else ():
            try:
                words[name] = annotation(rule, name, alert, self._recent, at)  # type: ignore[arg-type]
            except Exception as error:  # an alert is not to go untold for want of words
                words[name] = f"<error expanding template: {error}>"
        return words

    async def verify(self, name: str, labels: Labels, at: float) -> float | None:
        """Ask a rule's own expression whether an alert still stands: its value, or None when it is no longer true.

        Raises
        ------
        ExpressionError
            When the expression cannot be evaluated: that proves nothing.
        """
        rule = self.rule_named(name, labels)
        if rule is None:
            raise ExpressionError(f'cannot verify "{name}": the rule is no longer loaded')
        lookback_s = _lookback_s(rule)
        found = await self._with_source(lookback_s, lambda source, memory: breaches(rule, source, at, memory))
        if labels in found:
            return found[labels]
        gone = await self._with_source(lookback_s, lambda source, memory: known_false(rule, source, at, memory))
        if gone is not None and labels not in gone:
            raise ExpressionError(f'cannot verify "{name}": its data is missing')
        return None

    # -- inside --

    def _adopt(self, rules: RuleSet, states: Mapping[str, States]) -> None:
        self._rules = rules
        boot = self._clock.boot()
        self._schedule, self._judged, self._selecting = [], {}, {}
        self._memory.clear()
        for group in rules.groups:
            entry = _Scheduled(group, boot, [], [])
            self._schedule.append(entry)
            for rule in group.rules:
                if isinstance(rule, RecordingRule):
                    entry.recording.append(rule)
                    continue
                key = _key(rule)
                judged = _Judged(rule, states.get(key, {}), group.limit, _lookback_s(rule))
                # Written twice in every detail, a rule is still one: it has one set of alerts.
                entry.judged.append(self._judged.setdefault(key, judged))
        for judged in self._judged.values():
            for metric in judged.rule.metrics:
                self._selecting.setdefault(metric, []).append(judged)
        self._wake.set()

    def _now(self) -> float:
        """The wall clock's instant; when it was set, timers that run are set with it: they count on the boot clock."""
        at = self._clock.wall()
        ahead = at - self._clock.boot()
        step = ahead - self._ahead
        if abs(step) >= LEAST_STEP_S:
            self._ahead = ahead
            self._memory.clear()  # instants that were sampled may be sampled again
            for judged in self._judged.values():
                judged.states = {labels: _timers_set(alert, step) for labels, alert in judged.states.items()}
        return at

    async def _sleep(self) -> None:
        """Until a commit or the next group that is due."""
        boot = self._clock.boot()
        due = min((entry.due for entry in self._schedule), default=boot + LONGEST_SLEEP_S)
        # wait_for would lose a cancellation that comes with a wake-up, and the agent would never stop.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(0.0, due - boot), LONGEST_SLEEP_S)):
                await self._wake.wait()

    async def _judge_group(self, entry: _Scheduled, at: float) -> None:
        recorded: dict[str, list[Reading]] = {}
        for rule in entry.recording:
            if not rule.expr.metrics.isdisjoint(recorded):
                # As in Prometheus, a rule sees what those before it have just recorded.
                await self._append([reading for readings in recorded.values() for reading in readings])
                recorded.clear()
            recorded.setdefault(rule.name, []).extend(await self._recorded(rule, at))
        if recorded:
            await self._append([reading for readings in recorded.values() for reading in readings])
        await self._judge_rules(entry.judged, at)

    async def _recorded(self, rule: RecordingRule, at: float) -> list[Reading]:
        try:
            value = await self._with_source(
                rule.expr.lookback_s, lambda source, memory: evaluate(rule.expr.node, source, at, memory=memory)
            )
        except Exception as error:  # an error of ours in one rule must not be the end of all, here and below
            log.warning("rule_failed name=%s error=%r", rule.name, error)
            return []
        if not isinstance(value, Vector) or not value.samples:
            return []
        series = tuple(Series(rule.name, _recorded_labels(rule, labels)) for labels, _ in value.samples)
        if len(set(series)) < len(series):
            # As Prometheus: which of them is meant cannot be known.
            log.warning("rule_failed name=%s error=it gives the same labels twice", rule.name)
            return []
        return [Reading(at, series, [number for _, number in value.samples])]

    async def _judge_rules(self, rules: Iterable[_Judged], at: float) -> None:
        updates: list[tuple[_Judged, States]] = []
        for judged in rules:
            boot = self._clock.boot()
            if judged.rests_until > boot:
                continue
            judged.rests_until = boot + self._rest_s(judged.lookback_s)
            try:
                states = await self._with_source(judged.lookback_s, functools.partial(_judge, judged, at))
            except Exception as error:
                await self._failed(judged, error, at)
                continue
            judged.failing = False
            updates.append((judged, states))
        await self._commit(updates, at)

    async def _with_source(self, lookback_s: float, ask: Callable[[Source, Memory | None], T]) -> T:
        """Ask of memory what memory holds, and of the files, in a thread, what lies further back."""
        if lookback_s <= self._reach_s():
            return ask(self._recent, self._memory)

        def over_files() -> T:
            with self._history() as source:
                return ask(source, None)

        return await asyncio.to_thread(over_files)

    def _rest_s(self, lookback_s: float) -> float:
        """How long a rule need not be judged again: nothing for one that memory answers; for one that looks back over
        days, a small share of that, since reading them costs seconds and six minutes do not change a day.
        """
        return 0.0 if lookback_s <= self._reach_s() else min(lookback_s * REST_SHARE, LONGEST_REST_S)

    async def _commit(self, updates: list[tuple[_Judged, States]], at: float) -> None:
        changed: list[Alert] = []
        requests: list[Action] = []
        for judged, states in updates:
            for labels, alert in states.items():
                before = judged.states.get(labels)
                ended = alert.state is AlertState.INACTIVE
                if (before is None and not ended) or (before and _stored_part(before) != _stored_part(alert)):
                    changed.append(alert)
                if alert.state is AlertState.FIRING and (before is None or before.state is not AlertState.FIRING):
                    request = self.request(judged.rule, alert, 0, at)
                    requests.extend([request] if request else [])
        if changed:
            faultpoint.reach("alert_before")
            try:
                await self._ledger.commit_alerts(changed, requests)
            except StoreError as error:
                # Not stored, so not happened: the states stay as they were and the next round tries again.
                log.error("ledger_unwritable error=%s", error)
                for judged, _ in updates:
                    judged.rests_until = -math.inf
                return
            faultpoint.reach("alert_after")
            for alert in changed:
                log.info(
                    "alert_%s rule=%s labels=%s value=%g", alert.state, alert.rule, dict(alert.labels), alert.value
                )
        standing: dict[Series, float] = {}
        for judged, states in updates:
            standing.update(alert_samples(judged.states, states))
            judged.states = kept(judged.rule, states)
        if standing:
            await self._append([Reading(at, tuple(standing), list(standing.values()))])
        if changed:
            self._changed()
        if requests:
            self._requested()

    async def _failed(self, judged: _Judged, error: Exception, at: float) -> None:
        """A rule that cannot be judged keeps its alerts as they were; said once until it recovers."""
        if judged.failing:
            return
        judged.failing = True
        message = f'cannot judge rule "{judged.rule.name}" ({judged.rule.place}): '
        message += str(error) if isinstance(error, UpkeepError) else repr(error)
        log.error("rule_failed %s", message)
        try:
            await self._record([Event("rule_failed", Severity.ERROR, message, "engine", at)])
        except StoreError as why:
            log.error("event_lost kind=rule_failed error=%s", why)

    async def _close(self, alerts: list[Alert]) -> None:
        if alerts:
            closed = [dataclasses.replace(alert, state=AlertState.INACTIVE) for alert in alerts]
            await self._ledger.commit_alerts(closed, [])


def _lookback_s(rule: AlertRule) -> float:
    """Seconds of history that either of a rule's expressions may read."""
    return max(rule.expr.lookback_s, rule.clear.lookback_s if rule.clear else 0.0)


def _judge(judged: _Judged, at: float, source: Source, memory: Memory | None) -> States:
    states = judge(judged.rule, judged.states, source, at, memory)
    standing = sum(alert.state is not AlertState.INACTIVE for alert in states.values())
    if judged.limit and standing > judged.limit:
        raise ExpressionError(f"{standing} alerts are more than the group's limit of {judged.limit}")
    return states


def _timers_set(alert: Alert, step_s: float) -> Alert:
    """What ``for`` and ``keep_firing_for`` count from, by the clock as it is set now."""
    cleared = None if alert.clear_since is None else alert.clear_since + step_s
    since = alert.active_since + (step_s if alert.state is AlertState.PENDING else 0.0)
    return dataclasses.replace(alert, active_since=since, clear_since=cleared)


def _key(rule: Rule) -> str:
    """What makes a rule the same rule after a reload: its name, its fixed labels, and what it asks."""
    labels = sorted((name, getattr(value, "text", value)) for name, value in rule.labels.items())
    return f"{rule.name}{labels}{rule.expr.text}"


def _carries(rule: AlertRule, labels: Labels) -> bool:
    held = dict(labels)
    return all("{{" in value.text or held.get(name, "") == value.text for name, value in rule.labels.items())


def _stored_part(alert: Alert) -> tuple[object, ...]:
    """What must reach the ledger; the value of every second need not."""
    return (alert.state, alert.active_since, alert.fired_at, alert.clear_since, alert.missing)


def _recorded_labels(rule: RecordingRule, labels: Labels) -> Labels:
    merged = {**{name: text for name, text in labels if name != "__name__"}, **rule.labels}
    return tuple(sorted((name, text) for name, text in merged.items() if text))
