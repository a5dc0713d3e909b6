"""``upkeep backtest``: what rules would have done over this host's own history."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path

from agent import backtest, rulefile, schedule
from agent.app import load_rules
from agent.backtest import Asked, Firing, Tested
from agent.commands import common
from agent.config import LoadedConfig
from agent.errors import UpkeepError
from agent.located import did_you_mean
from agent.model import Mode
from agent.rulefile import AlertRule, RecordingRule, RuleSet
from agent.store import Reader

NIGHT_FROM, NIGHT_TO = 22, 6
"""Local hours: who is told then was asleep."""

MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Period:
    """What was looked at, in whose time zone a night is, and whether the host would have acted."""

    start: float
    end: float
    zone: tzinfo
    mode: Mode

    def at_night(self, firings: Sequence[Firing]) -> int:
        """How many fired between ten in the evening and six in the morning."""
        hours = [datetime.fromtimestamp(firing.fired_at, self.zone).hour for firing in firings]
        return sum(hour >= NIGHT_FROM or hour < NIGHT_TO for hour in hours)

    def lasted_s(self, firing: Firing) -> float:
        return (self.end if firing.ended_at is None else firing.ended_at) - firing.fired_at


def run(arguments: Namespace) -> int:
    """Exit status 1 when a rule could not be judged."""
    settings = common.loaded(arguments)
    rules = rulefile.load(arguments.files) if arguments.files else load_rules(settings)
    now = time.time()
    end = common.parse_time(arguments.end, now) if arguments.end else now
    period, tested = over(_chosen(rules, arguments.rule), settings, end - common.duration(arguments.since), end)
    if arguments.json:
        common.print_json(facts(tested, period))
    else:
        show(tested, period)
    return int(any(each.error for each in tested))


def over(rules: RuleSet, settings: LoadedConfig, start: float, end: float) -> tuple[Period, list[Tested]]:
    """Backtest over what is kept of a period, with a bar on a terminal.

    Raises
    ------
    UpkeepError
        When nothing is kept of it.
    """
    with Reader.open(Path(settings.config.state_dir)) as reader:
        start = max(start, _begins(reader))
        if start >= end:
            raise UpkeepError("cannot backtest: no history is kept of that time")
        bar = _bar(time.monotonic()) if sys.stderr.isatty() else lambda done, whole: None
        tested = backtest.run(rules, reader, start, end, bar)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return Period(start, end, schedule.zone(settings.config.timezone), settings.config.mode), tested


def _chosen(rules: RuleSet, name: str | None) -> RuleSet:
    """The set with the alerts of one name alone; what recording rules make stays."""
    if name is None:
        return rules
    names = sorted({rule.name for rule in rules.alert_rules})
    if name not in names:
        raise UpkeepError(f'unknown rule "{name}"{did_you_mean(name, names)}')
    return replace(
        rules,
        groups=tuple(
            replace(group, rules=tuple(rule for rule in group.rules if _kept(rule, name))) for group in rules.groups
        ),
    )


def _kept(rule: AlertRule | RecordingRule, name: str) -> bool:
    return isinstance(rule, RecordingRule) or rule.name == name


def _begins(reader: Reader) -> float:
    """The first instant of which samples are kept."""
    _, [(packed, hot)] = reader.sql("SELECT (SELECT min(id) FROM chunk) / 1e3, (SELECT min(id) FROM tick) / 1e6")
    return min((at for at in (packed, hot) if at is not None), default=float("inf"))


def _bar(begun: float) -> Callable[[float, float], None]:
    def draw(done: float, whole: float) -> None:
        share = done / whole if whole else 1.0
        filled = round(share * 30)
        left_s = (time.monotonic() - begun) * (1 - share) / share if share > 0.02 else 0.0
        left = f", {common.span(round(left_s))} left" if left_s else ""
        bar = "█" * filled + "·" * (30 - filled)
        print(f"\r\033[K{bar} {share:4.0%} of {common.span(whole)}{left}", end="", file=sys.stderr, flush=True)

    return draw


# -- for machines ----------------------------------------------------------------------------------------------------


def facts(tested: Sequence[Tested], period: Period) -> dict[str, object]:
    """The whole result as the command's JSON has it."""
    return {
        "start": common.iso(period.start),
        "end": common.iso(period.end),
        "rules": [_rule_facts(each, period) for each in tested],
    }


def _rule_facts(tested: Tested, period: Period) -> dict[str, object]:
    asked = {id(each.firing): each for each in tested.asked}
    return {
        "rule": tested.rule.name,
        "place": str(tested.rule.place),
        "fired": len(tested.firings),
        "at_night": period.at_night(tested.firings),
        "firing_s": round(sum(map(period.lasted_s, tested.firings)), 3),
        "without_data": sorted(tested.unseen),
        "failed": tested.failed,
        "error": tested.error,
        "firings": [
            {
                "fired_at": common.iso(firing.fired_at),
                "ended_at": common.iso(firing.ended_at),
                "lasted_s": round(period.lasted_s(firing), 3),
                "value": common.json_number(firing.value),
                "labels": dict(firing.labels),
                "action": _action_facts(asked.get(id(firing)), tested.rule, period),
            }
            for firing in tested.firings
        ],
    }


def _action_facts(asked: Asked | None, rule: AlertRule, period: Period) -> dict[str, object] | None:
    if asked is None:
        return None
    return {
        "handler": asked.handler,
        "resource": asked.resource,
        "mode": _mode(rule, period).value,
        "at": None if asked.held else common.iso(asked.at),
        "held": asked.held,
    }


def _mode(rule: AlertRule, period: Period) -> Mode:
    return (rule.remediation.mode if rule.remediation else None) or period.mode


# -- for people ------------------------------------------------------------------------------------------------------


def show(tested: Sequence[Tested], period: Period) -> None:
    """A table of the rules that would have fired, the last firings of each, and the rest in a line each."""
    print(f"from {common.clock_time(period.start)} to {common.clock_time(period.end)}, {sentence(tested, period)}\n")
    fired = [each for each in tested if each.firings]
    common.print_table(
        ("RULE", "FIRED", "AT NIGHT", "LONGEST", "IN ALL", "WOULD HAVE DONE"), [_row(each, period) for each in fired]
    )
    for each in fired:
        print(f"\n{each.rule.name}  ({each.rule.place})")
        common.print_table(("FIRED", "LASTED", "VALUE", "LABELS"), _firing_rows(each, period))
        if len(each.firings) > MOST_SHOWN:
            print(f"… and {len(each.firings) - MOST_SHOWN} before")
    for title, names in _rest(tested).items():
        if names:
            print(f"\n{title}: {', '.join(names)}")


def sentence(tested: Sequence[Tested], period: Period) -> str:
    """``would have fired 14 times, 11 at night``."""
    firings = [firing for each in tested for firing in each.firings]
    if not firings:
        return "would not have fired"
    times = "once" if len(firings) == 1 else f"{len(firings)} times"
    return f"would have fired {times}, {period.at_night(firings) or 'none'} at night"


def _row(tested: Tested, period: Period) -> Sequence[object]:
    lengths = [period.lasted_s(firing) for firing in tested.firings]
    return (
        tested.rule.name,
        len(tested.firings),
        period.at_night(tested.firings),
        common.span(max(lengths)),
        common.span(sum(lengths)),
        _done(tested, period),
    )


def _done(tested: Tested, period: Period) -> str:
    """The first rung with how often it had its turn, then the names of those above it."""
    if not tested.asked or tested.rule.remediation is None:
        return "-"
    done = Counter((each.handler, each.resource) for each in tested.asked if not each.held)
    said = [
        f"{handler} {resource}".replace("notify notify", "notify") + f" ×{n}" for (handler, resource), n in done.items()
    ]
    held = Counter(each.held for each in tested.asked if each.held)
    said += [f"{n} held by {why}" for why, n in held.items()]
    above = [step.handler for step in tested.rule.remediation.steps[1:]]
    after = f", then {', '.join(above)}" if above else ""
    observed = _mode(tested.rule, period) is Mode.OBSERVE and not tested.asked[0].harmless
    return ", ".join(said) + (" (observed)" if observed else "") + after


def _firing_rows(tested: Tested, period: Period) -> list[Sequence[object]]:
    return [
        (
            common.clock_time(firing.fired_at),
            common.span(period.lasted_s(firing)) + ("" if firing.ended_at else " and on"),
            firing.value,
            common.words(firing.labels),
        )
        for firing in tested.firings[-MOST_SHOWN:]
    ]


def _rest(tested: Sequence[Tested]) -> dict[str, list[str]]:
    silent = [each for each in tested if not each.firings and not each.error]
    return {
        "would not have fired": [each.rule.name for each in silent if not each.unseen],
        "without data": [f"{each.rule.name} ({', '.join(sorted(each.unseen))})" for each in silent if each.unseen],
        "cannot be judged": [f"{each.rule.name} ({each.error})" for each in tested if each.error],
    }
