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
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "performance.md"
BEGIN, END = "<!-- performance: made by ./dev bench -->", "<!-- /performance -->"


def main() -> int:
    """Exit status 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="./dev bench", description="Benchmarks beside their peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(NAMES)}); none: all")
    parser.add_argument("--json", action="store_true", help="one JSON line for each promise")
    parser.add_argument(
        "--readme",
        action="store_true",
        help="write the promises into README.md, all into docs/reference/performance.md",
    )
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
        write_between(README, f"{table(filter(_is_headline, results))}\n\n{load}")
        write_between(PAGE, f"{table(results)}\n\n{load}")
    return 1 if any(result.met is False for result in results) else 0


def write_between(path: Path, text: str) -> None:
    """Put a text between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def _is_headline(result: Result) -> bool:
    """A promise that stands beside a peer, or that a person would feel."""
    return result.goal is not None and (result.goal.of == "ratio" or result.benchmark in ("idle", "latency"))


def _measured(names: Iterable[str]) -> Iterable[Result]:
    for name in names:
        yield from importlib.import_module(f"benchmarks.{name}").measure()


if __name__ == "__main__":
    sys.exit(main())
