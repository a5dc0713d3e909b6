"""What the status page says: gathered from memory at once, and from the files by a thread that may be late."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Literal

from agent import __version__
from agent.clock import Clock
from agent.errors import StoreError
from agent.model import Alert, AlertState, Event, Mode
from agent.promql.evaluate import evaluate
from agent.promql.nodes import MatchOp, selectors
from agent.promql.parse import parse
from agent.promql.values import Vector
from agent.rulecheck import size_threshold
from agent.rulefile import RuleSet
from agent.serve.archive import Archived, archived
from agent.silencing import covers
from agent.store import Reader, Recent, Silence
from reports.words import clean, count, listing

NEARLY_FULL, FULL = 0.85, 0.95
MOST_ALERTS = 50
MOST_ACTIONS = 10
MOST_EVENTS = 10
MOST_REPORTS = 10
SILENT_AFTER_S = 60.0
"""Without a sample for so long the page no longer says that all is quiet."""

_CPU_BUSY = parse('1 - avg(rate(node_cpu_seconds_total{mode="idle"}[1m]))')
_GRADES = ("critical", "error", "warning", "info")

Level = Literal["quiet", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a running agent tells its pages; the callables are asked anew for each page.

    Attributes
    ----------
    limits
        Directories and the size in bytes at which a rule fires, as :func:`size_limits` reads them.
    stuck
        Names of the critical loops that make no progress.
    """

    state_dir: Path
    recent: Recent
    clock: Clock
    zone: tzinfo
    mode: Mode
    alerts: Callable[[], Sequence[Alert]]
    paused: Callable[[], bool]
    stuck: Callable[[], Sequence[str]]
    limits: Callable[[], Mapping[str, float]] = dict
    host: str = field(default_factory=socket.gethostname)
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first line: how bad it is, one sentence, and what belongs beside it."""

    level: Level
    sentence: str
    more: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One alert as the page shows it."""

    rule: str
    grade: str
    labels: tuple[tuple[str, str], ...]
    firing: bool
    since: float
    value: float
    missing: bool


@dataclass(frozen=True, slots=True)
class Fill:
    """Something that fills up: ``share`` of ``limit_bytes`` that is used, None where no limit is known."""

    path: str
    used_bytes: float
    limit_bytes: float | None
    files: float | None = None
    read_only: bool = False

    @property
    def share(self) -> float | None:
        return self.used_bytes / self.limit_bytes if self.limit_bytes else None

    @property
    def level(self) -> str:
        share = self.share or 0.0
        return "full" if share >= FULL else "high" if share >= NEARLY_FULL else "fine"


@dataclass(frozen=True, slots=True)
class Host:
    """Shares from 0 to 1; None is unknown."""

    cpu_busy: float | None
    processors: int
    load1: float | None
    memory: Fill | None
    swap: Fill | None
    up_s: float | None
    mounts: tuple[Fill, ...]
    directories: tuple[Fill, ...]
    collectors_down: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Now:
    """What memory says at ``at``: it needs no disk."""

    at: float
    sampled_at: float | None
    alerts: tuple[Shown, ...]
    host: Host
    paused: bool
    stuck: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """One action; a figure that is not known yet is None."""

    id: int
    at: float
    handler: str
    touched: str
    cause: str
    status: str
    outcome: str
    reason: str
    bytes_freed: float | None
    planned_bytes: float | None


@dataclass(frozen=True, slots=True)
class Records:
    """What the files say; ``problem`` is why they could not be read."""

    actions: tuple[Done, ...] = ()
    events: tuple[Event, ...] = ()
    circuits: tuple[tuple[str, str], ...] = ()
    silences: tuple[Silence, ...] = ()
    reports: tuple[Archived, ...] = ()
    problem: str = ""


# -- from memory -----------------------------------------------------------------------------------------------------


def now(facts: Facts) -> Now:
    """What memory says; to be called in the loop that writes it."""
    at = facts.clock.wall()
    figures = _Figures(facts.recent, at)
    return Now(
        at=at,
        sampled_at=figures.newest,
        alerts=tuple(sorted(map(_shown, facts.alerts()), key=_worst_first)),
        host=_host(figures, facts.recent, facts.limits(), at),
        paused=facts.paused(),
        stuck=tuple(facts.stuck()),
    )


class _Figures:
    """The newest values by metric and, below it, by labels."""

    def __init__(self, recent: Recent, at: float) -> None:
        self.newest: float | None = None
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
        for series, value, sampled_at in recent.latest(at):
            self._values[series.metric][series.labels] = value
            self.newest = max(self.newest or 0.0, sampled_at)

    def of(self, metric: str) -> Mapping[tuple[tuple[str, str], ...], float]:
        return self._values.get(metric, {})

    def one(self, metric: str) -> float | None:
        return self.of(metric).get(())


def _shown(alert: Alert) -> Shown:
    labels = dict(alert.labels)
    grade = labels.pop("severity", "")
    firing = alert.state is AlertState.FIRING
    # Rules may carry any word, or none: what nobody graded counts as a warning.
    return Shown(
        alert.rule,
        grade if grade in _GRADES else "warning",
        tuple(labels.items()),
        firing,
        (alert.fired_at if firing else None) or alert.active_since,
        alert.value,
        alert.missing,
    )


def _worst_first(alert: Shown) -> tuple[bool, int, float]:
    return not alert.firing, _GRADES.index(alert.grade), alert.since


def _host(figures: _Figures, recent: Recent, limits: Mapping[str, float], at: float) -> Host:
    busy = evaluate(_CPU_BUSY, recent, at)
    booted = figures.one("node_boot_time_seconds")
    return Host(
        cpu_busy=busy.samples[0][1] if isinstance(busy, Vector) and busy.samples else None,
        processors=sum(("mode", "idle") in labels for labels in figures.of("node_cpu_seconds_total")),
        load1=figures.one("node_load1"),
        memory=_used_of(figures, "memory", "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"),
        swap=_used_of(figures, "swap", "node_memory_SwapTotal_bytes", "node_memory_SwapFree_bytes"),
        up_s=at - booted if booted is not None else None,
        mounts=tuple(_mounts(figures)),
        directories=tuple(_directories(figures, limits)),
        collectors_down=tuple(
            sorted(dict(labels)["collector"] for labels, up in figures.of("upkeep_collector_up").items() if not up)
        ),
    )


def _used_of(figures: _Figures, name: str, whole: str, free: str) -> Fill | None:
    total, left = figures.one(whole), figures.one(free)
    return Fill(name, total - left, total) if total and left is not None else None


def _mounts(figures: _Figures) -> Iterator[Fill]:
    """Each file system once, by its shortest mount point, fullest first."""
    avail = figures.of("node_filesystem_avail_bytes")
    read_only = figures.of("node_filesystem_readonly")
    found: dict[object, Fill] = {}
    sized = [(dict(labels), labels, size) for labels, size in figures.of("node_filesystem_size_bytes").items()]
    for names, labels, size in sorted(sized, key=lambda each: len(each[0].get("mountpoint", ""))):
        if size and labels in avail:
            path, device = names.get("mountpoint", ""), names.get("device", "")
            # One device mounted twice is one file system; tmpfs devices share a name.
            key = (device, size) if device.startswith("/") else path
            found.setdefault(key, Fill(path, size - avail[labels], size, read_only=read_only.get(labels) == 1))
    return iter(sorted(found.values(), key=lambda fill: (-(fill.share or 0.0), fill.path)))


def _directories(figures: _Figures, limits: Mapping[str, float]) -> Iterator[Fill]:
    """Those with a limit first, nearest to it first; then by size."""
    files = figures.of("directory_files")
    found = [
        Fill(path, size, limits.get(path), files.get(labels))
        for labels, size in figures.of("directory_size_bytes").items()
        if (path := dict(labels).get("path"))
    ]
    return iter(sorted(found, key=lambda fill: (-(fill.share or -1.0), -fill.used_bytes, fill.path)))


def size_limits(rules: RuleSet) -> dict[str, float]:
    """The size in bytes from which a rule complains of a directory, by path; the smallest where several do."""
    found: dict[str, float] = {}
    for rule in rules.alert_rules:
        threshold = size_threshold(rule)
        if threshold is None:
            continue
        for selector in selectors(rule.expr.node):
            for matcher in selector.matchers:
                if matcher.name == "path" and matcher.op is MatchOp.EQUAL:
                    found[matcher.value] = min(threshold, found.get(matcher.value, threshold))
    return found


def verdict(told: Now) -> Verdict:
    """The state of things in one sentence."""
    silent = told.sampled_at is None or told.at - told.sampled_at > SILENT_AFTER_S
    firing = [alert for alert in told.alerts if alert.firing]
    pending = len(told.alerts) - len(firing)
    more = f"{count(pending, 'alert')} pending" if pending else ""
    if told.stuck:
        return Verdict("critical", f"The agent is stuck: {listing(told.stuck)}", more)
    if firing:
        names = list(dict.fromkeys(clean(alert.rule, 60) for alert in firing))
        shown = listing([*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])])
        grave = any(alert.grade in ("critical", "error") for alert in firing)
        verb = "fires" if len(firing) == 1 else "fire"
        return Verdict("critical" if grave else "warning", f"{count(len(firing), 'alert')} {verb}: {shown}", more)
    if silent:
        return Verdict("warning", "No new samples: nothing can be said of now", more)
    if told.host.collectors_down:
        return Verdict("warning", f"Cannot read: {listing(told.host.collectors_down)}", more)
    return Verdict("quiet", "All quiet: no alert fires", more)


# -- from the files --------------------------------------------------------------------------------------------------


_ACTIONS = f"""
SELECT id, requested_at, handler,
       coalesce(json_extract(params, '$.path'), json_extract(params, '$.directory'), resource),
       cause, status, coalesce(verdict, ''), reason,
       json_extract(outcome, '$.bytes_freed'), json_extract(plan, '$.bytes')
FROM action ORDER BY id DESC LIMIT {MOST_ACTIONS}
"""
_SILENCES = """
SELECT matchers, why, by, starts_at, for_s, every, id FROM silence WHERE ended_at IS NULL ORDER BY id DESC LIMIT 100
"""


def records(state_dir: Path, at: float) -> Records:
    """What the files say; to be called in a thread, for a disk may hang."""
    reports = tuple(archived(state_dir)[:MOST_REPORTS])
    try:
        with Reader.open(state_dir) as reader:
            events = reader.events(limit=MOST_EVENTS)
            if not os.path.exists(state_dir / "ledger.db"):
                return Records(events=tuple(events), reports=reports)
            actions = [Done(*row) for row in reader.sql(_ACTIONS)[1]]
            circuits = reader.sql("SELECT handler, resource FROM circuit ORDER BY opened_at DESC LIMIT 100")[1]
            silences = [Silence(*row) for row in reader.sql(_SILENCES)[1]]
    except StoreError as error:
        return Records(reports=reports, problem=str(error))
    return Records(
        actions=tuple(actions),
        events=tuple(events),
        circuits=tuple((str(handler), str(resource)) for handler, resource in circuits),
        silences=tuple(silence for silence in silences if covers(silence, at)),
        reports=reports,
    )
