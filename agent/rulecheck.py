"""Doubts about rules that are not wrong in themselves: what promtool cannot know and an SRE would rather hear now.

Each check is a function from a loaded set to warnings with their place and a remedy. A warning never stops a set from
loading. A check speaks of what the table of metrics knows and keeps silent about everything else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.alerting import OnMissing
from agent.config import Config
from agent.errors import Fault
from agent.located import did_you_mean
from agent.metrics import METRICS
from agent.overrides import constant
from agent.promql.nodes import (
    COMPARISONS,
    NAME,
    Aggregate,
    Binary,
    Call,
    Expr,
    Matcher,
    MatchOp,
    Paren,
    VectorSelector,
    selectors,
    unwrap,
    walk,
)
from agent.promql.parse import unparse
from agent.rulefile import AlertRule, Expression, Place, RecordingRule, RuleSet, Step, metric_of
from agent.rulevalues import Bounds, LabelNames, bounds, labels, labels_of_metric
from agent.specs import CleanCache

SAFE_SHARE = 0.9
"""A repair that stops above this share of its threshold will be back within the hour."""

LEAST_BYTES = 1024.0
LEAST_EPOCH_S = 1e9
MOST_MIB = 2.0**24

PROMETHEUS_LABELS = frozenset({"job", "instance"})
"""What Prometheus adds to each series it scrapes: in ``by`` and ``on`` they do no harm here."""

_FLIPPED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules are checked against; without a configuration, what it would say is not checked."""

    rules: RuleSet
    config: Config | None


def warnings(rules: RuleSet, config: Config | None) -> list[Fault]:
    """Every doubt about every rule, in the order of the files, each once."""
    context = Context(rules, config)
    return sorted({fault for check in CHECKS for fault in check(context)})


# -- metrics and labels ----------------------------------------------------------------------------------------------


def _unknown_metrics(context: Context) -> Iterator[Fault]:
    """A metric that no collector, recording rule or text file makes: the rule would stay silent for ever."""
    recorded = {rule.name for group in context.rules.groups for rule in group.rules if isinstance(rule, RecordingRule)}
    known = {*METRICS, *recorded, "ALERTS"}
    for place, expression in _expressions(context.rules):
        for name in sorted(expression.metrics - known):
            yield _warn(place, f'no collector makes "{name}"{did_you_mean(name, sorted(known))}', expression)


def _labels_that_no_series_has(context: Context) -> Iterator[Fault]:
    """A matcher that nothing can meet, or one that only seems to choose because its label is misspelt."""
    written = (each for pattern in context.rules.patterns for each in (pattern.regex, *dict(pattern.fields).values()))
    captured = {name for each in written for name in re.findall(r"\?P<(\w+)>", each)}
    for place, expression in _expressions(context.rules):
        for selector in selectors(expression.node):
            name = metric_of(selector)
            known = labels_of_metric(name)
            if known is None and name == "log_matches_total" and context.rules.patterns:
                known = frozenset({"pattern", "file"} | captured)
            for matcher in selector.matchers if known is not None else ():
                if problem := _matcher_problem(matcher, name, sorted(known or ())):
                    yield _warn(place, problem, expression)


def _matcher_problem(matcher: Matcher, metric: str, known: list[str]) -> str:
    if matcher.name == NAME or matcher.name in known:
        return ""
    near = did_you_mean(matcher.name, known)
    has = f"it has {', '.join(known)}" if known else "it has no labels"
    if not matcher.matches(""):
        return f'no series of "{metric}" has the label "{matcher.name}", so nothing is selected: {has}{near}'
    # `absent_label!="x"` chooses everything, which is what a matcher for another host's labels means to do.
    return f'no series of "{metric}" has the label "{matcher.name}", so it chooses nothing: {has}{near}' if near else ""


def _labels_that_are_lost(context: Context) -> Iterator[Fault]:
    """``by``, ``on`` and ``group_left`` with a label that their operand does not have."""
    for place, expression in _expressions(context.rules):
        for node in walk(expression.node):
            if isinstance(node, Aggregate) and not node.without:
                named, known = node.labels, labels(node.expr)
            elif isinstance(node, Binary) and node.matching.on:
                left, right = labels(node.left), labels(node.right)
                named, known = node.matching.labels, None if left is None or right is None else left | right
            else:
                continue
            for name in named:
                if known is not None and name not in known | PROMETHEUS_LABELS:
                    near = did_you_mean(name, sorted(known))
                    yield _warn(place, f'no series here has the label "{name}"{near}: {_has(known)}', expression)


def _labels_that_words_want(context: Context) -> Iterator[Fault]:
    """``$labels.x`` in an annotation of an alert that never has an x: the reader sees a hole."""
    for rule in context.rules.alert_rules:
        known = _alert_labels(rule)
        for key, template in {**rule.annotations, **rule.labels}.items():
            wanted = set(re.findall(r"\$labels\.(\w+)", template.text))
            tested = set(re.findall(r"\{\{-?\s*(?:if|with)[^}]*\$labels\.(\w+)", template.text))
            for name in sorted(wanted - tested - PROMETHEUS_LABELS):
                if known is not None and name not in known:
                    near = did_you_mean(name, sorted(known))
                    yield _at(rule.place, f'"{key}" names the label "{name}", which the alert never has{near}')


# -- thresholds ------------------------------------------------------------------------------------------------------


def _thresholds_out_of_range(context: Context) -> Iterator[Fault]:
    """A comparison that what is known of its sides decides: 80 where a share was meant, at least 0 of what is never
    below it."""
    for place, expression in _expressions(context.rules):
        decisive = _decisive(expression.node)
        for node in _comparisons(expression.node):
            verdict = _decided(node)
            if verdict is False:
                yield _warn(place, f'"{unparse(node)}" is never true: {_lies(node)}', expression)
            elif verdict and decisive == [node]:
                said = "is always true while there are data, so the alert never clears"
                yield _warn(place, f'"{unparse(node)}" {said}: {_lies(node)}', expression)
            elif verdict:
                yield _warn(place, f'"{unparse(node)}" is always true and chooses nothing: {_lies(node)}', expression)


def _decided(node: Binary) -> bool | None:
    """Whether a comparison is always or never true for finite values; None where that depends."""
    left, right = bounds(node.left), bounds(node.right)
    match node.op:
        case ">" | ">=":
            return _above(left, right, strict=node.op == ">")
        case "<" | "<=":
            return _above(right, left, strict=node.op == "<")
        case _:
            apart = left.low > right.high or left.high < right.low
            one = left.low == left.high == right.low == right.high
            return (node.op == "!=") if apart else (node.op == "==") if one else None


def _above(left: Bounds, right: Bounds, *, strict: bool) -> bool | None:
    if left.low > right.high or (left.low == right.high and not strict):
        return True
    if left.high < right.low or (left.high == right.low and strict):
        return False
    return None


def _lies(node: Binary) -> str:
    """Between which bounds a side lies, and the threshold that was perhaps meant."""
    side, other = (node.right, node.left) if constant(node.left) is not None else (node.left, node.right)
    found, threshold = bounds(side), constant(other)
    said = f'"{unparse(side)}" lies between {found.low:g} and {found.high:g}'
    if found.high == float("inf"):
        said = f'"{unparse(side)}" is never below {found.low:g}'
    if threshold is not None and found.high == 1.0 and 1 < threshold <= 100 and node.op not in ("==", "!="):
        return f"{said}; write {threshold / 100:g}"
    return said


def _thresholds_in_another_unit(context: Context) -> Iterator[Fault]:
    """A number that fits the unit's name and not its size: 10 bytes, 0.9 percent, 3600 seconds after 1970."""
    for place, expression in _expressions(context.rules):
        for node in _comparisons(expression.node):
            for side, other in ((node.left, node.right), (node.right, node.left)):
                threshold = constant(other)
                if threshold and (problem := _unit_problem(side, node.op, threshold)):
                    yield _warn(place, problem, expression)


def _unit_problem(side: Expr, op: str, threshold: float) -> str:
    unit, name = bounds(side).unit, unparse(side)
    if unit == "bytes" and 0 < threshold < LEAST_BYTES and op not in ("==", "!="):
        return f'"{name}" is in bytes and is compared with {threshold:g}: write {threshold:g} * 1024^3 for GiB'
    if unit == "percent" and 0 < threshold < 1:
        return f'"{name}" is in percent, 0 to 100, and is compared with {threshold:g}: write {threshold * 100:g}'
    if unit == "MiB" and threshold > MOST_MIB:
        return f'"{name}" is in MiB and is compared with {threshold:g}: write {threshold / 1024**2:g}'
    epoch = any("timestamp_seconds" in each or each in _CLOCKS for each in _plain_metrics(side))
    if epoch and unit == "seconds" and 0 < threshold < LEAST_EPOCH_S:
        return f'"{name}" counts seconds from 1970 and is compared with {threshold:g}: write time() - {name}'
    return ""


_CLOCKS = frozenset({"node_time_seconds", "node_boot_time_seconds", "node_textfile_mtime_seconds"})


def _plain_metrics(node: Expr) -> list[str]:
    node = unwrap(node)
    if isinstance(node, Aggregate):
        return _plain_metrics(node.expr)
    return [metric_of(node)] if isinstance(node, VectorSelector) else []


# -- alerts that never clear -----------------------------------------------------------------------------------------


def _nothing_compared(context: Context) -> Iterator[Fault]:
    """Without a comparison an alert stands while there are data, whatever they say."""
    for rule in context.rules.alert_rules:
        node = unwrap(rule.expr.node)
        if isinstance(node, Binary) and node.op in COMPARISONS and node.bool_:
            said = 'with "bool" the result is 0 where the condition is false, and 0 is a result too'
            yield _warn(rule.place, f'{said}: the alert never clears; leave "bool" out', rule.expr)
        elif not any(map(_chooses, walk(node))):
            said = f'"{unparse(node)}" is compared with nothing: the alert stands while there are data and never clears'
            yield _warn(rule.place, f'{said}; write "> …"', rule.expr)


def _chooses(node: Expr) -> bool:
    """Whether what a part gives depends on values, or on what is not known here."""
    match node:
        case VectorSelector():
            return metric_of(node) not in METRICS
        case Binary(op):
            return op in ("unless", "and") or (op in COMPARISONS and not node.bool_)
        case Call(name):
            return name in ("absent", "absent_over_time", "vector")
        case _:
            return False


def _counters_compared(context: Context) -> Iterator[Fault]:
    """A counter over a constant: it only grows, so the alert ends with the process that counts."""
    for rule in context.rules.alert_rules:
        for node in _comparisons(rule.expr.node):
            op = node.op if constant(node.right) is not None else _FLIPPED[node.op]
            side = node.left if constant(node.right) is not None else node.right
            if constant(node.left if side is node.right else node.right) is None or op not in (">", ">=", "!="):
                continue
            for name in _plain_metrics(side):
                if name in METRICS and METRICS[name].type == "counter":
                    said = f'"{name}" is a counter and only grows: once over the threshold the alert never clears'
                    yield _warn(rule.place, f"{said}; write increase({name}[1h])", rule.expr)


def _series_that_end(context: Context) -> Iterator[Fault]:
    """``on_missing: hold`` on series that end with a file or a process: the alert would be held for ever."""
    for rule in context.rules.alert_rules:
        if rule.clear or rule.timing.on_missing is not OnMissing.HOLD or rule.expr.false_node is None:
            continue
        for name in sorted(rule.expr.metrics & METRICS.keys()):
            ending = (
                "log file" if METRICS[name].source == "logs" else "process" if "pid" in METRICS[name].labels else ""
            )
            if ending and "absent" not in rule.expr.text:
                said = f'series of "{name}" end with their {ending}, and the alert would be held for ever'
                yield _warn(rule.place, f"{said}: write on_missing: clear", rule.expr)


def _clear_of_other_labels(context: Context) -> Iterator[Fault]:
    """``clear`` must be true for the alert's own label set: with other labels it never is."""
    for rule in context.rules.alert_rules:
        if rule.clear is None:
            continue
        mine, theirs = labels(rule.expr.node), labels(rule.clear.node)
        if mine is not None and theirs is not None and mine != theirs:
            said = f'"clear" {_gives(theirs)} and "expr" {_gives(mine)}'
            yield _warn(rule.place, f"{said}: the alert never clears; give both the same labels", rule.clear)


def _clear_beside_on_missing(context: Context) -> Iterator[Fault]:
    """``on_missing`` that is never asked: with ``clear`` nothing else ends a firing alert."""
    for rule in context.rules.alert_rules:
        if rule.clear and rule.timing.on_missing is not OnMissing.HOLD:
            yield _at(rule.place, f'"on_missing: {rule.timing.on_missing}" has no effect beside "clear"')


# -- known mistakes --------------------------------------------------------------------------------------------------


def _free_memory_as_the_whole(context: Context) -> Iterator[Fault]:
    """``FB_USED / FB_FREE``, from many public rules: half full reads as 100 %."""
    for place, expression in _expressions(context.rules):
        for node in walk(expression.node):
            if isinstance(node, Binary) and node.op == "/":
                above = {metric_of(each) for each in selectors(node.left)}
                below = {metric_of(each) for each in selectors(node.right)}
                if "DCGM_FI_DEV_FB_USED" in above and below == {"DCGM_FI_DEV_FB_FREE"}:
                    said = "the total is used + free + reserved: write DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED"
                    said += " + DCGM_FI_DEV_FB_FREE)"
                    yield _warn(place, f"used over free is no share of GPU memory; {said}", expression)


def _fragmentation_without_bytes(context: Context) -> Iterator[Fault]:
    """An idle Redis of 1 MB reads a ratio of 12: the ratio says something only beside the bytes."""
    for rule in context.rules.alert_rules:
        ratios = rule.expr.metrics & _FRAGMENTATION.keys()
        if ratios and not any(name.startswith("redis_") and name.endswith("_bytes") for name in rule.expr.metrics):
            [name, *_] = sorted(ratios)
            said = f'"{name}" is large on a small idle server too'
            yield _warn(rule.place, f"{said}: add and {_FRAGMENTATION[name]} > 100 * 1024^2", rule.expr)


_FRAGMENTATION = {
    "redis_mem_fragmentation_ratio": "redis_mem_fragmentation_bytes",
    "redis_allocator_frag_ratio": "redis_allocator_frag_bytes",
}


# -- repairs ---------------------------------------------------------------------------------------------------------


def _repairs_that_stop_too_early(context: Context) -> Iterator[Fault]:
    """``down_to`` not safely below the threshold that fires the rule."""
    for rule in context.rules.alert_rules:
        for step in _steps(rule):
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
        for step in _steps(rule):
            path = _tree(step)
            mode = (rule.remediation.mode if rule.remediation else None) or context.config.mode
            if path is None or mode.value == "observe":
                continue
            if not any(_within(path, root) for root in roots):
                yield _at(step.place, f'"{path}" is under no root of remediation.roots: the step will be refused')


def _repairs_of_something_else(context: Context) -> Iterator[Fault]:
    """A step's parameters are fixed: an alert that can be about another tree would repair this one all the same."""
    for rule in context.rules.alert_rules:
        for step in _steps(rule):
            tree = _tree(step)
            if tree is not None and (problem := _aim_problem(rule, tree)):
                yield _at(step.place, problem)


def _aim_problem(rule: AlertRule, tree: str) -> str:
    for label in ("path", "mountpoint"):
        about = [each for each in selectors(rule.expr.node) if label in (labels_of_metric(metric_of(each)) or ())]
        if not about:
            continue
        fixed = {
            each.value for one in about for each in one.matchers if each.name == label and each.op is MatchOp.EQUAL
        }
        if any(_within(tree, each) or _within(each, tree) for each in fixed):
            continue
        if fixed:
            return f'the alert is about "{min(fixed)}" and the step changes "{tree}"'
        if label in (labels(rule.expr.node) or ()):
            return (
                f'the alert can be about any "{label}" and the step changes "{tree}" whichever it is: '
                f'choose {{{label}="…"}} in "expr"'
            )
    return ""


def _two_repairs_of_one_thing(context: Context) -> Iterator[Fault]:
    """Two alerts whose repairs change the same tree: each would undo the other's count and verify the other's work."""
    repairs = [
        (rule, step, tree)
        for rule in context.rules.alert_rules
        for step in _steps(rule)
        if (tree := _tree(step)) is not None
    ]
    for (one, first, above), (other, second, below) in itertools.combinations(repairs, 2):
        if one.name != other.name and (_within(above, below) or _within(below, above)):
            said = f'"{other.name}" would change "{below}", which "{one.name}" repairs too (at {first.place})'
            yield _at(second.place, f"{said}: let one of them tell a person")


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
    _labels_that_no_series_has,
    _labels_that_are_lost,
    _labels_that_words_want,
    _thresholds_out_of_range,
    _thresholds_in_another_unit,
    _nothing_compared,
    _counters_compared,
    _series_that_end,
    _clear_of_other_labels,
    _clear_beside_on_missing,
    _free_memory_as_the_whole,
    _fragmentation_without_bytes,
    _repairs_that_stop_too_early,
    _repairs_outside_the_roots,
    _repairs_of_something_else,
    _two_repairs_of_one_thing,
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
    elif isinstance(node, Binary) and node.op in COMPARISONS and not node.bool_:
        yield node


def _decisive(node: Expr) -> list[Binary]:
    """The comparison that alone decides whether anything is found; nothing where several do."""
    node = unwrap(node)
    return [node] if isinstance(node, Binary) and node.op in COMPARISONS and not node.bool_ else []


def _is_selector(node: Expr) -> bool:
    return _is_selector(node.expr) if isinstance(node, Paren) else isinstance(node, VectorSelector)


def size_threshold(rule: AlertRule) -> float | None:
    """N of a rule of the form ``directory_size_bytes{…} > N``."""
    for node in _comparisons(rule.expr.node):
        if node.op in (">", ">=") and _is_selector(node.left):
            [selector] = selectors(node.left)
            if metric_of(selector) == "directory_size_bytes":
                return constant(node.right)
    return None


def _steps(rule: AlertRule) -> tuple[Step, ...]:
    return rule.remediation.steps if rule.remediation else ()


def _tree(step: Step) -> str | None:
    """The folder that a step changes, if it changes one."""
    found = getattr(step.spec, "path", None) or getattr(step.spec, "directory", None)
    return found if isinstance(found, str) else None


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _alert_labels(rule: AlertRule) -> LabelNames:
    own = labels(rule.expr.node)
    return None if own is None else own | rule.labels.keys()


def _has(known: frozenset[str]) -> str:
    return f"they have {', '.join(sorted(known))}" if known else "they have none"


def _gives(known: frozenset[str]) -> str:
    return f"has the labels {', '.join(sorted(known))}" if known else "has no labels"


def _gib(size: float) -> str:
    return f"{size / 1024**3:.3g}GiB"


def _warn(place: Place, message: str, expression: Expression) -> Fault:
    return Fault(place.path, expression.line, expression.column, message, True)


def _at(place: Place, message: str) -> Fault:
    return Fault(place.path, place.line, place.column, message, True)
