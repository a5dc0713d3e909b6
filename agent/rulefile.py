"""Rule files: ``groups``, ``patterns``, ``jobs``, ``inhibit`` as SREs write them, as frozen values that cannot act.

A group is a Prometheus rule group; ``clear``, ``on_missing`` and ``remediation`` are ours. Everything that can be known
to be wrong is known here, with its place, before a rule is ever judged.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated

from agent import schedule, yamlfile
from agent.alerting import OnMissing, Timing
from agent.errors import ExpressionError, Fault, FaultyFilesError, PatternError
from agent.located import (
    MISSING,
    Duration,
    Faults,
    FromNode,
    MappingNode,
    Node,
    Scalar,
    Size,
    build,
    convert,
    did_you_mean,
    key_of,
    parse_duration,
)
from agent.logwatch.patterns import Pattern, Rate, check_regex, check_samples, quoted
from agent.logwatch.records import (
    LONGEST_BYTES,
    LONGEST_LINES,
    LONGEST_WAIT_S,
    MOST_BYTES,
    MOST_LINES,
    WAIT_S,
    Multiline,
    RecordMode,
)
from agent.matching import Inhibition
from agent.model import Mode, Severity
from agent.promql import template
from agent.promql.nodes import NAME, Expr, MatchOp, VectorSelector, lookback, selectors
from agent.promql.parse import parse
from agent.promql.presence import false_when
from agent.specs import HANDLERS, Spec

TELLING = frozenset({"notify", "report"})
"""Handlers that change nothing on the host."""

DEFAULT_INTERVAL_S = 15.0
DEFAULT_COOLDOWN_S = 30 * 60.0
DEFAULT_VERIFY_WITHIN_S = 120.0


# -- the values ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file something was written."""

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Expression:
    """A PromQL expression, its text, and what the engine wants to know of it beforehand."""

    text: str
    node: Expr
    line: int
    column: int

    @cached_property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics it selects; a selector that names none adds nothing."""
        return frozenset(name for selector in selectors(self.node) if (name := metric_of(selector)))

    @cached_property
    def lookback_s(self) -> float:
        return lookback(self.node)

    @cached_property
    def false_node(self) -> Expr | None:
        """The expression for the label sets known to be false, or None where absence says so."""
        return false_when(self.node)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``count`` actions in ``per_s`` seconds."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of a ladder: a handler, its parameters, and how long the repair may take to show."""

    handler: str
    spec: Spec
    verify_within_s: float
    place: Place


@dataclass(frozen=True, slots=True)
class Remediation:
    steps: tuple[Step, ...]
    cooldown_s: float = DEFAULT_COOLDOWN_S
    limit: Limit | None = None
    mode: Mode | None = None
    """Overrides the host's mode for this rule alone."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    name: str
    expr: Expression
    timing: Timing
    clear: Expression | None
    labels: Mapping[str, template.Template]
    annotations: Mapping[str, template.Template]
    remediation: Remediation | None
    place: Place

    @property
    def metrics(self) -> frozenset[str]:
        return self.expr.metrics | (self.clear.metrics if self.clear else frozenset())


@dataclass(frozen=True, slots=True)
class RecordingRule:
    name: str
    expr: Expression
    labels: Mapping[str, str]
    place: Place


Rule = AlertRule | RecordingRule


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    interval_s: float
    limit: int
    rules: tuple[Rule, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Job:
    """A calendar entry: its steps run one after the other, each an action like any other."""

    name: str
    schedule: str
    steps: tuple[Step, ...]
    catch_up: bool
    place: Place


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything that was loaded together. ``digest`` names its ``text`` in the ledger."""

    groups: tuple[Group, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    jobs: tuple[Job, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()
    digest: str = ""
    text: str = field(default="", repr=False)
    warnings: tuple[Fault, ...] = field(default=(), compare=False)

    @property
    def alert_rules(self) -> Iterable[AlertRule]:
        return (rule for group in self.groups for rule in group.rules if isinstance(rule, AlertRule))


# -- what is written -------------------------------------------------------------------------------------------------

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PERIODS = {"hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0}


def metric_of(selector: VectorSelector) -> str:
    """The metric a selector names, or nothing where it matches names by pattern or not at all."""
    return next((each.value for each in selector.matchers if each.name == NAME and each.op is MatchOp.EQUAL), "")


def _expression(node: Scalar) -> Expression:
    try:
        return Expression(node.text, parse(node.text), node.line, node.column)
    except ExpressionError as error:
        raise ValueError(str(error)) from None


def _template(node: Scalar) -> template.Template:
    try:
        return template.compile(node.text)
    except ExpressionError as error:
        raise ValueError(str(error)) from None


def _label_name(node: Scalar) -> str:
    if not _LABEL_NAME.fullmatch(node.text) or node.text == "__name__":
        raise ValueError(f'cannot use "{node.text}" as a label name: letters, digits and _ only')
    return node.text


def _limit(node: Scalar) -> Limit:
    match = re.fullmatch(r"([1-9]\d*) per (\S+)", node.text)
    if not match:
        raise ValueError(f'cannot read "{node.text}" as a limit: write it like "6 per day" or "2 per 30m"')
    period = _PERIODS.get(match[2])
    return Limit(int(match[1]), parse_duration(match[2]) if period is None else period)


def _schedule(node: Scalar) -> str:
    schedule.check(node.text)
    return node.text


def _step(node: Node, faults: Faults) -> object:
    """``{HANDLER: {parameters}, verify_within: D}``: exactly one handler."""
    if not isinstance(node, MappingNode):
        faults.add(node, "cannot use this as a step: write HANDLER: {parameters}")
        return MISSING
    within = node.get("verify_within")
    verify_within = DEFAULT_VERIFY_WITHIN_S if within is None else convert(Duration, within, faults)
    handlers = [(key, value) for key, value in node.entries if key.text != "verify_within"]
    for key, _ in handlers:
        if key.text not in HANDLERS:
            faults.add(key, f'unknown handler "{key.text}"{did_you_mean(key.text, [*HANDLERS, "verify_within"])}')
    if len(handlers) != 1:
        faults.add(node, f"cannot use this as a step: it names {len(handlers)} handlers, a step names one")
    if len(handlers) != 1 or handlers[0][0].text not in HANDLERS:
        return MISSING
    [(key, value)] = handlers
    spec = build(HANDLERS[key.text], value, faults)
    if spec is None or verify_within is MISSING:
        return MISSING
    return Step(key.text, spec, verify_within, Place(faults.path, key.line, key.column))  # type: ignore[arg-type]


_Expression = Annotated[Expression, _expression]
_Templates = Mapping[Annotated[str, _label_name], Annotated[template.Template, _template]]
_Step = Annotated[Step, FromNode(_step)]


@dataclass(frozen=True, slots=True)
class _WrittenRemediation:
    steps: tuple[_Step, ...]
    cooldown: Duration = DEFAULT_COOLDOWN_S
    limit: Annotated[Limit, _limit] | None = None
    mode: Mode | None = None


@dataclass(frozen=True, slots=True)
class _WrittenRule:
    expr: _Expression
    alert: str | None = None
    record: str | None = None
    for_: Duration = 0.0
    keep_firing_for: Duration = 0.0
    clear: _Expression | None = None
    on_missing: OnMissing = OnMissing.HOLD
    labels: _Templates = field(default_factory=dict)
    annotations: _Templates = field(default_factory=dict)
    remediation: _WrittenRemediation | None = None


def _rule(node: Node, faults: Faults) -> object:
    written = build(_WrittenRule, node, faults)
    if written is None or not isinstance(node, MappingNode):
        return MISSING
    name_node = node.get("alert") or node.get("record") or node
    place = Place(faults.path, name_node.line, name_node.column)
    if (written.alert is None) == (written.record is None):
        faults.add(node, 'a rule has either "alert" or "record"')
        return MISSING
    if written.record is not None:
        return _recording(written, written.record, node, place, faults)
    if not written.alert:
        faults.add(name_node, "cannot use an empty alert name")
        return MISSING
    timing = Timing(written.for_, written.keep_firing_for, written.on_missing, written.clear is not None)
    fix = written.remediation
    for step in fix.steps if fix and written.expr.metrics == {"log_matches_total"} else ():
        if step.handler not in TELLING:
            faults.add(
                Scalar(step.handler, True, step.place.line, step.place.column),
                f'cannot let a log line alone start "{step.handler}": whoever may write to the log could write it; '
                'add a condition that is measured, with "and"',
            )
            return MISSING
    remediation = Remediation(fix.steps, fix.cooldown, fix.limit, fix.mode) if fix else None
    return AlertRule(
        written.alert, written.expr, timing, written.clear, written.labels, written.annotations, remediation, place
    )


def _recording(written: _WrittenRule, name: str, node: MappingNode, place: Place, faults: Faults) -> object:
    alert_only = {key_of(item) for item in fields(_WrittenRule)} - {"record", "expr", "labels"}
    wrong = [key for key, _ in node.entries if key.text in alert_only]
    for key in wrong:
        faults.add(key, f'"{key.text}" is for alerts: a recording rule has record, expr and labels')
    if not _METRIC_NAME.fullmatch(name):
        faults.add(node.get("record"), f'cannot record "{name}": not a metric name')
    elif not wrong:
        return RecordingRule(name, written.expr, {k: v.text for k, v in written.labels.items()}, place)
    return MISSING


@dataclass(frozen=True, slots=True)
class _WrittenGroup:
    name: str
    rules: tuple[Annotated[Rule, FromNode(_rule)], ...] = ()
    interval: Duration = DEFAULT_INTERVAL_S
    limit: int = 0


def _group(node: Node, faults: Faults) -> object:
    written = build(_WrittenGroup, node, faults)
    if written is None:
        return MISSING
    if written.interval < 1:
        faults.add(node, "cannot judge a group more often than every second")
        return MISSING
    place = Place(faults.path, node.line, node.column)
    return Group(written.name, written.interval, written.limit, written.rules, place)


@dataclass(frozen=True, slots=True)
class _WrittenSamples:
    match: tuple[str, ...] = ()
    no_match: tuple[str, ...] = ()


def _rate(node: Scalar) -> Rate:
    match = re.fullmatch(r"([1-9]\d{0,2}) within (\S+)", node.text)
    if not match:
        raise ValueError(f'cannot read "{node.text}" as a rate: write it like "5 within 1m", with at most 999')
    period = parse_duration(match[2])
    if not 0 < period <= 86400:
        raise ValueError(f'cannot use "{node.text}" as a rate: its span may be up to a day')
    return Rate(int(match[1]), period)


@dataclass(frozen=True, slots=True)
class _WrittenMultiline:
    mode: RecordMode
    regex: str
    max_lines: int = MOST_LINES
    max_bytes: Size = MOST_BYTES
    max_wait: Duration = WAIT_S

    def __post_init__(self) -> None:
        for key, value, most in (
            ("max_lines", self.max_lines, LONGEST_LINES),
            ("max_bytes", self.max_bytes, LONGEST_BYTES),
            ("max_wait", self.max_wait, LONGEST_WAIT_S),
        ):
            if not 0 < value <= most:
                raise ValueError(f'cannot use {value:g} as "{key}": it is above 0 and at most {most:g}')


@dataclass(frozen=True, slots=True)
class _WrittenPattern:
    name: str
    regex: str | None = None
    severity: Severity = Severity.WARNING
    exclude: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    multiline: _WrittenMultiline | None = None
    rate: Annotated[Rate, _rate] | None = None
    samples: _WrittenSamples = field(default_factory=_WrittenSamples)


def _pattern(node: Node, faults: Faults) -> object:
    written = build(_WrittenPattern, node, faults)
    if written is None or not isinstance(node, MappingNode):
        return MISSING
    if not _LABEL_NAME.fullmatch(written.name):
        faults.add(node.get("name"), f'cannot use "{written.name}" as a pattern name: letters, digits and _ only')
        return MISSING
    regex = written.regex
    if regex is None and written.fields:
        # The cheap first look for a JSON line; the conditions decide.
        regex = r"^\s*\{.*" + quoted(f'"{next(iter(written.fields)).rpartition(".")[2]}"')
    if regex is None:
        faults.add(node, 'missing key "regex"')
        return MISSING
    if not _check_regexes(written, regex, node, faults):
        return MISSING
    rest = written.multiline
    pattern = Pattern(
        written.name,
        regex,
        written.severity,
        written.samples.match,
        written.samples.no_match,
        exclude=written.exclude or "",
        fields=tuple(written.fields.items()),
        multiline=Multiline(rest.mode, rest.regex, rest.max_lines, rest.max_bytes, rest.max_wait) if rest else None,
        rate=written.rate,
    )
    for problem in check_samples(pattern):
        faults.add(node.get("samples"), problem)
    return pattern


def _check_regexes(written: _WrittenPattern, regex: str, node: MappingNode, faults: Faults) -> bool:
    """Whether all expressions of a pattern can be used; each that cannot is said at its own place."""
    found: list[tuple[Node | None, str, bool]] = [(node.get("regex") or node, regex, False)]
    if written.exclude is not None:
        found.append((node.get("exclude"), written.exclude, False))
    conditions = node.get("fields")
    for key, condition in written.fields.items():
        place = conditions.get(key) if isinstance(conditions, MappingNode) else None
        found.append((place, condition, True))
    if written.multiline is not None:
        rest = node.get("multiline")
        place = rest.get("regex") if isinstance(rest, MappingNode) else None
        found.append((place, written.multiline.regex, True))
    before = len(faults.errors)
    for place, each, may_be_empty in found:
        try:
            check_regex(written.name, each, may_be_empty=may_be_empty)
        except PatternError as error:
            faults.add(place, str(error))
    return len(faults.errors) == before


@dataclass(frozen=True, slots=True)
class _WrittenJob:
    name: str
    schedule: Annotated[str, _schedule]
    steps: tuple[_Step, ...]
    catch_up: bool = False


def _job(node: Node, faults: Faults) -> object:
    written = build(_WrittenJob, node, faults)
    if written is None:
        return MISSING
    place = Place(faults.path, node.line, node.column)
    return Job(written.name, written.schedule, written.steps, written.catch_up, place)


@dataclass(frozen=True, slots=True)
class _WrittenFile:
    groups: tuple[Annotated[Group, FromNode(_group)], ...] = ()
    patterns: tuple[Annotated[Pattern, FromNode(_pattern)], ...] = ()
    jobs: tuple[Annotated[Job, FromNode(_job)], ...] = ()
    inhibit: tuple[Inhibition, ...] = ()


# -- loading ---------------------------------------------------------------------------------------------------------


def shipped() -> tuple[str, ...]:
    """The rule files that come with the agent: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    folder = next(path for path in (package / "shipped" / "rules", package.parent / "rules") if path.is_dir())
    return tuple(str(path) for path in sorted(folder.glob("*.yaml")))


def load(paths: Sequence[str]) -> RuleSet:
    """One rule set from all files, or none.

    Raises
    ------
    FaultyFilesError
        With every fault of every file; a set is loaded whole or not at all.
    """
    rules, faults = check(paths)
    if rules is None:
        raise FaultyFilesError([fault for fault in faults if not fault.warning])
    return rules


def check(paths: Sequence[str]) -> tuple[RuleSet | None, list[Fault]]:
    """The rule set, or None, and everything that is wrong or doubtful with each file."""
    return from_nodes(yamlfile.read(paths))


def from_nodes(parsed: Mapping[str, yamlfile.Parsed]) -> tuple[RuleSet | None, list[Fault]]:
    """The rule set in files already parsed; see :func:`check`."""
    written: list[_WrittenFile] = []
    found: list[Fault] = []
    for path, each in parsed.items():
        faults = Faults(path)
        faults.found.extend(each.faults)
        if each.root is not None or not faults.errors:
            file = build(_WrittenFile, each.root, faults)
            if file is not None:
                written.append(file)
                _check_group_names(file, faults)
        found.extend(faults.found)
    groups = tuple(group for file in written for group in file.groups)
    patterns = tuple(pattern for file in written for pattern in file.patterns)
    jobs = tuple(job for file in written for job in file.jobs)
    inhibitions = tuple(each for file in written for each in file.inhibit)
    found.extend(_repeated((job.place, job.name) for job in jobs))
    warnings = tuple(fault for fault in found if fault.warning)
    if any(not fault.warning for fault in found):
        return None, found
    text = join_texts({path: each.text for path, each in parsed.items()})
    digest = digest_of(text)
    return RuleSet(groups, patterns, jobs, inhibitions, digest, text, warnings), found


_PART = re.compile(r"# (.+) \((\d+) characters\)\n")


def join_texts(texts: Mapping[str, str]) -> str:
    """Several files as one text, each under its name and length, so that :func:`split_texts` gives them back."""
    return "".join(f"# {name} ({len(text)} characters)\n{text}\n" for name, text in texts.items())


def split_texts(text: str) -> dict[str, str]:
    """What :func:`join_texts` joined.

    Raises
    ------
    ValueError
        When it is not such a text.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        head = _PART.match(text, at)
        if head is None:
            raise ValueError("cannot split a rule set: a part has no head")
        end = head.end() + int(head[2])
        found[head[1]] = text[head.end() : end]
        at = end + 1
    return found


def digest_of(text: str) -> str:
    """The hash that names a set, of its files' names and texts wherever they lie."""
    named = {os.path.basename(path): part for path, part in split_texts(text).items()}
    return hashlib.sha256(join_texts(named).encode()).hexdigest()[:16]


def _check_group_names(file: _WrittenFile, faults: Faults) -> None:
    """As Prometheus: a group's name is unique within its file."""
    faults.found.extend(_repeated((group.place, group.name) for group in file.groups))


def _repeated(named: Iterable[tuple[Place, str]]) -> Iterable[Fault]:
    seen: dict[str, Place] = {}
    for place, name in named:
        if name in seen:
            yield Fault(place.path, place.line, place.column, f'repeated name "{name}" (first at {seen[name]})')
        seen.setdefault(name, place)
