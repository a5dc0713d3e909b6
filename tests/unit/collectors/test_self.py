"""What the agent says of itself."""

from __future__ import annotations

import asyncio
import os
import time

from agent.collectors.self_ import SelfCollector, parse
from agent.model import Series


def test_the_columns_are_counted_from_the_end_of_a_name_that_holds_anything() -> None:
    columns = ["S", *["0"] * 10, "150", "25", *["0"] * 8, "3", "9"]
    raw = b"42 (a) (b c) " + " ".join(columns).encode()
    assert parse(raw) == (1.75, 3 * os.sysconf("SC_PAGE_SIZE"))


def test_the_figures_of_this_process_and_of_its_parts() -> None:
    part = (Series("upkeep_store_bytes"),)
    collector = SelfCollector()
    collector.add(lambda: (part, [42.0]))
    first = asyncio.run(collector.collect(1.0))
    with open("/dev/null", "rb"):
        second = asyncio.run(collector.collect(2.0))
    assert second.series is first.series
    before = dict(zip(first.series, first.values, strict=True))
    after = dict(zip(second.series, second.values, strict=True))
    assert before[Series("up", (("job", "upkeep"),))] == 1
    assert before[Series("upkeep_store_bytes")] == 42
    assert after[Series("process_open_fds")] == before[Series("process_open_fds")] + 1
    assert abs(before[Series("process_cpu_seconds_total")] - time.process_time()) < 1.0
    assert before[Series("process_resident_memory_bytes")] > 1 << 20
