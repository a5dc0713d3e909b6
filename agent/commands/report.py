"""``upkeep report``: one report as HTML and text, in this process, which ends with it."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from datetime import date
from pathlib import Path

from agent import schedule
from agent.commands.common import loaded
from agent.errors import UpkeepError
from agent.store import Reader


def run(arguments: Namespace) -> int:
    """Write a report and print where it is."""
    # matplotlib and jinja2 cost half a second: nothing else on the command line should pay for them.
    from reports.build import build, write
    from reports.period import Period

    settings = loaded(arguments).config
    folder = Path(arguments.out) if arguments.out else Path(settings.state_dir) / "reports"
    zone = schedule.zone(settings.timezone)
    now = time.time()
    day = _day(arguments.end) if arguments.end else None
    with Reader.open(Path(settings.state_dir)) as reader:
        period = Period.of(arguments.period, day, now, zone)
        document = build(reader, period, title=arguments.title, host=socket.gethostname(), at=now)
    written = write(document, folder)
    print(document.subject)
    print(written.html)
    print(written.text)
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UpkeepError(f'cannot read "{text}" as a date: write 2026-11-23') from None
