"""The one alert state machine: from what a rule's expression says now, and what was, to what is.

Pure: time and the previous state come in, the next state goes out, and nothing is kept. Saved and restored between any
two steps it goes on as if nothing had happened. The ideas are those of ``rules/alerting.go`` in Prometheus, and a rule
without ``clear`` whose absence means false behaves as there, step by step.

One label set of one rule is in one of three states:

``INACTIVE``
    The expression is false. Returned once, so that the caller can store the end of an alert, and then forgotten; only
    under ``on_missing: fire`` it is remembered, because a label set must have been seen to be missed.
``PENDING``
    The expression is true, for less than ``for`` yet. It turns inactive as soon as the expression is false.
``FIRING``
    The expression has been true for ``for``. It turns inactive when the expression is false and has been for
    ``keep_firing_for``; with a ``clear`` expression, when that one is true.

What is seen of a label set at one instant is one of four findings:

``TRUE``
    It is in the result of the expression. This wins over any other sign.
``FALSE``
    It is known to be false; or the rule is such that absence says so.
``BETWEEN``
    The condition of a firing alert no longer holds, but that of ``clear`` does not hold yet: nothing else than
    ``clear`` ends it, and data that went missing end it neither.
``MISSING``
    Neither true nor known to be false: the data went away. ``on_missing`` decides: ``hold`` changes nothing and lets no
    timer go on, ``clear`` takes it for false, ``fire`` for true.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto

from agent.model import Alert, AlertState, Labels


class OnMissing(StrEnum):
    """What missing data mean for an alert."""

    HOLD = "hold"
    CLEAR = "clear"
    FIRE = "fire"


@dataclass(frozen=True, slots=True)
class Timing:
    """The part of a rule that the state machine needs."""

    for_s: float = 0.0
    keep_firing_for_s: float = 0.0
    on_missing: OnMissing = OnMissing.HOLD
    has_clear: bool = False
    """The rule has a ``clear`` expression, which alone ends a firing alert."""


class _Finding(Enum):
    TRUE = auto()
    FALSE = auto()
    BETWEEN = auto()
    MISSING = auto()


def step(
    rule: str,
    previous: Mapping[Labels, Alert],
    breaches: Mapping[Labels, float],
    known_false: Collection[Labels] | None,
    timing: Timing,
    at: float,
) -> dict[Labels, Alert]:
    """The alerts of one rule after one evaluation.

    Parameters
    ----------
    rule
        The rule's name, for new alerts.
    previous
        What the last step returned; empty at first.
    breaches
        The result of the rule's expression: label sets, without the metric's name, and values.
    known_false
        For a rule with ``clear``, the label sets in the result of that expression. For any other, those in the result
        of :func:`agent.promql.presence.false_when`, or None where that is None and absence from ``breaches`` is all
        there is to know.
    timing
        The rule's durations and what it makes of missing data.
    at
        Seconds since the epoch.

    Returns
    -------
    dict
        Pending and firing alerts, and those that have just ended as inactive. Under ``on_missing: fire`` also, as
        inactive, every label set that was ever known to be false. An alert that did not change is the same object as
        before.
    """
    alerts: dict[Labels, Alert] = {}
    for labels, alert in previous.items():
        finding = _find(alert, breaches, known_false, timing)
        if (following := _next(alert, finding, breaches.get(labels, alert.value), timing, at)) is not None:
            alerts[labels] = following
    for labels, value in breaches.items():
        if labels not in previous:
            alerts[labels] = _begin(rule, labels, value, timing, at)
    if timing.on_missing is OnMissing.FIRE and known_false and not timing.has_clear:
        for labels in known_false:
            if labels not in alerts:
                alerts[labels] = Alert(rule, labels, AlertState.INACTIVE, 0.0, at)
    return alerts


def _find(
    alert: Alert, breaches: Mapping[Labels, float], known_false: Collection[Labels] | None, timing: Timing
) -> _Finding:
    if alert.labels in breaches:
        return _Finding.TRUE
    if known_false is None or alert.labels in known_false:
        return _Finding.FALSE
    if timing.has_clear:
        return _Finding.BETWEEN if alert.state is AlertState.FIRING else _Finding.FALSE
    return _Finding.MISSING


def _next(alert: Alert, finding: _Finding, value: float, timing: Timing, at: float) -> Alert | None:
    """One label set's next alert; None to forget it."""
    missing = finding is _Finding.MISSING
    if missing and timing.on_missing is OnMissing.HOLD:
        return _hold(alert, at)
    if finding is _Finding.TRUE or (missing and timing.on_missing is OnMissing.FIRE):
        return _continue(alert, value, timing, at, missing)
    if alert.state is AlertState.INACTIVE:
        return _changed(alert, missing=False) if timing.on_missing is OnMissing.FIRE else None
    if finding is _Finding.BETWEEN:
        return _changed(alert, clear_since=None, missing=False)
    return _end(alert, timing, at)


def _begin(rule: str, labels: Labels, value: float, timing: Timing, at: float, missing: bool = False) -> Alert:
    pending = Alert(rule, labels, AlertState.PENDING, value, active_since=at, missing=missing)
    return _fire_when_due(pending, timing, at)


def _continue(alert: Alert, value: float, timing: Timing, at: float, missing: bool) -> Alert:
    """The condition holds."""
    if alert.state is AlertState.INACTIVE:
        return _begin(alert.rule, alert.labels, value, timing, at, missing)
    if alert.state is AlertState.FIRING:
        return _changed(alert, value=value, clear_since=None, missing=missing)
    since = alert.active_since
    if alert.clear_since is not None:
        # What was held while data were missing does not count as time in which the condition held.
        since += at - alert.clear_since
    return _fire_when_due(
        _changed(alert, value=value, active_since=since, clear_since=None, missing=missing), timing, at
    )


def _fire_when_due(alert: Alert, timing: Timing, at: float) -> Alert:
    if _elapsed(alert.active_since, at) >= timing.for_s:
        return replace(alert, state=AlertState.FIRING, fired_at=at)
    return alert


def _hold(alert: Alert, at: float) -> Alert | None:
    if alert.state is AlertState.INACTIVE:
        return None
    since = alert.clear_since
    if alert.state is AlertState.PENDING and since is None:
        since = at
    return _changed(alert, clear_since=since, missing=True)


def _end(alert: Alert, timing: Timing, at: float) -> Alert:
    """The condition does not hold: inactive, at once or when ``keep_firing_for`` has passed."""
    if alert.state is AlertState.FIRING and timing.keep_firing_for_s > 0:
        since = at if alert.clear_since is None else alert.clear_since
        if _elapsed(since, at) < timing.keep_firing_for_s:
            return _changed(alert, clear_since=since, missing=False)
    return replace(alert, state=AlertState.INACTIVE, clear_since=at, missing=False)


def _elapsed(since: float, at: float) -> float:
    # To the millisecond: the difference of two instants as floats may fall short of the duration between them.
    return round(at - since, 3)


def _changed(alert: Alert, **fields: object) -> Alert:
    """The alert with these fields; the same object where none differs, so that the caller need not store it."""
    if all(_same(getattr(alert, name), value) for name, value in fields.items()):
        return alert
    return replace(alert, **fields)  # type: ignore[arg-type]


def _same(left: object, right: object) -> bool:
    return left == right or (left != left and right != right)
