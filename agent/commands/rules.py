"""``upkeep rules``: the rules in use, what is local about them, and how to change them without breaking them.

``edit`` works as visudo does: on a copy, which takes the file's place only when it loads, its tests pass, and its owner
has seen what is different and what it would have done over the last week.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from agent import control, overrides, rulecheck, rulefile, ruletest
from agent.app import load_rules, rule_paths
from agent.commands import backtest
from agent.commands.common import clock_time, loaded, print_json, print_table, state_dir
from agent.config import LoadedConfig
from agent.errors import Fault, StoreError, UpkeepError
from agent.rulefile import AlertRule, RuleSet
from agent.store import Reader

WEEK_S = 7 * 86400.0


def run(arguments: Namespace) -> int:
    """Exit status 1 where something was refused or not installed."""
    verbs = {"list": _list, "diff": _diff, "edit": _edit, "undo": _undo}
    if arguments.what == "edit" and not arguments.file:
        raise UpkeepError("cannot edit without a file: upkeep rules edit FILE")
    return verbs[arguments.what](arguments)


# -- looking ---------------------------------------------------------------------------------------------------------


def _list(arguments: Namespace) -> int:
    """Every alerting rule with how often it fired and how precise it is, as far as people said so."""
    settings = loaded(arguments)
    known = _precision(settings)
    rows = [_row(rule, known.get(rule.name), settings) for rule in load_rules(settings).alert_rules]
    if arguments.json:
        print_json(rows)
    else:
        columns = ("rule", "severity", "mode", "fired", "false_alarms", "precision", "place")
        print_table(
            [name.upper().replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows]
        )
    return 0


def _row(rule: AlertRule, known: Sequence[object] | None, settings: LoadedConfig) -> dict[str, object]:
    fired, wrong, precision = known or (0, 0, None)
    severity = rule.labels["severity"].text if "severity" in rule.labels else None
    mode = (rule.remediation.mode or settings.config.mode).value if rule.remediation else None
    return {
        "rule": rule.name,
        "severity": severity,
        "mode": mode,
        "fired": fired,
        "false_alarms": wrong,
        "precision": precision,
        "place": str(rule.place),
    }


def _precision(settings: LoadedConfig) -> dict[str, Sequence[object]]:
    try:
        with Reader.open(Path(settings.config.state_dir)) as reader:
            _, rows = reader.sql("SELECT rule, fired, false_alarms, precision FROM precision")
    except StoreError:  # nothing was ever stored
        return {}
    return {rule: rest for rule, *rest in rows}


def _diff(arguments: Namespace) -> int:
    """What this site's set has that the shipped one has not, and the other way round."""
    settings = loaded(arguments)
    lines = list(local(settings))
    if arguments.json:
        print_json([{"change": sign, "rule": name, "words": said} for sign, name, said in lines])
    elif not lines:
        print("nothing is local: these are the shipped rules")
    else:
        for sign, name, said in lines:
            print(f"{sign} {name}  {said}")
    return 0


def local(settings: LoadedConfig) -> Iterator[tuple[str, str, str]]:
    """``+`` a rule of the site, ``-`` one that an override leaves out, ``~`` one that it changes."""
    plain = rulefile.load(rule_paths(settings))
    final, _ = overrides.apply(plain, settings.config.overrides, settings.path, settings.override_places)
    shipped = set(rulefile.shipped())
    kept = {str(rule.place): rule for rule in final.alert_rules}
    for rule in plain.alert_rules:
        now = kept.get(str(rule.place))
        if now is None:
            yield "-", rule.name, f"left out by overrides (shipped at {rule.place})"
            continue
        if rule.place.path not in shipped:
            yield "+", rule.name, str(rule.place)
        for said in _changes(rule, now):
            yield "~", rule.name, said


def _changes(before: AlertRule, after: AlertRule) -> Iterator[str]:
    if before.expr.text != after.expr.text:
        yield f"expr: {before.expr.text}  →  {after.expr.text}"
    if before.timing.for_s != after.timing.for_s:
        yield f"for: {before.timing.for_s:g}s  →  {after.timing.for_s:g}s"
    old, new = (rule.remediation.mode if rule.remediation else None for rule in (before, after))
    if old != new:
        yield f"mode: {old.value if old else 'the host’s'}  →  {new.value if new else 'the host’s'}"


# -- editing ---------------------------------------------------------------------------------------------------------


def _edit(arguments: Namespace) -> int:
    settings = loaded(arguments)
    file = Path(os.path.abspath(arguments.file))
    with _held(file), _copy_of(file) as copy:
        while True:
            if not arguments.take:
                _run_editor(copy)
            else:
                shutil.copyfile(arguments.take, copy)
            if copy.read_bytes() == file.read_bytes():
                print("unchanged")
                return 0
            fine = _examined(settings, file, copy)
            answer = _asked(fine, yes=arguments.yes, again=not arguments.take)
            if answer == "install":
                return _install(settings, file, copy)
            if answer == "leave":
                print(f"{file} is as it was")
                return 1


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """One editor at a time, and a file that may be written."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UpkeepError(f'cannot edit "{file}": {(error.strerror or str(error)).lower()}') from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UpkeepError(f'cannot edit "{file}": somebody else is at it') from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _copy_of(file: Path) -> Iterator[Path]:
    """A copy in a folder of the editor's own: half of a rule must lie in no folder that the agent reads."""
    with tempfile.TemporaryDirectory(prefix="upkeep-rules-") as folder:
        copy = Path(folder) / file.name
        shutil.copyfile(file, copy)
        yield copy


def _run_editor(copy: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        ended = subprocess.run([*shlex.split(editor), str(copy)], check=False)
    except OSError as error:
        raise UpkeepError(f'cannot start the editor "{editor}": {(error.strerror or str(error)).lower()}') from None
    if ended.returncode != 0:
        raise UpkeepError(f'the editor "{editor}" ended with status {ended.returncode}: nothing was changed')


def _examined(settings: LoadedConfig, file: Path, copy: Path) -> bool:
    """Say everything there is to say about the new text; whether it may be installed."""
    before, _ = rulefile.check([str(file)])
    rules, found = _checked(settings, file, copy)
    for fault in sorted(found):
        print(replace(fault, path=str(file)) if fault.path == str(copy) else fault, file=sys.stderr)
    if rules is None:
        return False
    failures = [
        line for test in _tests_of(file) for line in ruletest.run_file(str(test), {str(file): str(copy)}).failures
    ]
    for line in failures:
        print(line, file=sys.stderr)
    old, new = file.read_text("utf-8").splitlines(), copy.read_text("utf-8").splitlines()
    for line in difflib.unified_diff(old, new, str(file), "new", lineterm=""):
        print(line)
    _tell_past(settings, before, rulefile.load([str(copy)]))
    return not failures


def _checked(settings: LoadedConfig, file: Path, copy: Path) -> tuple[RuleSet | None, list[Fault]]:
    """The whole set with the copy in the file's place."""
    paths = [str(copy) if os.path.realpath(path) == os.path.realpath(file) else path for path in rule_paths(settings)]
    if str(copy) not in paths:
        paths.append(str(copy))
    rules, found = rulefile.check(paths)
    if rules is None:
        return None, found
    rules, more = overrides.apply(rules, settings.config.overrides, settings.path, settings.override_places)
    found = [*found, *more, *rulecheck.warnings(rules, settings.config)]
    return (None if any(not fault.warning for fault in found) else rules), found


def _tests_of(file: Path) -> list[Path]:
    """The unit tests beside a rule file: those in its folder ``tests`` that name it."""
    return [test for test in sorted(file.parent.glob("tests/*.yaml")) if file.name in test.read_text("utf-8")]


def _tell_past(settings: LoadedConfig, before: RuleSet | None, after: RuleSet) -> None:
    """What the rules that are new or different would have done over the last week."""
    held = {_meaning(rule) for rule in before.alert_rules} if before else set()
    changed = [rule for rule in after.alert_rules if _meaning(rule) not in held]
    if not changed:
        return
    groups = tuple(
        replace(group, rules=tuple(rule for rule in group.rules if not isinstance(rule, AlertRule) or rule in changed))
        for group in after.groups
    )
    now = time.time()
    try:
        period, tested = backtest.over(replace(after, groups=groups), settings, now - WEEK_S, now)
    except UpkeepError as error:
        print(f"\n{error}")
        return
    for each in tested:
        print(f"\n{each.rule.name}: {backtest.sentence([each], period)} since {clock_time(period.start)}")


def _meaning(rule: AlertRule) -> tuple[object, ...]:
    labels = tuple(sorted((name, each.text) for name, each in rule.labels.items()))
    return (rule.name, rule.expr.text, rule.clear.text if rule.clear else "", rule.timing, labels, rule.remediation and
            [(step.handler, step.spec) for step in rule.remediation.steps])  # fmt: skip


def _asked(fine: bool, *, yes: bool, again: bool) -> str:
    """``install``, ``again`` or ``leave``."""
    if not sys.stdin.isatty():
        return "install" if fine and yes else "leave"
    if fine and yes:
        return "install"
    choices = ([("i", "install")] if fine else []) + ([("e", "again")] if again else []) + [("q", "leave")]
    shown = ", ".join({"i": "(i)nstall and reload", "e": "(e)dit again", "q": "(q)uit"}[key] for key, _ in choices)
    while True:
        said = input(f"\n{shown}: ").strip().lower()[:1]
        if said in dict(choices):
            return dict(choices)[said]


# -- installing ------------------------------------------------------------------------------------------------------


def _install(settings: LoadedConfig, file: Path, copy: Path) -> int:
    """Put the text in place and reload; what the agent refuses is taken back."""
    before = file.read_bytes()
    _put(file, copy.read_bytes())
    try:
        said = _reloaded(settings)
    except UpkeepError as error:
        _put(file, before)
        raise UpkeepError(f"the agent refused it, {file} is as it was: {error}") from None
    print(f"installed {file}{said}")
    return 0


def _put(file: Path, text: bytes) -> None:
    """A new file in the place of the old, with its mode and owner; where those cannot be kept, the old one rewritten.

    A member of the editors' group cannot give a new file to root, and root must own it.
    """
    status = file.stat()
    if os.geteuid() not in (0, status.st_uid):
        with open(file, "r+b") as kept:
            kept.write(text)
            kept.truncate()
            os.fsync(kept.fileno())
        return
    scratch = file.with_name(f".{file.name}.upkeep-new")
    with open(scratch, "wb") as made:
        made.write(text)
        os.fchmod(made.fileno(), status.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.fchown(made.fileno(), status.st_uid, status.st_gid)
        os.fsync(made.fileno())
    os.replace(scratch, file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reloaded(settings: LoadedConfig) -> str:
    try:
        control.ask(Path(settings.config.state_dir) / "control.sock", "reload", {})
    except ConnectionError:
        return "; no agent is running, so it is loaded at the next start"
    return " and reloaded"


# -- undoing ---------------------------------------------------------------------------------------------------------


def _undo(arguments: Namespace) -> int:
    """Bring back the site's files of the set that was in force before the present one."""
    settings = loaded(arguments)
    now, before, since = _last_two(state_dir(arguments))
    shipped = set(rulefile.shipped())
    changes = [(Path(path), text) for path, text in before.items() if path not in shipped and _differs(path, text)]
    added = [Path(path) for path in settings.rule_files if path not in before and path in now]
    for path, text in changes:
        old = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in difflib.unified_diff(old, text.splitlines(), str(path), f"set before {since}", lineterm=""):
            print(line)
    for path in added:
        print(f"{path}  set aside as {path.name}.undone")
    if not changes and not added:
        print("nothing to undo in the site's rule files; overrides stand in the configuration and are changed there")
        return 1
    if _asked(True, yes=arguments.yes, again=False) != "install":
        print("nothing was changed")
        return 1
    for path, text in changes:
        if not path.exists():
            path.touch(0o644)
        _put(path, text.encode())
    for path in added:
        path.rename(path.with_name(f"{path.name}.undone"))
    print(f"the set before {since} is back{_reloaded(settings)}")
    return 0


def _last_two(folder: Path) -> tuple[dict[str, str], dict[str, str], str]:
    """The files of the present set and of the one before, and when the present one came into force."""
    with Reader.open(folder) as reader:
        _, rows = reader.sql("SELECT text, time FROM rule_sets ORDER BY id DESC LIMIT 2")
    if len(rows) < 2:
        raise UpkeepError("cannot undo: no other rule set was in force before")
    (present, time_), (before, _) = rows
    parts = [rulefile.split_texts(text) for text in (present, before)]
    for each in parts:
        each.pop(overrides.PART, None)
    return parts[0], parts[1], time_


def _differs(path: str, text: str) -> bool:
    try:
        return Path(path).read_text("utf-8") != text
    except OSError:
        return True
