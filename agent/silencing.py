"""Which silence, if any, covers an alert at an instant: pure functions over what the ledger keeps."""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import ExpressionError
from agent.model import Labels
from agent.promql.nodes import Matcher, VectorSelector
from agent.promql.parse import parse
from agent.schedule import last_due
from agent.store import Silence


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """Matchers as in a selector's braces: ``alertname="DiskFull",mountpoint=~"/data.*"``.

    Raises
    ------
    ExpressionError
        When they cannot be read, or would match every alert.
    """
    node = parse("{" + text.strip().strip("{}") + "}")
    if not isinstance(node, VectorSelector):
        raise ExpressionError(f'cannot read "{text}" as matchers')
    return node.matchers


def covers(silence: Silence, at: float) -> bool:
    """Whether a silence is in force: within its length from its start, or from the last instant of its schedule."""
    if not silence.every:
        return silence.starts_at <= at < silence.starts_at + silence.for_s
    began = last_due(silence.every, at, "local")
    return began is not None and silence.starts_at <= at < began + silence.for_s


def silence_of(silences: Sequence[Silence], rule: str, labels: Labels, at: float) -> Silence | None:
    """The first silence in force that matches an alert; its name counts as the label ``alertname``."""
    held = {**dict(labels), "alertname": rule}
    for silence in silences:
        if covers(silence, at) and all(m.matches(held.get(m.name, "")) for m in parse_matchers(silence.matchers)):
            return silence
    return None
