"""``upkeep logs scan``: the patterns in use over past logs."""

from __future__ import annotations

import dataclasses
import glob
import sys
import time
from argparse import Namespace

from agent.app import load_rules
from agent.commands.common import bar, clear_bar, duration, loaded, print_json, size
from agent.errors import UpkeepError
from agent.logwatch.history import Summary, scan
from agent.logwatch.patterns import compile_patterns

TOP_LINES = 5
LINE_LENGTH = 100
DAYS = 31
"""Of the summary by day, on a terminal; ``--json`` has all."""


def run(arguments: Namespace) -> int:
    """Exit status 1 when a file could not be read."""
    matcher = compile_patterns(load_rules(loaded(arguments)).patterns)
    since = time.time() - duration(arguments.since) if arguments.since else None
    paths = [found for path in arguments.paths for found in _expanded(path)]
    summary = scan(paths, matcher, since, lambda done, whole: bar(done, whole, size(whole)))
    clear_bar()
    if arguments.json:
        print_json(_facts(summary))
    else:
        _print(summary)
    return 1 if summary.unreadable else 0


def _expanded(path: str) -> list[str]:
    if not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path))
    if not found:
        raise UpkeepError(f'cannot scan "{path}": nothing matches')
    return found


def _facts(summary: Summary) -> dict[str, object]:
    return {
        "files": summary.files,
        "lines": summary.lines,
        "bytes": summary.bytes,
        "unreadable": summary.unreadable,
        "days": {day: dict(summary.days[day]) for day in sorted(summary.days)},
        "patterns": [
            {
                "pattern": each.pattern,
                "count": each.count,
                "first": dataclasses.asdict(each.first) if each.first else None,
                "last": dataclasses.asdict(each.last) if each.last else None,
                "top": [{"line": line, "count": count} for line, count in each.top(TOP_LINES)],
            }
            for each in summary.patterns.values()
        ],
    }


def _print(summary: Summary) -> None:
    print(f"{summary.files} files, {summary.lines} lines, {size(summary.bytes)}")
    for each in summary.patterns.values():
        print(f"\n{each.pattern}: {each.count}")
        for word, found in (("first", each.first), ("last", each.last)):
            if found:
                print(f"  {word:>8}  {found.path}:{found.line}: {found.text[:LINE_LENGTH]}")
        for line, count in each.top(TOP_LINES):
            print(f"  {count:>8}  {line[:LINE_LENGTH]}")
    if summary.days:
        print("\nby day")
        for day in sorted(summary.days)[-DAYS:]:
            print(f"  {day}  " + ", ".join(f"{name} {count}" for name, count in summary.days[day].most_common()))
    for path, why in summary.unreadable.items():
        print(f'cannot read "{path}" to its end: {why}', file=sys.stderr)
