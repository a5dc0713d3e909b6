"""``upkeep explain RULE``: every part of a rule's expression with its value now, and why nothing happens."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import inhibit
from agent.app import load_rules
from agent.clock import SystemClock
from agent.commands.common import clock_time, loaded, print_json, span, state_dir, words
from agent.commands.lookup import action_json
from agent.config import Config
from agent.errors import ExpressionError, UpkeepError
from agent.guards import BRAKES, Situation
from agent.located import did_you_mean
from agent.matching import full_labels, inhibitor_of
from agent.metrics import METRICS
from agent.model import Action, Alert, AlertState, Mode, Series
from agent.promql.evaluate import evaluate
from agent.promql.nodes import Aggregate, Binary, Call, Expr, Negation, NumberLiteral, Paren, Subquery, selectors
from agent.promql.parse import unparse
from agent.promql.values import Matrix, Scalar, Vector
from agent.rulefile import AlertRule, Remediation, RuleSet, metric_of
from agent.ruletest import bare_handler
from agent.silencing import firing_labels, silence_of
from agent.store import Circuit, Reader, Silence
from agent.store.read import AlertRecord

MOST_ELEMENTS = 8
HOUR_S = 3600.0
DAY_S = 86400.0
WEEK_S = 7 * DAY_S

_REASONS = {
    "observe_mode": "observe mode: it was planned, not carried out (mode: act in the rule or the configuration acts)",
    "paused": "acting is paused (upkeep resume)",
    "cooldown": "its cooldown had not passed since the last action",
    "hourly_limit": "the handler had used up its actions for this hour",
    "rule_limit": "the rule had used up its limit",
    "boot_grace": "the host had only just booted",
    "silenced": "a silence covered it (upkeep silence list)",
    "inhibited": "another alert explained it",
    "circuit_open": "it did not help before; a person must look (upkeep circuit list)",
    "nothing_to_do": "nothing could be changed: everything is in use, protected or already gone",
    "outside_roots": "its path is under no root of remediation.roots",
    "missing": "its path does not exist",
    "alert_cleared": "the alert cleared before it was its turn",
    "awaiting_approval": "it waits for a person (upkeep approve ID)",
    "over_percent_cap": "the plan was larger than remediation.limits.percent_per_action allows",
    "use_unknown": "the file system keeps no access times; use: mtime would go by the last write",
}


@dataclass(frozen=True, slots=True)
class _Host:
    """Everything beside the rule that decides whether something is done, at one instant."""

    now: float
    config: Config
    rules: RuleSet
    paused: bool
    alerts: Sequence[AlertRecord]
    actions: Sequence[Action]
    silences: Sequence[Silence]
    circuits: Sequence[Circuit]


def run(arguments: Namespace) -> int:
    """Exit status 1 when there is no such rule."""
    settings = loaded(arguments)
    rules = load_rules(settings)
    chosen = [rule for rule in rules.alert_rules if rule.name == arguments.rule]
    if not chosen:
        names = sorted({rule.name for rule in rules.alert_rules})
        raise UpkeepError(f'unknown rule "{arguments.rule}"{did_you_mean(arguments.rule, names)}')
    with Reader.open(state_dir(arguments)) as reader:
        host = _host(reader, settings.config, rules, time.time())
        facts = [_facts(rule, reader, host) for rule in chosen]
    if arguments.json:
        print_json(facts)
    else:
        for rule, each in zip(chosen, facts, strict=True):
            _print(rule, each)
    return 0


def _host(reader: Reader, config: Config, rules: RuleSet, now: float) -> _Host:
    _, silences = reader.sql(
        "SELECT matchers, why, by, starts_at, for_s, every, id FROM ledger.silence "
        "WHERE ended_at IS NULL AND (every <> '' OR starts_at + for_s > ?) ORDER BY id",
        (now,),
    )
    _, circuits = reader.sql("SELECT handler, resource, opened_at, why FROM ledger.circuit")
    return _Host(
        now,
        config,
        rules,
        inhibit.paused(Path(config.state_dir), now),
        reader.alerts(since=now - DAY_S),
        reader.actions(since=now - WEEK_S),
        [Silence(*row) for row in silences],
        [Circuit(*row) for row in circuits],
    )


def _facts(rule: AlertRule, reader: Reader, host: _Host) -> dict[str, object]:
    found = [each for each in host.alerts if each.alert.rule == rule.name and _carries(rule, each.alert)]
    actions = [action for action in host.actions if action.rule == rule.name][:5]
    return {
        "rule": rule.name,
        "place": str(rule.place),
        "expr": rule.expr.text,
        "for_s": rule.timing.for_s,
        "mode": _mode(rule, host).value,
        "description": rule.annotations["description"].text if "description" in rule.annotations else "",
        "parts": list(_parts(rule.expr.node, reader, host.now)),
        "alerts": [_alert_words(each, host.now) for each in found],
        "actions": [action_json(action) for action in actions],
        "why": list(_why(rule, [each.alert for each in found if each.ended_at is None], reader, host)),
    }


def _carries(rule: AlertRule, alert: Alert) -> bool:
    """Whether an alert of that name can be this rule's: two rules of one name differ in a fixed label."""
    held = dict(alert.labels)
    return all("{{" in each.text or held.get(name, "") == each.text for name, each in rule.labels.items())


def _mode(rule: AlertRule, host: _Host) -> Mode:
    return (rule.remediation.mode if rule.remediation else None) or host.config.mode


def _parts(node: Expr, reader: Reader, now: float, depth: int = 0) -> Iterator[dict[str, object]]:
    """Each sub-expression, the whole first, with what it evaluates to."""
    yield {"depth": depth, "expr": unparse(node), "values": _values(node, reader, now)}
    for child in _children(node):
        yield from _parts(child, reader, now, depth + 1)


def _children(node: Expr) -> list[Expr]:
    match node:
        case Paren() | Negation():
            return _children(node.expr)
        case Binary():
            return [side for side in (node.left, node.right) if not isinstance(side, NumberLiteral)]
        case Aggregate() | Subquery():
            return [node.expr]
        case Call():
            return [arg for arg in node.args if not isinstance(arg, NumberLiteral)]
        case _:
            return []


def _values(node: Expr, reader: Reader, now: float) -> list[str]:
    try:
        value = evaluate(node, reader, now)
    except ExpressionError as error:
        return [f"cannot be evaluated: {error}"]
    match value:
        case Scalar():
            return [f"{value.value:g}"]
        case Vector():
            shown = [f"{number:.6g}  {words(labels)}" for labels, number in value.samples[:MOST_ELEMENTS]]
            more = len(value.samples) - len(shown)
            return [*shown, *([f"… and {more} more"] if more else [])] or ["nothing"]
        case Matrix():
            return [f"{sum(len(each.times) for each in value.series)} points in {len(value.series)} series"]
        case _:
            return [str(value.value)]


def _alert_words(found: AlertRecord, now: float) -> str:
    alert = found.alert
    if found.ended_at is not None:
        return f"ended {clock_time(found.ended_at)}  {words(alert.labels)}"
    missing = ", its data is missing: it holds" if alert.missing else ""
    return f"{alert.state} for {span(now - alert.active_since)}, value {alert.value:g}  {words(alert.labels)}{missing}"


# -- why -------------------------------------------------------------------------------------------------------------


def _why(rule: AlertRule, standing: Sequence[Alert], reader: Reader, host: _Host) -> Iterator[str]:
    """Why nothing happens, or what happened: a sentence for each alert, and for each brake that holds it now."""
    if not standing:
        yield from _why_nothing_stands(rule, reader, host)
    for alert in standing:
        lead = f"{words(alert.labels)}: " if len(standing) > 1 else ""
        for sentence in _why_of(rule, alert, host):
            yield lead + sentence


def _why_nothing_stands(rule: AlertRule, reader: Reader, host: _Host) -> Iterator[str]:
    empty = sorted(
        {metric_of(each) for each in selectors(rule.expr.node) if not _has_data(each, reader, host.now)} - {""}
    )
    for name in empty:
        source = (
            f", made by the collectors of {METRICS[name].source}" if name in METRICS else ", which no collector makes"
        )
        yield f'there is no sample of "{name}"{source}, in the last five minutes'
    if not empty:
        yield "the condition is false: nothing to do"


def _has_data(selector: Expr, reader: Reader, now: float) -> bool:
    value = evaluate(selector, reader, now)
    return isinstance(value, Vector) and bool(value.samples)


def _why_of(rule: AlertRule, alert: Alert, host: _Host) -> Iterator[str]:
    if alert.state is AlertState.PENDING:
        yield _until_it_fires(rule, alert, host.now)
        return
    if rule.remediation is None:
        yield "it fires; the rule names no remediation"
    # Each firing climbs its ladder once: what an earlier one asked for says nothing of this one.
    asked = [each for each in host.actions if (each.rule, each.labels) == (rule.name, alert.labels)]
    mine = sorted(
        (each for each in asked if each.fired_at == alert.fired_at), key=lambda each: (each.step, each.attempt)
    )
    for action in mine:
        yield _step_words(rule, action)
    if rule.remediation and not mine:
        yield "it fires and nothing was asked for yet"
    yield from _held_by(rule, alert, host)
    if mine and rule.remediation and mine[-1].step + 1 >= len(rule.remediation.steps) and mine[-1].finished_at:
        yield "its ladder was climbed to the end: nothing more is done until it has ended and fires anew"


def _until_it_fires(rule: AlertRule, alert: Alert, now: float) -> str:
    if alert.missing:
        return 'pending, and its data is missing: "for" does not run on'
    left_s = max(0.0, alert.active_since + rule.timing.for_s - now)
    at = clock_time(alert.active_since + rule.timing.for_s)
    return (
        f"pending: the condition is true and must stay so for {span(left_s)} more of {span(rule.timing.for_s)}, to {at}"
    )


def _step_words(rule: AlertRule, action: Action) -> str:
    steps = len(rule.remediation.steps) if rule.remediation else 0
    said = f"step {action.step + 1} of {steps}, {action.handler}: {action.status}"
    if action.verdict is not None:
        said += f", {action.verdict}"
    return f"{said} ({_REASONS.get(action.reason, action.reason)})" if action.reason else said


def _held_by(rule: AlertRule, alert: Alert, host: _Host) -> Iterator[str]:
    """Every brake that would hold the first rung if it were asked for now, each with its figures."""
    silence = silence_of(host.silences, rule.name, alert.labels, host.now)
    firing = firing_labels(each.alert for each in host.alerts if each.ended_at is None)
    inhibitor = inhibitor_of(host.rules.inhibitions, full_labels(rule.name, alert.labels), firing)
    if silence:
        ends = (
            f", every {silence.every}" if silence.every else f" until {clock_time(silence.starts_at + silence.for_s)}"
        )
        yield f"held now by silence {silence.id} of {silence.by}{ends}: {silence.why}"
    if inhibitor is not None:
        yield f"held now by another alert that fires: {words(inhibitor)}"
    if rule.remediation is None:
        return
    rung = _rung(rule, rule.remediation, alert, host)
    for brake in BRAKES:
        if reason := brake(rung.situation):
            yield f"held now by {_figure(reason, rung)}"


@dataclass(frozen=True, slots=True)
class _Rung:
    """The first step of a ladder as it stands before the brakes."""

    handler: str
    resource: str
    situation: Situation
    circuit: Circuit | None


def _rung(rule: AlertRule, fix: Remediation, alert: Alert, host: _Host) -> _Rung:
    handler, name = bare_handler(fix.steps[0]), fix.steps[0].handler
    # As dispatch counts: what tells a person is counted for each alert of its own.
    resource = handler.resource() + (f" {Series(rule.name, alert.labels)}" if handler.harmless else "")
    ages = [
        (each, host.now - each.started_at)
        for each in host.actions
        if each.started_at is not None and (each.rule, each.fired_at) != (rule.name, alert.fired_at)
    ]
    same = [age_s for each, age_s in ages if (each.handler, each.resource) == (name, resource)]
    circuits = [each for each in host.circuits if (each.handler, each.resource) == (name, resource)]
    remediation = host.config.remediation
    situation = Situation(
        paused=host.paused,
        mode=_mode(rule, host),
        harmless=handler.harmless,
        handler_disabled=name in remediation.disabled_handlers,
        since_boot_s=SystemClock().boot(),
        boot_grace_s=remediation.boot_grace,
        since_last_s=min(same, default=None),
        cooldown_s=fix.cooldown_s,
        in_last_hour=sum(each.handler == name and age_s < HOUR_S for each, age_s in ages),
        actions_per_hour=remediation.limits.actions_per_hour,
        in_limit_period=sum(each.rule == rule.name and age_s < fix.limit.per_s for each, age_s in ages)
        if fix.limit
        else 0,
        limit=fix.limit,
        circuit_open=bool(circuits),
    )
    return _Rung(name, resource, situation, next(iter(circuits), None))


def _figure(reason: str, rung: _Rung) -> str:
    """A brake in words, with what is left of it."""
    now = rung.situation
    match reason:
        case "paused":
            return "the pause (upkeep resume)"
        case "observe_mode":
            return "mode: observe, so it is planned and recorded, not carried out"
        case "handler_disabled":
            return f"remediation.disabled_handlers, which names {rung.handler}"
        case "boot_grace":
            return f"the boot {span(now.since_boot_s)} ago: remediation.boot_grace is {span(now.boot_grace_s)}"
        case "cooldown":
            left_s = now.cooldown_s - (now.since_last_s or 0.0)
            return f"the cooldown of {rung.resource}: {span(left_s)} of {span(now.cooldown_s)} are left"
        case "hourly_limit":
            return f"{now.in_last_hour} actions of {rung.handler} within an hour, of {now.actions_per_hour} allowed"
        case "rule_limit" if now.limit:
            return (
                f"the rule's limit: {now.in_limit_period} of {now.limit.count} in {span(now.limit.per_s)} are used up"
            )
        case "circuit_open" if rung.circuit:
            opened = clock_time(rung.circuit.opened_at)
            return f"the circuit {rung.handler}:{rung.resource}, open since {opened}: {rung.circuit.why}"
        case "awaiting_approval":
            return "mode: ask, so a person must approve it (upkeep approve ID)"
        case _:
            return reason


# -- for people ------------------------------------------------------------------------------------------------------


def _print(rule: AlertRule, facts: dict[str, object]) -> None:
    print(f"{rule.name}  ({rule.place})\n\nexpression")
    for part in facts["parts"]:  # type: ignore[attr-defined]
        indent = "  " * (part["depth"] + 1)
        print(f"{indent}{part['expr']}")
        for value in part["values"]:
            print(f"{indent}  = {value}")
    for title in ("alerts", "actions"):
        print(f"\n{title}")
        rows = facts[title]
        for row in rows if isinstance(rows, list) and rows else ["none"]:
            print(f"  {row if isinstance(row, str) else _action_words(row)}")
    if facts["description"]:
        print(f"\nwhat to do\n  {facts['description']}")
    print("\nwhy")
    for sentence in facts["why"]:  # type: ignore[attr-defined]
        print(f"  {sentence}")
    print()


def _action_words(row: dict[str, object]) -> str:
    outcome = row["outcome"] or row["reason"] or ""
    return f"#{row['id']}  {row['time']}  {row['handler']}  {row['status']} {outcome}"
