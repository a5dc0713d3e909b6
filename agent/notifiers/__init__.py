"""Ways to tell a person something, and the words that all of them share.

A new one is a file here with a class that takes its route and the configuration, a line in :data:`_CHANNELS`, and its
key in :class:`agent.config.Route`. Each is imported when a route of its kind exists, and not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from agent.config import Config, Route
from agent.grouping import Notice, Notification

Say = Callable[[str], None]

TEST_ALERT = "UpkeepTest"
HEARTBEAT_ALERT = "UpkeepHeartbeat"
MESSAGE_ALERT = "UpkeepMessage"


class Notifier(Protocol):
    async def notify(self, message: str) -> None:
        """Deliver one message, or raise."""


class Channel(Protocol):
    """One receiver. ``send`` blocks: it is called in a thread that can be left behind."""

    recipients: tuple[str, ...]
    """Each is told separately; one empty name where the receiver is a single one."""
    deadline_s: float
    """How long one ``send`` may take in all."""

    def send(self, notification: Notification, to: str, at: float, say: Say) -> None:
        """Hand over a notification, telling ``say`` the dialogue with its secrets masked.

        Raises
        ------
        UpkeepError
            Saying why not; a :class:`agent.errors.DeliveryError` also says whether it ever will.
        """


_CHANNELS = {
    "mail": "agent.notifiers.mail:MailChannel",
    "webhook": "agent.notifiers.webhook:WebhookChannel",
    "slack": "agent.notifiers.slack:SlackChannel",
    "alertmanager": "agent.notifiers.alertmanager:AlertmanagerChannel",
}


def kind_of(route: Route) -> str:
    """Which of the ways a route is."""
    return next(kind for kind in _CHANNELS if getattr(route, kind) is not None)


def channel(route: Route, config: Config) -> Channel:
    """The receiver of a route."""
    module, _, name = _CHANNELS[kind_of(route)].partition(":")
    made: Channel = getattr(importlib.import_module(module), name)(route, config)
    return made


# -- words -----------------------------------------------------------------------------------------------------------


def title(notification: Notification) -> str:
    """``[FIRING:2] DiskFull (web1)``: how many of what, and where."""
    firing, resolved = len(notification.firing), len(notification.resolved)
    names = sorted({notice.label("alertname") for notice in notification.notices})
    hosts = sorted({host for notice in notification.notices if (host := notice.label("instance"))})
    count = f"FIRING:{firing}" if firing else f"RESOLVED:{resolved}" if resolved > 1 else "RESOLVED"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"[{count}] {', '.join(names[:3])}{more}{f' ({chr(44).join(hosts)})' if hosts else ''}"


def summary(notice: Notice) -> str:
    """An alert in one line of its rule's words, or of its labels where the rule has none."""
    for name in ("summary", "message", "description", "title"):
        if text := notice.annotation(name):
            return text
    return ", ".join(f"{name}={value}" for name, value in notice.labels if name != "alertname")


def lines(notification: Notification) -> Iterator[str]:
    """A notification as plain text."""
    for heading, notices in (("Firing", notification.firing), ("Resolved", notification.resolved)):
        if not notices:
            continue
        yield f"{heading}: {len(notices)}"
        for notice in notices:
            yield ""
            yield f"  {notice.label('alertname')}: {summary(notice)}"
            yield f"    since {iso(notice.starts_at)}{f', until {iso(notice.ends_at)}' if notice.ends_at else ''}"
            yield f"    {', '.join(f'{name}={value}' for name, value in notice.labels if name != 'alertname')}"
            for name, text in notice.annotations:
                if text != summary(notice):
                    yield f"    {name}: {text}"
            if notice.url:
                yield f"    {notice.url}"
        yield ""
    if notification.left_out:
        yield f"{notification.left_out} more could not be listed: upkeep alerts"


def iso(at: float) -> str:
    """RFC 3339, UTC, as Go prints it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def summed_up(labels: dict[str, str]) -> str:
    """Labels as Prometheus writes them: ``{alertname="DiskFull"}``."""
    inner = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inner}}}"
