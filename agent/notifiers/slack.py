"""Alerts as an incoming webhook of Slack reads them; Mattermost and Rocket.Chat read the same."""

from __future__ import annotations

import json

from agent import web
from agent.config import Config, Route, SlackEndpoint
from agent.grouping import Notice, Notification
from agent.notifiers import Say, summary, title

MOST_SHOWN = 10
"""Alerts in one message: a channel is for reading, the rest is in ``upkeep alerts``."""
LONGEST_TEXT = 500

_COLOURS = {"critical": "danger", "error": "danger", "warning": "warning"}


class SlackChannel:
    recipients: tuple[str, ...] = ("",)

    def __init__(self, route: Route, config: Config) -> None:
        self._endpoint = route.slack or SlackEndpoint(url="")
        self.deadline_s = self._endpoint.timeout

    def send(self, notification: Notification, to: str, at: float, say: Say) -> None:
        body = json.dumps(payload(notification, self._endpoint.channel)).encode()
        web.ask(self._endpoint, "POST", body=body, say=say)


def payload(notification: Notification, channel: str | None = None) -> dict[str, object]:
    """A message with one attachment for each alert, the beginning of the bar in the colour of its severity."""
    shown = notification.notices[:MOST_SHOWN]
    more = len(notification.notices) - len(shown) + notification.left_out
    text = _escaped(title(notification)) + (f", {more} more not shown" if more else "")
    message: dict[str, object] = {"text": text, "attachments": [_attachment(notice) for notice in shown]}
    return {**message, "channel": channel} if channel else message


def _attachment(notice: Notice) -> dict[str, object]:
    name, words = notice.label("alertname"), summary(notice)[:LONGEST_TEXT]
    colour = _COLOURS.get(notice.label("severity"), "#439FE0") if notice.firing else "good"
    fields = [
        {"title": each, "value": _escaped(value), "short": len(value) < 40}
        for each, value in notice.labels
        if each not in ("alertname", "severity")
    ]
    attachment: dict[str, object] = {
        "fallback": _escaped(f"{name}: {words}"),
        "color": colour,
        "title": _escaped(name if notice.firing else f"{name} (resolved)"),
        "text": _escaped(words),
        "fields": fields,
        "ts": round(notice.ends_at or notice.starts_at),
    }
    return {**attachment, "title_link": notice.url} if notice.url else attachment


def _escaped(text: str) -> str:
    """Slack's three escapes: with them no data becomes a link, a mention or a call of everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
