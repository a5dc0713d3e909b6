"""``upkeep rule new KIND``: a rule of the site with its unit test, both run before they are left to their owner."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import rulecheck, rulefile, ruletest
from agent.commands.common import loaded, print_json, size
from agent.errors import UpkeepError
from agent.located import parse_path, parse_size
from agent.model import make_labels
from agent.promql import template


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule in its parts, and two states of the world: one in which it must keep silent, one in which it must fire."""

    slug: str
    alert: str
    expr: str
    for_minutes: int
    severity: str
    summary: str
    description: str
    steps: tuple[str, ...]
    calm: Mapping[str, float]
    bad: Mapping[str, float]
    labels: Mapping[str, str]
    value: float


def new(arguments: Namespace) -> int:
    """Write both files; nothing that exists is touched."""
    settings = loaded(arguments)
    draft = KINDS[arguments.kind](arguments)
    folder = Path(os.path.dirname(settings.path)) / "rules.d"
    rule, test = folder / f"{draft.slug}.yaml", folder / "tests" / f"{draft.slug}.yaml"
    for path, text in ((rule, rule_text(draft)), (test, test_text(draft))):
        _write_new(path, text)
    rules, faults = rulefile.check([str(rule)])
    doubts = [*faults, *(rulecheck.warnings(rules, settings.config) if rules else [])]
    result = ruletest.run_file(str(test))
    if arguments.json:
        print_json({"rule": str(rule), "test": str(test), "faults": list(map(str, doubts)), "checks": result.tests})
    else:
        print(f"written   {rule}\nwritten   {test}")
        for line in (*map(str, doubts), *result.failures):
            print(line)
        print(f"tested    {result.tests} checks\n\nnext: upkeep backtest {rule} && upkeep rules edit {rule}")
    return int(bool(doubts or result.failures))


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise UpkeepError(f'cannot write "{path}": it exists (upkeep rules edit {path})') from None
    except OSError as error:
        raise UpkeepError(f'cannot write "{path}": {(error.strerror or str(error)).lower()}') from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


# -- the kinds -------------------------------------------------------------------------------------------------------


def _disk_full(given: Namespace) -> Draft:
    mount, over = parse_path(_needed(given, "mount")), _share(given.over or "90%")
    held = f'device="/dev/x",fstype="ext4",mountpoint="{mount}"'
    avail, whole = (f"node_filesystem_{name}_bytes{{{held}}}" for name in ("avail", "size"))
    return Draft(
        slug=f"disk-full-{_slug(mount)}",
        alert=f"DiskFull{_camel(mount)}",
        expr=f'1 - node_filesystem_avail_bytes{{mountpoint="{mount}"}} / node_filesystem_size_bytes > {over:g}',
        for_minutes=5,
        severity="warning",
        summary="{{ $labels.mountpoint }} is {{ $value | humanizePercentage }} full",
        description="What grew: upkeep query 'topk(10, delta(directory_size_bytes[1d]))'.",
        steps=(f"notify: {{message: {mount} fills up}}",),
        calm={avail: round(1000 * (1 - over)) + 1, whole: 1000},
        bad={avail: round(500 * (1 - over)), whole: 1000},
        labels={"device": "/dev/x", "fstype": "ext4", "mountpoint": mount},
        value=1 - round(500 * (1 - over)) / 1000,
    )


def _directory_large(given: Namespace) -> Draft:
    path, over = parse_path(_needed(given, "path")), _bytes(_needed(given, "over"))
    series = f'directory_size_bytes{{path="{path}"}}'
    clean = (f"clean_cache: {{path: {path}, down_to: {given.down_to}}}",) if given.down_to else ()
    return Draft(
        slug=f"directory-large-{_slug(path)}",
        alert=f"DirectoryLarge{_camel(path)}",
        expr=f"{series} > {over}",
        for_minutes=2,
        severity="warning",
        summary=f"{{{{ $labels.path }}}} holds {{{{ $value | humanize1024 }}}}B, over its limit of {size(over)}",
        description=f"What is large in it: du -x --max-depth=1 {path} | sort -n | tail.",
        steps=(*clean, f"notify: {{message: {path} holds too much}}"),
        calm={series: over},
        bad={series: over * 2},
        labels={"path": path},
        value=over * 2,
    )


def _unit_down(given: Namespace) -> Draft:
    unit = _needed(given, "unit")
    series = f'node_systemd_unit_state{{name="{unit}",state="active"}}'
    return Draft(
        slug=f"unit-down-{_slug(unit)}",
        alert=f"UnitDown{_camel(unit.rpartition('.')[0] or unit)}",
        expr=f"{series} == 0",
        for_minutes=2,
        severity="error",
        summary="{{ $labels.name }} is not running",
        description=f"Why it stopped: journalctl -u {unit} -n 50.",
        steps=(f"notify: {{message: {unit} is not running}}",),
        calm={series: 1},
        bad={series: 0},
        labels={"name": unit, "state": "active"},
        value=0,
    )


def _probe_down(given: Namespace) -> Draft:
    target = _needed(given, "target")
    series = f'probe_success{{target="{target}"}}'
    return Draft(
        slug=f"probe-down-{_slug(target)}",
        alert=f"ProbeDown{_camel(target)}",
        expr=f"{series} == 0",
        for_minutes=3,
        severity="error",
        summary="{{ $labels.target }} does not answer",
        description="It is asked from this host: look at its name, its route and the service there.",
        steps=(f"notify: {{message: '{target} does not answer'}}",),
        calm={series: 1},
        bad={series: 0},
        labels={"target": target},
        value=0,
    )


KINDS: Mapping[str, Callable[[Namespace], Draft]] = {
    "disk-full": _disk_full,
    "directory-large": _directory_large,
    "unit-down": _unit_down,
    "probe-down": _probe_down,
}


def _needed(given: Namespace, option: str) -> str:
    value: str | None = getattr(given, option)
    if not value:
        raise UpkeepError(f"cannot write this rule without --{option}")
    if not re.fullmatch(r"[\w@%+=:,./ -]+", value):
        raise UpkeepError(f'cannot use "{value}" in a rule: letters, digits and @%+=:,./- only')
    return value


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not match or not 0 < float(match[1]) < 100:
        raise UpkeepError(f'cannot read "{text}" as a share: write it like 90%')
    return float(match[1]) / 100


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UpkeepError(str(error)) from None


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", text) or ["root"]


def _slug(text: str) -> str:
    return "-".join(_words(text)).lower()


def _camel(text: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in _words(text))


# -- the files -------------------------------------------------------------------------------------------------------


def rule_text(draft: Draft) -> str:
    """The rule file."""
    lines = [
        "groups:",
        f"  - name: {draft.slug}",
        "    rules:",
        f"      - alert: {draft.alert}",
        f"        expr: {draft.expr}",
        f"        for: {draft.for_minutes}m",
        f"        labels: {{severity: {draft.severity}}}",
        "        annotations:",
        f"          summary: '{draft.summary}'",
        f"          description: {_quoted(draft.description)}",
        "        remediation:",
        "          mode: observe  # act, once you have seen what it would do",
        "          steps:",
        *(f"            - {step}" for step in draft.steps),
    ]
    return "\n".join(lines) + "\n"


def test_text(draft: Draft) -> str:
    """Its unit test: silent while all is well and until ``for`` has passed, firing after."""
    minutes = draft.for_minutes
    labels = make_labels({**draft.labels, "severity": draft.severity})
    summary = template.compile(draft.summary).expand(labels, draft.value, lambda node: None)
    lines = [
        f"rule_files: [../{draft.slug}.yaml]",
        "evaluation_interval: 1m",
        "tests:",
        f"  - name: silent for {minutes} minutes, then not",
        "    interval: 1m",
        "    input_series:",
        *(
            f"      - {{series: '{series}', values: '{calm:g}x4 {draft.bad[series]:g}x{minutes + 5}'}}"
            for series, calm in draft.calm.items()
        ),
        "    alert_rule_test:",
        f"      - {{eval_time: {4 + minutes}m, alertname: {draft.alert}, exp_alerts: []}}",
        f"      - eval_time: {5 + minutes}m",
        f"        alertname: {draft.alert}",
        "        exp_alerts:",
        "          - exp_labels:",
        *(f"              {name}: {_quoted(text)}" for name, text in labels),
        "            exp_annotations:",
        f"              summary: {_quoted(summary)}",
        f"              description: {_quoted(draft.description)}",
        "    action_test:",
        f"      - {{eval_time: {5 + minutes}m, exp_actions: [{{handler: {_first(draft.steps)}}}]}}",
    ]
    return "\n".join(lines) + "\n"


def _first(steps: Sequence[str]) -> str:
    return steps[0].partition(":")[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
