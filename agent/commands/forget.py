"""``upkeep forget``: erase the stored lines of a pattern; without ``--yes`` only say which these are."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from agent.commands.act import tell
from agent.commands.common import clock_time, print_json, state_dir
from agent.errors import UpkeepError
from agent.store.read import Reader

_COUNT = """
SELECT count(*), min(at_ms) / 1000.0, max(at_ms) / 1000.0, count(DISTINCT json_extract(labels, '$.file'))
FROM event WHERE kind = 'log_match' AND json_extract(labels, '$.pattern') = ? AND message <> '(erased)'
"""
_KNOWN = "SELECT DISTINCT json_extract(labels, '$.pattern') FROM event WHERE kind = 'log_match'"


def run(arguments: Namespace) -> int:
    """Exit status 1 when there is nothing to erase, or a reader still holds erased pages."""
    folder = state_dir(arguments)
    with Reader.open(folder) as reader:
        _, [(events, first, last, files)] = reader.sql(_COUNT, (arguments.pattern,))
        known = sorted(str(name) for (name,) in reader.sql(_KNOWN)[1])
    if arguments.pattern not in known:
        there = f"; there are lines of {', '.join(known)}" if known else ""
        raise UpkeepError(f'cannot forget "{arguments.pattern}": no stored line is of this pattern{there}')
    beside = _beside(folder)
    if not arguments.yes:
        facts = {"pattern": arguments.pattern, "events": events, "files": files, "erased": False, "left": beside}
        if arguments.json:
            print_json(facts)
            return 0
        print(f"would erase the text of {events} events of {files} files", end="")
        print(f", {clock_time(_number(first))} to {clock_time(_number(last))}" if events else "")
        print("and what the pattern captured of them, here and in ended alerts and actions; --yes does it")
        _print_left(beside)
        return 0
    done = tell(arguments, "forget", {"pattern": arguments.pattern}, deadline_s=None)
    if arguments.json:
        print_json({"pattern": arguments.pattern, "erased": True, "left": beside, **done})
    else:
        print(
            f"erased: the text of {done['events']} events; labels of {done['alerts']} alerts, {done['actions']} actions"
        )
        if done["open"]:
            print(f"{done['open']} alerts and actions still stand and keep their labels; forget again when they ended")
        if done["pages_left"]:
            print("a reader holds pages of before: run it again when it is gone")
        _print_left(beside)
    return 1 if done["pages_left"] else 0


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _beside(folder: Path) -> list[str]:
    """Files of the state directory that are made from what was stored and are no part of it."""
    kept = {"metrics.db", "ledger.db"}
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.split("-")[0] in kept or path.name in kept:
            continue
        if path.suffix in (".db", ".gz") or (path.is_dir() and any(path.iterdir())):
            found.append(str(path))
    return found


def _print_left(beside: list[str]) -> None:
    print("not touched: the logs themselves, counters with captured labels, mail that was sent", end="")
    print("".join(f"\n  {path}" for path in beside))
