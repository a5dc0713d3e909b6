"""``upkeep run``: the agent in the foreground."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agent import config
from agent.errors import UpkeepError
from agent.systemd import started

EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits(3): another agent holds the state directory; trying again later may do."""


def run(arguments: Namespace) -> int:
    """Run until told to stop; exit status 75 when another agent holds the state directory."""
    set_up_logging(logging.INFO if arguments.verbose or not sys.stderr.isatty() else logging.WARNING)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(config.load, arguments.config)
        # Imported while a child parses the configuration: the first sample comes 50 ms earlier.
        from agent.app import Agent
        from agent.store import StoreBusyError
    agent = Agent(reading.result())
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(agent.once() if arguments.once else agent.run())
    except StoreBusyError as error:
        print(error, file=sys.stderr)
        return EXIT_BUSY
    except ExceptionGroup as group:
        raise first_of(group) from None
    return 0


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a person should read of a group of errors: our own words where there are any."""
    own = group.subgroup(UpkeepError)
    chosen: BaseException = own or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen


def set_up_logging(level: int) -> None:
    """One line a record on standard error; under systemd with its priority and without a time of our own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Journal() if started() else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=level, handlers=[handler])


_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Journal(logging.Formatter):
    """sd-daemon(3): a priority in angle brackets before each line."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 6)
        text = f"{record.name} {super().format(record)}"
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it has a wheel: a third less CPU for each wake-up."""
    if os.environ.get("UPKEEP_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
