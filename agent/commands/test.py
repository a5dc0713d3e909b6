"""``upkeep test rules``: rule unit tests in promtool's format, and what they expect of remediations."""

from __future__ import annotations

import sys
from argparse import Namespace

from agent import ruletest
from agent.commands.common import print_json


def run(arguments: Namespace) -> int:
    """Exit status 1 when a test fails or a file cannot be read; every file is tried."""
    results = [ruletest.run_file(path) for path in arguments.files]
    failed = any(result.failures for result in results)
    if arguments.json:
        print_json(
            [{"file": result.path, "tests": result.tests, "failures": list(result.failures)} for result in results]
        )
        return int(failed)
    for result in results:
        print(f"Unit Testing:  {result.path}")
        if result.failures:
            print("  FAILED:")
            for failure in result.failures:
                print("    " + failure.replace("\n", "\n    "), file=sys.stderr)
        else:
            print(f"  SUCCESS: {result.tests} checks")
        print()
    return int(failed)
