"""``./dev bench [NAME…] [--json] [--readme]``: run benchmarks and print one line for each promise."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import Result, table

NAMES = ("idle", "latency", "store", "history", "rules", "logs", "directories")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- performance: made by ./dev bench -->", "<!-- /performance -->"


def main() -> int:
    """Exit status 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="./dev bench", description="Benchmarks beside their peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(NAMES)}); none: all")
    parser.add_argument("--json", action="store_true", help="one JSON line for each promise")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    results = []
    for result in _measured(arguments.names or NAMES):
        results.append(result)
        print(result.line() if arguments.json else f"{result.benchmark}: {result.metric} done", flush=True)
    load = f"Load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors."
    if not arguments.json:
        print(f"\n{table(results)}\n\n{load}")
    if arguments.readme:
        text = README.read_text(encoding="utf-8")
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        README.write_text(f"{head}{BEGIN}\n{table(results)}\n\n{load}\n{END}{tail}", encoding="utf-8")
    return 1 if any(result.met is False for result in results) else 0


def _measured(names: Iterable[str]) -> Iterable[Result]:
    for name in names:
        yield from importlib.import_module(f"benchmarks.{name}").measure()


if __name__ == "__main__":
    sys.exit(main())
