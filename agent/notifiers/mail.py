"""Alerts by mail: one per group and reader, in one thread of the mailbox as long as the group stands."""

from __future__ import annotations

from agent import mail
from agent.config import Config, Mail, Route
from agent.grouping import Notification
from agent.notifiers import Say, lines, title

DEADLINE_S = 300.0


class MailChannel:
    """Composes and sends through the server of the key ``mail``."""

    deadline_s = DEADLINE_S

    def __init__(self, route: Route, config: Config) -> None:
        self._settings = config.mail or Mail()
        self.recipients = (route.mail.to if route.mail else ()) or self._settings.to

    def send(self, notification: Notification, to: str, at: float, say: Say) -> None:
        written = mail.compose(
            message_of(notification), sender=self._settings.from_, to=self.recipients, at=notification.at
        )
        mail.send(written, self._settings, to, say)


def message_of(notification: Notification) -> mail.Message:
    """The mail of a notification; the same notification is the same mail, at every attempt and to each reader."""
    thread = f"{notification.route} {notification.group}"
    return mail.Message(
        key=f"{thread} {notification.number} {notification.at}",
        subject=title(notification),
        text="\n".join(lines(notification)) + "\n",
        thread=thread,
        list_id="alerts",
    )
