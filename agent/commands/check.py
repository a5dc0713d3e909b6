"""``upkeep check``: every fault of every file at once; ``upkeep check rules`` speaks as promtool does."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from agent import config, overrides, rulecheck, rulefile, yamlfile
from agent.app import rule_paths
from agent.commands.common import print_json
from agent.config import Config, LoadedConfig
from agent.errors import Fault, FaultyFilesError
from agent.rulefile import RuleSet
from agent.store.cap import NAME, remembered


def run(arguments: Namespace) -> int:
    """Exit status 1 for an error, or for a warning with ``--strict``."""
    files = list(arguments.files)
    if files[:1] == ["rules"]:
        return _as_promtool(files[1:], arguments)
    return _say(_files(files) if files else _all_in_use(arguments.config), arguments)


def _files(files: Sequence[str]) -> list[Fault]:
    """Configuration and rule files in any mix, told apart by their top keys."""
    parsed = yamlfile.read(files)
    settings = {path: each for path, each in parsed.items() if config.looks_like_config(each.root)}
    found: list[Fault] = []
    chosen: Config | None = None
    for path, each in settings.items():
        chosen, more = config.from_node(path, each.root, each.faults)
        found.extend(more)
    rules, more = rulefile.from_nodes({path: each for path, each in parsed.items() if path not in settings})
    return [*found, *more, *_doubts(rules, chosen)]


def _all_in_use(path: str | None) -> list[Fault]:
    try:
        loaded = config.load(path)
    except FaultyFilesError as error:
        return list(error.faults)
    rules, found = rulefile.check(rule_paths(loaded))
    if rules is not None:
        rules, more = overrides.apply(rules, loaded.config.overrides, loaded.path, loaded.override_places)
        found = [*found, *more]
    return [*loaded.warnings, *found, *_doubts(rules, loaded.config), *_size_cut(loaded)]


def _size_cut(loaded: LoadedConfig) -> list[Fault]:
    """Where the store on this host holds less than it is configured to."""
    folder, asked = Path(loaded.config.state_dir), loaded.config.retention.max_size
    found = remembered(folder)
    if found is None or found.most(asked) == asked:
        return []
    message = (
        f"retention.max_size is {asked >> 20} MiB, and the store holds {found.most(asked) >> 20} MiB at most: a tenth "
        f'of what was free at its first start; delete "{folder / NAME}" and restart to measure anew'
    )
    return [Fault(loaded.path, 0, 0, message, warning=True)]


def _doubts(rules: RuleSet | None, chosen: Config | None) -> list[Fault]:
    return rulecheck.warnings(rules, chosen) if rules else []


def _say(found: list[Fault], arguments: Namespace) -> int:
    found = sorted(found)
    errors = [fault for fault in found if not fault.warning]
    if arguments.json:
        print_json([dataclasses.asdict(fault) for fault in found])
    else:
        for fault in found:
            print(fault, file=sys.stderr)
        if not found:
            print("ok")
        elif not errors:
            print(f"ok, {len(found)} warning{'s' if len(found) > 1 else ''}")
    return 1 if errors or (arguments.strict and found) else 0


def _as_promtool(files: list[str], arguments: Namespace) -> int:
    """One verdict for each file, in promtool's words; warnings follow."""
    if not files:
        print("upkeep check rules: no files given", file=sys.stderr)
        return 2
    if arguments.json:
        return _say(_files(files), arguments)
    status = 0
    for path in files:
        rules, found = rulefile.check([path])
        found.extend(_doubts(rules, None))
        print(f"Checking {path}")
        errors = [fault for fault in found if not fault.warning]
        if errors:
            print("  FAILED:")
        else:
            count = sum(len(group.rules) for group in rules.groups) if rules else 0
            print(f"  SUCCESS: {count} rules found")
        for fault in sorted(found):
            print(f"    {fault}", file=sys.stderr)
        status |= bool(errors) or (arguments.strict and bool(found))
        print()
    return int(status)
