"""Alerts to an Alertmanager (API version 2) as Prometheus sends them: it groups, silences and repeats by itself.

What fires is sent again every minute, each time with an end four minutes ahead (``sendAlerts`` in Prometheus'
``cmd/prometheus/main.go``, ``ValidUntil`` in ``rules/alerting.go``): should this agent die, its alerts end by
themselves. What is resolved is sent with its true end, once, for it waits on disk until it arrives.
"""

from __future__ import annotations

import json

from agent import web
from agent.config import Config, Endpoint, Route
from agent.grouping import Notice, Notification
from agent.notifiers import Say, iso

RESEND_S = 60.0
VALID_S = 4 * RESEND_S


class AlertmanagerChannel:
    recipients: tuple[str, ...] = ("",)

    def __init__(self, route: Route, config: Config) -> None:
        self._endpoint = route.alertmanager or Endpoint(url="")
        self.deadline_s = self._endpoint.timeout

    def send(self, notification: Notification, to: str, at: float, say: Say) -> None:
        body = json.dumps(payload(notification, at)).encode()
        web.ask(self._endpoint, "POST", path="/api/v2/alerts", body=body, say=say)


def payload(notification: Notification, at: float) -> list[dict[str, object]]:
    """``postableAlerts``; ends are counted from ``at``, the instant of sending, not from when it was put on disk."""
    return [_alert(notice, at) for notice in notification.notices]


def _alert(notice: Notice, at: float) -> dict[str, object]:
    alert: dict[str, object] = {
        "labels": dict(notice.labels),
        "annotations": dict(notice.annotations),
        "startsAt": iso(notice.starts_at),
        "endsAt": iso(at + VALID_S if notice.ends_at is None else notice.ends_at),
    }
    return {**alert, "generatorURL": notice.url} if notice.url else alert
