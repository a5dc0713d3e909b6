"""A site's changes to rules it does not own, in one line each, so that an upgrade brings new rules without a merge.

``overrides: {'DiskFull{severity="warning"}': {threshold: 15%, mode: act}, LoadHigh: {disabled: true}}``

A threshold is the number in the comparison that gives an alert its value: the leftmost of a chain of ``and`` and
``unless``. Where there is not exactly one such number, or the new one cannot be meant, the override is refused with the
reason; nothing is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from agent.errors import ExpressionError, Fault, FaultyFilesError, UpkeepError
from agent.located import Duration, Faults, Scalar, convert, did_you_mean, parse_duration, parse_size
from agent.matching import full_labels, matches, parse_matchers
from agent.model import Labels, Mode, make_labels

if TYPE_CHECKING:
    from agent.promql.nodes import Binary, Expr
    from agent.promql.values import Points
    from agent.rulefile import AlertRule, Expression, Rule, RuleSet

Places = Mapping[str, tuple[int, int]]
"""Line and column of each override in its file."""


def _threshold(node: Scalar) -> str:
    """What it means depends on what the rule measures; that it is a number with or without a unit is known now."""
    readers: tuple[Callable[[str], float], ...] = (
        parse_size,
        parse_duration,
        lambda word: float(word.removesuffix("%")),
    )
    for read in readers:
        try:
            if math.isfinite(read(node.text)):
                return node.text
        except ValueError:
            continue
    raise ValueError(f'cannot read "{node.text}" as a threshold: write it like 95%, 12GiB, 2d or 3.5')


@dataclass(frozen=True, slots=True)
class Override:
    """What a site changes about one rule, or about all rules of one name."""

    threshold: Annotated[str, _threshold] | None = field(
        default=None, metadata={"help": "another number in the rule's comparison: `95%`, `12GiB`, `2d`, `3.5`"}
    )
    for_: Duration | None = field(default=None, metadata={"help": "another `for`"})
    mode: Mode | None = field(default=None, metadata={"help": "another mode for its remediation"})
    disabled: bool = field(default=False, metadata={"help": "leave the rule out"})

    def __post_init__(self) -> None:
        changes = [self.threshold is not None, self.for_ is not None, self.mode is not None]
        if not any(changes) and not self.disabled:
            raise ValueError("cannot override nothing: give threshold, for, mode or disabled: true")
        if any(changes) and self.disabled:
            raise ValueError("cannot change what is left out: give disabled: true alone")


def _selector(node: Scalar) -> str:
    name, matchers = _parts(node.text)
    if not name.replace("_", "a").replace(":", "a").isalnum():
        raise ValueError(f'cannot override "{node.text}": write the name of a rule, or NAME{{LABEL="VALUE"}}')
    if matchers:
        try:
            parse_matchers(matchers)
        except UpkeepError as error:
            raise ValueError(str(error)) from None
    return node.text


Overrides = Mapping[Annotated[str, _selector], Override]
"""By the name of a rule, or ``NAME{LABEL="VALUE"}`` where several rules have one name."""


def _parts(selector: str) -> tuple[str, str]:
    name, brace, rest = selector.partition("{")
    return name.strip(), brace + rest


def apply(rules: RuleSet, overrides: Mapping[str, Override], path: str, places: Places) -> tuple[RuleSet, list[Fault]]:
    """The set as the site wants it, and what is wrong with its overrides, or (as warnings) without effect.

    The set's text, and so its digest, speak of the overrides too.
    """
    from agent.rulefile import digest_of, join_texts

    if not overrides:
        return rules, []
    found: list[Fault] = []

    def say(selector: str, message: str, *, warning: bool = False) -> None:
        found.append(Fault(path, *places.get(selector, (0, 0)), message, warning))

    for selector, override in overrides.items():
        chosen = [rule for rule in rules.alert_rules if _selects(selector, rule)]
        if not chosen:
            names = sorted({rule.name for rule in rules.alert_rules})
            say(selector, f'no rule "{selector}" to override{did_you_mean(_parts(selector)[0], names)}', warning=True)
        elif override.threshold is not None and len(chosen) > 1:
            say(
                selector,
                f'cannot set the threshold of "{selector}": {len(chosen)} rules have that name; {_choice(chosen)}',
            )
        elif override.mode is not None and not any(rule.remediation for rule in chosen):
            say(selector, f'"mode" has no effect on "{selector}": it names no remediation', warning=True)
    if any(not fault.warning for fault in found):
        return rules, found
    groups = [
        replace(group, rules=tuple(kept for rule in group.rules for kept in _applied(rule, overrides, say)))
        for group in rules.groups
    ]
    text = rules.text + join_texts({PART: written(overrides)})
    return replace(rules, groups=tuple(groups), text=text, digest=digest_of(text)), found


PART = "overrides"
"""The name of the overrides among the parts of a set's text."""


def written(overrides: Mapping[str, Override]) -> str:
    """Overrides as they could stand in a file: JSON, which is YAML too."""
    return json.dumps({name: _written(each) for name, each in overrides.items()})


def _written(override: Override) -> dict[str, object]:
    held: dict[str, object] = {}
    if override.threshold is not None:
        held["threshold"] = override.threshold
    if override.for_ is not None:
        held["for"] = f"{round(override.for_ * 1000)}ms"
    if override.mode is not None:
        held["mode"] = override.mode.value
    return held or {"disabled": True}


def from_text(text: str, path: str) -> RuleSet:
    """The set whose text the ledger kept, overrides included.

    Parameters
    ----------
    path
        The name of the file with the overrides, for messages.

    Raises
    ------
    FaultyFilesError
        When this version no longer takes it.
    ValueError
        When it is no text of a set.
    """
    from agent import rulefile, yamlfile

    texts = rulefile.split_texts(text)
    parsed = yamlfile.parse_apart(texts)
    changes = parsed.pop(PART, None)
    rules, found = rulefile.from_nodes(parsed)
    if rules is not None and changes is not None and changes.root is not None:
        faults = Faults(path)
        overrides = convert(Overrides, changes.root, faults)
        rules, more = apply(rules, overrides, path, {})  # type: ignore[arg-type]
        found = [*found, *faults.found, *more]
    errors = [fault for fault in found if not fault.warning]
    if rules is None or errors:
        raise FaultyFilesError(errors)
    return rules


def _selects(selector: str, rule: AlertRule) -> bool:
    name, matchers = _parts(selector)
    return rule.name == name and (not matchers or matches(matchers, _fixed_labels(rule)))


def _fixed_labels(rule: AlertRule) -> Labels:
    return full_labels(rule.name, make_labels({name: each.text for name, each in rule.labels.items()}))


def _choice(rules: Sequence[AlertRule]) -> str:
    """How to name one of several rules."""
    severities = [rule.labels["severity"].text for rule in rules if "severity" in rule.labels]
    return "write " + " or ".join(f"'{rules[0].name}{{severity=\"{each}\"}}'" for each in severities)


def _applied(rule: Rule, overrides: Mapping[str, Override], say: Callable[[str, str], None]) -> Iterator[Rule]:
    from agent.rulefile import AlertRule

    for selector, override in overrides.items():
        if not isinstance(rule, AlertRule) or not _selects(selector, rule):
            continue
        if override.disabled:
            return
        try:
            rule = _overridden(rule, override)
        except ValueError as error:
            say(selector, f'cannot set the threshold of "{selector}" to "{override.threshold}": {error}')
    yield rule


def _overridden(rule: AlertRule, override: Override) -> AlertRule:
    if override.threshold is not None:
        if rule.clear is not None:
            raise ValueError('its "clear" has a threshold of its own, which would have to go along')
        rule = replace(rule, expr=_with_threshold(rule.expr, override.threshold))
    if override.for_ is not None:
        rule = replace(rule, timing=replace(rule.timing, for_s=override.for_))
    if override.mode is not None and rule.remediation is not None:
        rule = replace(rule, remediation=replace(rule.remediation, mode=override.mode))
    return rule


# -- thresholds ------------------------------------------------------------------------------------------------------


def _with_threshold(expression: Expression, text: str) -> Expression:
    """The expression with another number.

    Raises
    ------
    ValueError
        With the reason why there is not one number, or why the new one cannot be meant.
    """
    from agent.promql.nodes import NumberLiteral
    from agent.promql.parse import unparse

    found = deciding(expression.node)
    on_right = constant(found.right) is not None
    measured, number = (found.left, found.right) if on_right else (found.right, found.left)
    before = constant(number)
    assert before is not None  # deciding() took care
    after = _meant(text, measured)
    _check_sense(text, measured, before, after, op=found.op if on_right else _FLIPPED[found.op])
    literal = NumberLiteral(after)
    new = replace(found, right=literal) if on_right else replace(found, left=literal)
    node = _replaced(expression.node, found, new)
    return replace(expression, text=unparse(node), node=node)


_FLIPPED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


def deciding(node: Expr) -> Binary:
    """The comparison with a number that gives an alert its value.

    Raises
    ------
    ValueError
        Saying why there is not exactly one.
    """
    from agent.promql.nodes import COMPARISONS, Binary, unwrap

    node = unwrap(node)
    if isinstance(node, Binary) and node.op in ("and", "unless"):
        return deciding(node.left)
    if isinstance(node, Binary) and node.op == "or":
        raise ValueError('its expression is an "or" of several conditions')
    if not isinstance(node, Binary) or node.op not in COMPARISONS or node.bool_:
        raise ValueError("its expression is no comparison")
    if node.op not in _FLIPPED:
        raise ValueError(f'it asks for a state ("{node.op}"), not for a size')
    if (constant(node.left) is None) == (constant(node.right) is None):
        raise ValueError("it compares two measurements, not one with a number")
    return node


def constant(node: Expr) -> float | None:
    """The value of an expression that neither data nor time can change; None for any other."""
    from agent.promql.evaluate import evaluate
    from agent.promql.nodes import Call, VectorSelector, walk
    from agent.promql.values import Scalar as Number

    if any(isinstance(part, VectorSelector | Call) for part in walk(node)):
        return None
    try:
        value = evaluate(node, _Nothing(), 0.0)
    except ExpressionError:
        return None
    return value.value if isinstance(value, Number) else None


class _Nothing:
    """A source without series: what evaluates over it is a constant."""

    def select(self, matchers: object, start: float, end: float) -> Iterable[Points]:
        return ()


def _meant(text: str, measured: Expr) -> float:
    """The number that a written threshold stands for, in the unit of what is measured."""
    from agent.rulevalues import bounds

    known = bounds(measured)
    if text.endswith("%"):
        number = float(text[:-1])
        if known.high == 1.0:
            return number / 100
        if known.high == 100.0 or known.unit == "percent":
            return number
        raise ValueError("a percentage does not fit: what the rule measures is no share of anything known")
    try:
        number = float(text)
    except ValueError:
        return _with_unit(text, known.unit)
    if known.unit in ("bytes", "seconds") and number:
        raise ValueError(
            f"it measures {known.unit}: write a unit, such as {'12GiB' if known.unit == 'bytes' else '2d'}"
        )
    return number


def _with_unit(text: str, unit: str) -> float:
    readers: Mapping[str, Callable[[str], float]] = {
        "bytes": parse_size,
        "MiB": lambda word: parse_size(word) / 1024**2,
        "seconds": parse_duration,
    }
    if unit not in readers:
        raise ValueError(f"it measures {unit or 'a plain number'}: write a number")
    return float(readers[unit](text))


def _check_sense(text: str, measured: Expr, before: float, after: float, *, op: str) -> None:
    """Refuse what can never be reached, always is, or means the other share: 95 % used where the rule asks for free."""
    from agent.rulevalues import bounds

    known = bounds(measured)
    if after < known.low or after > known.high:
        raise ValueError(f"what it measures lies between {known.low:g} and {known.high:g}")
    half = known.high / 2
    if known.high in (1.0, 100.0) and (before - half) * (after - half) < 0:
        other = 100 * (known.high - after) / known.high
        way = "falls below" if op in ("<", "<=") else "rises above"
        share = 100 * before / known.high
        raise ValueError(f"it fires when the share {way} {share:g}%; did you mean {other:g}%?")


def _replaced(node: Expr, old: Binary, new: Binary) -> Expr:
    """The expression with one node on its left edge replaced."""
    from agent.promql.nodes import Binary, Paren

    if node is old:
        return new
    if isinstance(node, Paren):
        return Paren(_replaced(node.expr, old, new))
    assert isinstance(node, Binary)
    return replace(node, left=_replaced(node.left, old, new))
