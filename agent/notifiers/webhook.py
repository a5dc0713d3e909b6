"""Alerts as JSON in the form of Alertmanager's webhook, version 4: what receives the one receives the other."""

from __future__ import annotations

import json

from agent import web
from agent.config import Config, Endpoint, Route
from agent.grouping import Notice, Notification
from agent.model import Labels
from agent.notifiers import Say, iso, summed_up


class WebhookChannel:
    recipients: tuple[str, ...] = ("",)

    def __init__(self, route: Route, config: Config) -> None:
        self._endpoint = route.webhook or Endpoint(url="")
        self._external_url = config.notify.external_url or ""
        self.deadline_s = self._endpoint.timeout

    def send(self, notification: Notification, to: str, at: float, say: Say) -> None:
        body = json.dumps(payload(notification, self._external_url)).encode()
        web.ask(self._endpoint, "POST", body=body, say=say)


def payload(notification: Notification, external_url: str = "") -> dict[str, object]:
    """``webhook.Message`` with ``template.Data`` of Alertmanager: the same names, the same types."""
    group = dict(notification.group)
    return {
        "receiver": notification.route,
        "status": notification.status,
        "alerts": [_alert(notice) for notice in notification.notices],
        "groupLabels": group,
        "commonLabels": dict(_common([notice.labels for notice in notification.notices])),
        "commonAnnotations": dict(_common([notice.annotations for notice in notification.notices])),
        "externalURL": external_url,
        "version": "4",
        "groupKey": f'{{}}/{{route="{notification.route}"}}:{summed_up(group)}',
        "truncatedAlerts": notification.left_out,
    }


def _alert(notice: Notice) -> dict[str, object]:
    return {
        "status": "firing" if notice.firing else "resolved",
        "labels": dict(notice.labels),
        "annotations": dict(notice.annotations),
        "startsAt": iso(notice.starts_at),
        # Go's zero time: as Alertmanager says of what has not ended.
        "endsAt": "0001-01-01T00:00:00Z" if notice.ends_at is None else iso(notice.ends_at),
        "generatorURL": notice.url,
        "fingerprint": notice.fingerprint(),
    }


def _common(held: list[Labels]) -> Labels:
    """The pairs that all have."""
    shared = set(held[0]).intersection(*held[1:]) if held else set()
    return tuple(sorted(shared))
