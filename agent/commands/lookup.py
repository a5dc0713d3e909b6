"""Commands that look at what is stored: sql, actions, events, alerts. They open the store read-only."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from agent.commands.common import (
    clock_time,
    iso,
    json_number,
    loaded,
    parse_time,
    print_json,
    print_table,
    size,
    state_dir,
    words,
)
from agent.errors import StoreError, UpkeepError
from agent.model import Action, Alert
from agent.store.read import Reader

# -- SQL -------------------------------------------------------------------------------------------------------------


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
    """Alerts that stand, then those that ended, newest first; or a person's word on one of them."""
    if arguments.what == "mark":
        return _mark(arguments)
    with Reader.open(state_dir(arguments)) as reader:
        found = reader.alerts(since=parse_time(arguments.since, time.time()))
        said = _said(reader)
        quiet = _quiet(reader, arguments, [each.alert for each in found if each.ended_at is None])
    kept = [each for each in found if arguments.rule in (None, each.alert.rule)]
    kept = sorted(kept, key=lambda each: each.ended_at is not None)[: arguments.limit]
    if arguments.json:
        print_json(
            [
                {
                    "id": each.id,
                    "rule": each.alert.rule,
                    "labels": dict(each.alert.labels),
                    "state": each.alert.state.value if each.ended_at is None else "inactive",
                    "value": json_number(each.alert.value),
                    "active_since": iso(each.alert.active_since),
                    "fired_at": iso(each.alert.fired_at),
                    "ended_at": iso(each.ended_at),
                    "missing": each.alert.missing,
                    "quiet": quiet.get(each.alert, "") if each.ended_at is None else "",
                    "useful": said.get(each.id, (None, None))[0],
                    "rule_set": said.get(each.id, (None, None))[1],
                }
                for each in kept
            ]
        )
    else:
        print_table(
            ("ID", "RULE", "STATE", "SINCE", "ENDED", "VALUE", "USEFUL", "QUIET", "LABELS"),
            [
                (
                    each.id,
                    each.alert.rule,
                    each.alert.state.value if each.ended_at is None else "ended",
                    clock_time(each.alert.active_since),
                    clock_time(each.ended_at),
                    each.alert.value,
                    {True: "yes", False: "no", None: "-"}[said.get(each.id, (None, None))[0]],
                    (quiet.get(each.alert, "") if each.ended_at is None else "") or "-",
                    words(each.alert.labels),
                )
                for each in kept
            ],
        )
    return 0


def _mark(arguments: Namespace) -> int:
    if not (arguments.id or "").isdigit() or arguments.verdict is None:
        raise UpkeepError("cannot mark an alert: upkeep alerts mark ID true|false --why TEXT")
    from agent.commands.act import tell  # whoever only looks talks to nobody

    useful = arguments.verdict == "true"
    tell(arguments, "alert_mark", {"id": int(arguments.id), "useful": useful, "why": arguments.why or ""})
    print(f"alert {arguments.id} marked {'useful' if useful else 'false'}")
    return 0


def _said(reader: Reader) -> dict[int, tuple[bool | None, str | None]]:
    """What people said of each alert, and the rule set that judged it."""
    try:
        _, rows = reader.sql("SELECT id, useful, rule_set FROM alerts")
    except StoreError:  # a ledger that an older version wrote last
        return {}
    return {number: (None if useful is None else bool(useful), digest) for number, useful, digest in rows}


def _quiet(reader: Reader, arguments: Namespace, standing: Sequence[Alert]) -> dict[Alert, str]:
    """What keeps each standing alert quiet; where none stands, nothing is read for it."""
    if not standing:
        return {}
    from agent.commands.quiet import quiet_words

    return dict(zip(standing, quiet_words(reader, loaded(arguments), standing, time.time()), strict=True))
