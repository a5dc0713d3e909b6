"""Doubts about rules that are not wrong in themselves: what promtool cannot know and an SRE would rather hear now.

Each check is a function from a loaded set to warnings with their place. A warning never stops a set from loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.alerting import OnMissing
from agent.config import Config
from agent.errors import ExpressionError, Fault
from agent.located import did_you_mean
from agent.metrics import METRICS
from agent.promql.evaluate import evaluate
from agent.promql.nodes import Binary, Expr, Paren, VectorSelector, selectors
from agent.promql.values import Points, Scalar
from agent.rulefile import AlertRule, Expression, Place, RecordingRule, RuleSet, metric_of
from agent.specs import CleanCache

SAFE_SHARE = 0.9
"""A repair that stops above this share of its threshold will be back within the hour."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules are checked against; without a configuration, what it would say is not checked."""

    rules: RuleSet
    config: Config | None


def warnings(rules: RuleSet, config: Config | None) -> list[Fault]:
    """Every doubt about every rule, in the order of the files."""
    context = Context(rules, config)
    return sorted(fault for check in CHECKS for fault in check(context))


def _unknown_metrics(context: Context) -> Iterator[Fault]:
    """A metric that no collector, recording rule or text file makes: the rule would stay silent for ever."""
    recorded = {rule.name for group in context.rules.groups for rule in group.rules if isinstance(rule, RecordingRule)}
    known = {*METRICS, *recorded, "ALERTS"}
    for place, expression in _expressions(context.rules):
        for name in sorted(expression.metrics - known):
            yield _warn(place, f'no collector makes "{name}"{did_you_mean(name, sorted(known))}', expression)


def _ratio_thresholds(context: Context) -> Iterator[Fault]:
    """A share of one compared with a number over one: 80 was meant as 80 %."""
    for place, expression in _expressions(context.rules):
        for node in _comparisons(expression.node):
            threshold = _constant(node.right)
            names = [metric_of(selector) for selector in selectors(node.left)] if _is_selector(node.left) else []
            if threshold is None or abs(threshold) <= 1:
                continue
            for name in names:
                if name in METRICS and METRICS[name].ratio:
                    yield _warn(
                        place, f'"{name}" is a share from 0 to 1 and is compared with {threshold:g}', expression
                    )


def _repairs_that_stop_too_early(context: Context) -> Iterator[Fault]:
    """``down_to`` not safely below the threshold that fires the rule."""
    for rule in context.rules.alert_rules:
        for step in rule.remediation.steps if rule.remediation else ():
            threshold = size_threshold(rule)
            if not isinstance(step.spec, CleanCache) or step.spec.down_to is None or threshold is None:
                continue
            if step.spec.down_to > SAFE_SHARE * threshold:
                message = (
                    f'"down_to" of {_gib(step.spec.down_to)} is not safely below the threshold of {_gib(threshold)}: '
                    f"the alert will be back soon, or never clear"
                )
                yield _at(step.place, message)


def _repairs_outside_the_roots(context: Context) -> Iterator[Fault]:
    """A step that the hands will refuse: its path is in no root of the configuration, and the rule may act."""
    if context.config is None:
        return
    roots = context.config.remediation.roots
    for rule in context.rules.alert_rules:
        for step in rule.remediation.steps if rule.remediation else ():
            path = getattr(step.spec, "path", None)
            mode = (rule.remediation.mode if rule.remediation else None) or context.config.mode
            if path is None or mode.value == "observe":
                continue
            if not any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots):
                yield _at(step.place, f'"{path}" is under no root of remediation.roots: the step will be refused')


def _clear_beside_on_missing(context: Context) -> Iterator[Fault]:
    """``on_missing`` that is never asked: with ``clear`` nothing else ends a firing alert."""
    for rule in context.rules.alert_rules:
        if rule.clear and rule.timing.on_missing is not OnMissing.HOLD:
            yield _at(rule.place, f'"on_missing: {rule.timing.on_missing}" has no effect beside "clear"')


def _alerts_told_apart_by_nothing(context: Context) -> Iterator[Fault]:
    """Two rules of one name and one severity: their alerts cannot be told apart."""
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], Place] = {}
    for rule in context.rules.alert_rules:
        key = (rule.name, tuple(sorted((name, str(value)) for name, value in rule.labels.items())))
        if key in seen:
            yield _at(rule.place, f'another alert "{rule.name}" has the same labels (at {seen[key]})')
        seen.setdefault(key, rule.place)


CHECKS: tuple[Callable[[Context], Iterable[Fault]], ...] = (
    _unknown_metrics,
    _ratio_thresholds,
    _repairs_that_stop_too_early,
    _repairs_outside_the_roots,
    _clear_beside_on_missing,
    _alerts_told_apart_by_nothing,
)


# -- reading expressions ---------------------------------------------------------------------------------------------


def _expressions(rules: RuleSet) -> Iterator[tuple[Place, Expression]]:
    for group in rules.groups:
        for rule in group.rules:
            yield rule.place, rule.expr
            if isinstance(rule, AlertRule) and rule.clear:
                yield rule.place, rule.clear


def _comparisons(node: Expr) -> Iterator[Binary]:
    """Comparisons at the top of an expression and below its set operators."""
    if isinstance(node, Paren):
        yield from _comparisons(node.expr)
    elif isinstance(node, Binary) and node.op in ("and", "or", "unless"):
        yield from _comparisons(node.left)
        yield from _comparisons(node.right)
    elif isinstance(node, Binary) and node.op in (">", ">=", "<", "<=", "==", "!="):
        yield node


def _is_selector(node: Expr) -> bool:
    return _is_selector(node.expr) if isinstance(node, Paren) else isinstance(node, VectorSelector)


class _Nothing:
    """A source without series: what evaluates over it is a constant."""

    def select(self, matchers: object, start: float, end: float) -> Iterable[Points]:
        return ()


def _constant(node: Expr) -> float | None:
    try:
        value = evaluate(node, _Nothing(), 0.0)
    except ExpressionError:
        return None
    return value.value if isinstance(value, Scalar) and not selectors(node) else None


def size_threshold(rule: AlertRule) -> float | None:
    """N of a rule of the form ``directory_size_bytes{…} > N``."""
    for node in _comparisons(rule.expr.node):
        if node.op in (">", ">=") and _is_selector(node.left):
            [selector] = selectors(node.left)
            if metric_of(selector) == "directory_size_bytes":
                return _constant(node.right)
    return None


def _gib(size: float) -> str:
    return f"{size / 1024**3:.3g}GiB"


def _warn(place: Place, message: str, expression: Expression) -> Fault:
    return Fault(place.path, expression.line, expression.column, message, True)


def _at(place: Place, message: str) -> Fault:
    return Fault(place.path, place.line, place.column, message, True)
