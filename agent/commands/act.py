"""Commands that act or stop acting: plan, apply, pause, resume, silence, circuit, approve.

Each goes to the running agent over its socket; with none running it takes the state lock and does the same itself.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent import control, inhibit
from agent.app import alone, hands
from agent.clock import SystemClock
from agent.commands.common import clock_time, duration, iso, loaded, print_json, print_table, size, span, state_dir
from agent.commands.lookup import action_json
from agent.control import Controls
from agent.errors import UpkeepError
from agent.handlers import Tools, make
from agent.located import Faults, MappingNode, Node, Scalar, SequenceNode, build, did_you_mean
from agent.model import Plan
from agent.notifiers.journal import Journal
from agent.silencing import check_every, covers, every_in_zone
from agent.specs import HANDLERS, Spec
from agent.store import Reader, Silence


def plan(arguments: Namespace) -> int:
    """What a handler would change; exit status 1 when it would refuse."""
    params = _params(arguments.handler, arguments.parameters)
    made = asyncio.run(_plan(arguments, params))
    if arguments.json:
        print_json(_plan_json(made))
    else:
        print_plan(made)
    return 1 if made.refused else 0


def apply(arguments: Namespace) -> int:
    """Plan, ask, do, verify; exit status 1 unless it ended well."""
    params = _params(arguments.handler, arguments.parameters)
    if not arguments.yes:
        made = asyncio.run(_plan(arguments, params))
        print_plan(made)
        if made.refused or not made.items:
            return 1 if made.refused else 0
        if not sys.stdin.isatty():
            raise UpkeepError("cannot ask without a terminal: add --yes")
        if input("\ncarry out? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was changed")
            return 1
    answer = tell(arguments, "apply", {"handler": arguments.handler, "params": params}, deadline_s=None)
    with Reader.open(state_dir(arguments)) as reader:
        action = reader.action(int(answer["id"]))
    if action is None:
        raise UpkeepError("cannot show what was done: the action is not in the ledger")
    if arguments.json:
        print_json(action_json(action))
    else:
        freed = f", {size(action.outcome.bytes_freed)} freed" if action.outcome else ""
        why = action.outcome.error if action.outcome and action.outcome.error else action.reason
        print(f"action {action.id}: {action.status} {action.verdict or ''}{freed}{' (' + why + ')' if why else ''}")
    return 0 if action.verdict is None or action.verdict == "fixed" else 1


async def _plan(arguments: Namespace, params: Mapping[str, object]) -> Plan:
    clock = SystemClock()
    ops = hands(loaded(arguments).config, clock)

    async def nothing(*_: object) -> str:
        raise UpkeepError("cannot do this while planning")

    try:
        tools = Tools(ops, Journal(nothing, clock), nothing)  # type: ignore[arg-type]
        return await make(arguments.handler, params, tools).plan(clock.wall())
    finally:
        await ops.close()


def _params(handler: str, written: list[str]) -> dict[str, Any]:
    """``key=value`` words, read as the same words in a rule's step would be."""
    if handler not in HANDLERS:
        raise UpkeepError(
            f'unknown handler "{handler}"{did_you_mean(handler, list(HANDLERS))} (known: {", ".join(HANDLERS)})'
        )
    entries: list[tuple[Scalar, Node]] = []
    for position, word in enumerate(written, 1):
        key, equals, text = word.partition("=")
        if not equals:
            raise UpkeepError(f'cannot read "{word}": write KEY=VALUE')
        entries.append((Scalar(key, True, 1, position), _node(text, position)))
    faults = Faults(handler)
    spec: Spec | None = build(HANDLERS[handler], MappingNode(tuple(entries), 1, 1), faults)
    if spec is None:
        raise UpkeepError("\n".join(f"{handler}: {fault.message}" for fault in faults.found))
    from dataclasses import asdict

    return asdict(spec)


def _node(text: str, position: int) -> Node:
    if text.startswith("[") and text.endswith("]"):
        items = [Scalar(part.strip(), True, 1, position) for part in text[1:-1].split(",") if part.strip()]
        return SequenceNode(tuple(items), 1, position)
    return Scalar(text, True, 1, position)


def print_plan(made: Plan) -> None:
    """A plan for people: its sentence, each item, what is left alone and why."""
    print(made.summary)
    if made.refused:
        print(f"refused: {made.refused}")
    if made.items:
        print()
        print_table(("CHANGE", "SIZE", "TARGET"), [(item.change, size(item.bytes), item.target) for item in made.items])
    if made.skipped:
        print("\nleft alone:")
        print_table(
            ("REASON", "SIZE", "TARGET"), [(each.reason, size(each.bytes), each.target) for each in made.skipped]
        )
    print(f"\n{len(made.items)} of {made.considered_items} items, {size(made.bytes)} of {size(made.considered_bytes)}")


def _plan_json(made: Plan) -> dict[str, object]:
    return {
        "handler": made.handler,
        "resource": made.resource,
        "summary": made.summary,
        "refused": made.refused,
        "bytes": made.bytes,
        "considered_items": made.considered_items,
        "considered_bytes": made.considered_bytes,
        "items": [{"change": item.change, "target": item.target, "bytes": item.bytes} for item in made.items],
        "skipped": [{"reason": each.reason, "target": each.target, "bytes": each.bytes} for each in made.skipped],
    }


# -- brakes ----------------------------------------------------------------------------------------------------------


def pause(arguments: Namespace) -> int:
    """Stop acting; works with and without a running agent, as ``touch STATE_DIR/inhibit`` does."""
    folder = state_dir(arguments)
    until = time.time() + duration(arguments.duration) if arguments.duration else None
    try:
        inhibit.pause(folder, until, control.myself())
    except OSError as error:
        raise UpkeepError(f'cannot pause: "{folder}": {(error.strerror or str(error)).lower()}') from None
    print(f"paused until {clock_time(until)}" if until else "paused until: upkeep resume")
    return 0


def resume(arguments: Namespace) -> int:
    folder = state_dir(arguments)
    try:
        inhibit.resume(folder)
    except OSError as error:
        raise UpkeepError(f'cannot resume: "{folder}": {(error.strerror or str(error)).lower()}') from None
    print("acting again")
    return 0


def silence(arguments: Namespace) -> int:
    """Add, list and end silences."""
    if arguments.what == "list":
        return _list_silences(arguments)
    if arguments.what == "end":
        if not (arguments.subject or "").isdigit():
            raise UpkeepError("cannot end a silence without its id: upkeep silence list")
        tell(arguments, "silence_end", {"id": int(arguments.subject)})
        print(f"silence {arguments.subject} ended")
        return 0
    if not arguments.subject or not arguments.duration:
        raise UpkeepError("cannot add a silence: give matchers and --for D")
    if arguments.zone and not arguments.every:
        raise UpkeepError("cannot use --zone without --every: a silence once lasts from now")
    every = ""
    if arguments.every:
        every = every_in_zone(arguments.every, arguments.zone or loaded(arguments).config.timezone)
        check_every(every)
    fields = {
        "matchers": arguments.subject,
        "for_s": duration(arguments.duration),
        "every": every,
        "why": arguments.why or "",
    }
    print(f"silence {tell(arguments, 'silence_add', fields)['id']} added")
    return 0


def _list_silences(arguments: Namespace) -> int:
    with Reader.open(state_dir(arguments)) as reader:
        _, rows = reader.sql(
            'SELECT id, matchers, starts_at, for_s, every, "by", why FROM ledger.silence WHERE ended_at IS NULL '
            "AND (every <> '' OR starts_at + for_s > ?) ORDER BY id",
            (time.time(),),
        )
    kept = [Silence(m, w, b, s, f, e, n) for n, m, s, f, e, b, w in rows]
    if arguments.json:
        print_json([_silence_json(each) for each in kept])
    else:
        columns = ("ID", "NOW", "MATCHERS", "FROM", "UNTIL OR FOR", "EVERY", "BY", "WHY")
        print_table(columns, [_silence_row(each) for each in kept])
    return 0


def _silence_json(silence: Silence) -> dict[str, object]:
    once = not silence.every
    return {
        "id": silence.id,
        "active": covers(silence, time.time()),
        "matchers": silence.matchers,
        "starts_at": iso(silence.starts_at),
        "ends_at": iso(silence.starts_at + silence.for_s) if once else None,
        "for_s": silence.for_s,
        "every": silence.every,
        "by": silence.by,
        "why": silence.why,
    }


def _silence_row(silence: Silence) -> Sequence[object]:
    now = "silent" if covers(silence, time.time()) else "-"
    until = span(silence.for_s) if silence.every else clock_time(silence.starts_at + silence.for_s)
    start = clock_time(silence.starts_at)
    return silence.id, now, silence.matchers, start, until, silence.every or "-", silence.by, silence.why


def circuit(arguments: Namespace) -> int:
    """List or close circuits."""
    if arguments.what == "list":
        with Reader.open(state_dir(arguments)) as reader:
            _, rows = reader.sql("SELECT handler || ':' || resource, opened_at, why FROM ledger.circuit")
        print_table(("NAME", "OPENED", "WHY"), [(name, clock_time(at), why) for name, at, why in rows])
        return 0
    if not arguments.name:
        raise UpkeepError("cannot close a circuit without its name: upkeep circuit list")
    tell(arguments, "circuit_close", {"name": arguments.name})
    print(f"circuit {arguments.name} closed")
    return 0


def approve(arguments: Namespace) -> int:
    tell(arguments, "approve", {"id": arguments.id})
    print(f"action {arguments.id} approved")
    return 0


def tell(
    arguments: Namespace, verb: str, fields: Mapping[str, object], *, deadline_s: float | None = control.DEADLINE_S
) -> dict[str, Any]:
    """Tell the running agent, or do it here under the state lock."""
    settings = loaded(arguments)
    path = Path(settings.config.state_dir) / "control.sock"
    try:
        answer = control.ask(path, verb, fields, deadline_s=deadline_s)
    except ConnectionError:
        answer = asyncio.run(_do_it_here(settings, verb, fields))
    except PermissionError:
        raise UpkeepError(f'cannot reach the agent: no permission for "{path}" (its group may)') from None
    except TimeoutError:
        raise UpkeepError(f"cannot hear the agent: no answer within {deadline_s:g} s") from None
    return answer if isinstance(answer, dict) else {}


async def _do_it_here(settings: Any, verb: str, fields: Mapping[str, object]) -> object:
    async with alone(settings) as controls:
        assert isinstance(controls, Controls)
        return await control.perform(controls, control.myself(), verb, fields)
