"""``upkeep job``: the calendar with the last and the next run of each job, and one run now."""

from __future__ import annotations

import time
from argparse import Namespace

from agent import schedule
from agent.app import load_rules
from agent.commands.act import tell
from agent.commands.common import clock_time, iso, loaded, print_json, print_table
from agent.errors import StoreError, UpkeepError
from agent.store import Reader


def run(arguments: Namespace) -> int:
    if arguments.what == "run":
        if not arguments.name:
            raise UpkeepError("cannot run a job without its name: upkeep job list")
        answer = tell(arguments, "job_run", {"name": arguments.name}, deadline_s=None)
        print(f"job {arguments.name}: {answer['actions']} actions asked for; upkeep actions shows them")
        return 0
    settings = loaded(arguments)
    zone = settings.config.timezone
    now = time.time()
    last = _last_runs(settings.config.state_dir)
    rows = [
        (job.name, job.schedule, last.get(job.name), schedule.next_due(job.schedule, now, zone), str(job.place))
        for job in load_rules(settings).jobs
    ]
    if arguments.json:
        names = ("name", "schedule", "last", "next", "place")
        print_json([dict(zip(names, (n, s, iso(a), iso(b), p), strict=True)) for n, s, a, b, p in rows])
    else:
        columns = ("NAME", "SCHEDULE", "LAST", "NEXT", "PLACE")
        print_table(columns, [(n, s, clock_time(a), clock_time(b), p) for n, s, a, b, p in rows])
    return 0


def _last_runs(state_dir: str) -> dict[str, float]:
    from pathlib import Path

    try:
        with Reader.open(Path(state_dir)) as reader:
            _, rows = reader.sql("SELECT job, max(due_at) FROM ledger.job_run GROUP BY job")
    except StoreError:
        return {}  # never ran: there is no store yet
    return {str(name): float(at) for name, at in rows}
