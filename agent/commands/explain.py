"""``upkeep explain RULE``: every part of a rule's expression with its value now, and why nothing happens."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator

from agent.app import load_rules
from agent.commands.common import clock_time, loaded, print_json, span, state_dir, words
from agent.commands.lookup import action_json
from agent.errors import ExpressionError, UpkeepError
from agent.located import did_you_mean
from agent.model import Action
from agent.promql.evaluate import evaluate
from agent.promql.nodes import Aggregate, Binary, Call, Expr, MatrixSelector, Negation, NumberLiteral, Paren, Subquery
from agent.promql.parse import unparse
from agent.promql.values import Matrix, Scalar, Vector
from agent.rulefile import AlertRule
from agent.store import Reader
from agent.store.read import AlertRecord

MOST_ELEMENTS = 8
_TELLING = frozenset({"notify", "report"})

_REASONS = {
    "observe_mode": "observe mode: it was planned, not carried out (mode: act in the rule or the configuration acts)",
    "paused": "acting is paused (upkeep resume)",
    "cooldown": "its cooldown has not passed since the last action",
    "hourly_limit": "the handler has used up its actions for this hour",
    "rule_limit": "the rule has used up its limit",
    "boot_grace": "the host has only just booted",
    "silenced": "a silence covers it (upkeep silence list)",
    "circuit_open": "it did not help before; a person must look (upkeep circuit list)",
    "nothing_to_do": "nothing could be changed: everything is in use, protected or already gone",
    "outside_roots": "its path is under no root of remediation.roots",
    "missing": "its path does not exist",
    "alert_cleared": "the alert cleared before it was its turn",
    "awaiting_approval": "it waits for a person (upkeep approve ID)",
    "over_percent_cap": "the plan was larger than remediation.limits.percent_per_action allows",
    "use_unknown": "the file system keeps no access times; use: mtime would go by the last write",
}


def run(arguments: Namespace) -> int:
    """Exit status 1 when there is no such rule."""
    rules = list(load_rules(loaded(arguments)).alert_rules)
    chosen = [rule for rule in rules if rule.name == arguments.rule]
    if not chosen:
        names = sorted({rule.name for rule in rules})
        raise UpkeepError(f'unknown rule "{arguments.rule}"{did_you_mean(arguments.rule, names)}')
    with Reader.open(state_dir(arguments)) as reader:
        facts = [_facts(rule, reader, time.time()) for rule in chosen]
    if arguments.json:
        print_json(facts)
    else:
        for rule, each in zip(chosen, facts, strict=True):
            _print(rule, each)
    return 0


def _facts(rule: AlertRule, reader: Reader, now: float) -> dict[str, object]:
    found = [each for each in reader.alerts(since=now - 86400) if each.alert.rule == rule.name]
    actions = [action for action in reader.actions(since=now - 7 * 86400) if action.rule == rule.name][:5]
    return {
        "rule": rule.name,
        "place": str(rule.place),
        "expr": rule.expr.text,
        "for_s": rule.timing.for_s,
        "parts": list(_parts(rule.expr.node, reader, now)),
        "alerts": [_alert_words(each, now) for each in found],
        "actions": [action_json(action) for action in actions],
        "why": _why(rule, [each for each in found if each.ended_at is None], actions),
    }


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
            return [arg for arg in node.args if not isinstance(arg, MatrixSelector | NumberLiteral)]
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


def _why(rule: AlertRule, standing: list[AlertRecord], actions: list[Action]) -> str:
    """Why nothing happens, or what happened, in one sentence."""
    if not standing:
        return "the condition is false, or there is no data: nothing to do"
    if all(each.alert.state == "pending" for each in standing):
        return f"the condition is true, but not yet for {span(rule.timing.for_s)}"
    if rule.remediation is None:
        return "it fires; the rule names no remediation"
    if not actions:
        return "it fires and nothing was asked for yet"
    # What tells a person says nothing of why the repair below it did not happen.
    last = next((action for action in actions if action.handler not in _TELLING), actions[0])
    if last.verdict is not None and not last.reason:
        return f"{last.handler} was carried out: {last.verdict}"
    return f"{last.handler}: {_REASONS.get(last.reason, last.reason) or last.status}"


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
    print(f"\nwhy: {facts['why']}\n")


def _action_words(row: dict[str, object]) -> str:
    outcome = row["outcome"] or row["reason"] or ""
    return f"#{row['id']}  {row['time']}  {row['handler']}  {row['status']} {outcome}"
