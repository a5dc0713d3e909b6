"""Matchers over an alert's labels, as people write them: for silences, routes and inhibitions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from agent.errors import ExpressionError
from agent.located import Scalar
from agent.model import Labels

if TYPE_CHECKING:
    from agent.promql.nodes import Matcher


@lru_cache(maxsize=1024)
def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """Matchers as in a selector's braces: ``alertname="DiskFull",mountpoint=~"/data.*"``.

    Raises
    ------
    ExpressionError
        When they cannot be read, or would match every alert.
    """
    from agent.promql.nodes import VectorSelector  # who only reads a configuration never asks
    from agent.promql.parse import parse

    node = parse("{" + text.strip().strip("{}") + "}")
    if not isinstance(node, VectorSelector):
        raise ExpressionError(f'cannot read "{text}" as matchers')
    return node.matchers


def full_labels(rule: str, labels: Labels) -> Labels:
    """An alert's labels as matchers see them: its rule's name counts as the label ``alertname``."""
    return tuple(sorted({**dict(labels), "alertname": rule}.items()))


def matches(matchers: str, labels: Labels) -> bool:
    """Whether all conditions hold; a label that is absent has the value ``""``."""
    held = dict(labels)
    return all(each.matches(held.get(each.name, "")) for each in parse_matchers(matchers))


def _written(node: Scalar) -> str:
    try:
        parse_matchers(node.text)
    except ExpressionError as error:
        raise ValueError(str(error)) from None
    return node.text


def _label(node: Scalar) -> str:
    if not node.text.replace("_", "a").isalnum() or not node.text.isascii() or node.text[0].isdigit():
        raise ValueError(f'cannot use "{node.text}" as a label name: letters, digits and _ only')
    return node.text


Matchers = Annotated[str, _written]
"""Text that :func:`parse_matchers` can read."""
LabelName = Annotated[str, _label]


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While an alert that matches ``source`` fires, those that match ``target`` neither act nor tell.

    As an entry of Alertmanager's ``inhibit_rules``.
    """

    source: Matchers = field(metadata={"help": "matchers of the alert that explains the others"})
    target: Matchers = field(metadata={"help": "matchers of the alerts it explains"})
    equal: tuple[LabelName, ...] = field(
        default=(), metadata={"help": "labels that both must have alike; absent in both is alike"}
    )


def inhibitor_of(rules: Iterable[Inhibition], labels: Labels, firing: Collection[Labels]) -> Labels | None:
    """The first firing alert that inhibits one with these labels; None when there is none.

    ``InhibitRule.hasEqual`` of Alertmanager's ``inhibit/inhibit.go``: an alert that is source and target at once is not
    inhibited by others of which the same is true, so that no two alerts hide each other.

    Parameters
    ----------
    labels, firing
        Full labels, ``alertname`` among them: of the alert asked for, and of every alert that fires.
    """
    held = dict(labels)
    for rule in rules:
        if not matches(rule.target, labels):
            continue
        two_sided = matches(rule.source, labels)
        for other in firing:
            if not matches(rule.source, other) or not _alike(rule.equal, held, dict(other)):
                continue
            if not (two_sided and matches(rule.target, other)):
                return other
    return None


def _alike(names: Iterable[str], left: Mapping[str, str], right: Mapping[str, str]) -> bool:
    return all(left.get(name, "") == right.get(name, "") for name in names)
