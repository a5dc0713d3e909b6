"""``upkeep report``: one report as HTML and text, in this process, which ends with it."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from datetime import datetime
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
    end = _end(arguments.end, zone) if arguments.end else now
    with Reader.open(Path(settings.state_dir)) as reader:
        period = Period.ending(arguments.period, end, zone)
        document = build(reader, period, title=arguments.title, host=socket.gethostname(), zone=zone, at=now)
    written = write(document, folder)
    print(document.subject)
    print(written.html)
    print(written.text)
    return 0


def _end(text: str, zone: object) -> float:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()  # type: ignore[arg-type]
    except ValueError:
        raise UpkeepError(f'cannot read "{text}" as a date: write 2026-11-23') from None
