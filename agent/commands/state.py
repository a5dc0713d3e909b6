"""``upkeep state``: what the agent knows and was told, saved as one file and put back."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import IO

from agent import inhibit
from agent.commands.common import as_owner_of, clock_time, iso, loaded, print_json, print_table, size, span, state_dir
from agent.config import LoadedConfig
from agent.control import myself
from agent.errors import UpkeepError
from agent.store import archive
from agent.store.archive import CONFIGURATION, LEDGER_NAME, Restored
from agent.store.copies import ledger_copies
from agent.store.database import StateLock, StoreBusyError


def run(arguments: Namespace) -> int:
    """Exit status 1 when the file cannot be used, or a person said no."""
    if arguments.what == "accept":
        return _accept(arguments)
    if arguments.what == "list":
        return _list(arguments)
    if not arguments.file:
        raise UpkeepError(f"cannot {arguments.what} without a FILE")
    if arguments.what == "save":
        return _save(arguments)
    try:
        with Path(arguments.file).open("rb") as file:
            return _unpack(arguments, file) if arguments.configuration else _restore(arguments, file)
    except OSError as error:
        raise UpkeepError(f'cannot read "{arguments.file}": {(error.strerror or str(error)).lower()}') from None


def _save(arguments: Namespace) -> int:
    settings = loaded(arguments)
    manifest = archive.save(
        Path(arguments.file), Path(settings.config.state_dir), settings.path, _files(settings), time.time()
    )
    if arguments.json:
        print_json([{"name": each.name, "bytes": each.bytes, "sha256": each.sha256} for each in manifest.files])
    else:
        print_table(("FILE", "SIZE"), [(each.name, size(each.bytes)) for each in manifest.files])
    return 0


def _files(settings: LoadedConfig) -> dict[str, Path]:
    """Configuration and rule files by their names in an archive; those of other folders keep their whole path."""
    home = Path(settings.path).absolute().parent
    found = {}
    for path in (Path(settings.path).absolute(), *(Path(rules).absolute() for rules in settings.rule_files)):
        inside = path.is_relative_to(home)
        name = path.relative_to(home) if inside else Path("elsewhere", path.relative_to("/"))
        found[f"{CONFIGURATION}{name}"] = path
    return found


def _list(arguments: Namespace) -> int:
    copies, now = ledger_copies(state_dir(arguments)), time.time()
    if arguments.json:
        print_json([{"path": str(copy.path), "time": iso(copy.at), "bytes": copy.bytes} for copy in copies])
    else:
        rows = [(copy.path, clock_time(copy.at), span(max(0.0, now - copy.at)), size(copy.bytes)) for copy in copies]
        print_table(("COPY", "MADE", "AGE", "SIZE"), rows)
    return 0


def _accept(arguments: Namespace) -> int:
    from agent.commands.act import tell  # the whole agent: only here may it have to be built

    tell(arguments, "state_accept", {})
    print("accepted: the configured mode is in force")
    return 0


# -- restore ---------------------------------------------------------------------------------------------------------


def _restore(arguments: Namespace, file: IO[bytes]) -> int:
    folder, who, now = state_dir(arguments), myself(), time.time()
    as_owner_of(folder)
    try:
        lock = StateLock(folder)
    except StoreBusyError as busy:
        raise UpkeepError(f"{busy}; stop it first: systemctl stop upkeep") from None
    try:
        found = archive.restore(file, arguments.file, folder, who, now, observe=None)
        if not arguments.json:
            _print_plan(found, folder)
        if not arguments.dry_run:
            if not arguments.yes and not _agreed():
                print("nothing was changed")
                return 1
            why = f"restored from {arguments.file} by {who}"
            found = archive.restore(
                file, arguments.file, folder, who, now, observe=lambda: inhibit.observe(folder, why)
            )
    finally:
        lock.release()
    if arguments.json:
        print_json(_facts(found, done=not arguments.dry_run))
    elif not arguments.dry_run:
        print("restored; the agent will observe, whatever its mode, until: upkeep state accept")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UpkeepError("cannot ask without a terminal: add --yes, or --dry-run to look only")
    return input("\nrestore it? [y/N] ").strip().lower() in ("y", "yes")


def _print_plan(found: Restored, folder: Path) -> None:
    holds = f"{found.actions} actions, {found.alerts} alerts open"
    print(f"ledger of {found.host}, saved {clock_time(found.saved_at)}: {holds}")
    print(f"would become {folder / LEDGER_NAME}")
    if found.replaces:
        changed = clock_time(found.replaces.lstat().st_mtime)
        print(f"the ledger that is there, last changed {changed}, would be set aside in {folder}")
    print("metrics, tail offsets and the configuration would stay as they are")
    print("the agent would observe, whatever its mode, until: upkeep state accept")


def _facts(found: Restored, *, done: bool) -> dict[str, object]:
    return {
        "restored": done,
        "host": found.host,
        "saved": iso(found.saved_at),
        "actions": found.actions,
        "alerts_open": found.alerts,
        "set_aside" if done else "would_set_aside": str(found.replaces) if found.replaces else None,
    }


def _unpack(arguments: Namespace, file: IO[bytes]) -> int:
    """Write the configuration and rule files of an archive into a folder in which none of them exists."""
    target = Path(arguments.configuration)
    manifest = archive.read_manifest(file, arguments.file)
    names = [each.name for each in manifest.files if each.name.startswith(CONFIGURATION)]
    paths = {name: target / name.removeprefix(CONFIGURATION) for name in names}
    there = [str(path) for path in paths.values() if os.path.lexists(path)]
    if there:
        raise UpkeepError(f'cannot write "{there[0]}": it exists, and nothing that exists is overwritten')
    if not arguments.dry_run:
        archive.unpack(file, arguments.file, paths)
    if arguments.json:
        print_json({"host": manifest.host, "from": manifest.config, "files": list(map(str, paths.values()))})
        return 0
    print(f"configuration of {manifest.host}, which lay in {manifest.config}")
    for path in paths.values():
        print(f"{'would write' if arguments.dry_run else 'written'}  {path}")
    return 0
