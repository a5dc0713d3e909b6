"""Commands that only look: query, sql, status, actions, events, alerts. They open the store read-only."""

from __future__ import annotations

import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from agent import control
from agent.commands.common import duration, loaded, parse_time, print_json, print_table, size, span, state_dir
from agent.config import LoadedConfig
from agent.errors import StoreError, UpkeepError
from agent.model import Action, Labels
from agent.promql.evaluate import evaluate, evaluate_range
from agent.promql.parse import parse
from agent.promql.values import Matrix, Points, Scalar, String, Vector
from agent.store import Reader


def clock_time(at: float | None) -> str:
    """An instant for people: local time, with seconds."""
    return "-" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str | None:
    """An instant for machines: UTC."""
    if at is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"


def words(labels: Labels) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels) or "-"


# -- PromQL and SQL --------------------------------------------------------------------------------------------------


def query(arguments: Namespace) -> int:
    """Instant or range query over the store."""
    expression = parse(arguments.expression)
    now = time.time()
    with Reader.open(state_dir(arguments)) as reader:
        if arguments.start or arguments.end:
            start = parse_time(arguments.start or "1h", now)
            end = parse_time(arguments.end, now) if arguments.end else now
            value: object = evaluate_range(expression, reader, start, end, duration(arguments.step))
        else:
            value = evaluate(expression, reader, parse_time(arguments.at, now) if arguments.at else now)
    rows = list(_elements(value))
    if arguments.json:
        print_json(
            [{"labels": dict(labels), "values": [[at, _json_number(v)] for at, v in points]} for labels, points in rows]
        )
    elif not rows:
        print("no data: no series matches, or all of them are older than five minutes", file=sys.stderr)
        return 1
    else:
        for labels, points in rows:
            _print_element(labels, points)
    return 0 if rows else 1


def _elements(value: object) -> Iterator[tuple[Labels, list[tuple[float | None, float | str]]]]:
    match value:
        case Scalar():
            yield (), [(None, value.value)]
        case String():
            yield (), [(None, value.value)]
        case Vector():
            for labels, number in value.samples:
                yield labels, [(None, number)]
        case Matrix():
            yield from ((each.labels, _pairs(each)) for each in value.series)


def _pairs(points: Points) -> list[tuple[float | None, float | str]]:
    return list(zip(points.times, points.values, strict=True))


def _print_element(labels: Labels, points: Sequence[tuple[float | None, float | str]]) -> None:
    held = dict(labels)
    name = held.pop("__name__", "")
    inner = ",".join(f'{key}="{text}"' for key, text in held.items())
    series = name + (f"{{{inner}}}" if inner or not name else "")
    if len(points) == 1 and points[0][0] is None:
        print(f"{series} {points[0][1]:g}" if isinstance(points[0][1], float) else points[0][1])
        return
    print(series)
    for at, number in points:
        print(f"  {iso(at)}  {number:g}")


def _json_number(value: float | str) -> float | str:
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def sql(arguments: Namespace) -> int:
    """One statement, or a shell, over the views of both files."""
    with Reader.open(state_dir(arguments)) as reader:
        if arguments.statement:
            _run_statement(reader, arguments.statement, as_json=arguments.json)
            return 0
        return _shell(reader)


def _run_statement(reader: Reader, statement: str, *, as_json: bool) -> None:
    columns, rows = reader.sql(statement)
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows)


def _shell(reader: Reader) -> int:
    """Statements line by line until end of file; one that is wrong is said and the next is read."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() its history and editing

        print("views: samples minutes hours series latest events alerts actions action_items job_runs silences reports")
    pending = ""
    while True:
        try:
            line = input(("...> " if pending else "upkeep> ") if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        pending = f"{pending}\n{line}".strip()
        if pending in (".quit", ".exit", "exit", "quit"):
            return 0
        if pending.endswith(";"):
            try:
                _run_statement(reader, pending, as_json=False)
            except StoreError as error:
                print(error, file=sys.stderr)
            pending = ""


# -- history ---------------------------------------------------------------------------------------------------------


def actions(arguments: Namespace) -> int:
    """What was done, newest first; with an id, one action whole."""
    with Reader.open(state_dir(arguments)) as reader:
        if arguments.id is not None:
            action = reader.action(arguments.id)
            if action is None:
                raise UpkeepError(f"cannot show action {arguments.id}: there is none")
            _show_action(action, as_json=arguments.json)
            return 0
        found = reader.actions(since=parse_time(arguments.since, time.time()))
    kept = [
        action
        for action in found
        if arguments.rule in (None, action.rule) and arguments.status in (None, action.status.value)
    ][: arguments.limit]
    if arguments.json:
        print_json([action_json(action) for action in kept])
        return 0
    columns = ("ID", "TIME", "CAUSE", "HANDLER", "RESOURCE", "STATUS", "OUTCOME", "FREED", "REASON")
    print_table(columns, map(_action_row, kept))
    return 0


def _action_row(action: Action) -> Sequence[object]:
    freed = size(action.outcome.bytes_freed) if action.outcome and action.outcome.bytes_freed else "-"
    return (
        action.id,
        clock_time(action.requested_at),
        action.cause,
        action.handler,
        action.resource or "-",
        action.status.value,
        action.verdict.value if action.verdict else "-",
        freed,
        action.reason or "-",
    )


def action_json(action: Action) -> dict[str, object]:
    """An action as the contract names its fields."""
    outcome, plan = action.outcome, action.plan
    return {
        "id": action.id,
        "time": iso(action.requested_at),
        "cause": action.cause,
        "rule": action.rule,
        "labels": dict(action.labels),
        "step": action.step,
        "attempt": action.attempt,
        "handler": action.handler,
        "params": dict(action.params),
        "resource": action.resource,
        "mode": action.mode.value,
        "status": action.status.value,
        "outcome": action.verdict.value if action.verdict else None,
        "reason": action.reason,
        "plan": plan.summary if plan else None,
        "planned_bytes": plan.bytes if plan else None,
        "bytes_freed": outcome.bytes_freed if outcome else 0,
        "bytes_removed": outcome.bytes_removed if outcome else 0,
        "error": outcome.error if outcome else "",
        "started_at": iso(action.started_at),
        "finished_at": iso(action.finished_at),
    }


def _show_action(action: Action, *, as_json: bool) -> None:
    plan, outcome = action.plan, action.outcome
    results = {item.target: item.result for item in outcome.items} if outcome else {}
    items = (
        [(item.change, item.target, item.bytes, results.get(item.target, "-")) for item in plan.items] if plan else []
    )
    skipped = [(each.reason, each.target, each.bytes) for each in plan.skipped] if plan else []
    if as_json:
        print_json(
            {
                **action_json(action),
                "items": [dict(zip(("change", "target", "bytes", "result"), item, strict=True)) for item in items],
                "skipped": [dict(zip(("reason", "target", "bytes"), each, strict=True)) for each in skipped],
            }
        )
        return
    for name, value in action_json(action).items():
        print(f"{name:>13}  {value if value not in (None, '') else '-'}")
    if items:
        print()
        print_table(("CHANGE", "SIZE", "RESULT", "TARGET"), [(c, size(b), r, t) for c, t, b, r in items])
    if skipped:
        print("\nleft alone:")
        print_table(("REASON", "SIZE", "TARGET"), [(reason, size(b), target) for reason, target, b in skipped])


def events(arguments: Namespace) -> int:
    """What happened, newest first."""
    with Reader.open(state_dir(arguments)) as reader:
        found = reader.events(since=parse_time(arguments.since, time.time()), kind=arguments.kind or "")
    kept = [each for each in found if arguments.severity in (None, each.severity.value)][: arguments.limit]
    if arguments.json:
        print_json(
            [
                {
                    "time": iso(each.at),
                    "kind": each.kind,
                    "severity": each.severity.value,
                    "source": each.source,
                    "message": each.message,
                    "labels": dict(each.labels),
                }
                for each in kept
            ]
        )
    else:
        rows = [(clock_time(e.at), e.kind, e.severity.value, e.source, e.message) for e in kept]
        print_table(("TIME", "KIND", "SEVERITY", "SOURCE", "MESSAGE"), rows)
    return 0


def alerts(arguments: Namespace) -> int:
    """Alerts that stand, then those that ended, newest first."""
    with Reader.open(state_dir(arguments)) as reader:
        found = reader.alerts(since=parse_time(arguments.since, time.time()))
    kept = [each for each in found if arguments.rule in (None, each.alert.rule)]
    kept = sorted(kept, key=lambda each: each.ended_at is not None)[: arguments.limit]
    if arguments.json:
        print_json(
            [
                {
                    "rule": each.alert.rule,
                    "labels": dict(each.alert.labels),
                    "state": each.alert.state.value if each.ended_at is None else "inactive",
                    "value": _json_number(each.alert.value),
                    "active_since": iso(each.alert.active_since),
                    "fired_at": iso(each.alert.fired_at),
                    "ended_at": iso(each.ended_at),
                    "missing": each.alert.missing,
                }
                for each in kept
            ]
        )
    else:
        print_table(
            ("RULE", "STATE", "SINCE", "ENDED", "VALUE", "LABELS"),
            [
                (
                    each.alert.rule,
                    each.alert.state.value if each.ended_at is None else "ended",
                    clock_time(each.alert.active_since),
                    clock_time(each.ended_at),
                    each.alert.value,
                    words(each.alert.labels),
                )
                for each in kept
            ],
        )
    return 0


# -- status ----------------------------------------------------------------------------------------------------------


def status(arguments: Namespace) -> int:
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
        "disk_used_bytes": sum(file.stat().st_blocks * 512 for file in files if file.exists()),
        "paused": control.paused(folder, now),
        "alerts": [
            {
                "rule": alert.rule,
                "state": alert.state.value,
                "value": _json_number(alert.value),
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
    print(f"agent {state}, mode {facts['mode']}{paused}, {used} used in {facts['state_dir']}")
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
