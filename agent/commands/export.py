"""``upkeep export``: samples as OpenMetrics text or CSV, while the agent runs or not."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from agent.commands.common import bar, clear_bar, parse_time, state_dir
from agent.errors import UpkeepError
from agent.promql.nodes import VectorSelector
from agent.promql.parse import parse
from agent.store.database import settle
from agent.store.read import Reader
from agent.store.transfer import Selector, export_csv, export_openmetrics, series_of


def run(arguments: Namespace) -> int:
    """Write what was asked for; exit status 1 when no series is named by it."""
    selectors = [_selector(text) for text in arguments.selectors]
    now = time.time()
    start = parse_time(arguments.start, now) if arguments.start else 0.0
    end = parse_time(arguments.end, now) if arguments.end else math.inf
    write = {"openmetrics": export_openmetrics, "csv": export_csv}[arguments.format]
    with Reader.open(state_dir(arguments)) as reader:
        series = series_of(reader, selectors)
        if selectors and not series:
            raise UpkeepError(f"cannot export {', '.join(arguments.selectors)}: no series is named so")
        with _target(arguments.out) as file:
            count = write(
                reader, series, start, end, file.write, lambda done, whole: bar(done, whole, f"{whole} series")
            )
    clear_bar()
    if arguments.out:
        print(f"{count} samples of {len(series)} series written to {arguments.out}")
    return 0


def _selector(text: str) -> Selector:
    selector = parse(text)
    if not isinstance(selector, VectorSelector) or selector.offset_ms or selector.at is not None:
        raise UpkeepError(f'cannot export "{text}": write a selector, such as node_load1 or {{job=~"x.*"}}')
    return selector.matchers


@contextlib.contextmanager
def _target(out: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that has its name only when it is whole."""
    if out is None:
        yield sys.stdout
        return
    new, target = Path(f"{out}.new"), Path(out).absolute()
    try:
        with open(new, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        settle(new, target)
    except OSError as error:
        raise UpkeepError(f'cannot write "{out}": {(error.strerror or str(error)).lower()}') from None
    finally:
        new.unlink(missing_ok=True)
