"""``upkeep notify``: the routes, what waits for each, and a marked message that shows the whole dialogue."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from agent import web
from agent.commands.common import clock_time, iso, loaded, print_json, print_table, span
from agent.config import Config, Endpoint, Route, routes
from agent.errors import UpkeepError
from agent.grouping import Notice, Notification
from agent.located import did_you_mean
from agent.model import make_labels
from agent.notifiers import TEST_ALERT, channel, kind_of
from agent.spool import Spool

HEARTBEAT = "heartbeat"


def run(arguments: Namespace) -> int:
    """List the routes, or try them; exit status 1 when one that was tried did not take the message."""
    config = loaded(arguments).config
    if arguments.what == "list":
        return _list(config, as_json=arguments.json)
    return _test(config, arguments.route, as_json=arguments.json)


# -- list ------------------------------------------------------------------------------------------------------------


def _list(config: Config, *, as_json: bool) -> int:
    now = time.time()
    facts = [_facts(route, config) for route in routes(config)]
    if as_json:
        print_json([{**asdict(fact), "oldest": iso(fact.oldest)} for fact in facts])
        return 0
    if not facts:
        print("no routes: nobody is told (the keys notify.routes and mail.to of the configuration)")
    columns = ("ROUTE", "BY", "ALERTS", "WAITING", "OLDEST")
    print_table(columns, [(each.route, each.by, each.alerts, each.waiting, _since(each.oldest, now)) for each in facts])
    return 0


def _since(at: float | None, now: float) -> str:
    return "-" if at is None else f"{clock_time(at)} ({span(now - at)})"


@dataclass(frozen=True, slots=True)
class _Facts:
    route: str
    by: str
    alerts: str
    waiting: int
    oldest: float | None


def _facts(route: Route, config: Config) -> _Facts:
    folder = Path(config.state_dir) / "spool" / "routes" / route.name
    waiting = Spool(folder, max_bytes=config.notify.spool_size, max_age_s=config.notify.spool_age).entries()
    chosen = [",".join(each.value for each in route.severities), route.match or ""]
    alerts = " ".join(part for part in chosen if part) or "all"
    return _Facts(route.name, kind_of(route), alerts, len(waiting), waiting[0].put_at if waiting else None)


# -- test ------------------------------------------------------------------------------------------------------------


def _test(config: Config, wanted: str | None, *, as_json: bool) -> int:
    tries = _tries(config)
    if wanted is not None and wanted not in tries:
        known = f" (known: {', '.join(tries)})" if tries else "; there are none"
        raise UpkeepError(f'unknown route "{wanted}"{did_you_mean(wanted, list(tries))}{known}')
    if not tries:
        raise UpkeepError("cannot test: no route is configured (the keys notify.routes and mail.to)")
    results = [_try(name, tries[name], as_json=as_json) for name in ([wanted] if wanted else tries)]
    if as_json:
        print_json(results)
    return 0 if all(result["error"] is None for result in results) else 1


def _tries(config: Config) -> dict[str, Callable[[web.Say], None]]:
    """What can be tried, by name: each route, and the address of the heartbeat."""
    tries: dict[str, Callable[[web.Say], None]] = {}
    for route in routes(config):
        tries[route.name] = _route_try(route, config)
    beat = config.notify.heartbeat
    if beat is not None and (endpoint := beat.ask) is not None:
        tries[HEARTBEAT] = partial(_ask, endpoint)
    return tries


def _route_try(route: Route, config: Config) -> Callable[[web.Say], None]:
    def attempt(say: web.Say) -> None:
        receiver, at = channel(route, config), time.time()
        for reader in receiver.recipients:
            receiver.send(marked(route.name, at, config), reader, at, say)

    return attempt


def _ask(endpoint: Endpoint, say: web.Say) -> None:
    web.ask(endpoint, "GET", say=say)


def marked(route: str, at: float, config: Config) -> Notification:
    """A message that nobody takes for a real alert: it says so, and it ends by itself."""
    labels = {"instance": socket.gethostname(), **config.notify.labels, "alertname": TEST_ALERT, "severity": "info"}
    words = make_labels(summary=f"This is a test of route {route}, asked for by a person. Nothing is wrong.")
    return Notification(route, (("alertname", TEST_ALERT),), (Notice(make_labels(labels), at, None, words),), at, 1)


def _try(name: str, attempt: Callable[[web.Say], None], *, as_json: bool) -> dict[str, object]:
    dialogue: list[str] = []

    def say(line: str) -> None:
        dialogue.append(line)
        if not as_json:
            print(f"  {line}")

    if not as_json:
        print(name)
    error = None
    try:
        attempt(say)
    except UpkeepError as why:
        error = str(why)
    if not as_json:
        print(f"  NOT SENT: {error}\n" if error else "  sent\n")
    return {"route": name, "error": error, "dialogue": dialogue}
