"""Tell people and machines of alerts: who is to be told of what, when, and again until it has arrived.

One look turns the alerts that stand now, what silences and inhibits them, and what was told before into what is to be
said; :mod:`agent.grouping` decides. What is to be said is on disk, route by route, before it counts as said; a delivery
of its own for each route carries it out, so that a receiver that hangs holds up nobody else. Nothing here runs, or is
imported, where no route is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from agent import mail, web
from agent.aside import Aside
from agent.clock import Clock
from agent.config import Config, Mail, Route, routes
from agent.engine import Engine
from agent.errors import DeliveryError, StoreError, UpkeepError
from agent.grouping import (
    Groups,
    Notice,
    Notification,
    Pace,
    groups_json,
    groups_of,
    next_due,
    notification_json,
    notification_of,
    step,
)
from agent.matching import full_labels, matches
from agent.model import Action, ActionStatus, Alert, AlertState, Event, Labels, Series, Severity, make_labels
from agent.notifiers import HEARTBEAT_ALERT, MESSAGE_ALERT, Channel, channel, kind_of
from agent.notifiers.alertmanager import RESEND_S
from agent.silencing import firing_labels, quiet_reason
from agent.spool import Entry, Spool
from agent.store import Ledger

log = logging.getLogger(__name__)

LOOK_AT_MOST_S = 15.0
"""Between two looks: a brake that holds an action, or a silence that ends, wakes nobody."""
TO_ALERTMANAGER = Pace(group_by=(), wait_s=0.0, interval_s=5.0, repeat_s=RESEND_S)
"""One group that is sent as soon as it changes and every minute: what Prometheus does."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 300.0
REFUSED_AGAIN_S = (60.0, 600.0, 3600.0, 6 * 3600.0)
"""When what a receiver refused is tried again; a person may have put the receiver right meanwhile."""
SPOOL_LOOK_S = 30.0
"""How often the spool of whole mails is looked at: another process puts them there."""

_AT_WORK = frozenset({"", "host_busy", "resource_locked", "boot_grace"})
"""Reasons of an open action that soon pass by themselves; any other leaves the alert to people."""

Record = Callable[[list[Event]], Awaitable[None]]


class Runs(Protocol):
    """:class:`agent.aside.Aside`, or a test's way to run where it stands."""

    async def run(self, work: Callable[[], object], deadline_s: float) -> object: ...


# -- delivering ------------------------------------------------------------------------------------------------------


class Delivery:
    """Sends what waits in one spool, the oldest first, until it has arrived.

    A receiver that cannot be reached is left alone for longer each time, with jitter, or for as long as it asks; one
    that refuses a single thing gets the next, and the refused one some more chances.

    Parameters
    ----------
    name
        For events, logs and figures.
    send
        Hands over one content; blocking.
    remember
        What was sent is never taken into the spool again.
    """

    def __init__(
        self,
        name: str,
        spool: Spool,
        send: Callable[[bytes], None],
        *,
        deadline_s: float,
        clock: Clock,
        record: Record,
        aside: Runs,
        remember: bool = False,
        look_s: float | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.spool = spool
        self.sent = self.failed = self.dropped = 0
        self._send = send
        self._deadline_s = deadline_s
        self._clock = clock
        self._record = record
        self._aside = aside
        self._remember = remember
        self._look_s = look_s
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._failures = 0
        self._refused: dict[str, tuple[int, float]] = {}
        self._arrived: set[str] = set()

    def wake(self) -> None:
        """Something was put into the spool."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            self._wake.clear()
            rest_s = await self.round()
            if rest_s and self._failures:
                await asyncio.sleep(rest_s)  # what is new does not bring the receiver back
            elif rest_s != 0:
                # wait_for would lose a cancellation that comes with a wake-up, and the agent would never stop.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._wake.wait()

    async def round(self) -> float | None:
        """Try what is due; how long nothing is to be done, None for until something is put into the spool."""
        entry = self._next()
        if entry is None:
            soonest = min((due for _, due in self._refused.values()), default=None)
            waits = [] if soonest is None else [max(0.1, soonest - self._clock.boot())]
            return min([*waits, *([self._look_s] if self._look_s else [])], default=None)
        self.spool.hold(entry)
        try:
            await self._aside.run(partial(self._send, self.spool.read(entry)), self._deadline_s)
        except FileNotFoundError:
            return 0  # joined with a newer one just now
        except (UpkeepError, ValueError, KeyError, TypeError) as error:
            return await self._not_sent(entry, error)
        finally:
            self.spool.hold(None)
        try:
            self.spool.done(entry, remember=self._remember)
        except OSError as error:
            # It has arrived: whatever the disk says, it is not to be sent again.
            log.error("spool_unwritable route=%s error=%s", self.name, error)
            self._arrived.add(entry.name)
        await self._was_sent(entry)
        return 0

    def _next(self) -> Entry | None:
        boot = self._clock.boot()
        waiting = self.spool.entries()
        names = {entry.name for entry in waiting}
        self._refused = {name: held for name, held in self._refused.items() if name in names}
        waiting = [entry for entry in waiting if entry.name not in self._arrived]
        return next((entry for entry in waiting if self._refused.get(entry.name, (0, boot))[1] <= boot), None)

    async def _was_sent(self, entry: Entry) -> None:
        self.sent += 1
        self._refused.pop(entry.name, None)
        log.info("notification_sent to=%s", self.name)
        if self._failures:
            self._failures = 0
            await self._tell("notification_recovered", Severity.INFO, f"{self.name} is reached again")

    async def _not_sent(self, entry: Entry, error: Exception) -> float:
        self.failed += 1
        if isinstance(error, UpkeepError) and not (isinstance(error, DeliveryError) and error.refused):
            return await self._unreachable(error)
        # A content that cannot be read, or that this receiver will not have: the others pass it by.
        count = self._refused.get(entry.name, (0, 0.0))[0] + 1
        if count > len(REFUSED_AGAIN_S):
            self.spool.done(entry)
            self.dropped += 1
            await self._tell("notification_dropped", Severity.ERROR, f"given up after {count} tries: {error}")
            return 0
        self._refused[entry.name] = (count, self._clock.boot() + REFUSED_AGAIN_S[count - 1])
        if count == 1:
            await self._tell("notification_refused", Severity.WARNING, f"tried again later: {error}")
        return 0

    async def _unreachable(self, error: UpkeepError) -> float:
        self._failures += 1
        if self._failures == 1:
            await self._tell("notification_delayed", Severity.WARNING, f"it waits on disk: {error}")
        longest = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures, 16))
        asked = error.retry_after_s if isinstance(error, DeliveryError) else 0.0
        rest = max(asked, longest * (0.5 + 0.5 * self._jitter()))
        log.info("notification_waits to=%s for_s=%.1f why=%s", self.name, rest, error)
        return rest

    async def drop_excess(self, gone: Sequence[Entry]) -> None:
        """Say what had to go because too much waited."""
        if gone:
            self.dropped += len(gone)
            await self._tell("notification_dropped", Severity.ERROR, f"{len(gone)} had to make room for newer ones")

    async def _tell(self, kind: str, severity: Severity, words: str) -> None:
        log.warning("%s to=%s %s", kind, self.name, words)
        event = Event(kind, severity, f"notification to {self.name}: {words}", "notify", self._clock.wall(),
                      make_labels(route=self.name))  # fmt: skip
        try:
            await self._record([event])
        except StoreError as why:
            log.error("event_lost kind=%s error=%s", kind, why)


# -- routes ----------------------------------------------------------------------------------------------------------


class _Line:
    """A route at work: its groups, its receiver, and the delivery to it."""

    def __init__(self, route: Route, receiver: Channel, pace: Pace, delivery: Delivery) -> None:
        self.route = route
        self.receiver = receiver
        self.pace = pace
        self.delivery = delivery
        self.groups: Groups = {}
        to_machine = kind_of(route) == "alertmanager"
        self.all = route.tell == "all" or (route.tell == "auto" and to_machine)

    def takes(self, notice: Notice, attended: bool) -> bool:
        route = self.route
        if attended and not self.all:
            return False
        if route.severities and notice.label("severity") not in route.severities:
            return False
        return route.match is None or matches(route.match, notice.labels)

    def put(self, said: Notification, at: float, *, alone: str = "") -> list[Entry]:
        """On disk for each reader; ``alone`` is the key of what is never joined with anything."""
        gone: list[Entry] = []
        for reader in self.receiver.recipients:
            content = json.dumps({"to": reader, "said": notification_json(said)}).encode()
            key = f"{alone or json.dumps(said.group)} {reader}"
            gone += self.delivery.spool.put(key, content, at, join=_joined)
        return gone


def _joined(older: bytes, newer: bytes) -> bytes:
    """Two notifications of one group, neither sent, as one."""
    try:
        before = notification_of(json.loads(older)["said"])
    except (ValueError, KeyError, TypeError):
        return newer  # of another version
    held = json.loads(newer)
    return json.dumps({**held, "said": notification_json(notification_of(held["said"]).over(before))}).encode()


def _sender(receiver: Channel, clock: Clock) -> Callable[[bytes], None]:
    def send(content: bytes) -> None:
        held = json.loads(content)
        receiver.send(notification_of(held["said"]), str(held["to"]), clock.wall(), lambda line: None)

    return send


def pace_of(route: Route) -> Pace:
    """How a route groups and repeats."""
    if kind_of(route) == "alertmanager":
        return TO_ALERTMANAGER
    return Pace(route.group_by, route.group_wait, route.group_interval, route.repeat_interval, route.send_resolved)


class Router:
    """Every route of a configuration, and the spool of whole mails.

    Parameters
    ----------
    engine, ledger
        Asked which alerts stand, in which words, under which silences, and what is being done about them.
    record
        Stores events.
    alive
        Whether the agent does its work: without that no heartbeat is sent.
    url
        Where people reach this agent's pages; empty where there are none.
    """

    def __init__(
        self,
        config: Config,
        *,
        state_dir: Path,
        engine: Engine,
        ledger: Ledger,
        clock: Clock,
        record: Record,
        alive: Callable[[], bool] = lambda: True,
        url: str = "",
        aside: Callable[[str], Runs] = Aside,
    ) -> None:
        self._config = config
        self._folder = state_dir / "spool"
        self._engine = engine
        self._ledger = ledger
        self._clock = clock
        self._alive = alive
        self._url = config.notify.external_url or url
        self._labels = {"instance": socket.gethostname(), **config.notify.labels}
        self._aside = aside
        self._wake = asyncio.Event()
        self._note: int | None = None
        self._saved = ""
        limits = {"max_bytes": config.notify.spool_size, "max_age_s": config.notify.spool_age}

        def delivery(name: str, spool: Spool, send: Callable[[bytes], None], **how: object) -> Delivery:
            return Delivery(name, spool, send, clock=clock, record=record, aside=aside(name), **how)  # type: ignore[arg-type]

        self._lines: list[_Line] = []
        for route in routes(config):
            receiver = channel(route, config)
            spool = Spool(self._folder / "routes" / route.name, **limits)  # type: ignore[arg-type]
            made = delivery(route.name, spool, _sender(receiver, clock), deadline_s=receiver.deadline_s)
            self._lines.append(_Line(route, receiver, pace_of(route), made))
        self.deliveries = [line.delivery for line in self._lines]
        if config.mail is not None:
            spool = mail.spool(state_dir, **limits)  # type: ignore[arg-type]
            send = partial(_send_mail, settings=config.mail)
            whole = delivery("mail spool", spool, send, deadline_s=300.0, remember=True, look_s=SPOOL_LOOK_S)
            self.deliveries.append(whole)
        self._restore()

    def wake(self) -> None:
        """An alert, or what is done about one, has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Look, deliver and give signs of life for ever."""
        async with asyncio.TaskGroup() as group:
            await self._try_look()  # before anything is sent: what a crash left half said is joined, not said again
            for delivery in self.deliveries:
                group.create_task(delivery.run())
            for name, beat in self._beats():
                group.create_task(self._beat(name, beat))
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rest_s()):
                        await self._wake.wait()
                self._wake.clear()
                await self._try_look()

    def figures(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        """What was sent, failed and dropped, and what waits, for the agent's own metrics."""
        if self._series is None:
            self._series = tuple(
                Series(f"upkeep_notifications_{name}", (("route", delivery.name),))
                for delivery in self.deliveries
                for name in ("sent_total", "failed_total", "dropped_total", "waiting")
            )
        values: list[float] = []
        for each in self.deliveries:
            values += [each.sent, each.failed, each.dropped, len(each.spool.entries())]
        return self._series, values

    _series: tuple[Series, ...] | None = None

    # -- looking --

    async def _try_look(self) -> None:
        try:
            await self.look()
        except StoreError as error:
            log.error("ledger_unreadable error=%s", error)  # nothing was said; the next look says it

    async def look(self) -> None:
        """Say what is to be said now: it is on disk when this returns."""
        at = self._clock.wall()
        alerts = self._engine.alerts()
        standing = [alert for alert in alerts if alert.state is AlertState.FIRING]
        if standing or any(line.groups for line in self._lines):
            await self._say_alerts(alerts, standing, at)
        await self._say_notes(at)
        self._save()
        for delivery in self.deliveries:
            delivery.wake()

    async def _say_alerts(self, alerts: list[Alert], standing: list[Alert], at: float) -> None:
        silences = await self._ledger.silences(at)
        firing = firing_labels(alerts)
        inhibitions = self._engine.rules.inhibitions
        seen: list[tuple[Notice, bool]] = []
        own: dict[Labels, Alert] = {}
        for alert in standing:
            episode = await self._episode(alert)
            notice = self._notice(alert, episode, at)
            own[notice.labels] = alert
            seen.append((notice, any(map(_at_work, episode))))

        def muted(notice: Notice) -> bool:
            alert = own.get(notice.labels)
            rule = alert.rule if alert else notice.label("alertname")
            labels = alert.labels if alert else notice.labels
            return quiet_reason(silences, inhibitions, rule, labels, firing, at) != ""

        for line in self._lines:
            told = [notice for notice, attended in seen if line.takes(notice, attended)]
            groups, said = step(line.route.name, line.groups, told, muted, line.pace, at)
            await self._put(line, groups, said, at)

    async def _put(self, line: _Line, groups: Groups, said: list[Notification], at: float) -> None:
        gone: list[Entry] = []
        try:
            for each in said:
                gone += line.put(each, at)
        except OSError as error:
            # Not on disk, so not said: the groups stay as they were and the next look says it again.
            log.error("spool_unwritable route=%s error=%s", line.route.name, error)
            return
        line.groups = groups
        await line.delivery.drop_excess(gone)

    async def _episode(self, alert: Alert) -> list[Action]:
        """What was and is done about an alert since it began to fire."""
        rule = self._engine.rule_named(alert.rule, alert.labels)
        if rule is None or rule.remediation is None or alert.fired_at is None:
            return []
        return await self._ledger.episode(alert.rule, alert.labels, alert.fired_at)

    def _notice(self, alert: Alert, episode: Sequence[Action], at: float) -> Notice:
        labels = {**self._labels, **dict(full_labels(alert.rule, alert.labels))}
        words = self._engine.annotations(alert, at)
        done = [_action_words(action) for action in episode if action.handler != "notify" and action.finished_at]
        messages = [str(action.params.get("message", "")) for action in episode if action.handler == "notify"]
        if done:
            words["remediation"] = "; ".join(done)
        if messages:
            words["message"] = "; ".join(messages)
        return Notice(make_labels(labels), alert.fired_at or at, None, make_labels(words), self._url)

    async def _say_notes(self, at: float) -> None:
        """Messages that jobs and people asked for: each is said once, on the routes that take its severity."""
        if self._note is None:
            self._note = await self._ledger.last_note()
        for action in await self._ledger.notes(self._note):
            if action.finished_at is None:
                return  # its turn comes; those behind it wait
            if action.status is not ActionStatus.DONE:
                self._note = action.id
                continue
            labels = {**self._labels, **dict(action.labels), "alertname": MESSAGE_ALERT, "severity": "warning"}
            words = make_labels(message=str(action.params.get("message", "")), cause=action.cause)
            notice = Notice(make_labels(labels), action.requested_at, None, words, self._url)
            for line in self._lines:
                if line.takes(notice, attended=False):
                    said = Notification(line.route.name, (("alertname", MESSAGE_ALERT),), (notice,), at, action.id)
                    try:
                        await line.delivery.drop_excess(line.put(said, at, alone=f"note {action.id}"))
                    except OSError as error:
                        log.error("spool_unwritable route=%s error=%s", line.route.name, error)
                        return
            self._note = action.id

    def _rest_s(self) -> float:
        at = self._clock.wall()
        due = [when for line in self._lines if (when := next_due(line.groups)) is not None]
        return min([LOOK_AT_MOST_S, *(max(0.05, when - at) for when in due)])

    # -- what was told, over a restart --

    def _restore(self) -> None:
        try:
            held = json.loads((self._folder / "told.json").read_bytes())
            self._note = held["note"]
            for line in self._lines:
                kept = held["routes"].get(line.route.name)
                if kept and tuple(kept["group_by"]) == line.pace.group_by:
                    line.groups = groups_of(kept["groups"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # What stands is told once more: better twice than never.
            log.error("told_unreadable error=%r", error)

    def _save(self) -> None:
        kept = {
            line.route.name: {"group_by": line.pace.group_by, "groups": groups_json(line.groups)}
            for line in self._lines
        }
        text = json.dumps({"note": self._note, "routes": kept}, sort_keys=True)
        if text == self._saved:
            return
        scratch = self._folder / ".told.json.new"
        try:
            self._folder.mkdir(mode=0o750, exist_ok=True)
            with open(scratch, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(self._folder / "told.json")
        except OSError as error:
            log.error("told_unwritable error=%s", error)
            return
        self._saved = text

    # -- signs of life --

    def _beats(self) -> Iterator[tuple[str, Callable[[], object]]]:
        settings = self._config.notify.heartbeat
        if settings is None:
            return
        if settings.ask is not None:
            yield "heartbeat", partial(web.ask, settings.ask, "GET")
        for line in self._lines if settings.alertmanager else ():
            if kind_of(line.route) == "alertmanager":
                yield f"heartbeat to {line.route.name}", partial(self._send_heartbeat, line)

    def _send_heartbeat(self, line: _Line) -> None:
        at = self._clock.wall()
        line.receiver.send(heartbeat(line.route.name, self._labels, at, self._url), "", at, lambda said: None)

    async def _beat(self, name: str, send: Callable[[], object]) -> None:
        settings = self._config.notify.heartbeat
        assert settings is not None
        aside, failing = self._aside(name), False
        while True:
            try:
                if self._alive():
                    await aside.run(send, settings.every)
                    failing = False
            except UpkeepError as error:
                # Whoever waits for it notices its absence; the log says why.
                log.log(logging.INFO if failing else logging.WARNING, "heartbeat_failed to=%s why=%s", name, error)
                failing = True
            await asyncio.sleep(settings.every)


def heartbeat(route: str, labels: dict[str, str], at: float, url: str) -> Notification:
    """The alert that always fires."""
    full = make_labels({**labels, "alertname": HEARTBEAT_ALERT, "severity": "none"})
    words = make_labels(summary="This alert always fires: when it ends, the agent on its host is silent.")
    return Notification(route, (), (Notice(full, at, None, words, url),), at)


def _at_work(action: Action) -> bool:
    """Whether this action is being carried out, or soon will be."""
    if action.status in (ActionStatus.RUNNING, ActionStatus.VERIFYING):
        return True
    return action.status is ActionStatus.REQUESTED and action.reason in _AT_WORK


def _action_words(action: Action) -> str:
    what = " ".join(part for part in (action.handler, action.resource) if part)
    return f"{what}: {action.verdict or action.status}{f' ({action.reason})' if action.reason else ''}"


def _send_mail(content: bytes, *, settings: Mail) -> None:
    written, reader = mail.waiting_mail(content)
    mail.send(written, settings, reader)
