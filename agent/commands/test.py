"""``upkeep test rules``: rule unit tests in promtool's format, and what they expect of remediations."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

from agent import ruletest
from agent.commands.common import print_json
from agent.ruletest import Result

LOOK_EVERY_S = 0.3
"""How soon a saved file is noticed: a handful of files is looked at, no events are asked for."""

Stamp = tuple[int, int, int]


def run(arguments: Namespace) -> int:
    """Exit status 1 when a test fails or a file cannot be read; every file is tried."""
    if arguments.watch:
        return _watch(arguments.files)
    results = [ruletest.run_file(path) for path in arguments.files]
    if arguments.json:
        print_json(
            [{"file": result.path, "tests": result.tests, "failures": list(result.failures)} for result in results]
        )
    else:
        for result in results:
            _print(result)
    return int(any(result.failures for result in results))


def _print(result: Result) -> None:
    print(f"Unit Testing:  {result.path}")
    if result.failures:
        print("  FAILED:")
        for failure in result.failures:
            print("    " + failure.replace("\n", "\n    "), file=sys.stderr)
    else:
        print(f"  SUCCESS: {result.tests} checks")
    print()


def _watch(paths: Sequence[str]) -> int:
    """Run the tests of each file again when it or a rule file of it was saved, until interrupted."""
    for due in changes(paths):
        if sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        for path in due:
            _print(ruletest.run_file(path))
        print(f"{time.strftime('%H:%M:%S')}  watching; Ctrl-C ends it", flush=True)
    return 0


def changes(paths: Sequence[str]) -> Iterator[list[str]]:
    """The test files that are due: all of them, then those of which something was saved."""
    seen: dict[str, dict[str, Stamp | None]] = {}
    while True:
        now = {path: {each: _stamp(each) for each in ruletest.files_of(path)} for path in paths}
        due = [path for path in paths if seen.get(path) != now[path]]
        seen = now
        if due:
            yield due
        time.sleep(LOOK_EVERY_S)


def _stamp(path: str) -> Stamp | None:
    """What differs after a save, however the editor saves; None while there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
