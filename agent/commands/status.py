"""``upkeep status``: everything at a glance. People and scripts ask often: it starts in the time of a blink."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent import inhibit
from agent.commands.common import iso, json_number, loaded, print_json, size, span, words
from agent.config import LoadedConfig
from agent.errors import StoreError
from agent.store.cap import remembered
from agent.store.read import Reader


def run(arguments: Namespace) -> int:
    """Everything at a glance; exit status 1 when no agent is running."""
    settings = loaded(arguments)
    folder = Path(settings.config.state_dir)
    running = is_running(folder)
    with Reader.open(folder) as reader:
        facts = _facts(reader, settings, folder, running)
    if arguments.json:
        print_json(facts)
    else:
        _print_status(facts)
    return 0 if running else 1


def is_running(folder: Path) -> bool:
    """Whether an agent holds the state directory: whether somebody has its lock."""
    import fcntl

    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _facts(reader: Reader, settings: LoadedConfig, folder: Path, running: bool) -> dict[str, object]:
    now = time.time()
    open_alerts = [each.alert for each in reader.alerts(since=now) if each.ended_at is None]
    recent = _rows(
        reader,
        "SELECT id, time, rule, handler, status, outcome, reason, bytes_freed FROM actions ORDER BY id DESC LIMIT 5",
    )
    collectors = _rows(
        reader,
        "SELECT json_extract(labels, '$.collector') AS collector, value AS up, round(age_s, 1) AS age_s FROM latest "
        "WHERE metric = 'upkeep_collector_up' ORDER BY collector",
    )
    circuits = _rows(reader, "SELECT handler, resource, why FROM ledger.circuit")
    silences = _rows(
        reader,
        "SELECT id, matchers, why FROM ledger.silence WHERE ended_at IS NULL "
        "AND (every <> '' OR starts_at + for_s > ?)",
        now,
    )
    refused = _rows(
        reader,
        "SELECT time, message FROM events WHERE kind IN ('reload_refused', 'reloaded') ORDER BY time DESC LIMIT 1",
    )
    files = [folder / name for name in ("metrics.db", "metrics.db-wal", "ledger.db", "ledger.db-wal")]
    return {
        "running": running,
        "mode": settings.config.mode.value,
        "config": settings.path,
        "state_dir": str(folder),
        "disk_most_bytes": _most_bytes(folder, settings),
        "disk_used_bytes": sum(file.stat().st_blocks * 512 for file in files if file.exists()),
        "paused": inhibit.paused(folder, now),
        "observing": inhibit.observing(folder),
        "alerts": [
            {
                "rule": alert.rule,
                "state": alert.state.value,
                "value": json_number(alert.value),
                "since": iso(alert.active_since),
                "for_s": round(now - alert.active_since),
                "missing": alert.missing,
                "labels": dict(alert.labels),
            }
            for alert in open_alerts
        ],
        "collectors": collectors,
        "actions": recent,
        "circuits_open": circuits,
        "silences": silences,
        "last_reload": refused[0] if refused else None,
    }


def _most_bytes(folder: Path, settings: LoadedConfig) -> int:
    """What the store may hold: as configured, or a tenth of what was free when the agent first started here."""
    configured = settings.config.retention.max_size
    found = remembered(folder)
    return configured if found is None else found.most(configured)


def _rows(reader: Reader, statement: str, *parameters: object) -> list[dict[str, object]]:
    try:
        columns, rows = reader.sql(statement, parameters)
    except StoreError:
        return []  # a ledger that does not exist yet
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _print_status(facts: dict[str, object]) -> None:
    state = "running" if facts["running"] else "NOT RUNNING"
    paused = ", PAUSED" if facts["paused"] else ""
    used = size(float(str(facts["disk_used_bytes"])))
    most = size(float(str(facts["disk_most_bytes"])))
    print(f"agent {state}, mode {facts['mode']}{paused}, {used} of {most} used in {facts['state_dir']}")
    if facts["observing"]:
        print("OBSERVING whatever the mode, since the ledger was restored; look, then: upkeep state accept")
    _section("alerts", facts["alerts"], _alert_lines, "none pending or firing")
    _section("collectors", facts["collectors"], _collector_lines, "no samples yet")
    _section("last actions", facts["actions"], _action_lines, "none yet")
    _section(
        "circuits open",
        facts["circuits_open"],
        lambda rows: (f"{r['handler']}:{r['resource']}  {r['why']}" for r in rows),
    )
    _section("silences", facts["silences"], lambda rows: (f"{r['id']}  {r['matchers']}  {r['why']}" for r in rows))
    last = facts["last_reload"]
    if isinstance(last, dict) and "refused" in str(last["message"]):
        print(f"\n{last['message']}")


def _section(title: str, rows: object, lines, none: str = "") -> None:  # type: ignore[no-untyped-def]
    if not rows and not none:
        return
    print(f"\n{title}")
    for line in lines(rows) if rows else [none]:
        print(f"  {line}")


def _alert_lines(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    for row in rows:
        held = row["labels"]
        labels = words(tuple(held.items())) if isinstance(held, dict) else ""
        missing = ", data missing" if row["missing"] else ""
        length = span(float(str(row["for_s"])))
        yield f"{row['state']:<8} {row['rule']}  {labels}  value {row['value']:.6g}, for {length}{missing}"


def _collector_lines(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    for row in rows:
        state = "up" if row["up"] else "DOWN"
        yield f"{row['collector']:<18} {state:<5} {row['age_s']} s ago"


def _action_lines(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    for row in rows:
        outcome = row["outcome"] or row["reason"] or ""
        freed = f", {size(float(str(row['bytes_freed'])))} freed" if row["bytes_freed"] else ""
        yield f"#{row['id']}  {row['time']}  {row['handler']}  {row['status']} {outcome}{freed}  {row['rule'] or ''}"
