"""Keep the calendar: run each job once when it is due, in the configured time zone, and remember that it ran.

A job's steps become actions like any other, so brakes, plan, outcome and record are the same. Wall time says *when*;
what ran is kept in the ledger by its due instant, so that neither a restart nor a clock that steps back runs it twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence

from agent.clock import Clock
from agent.errors import UpkeepError
from agent.model import Action, ActionStatus, Mode
from agent.rulefile import Job
from agent.schedule import last_due, next_due
from agent.store import JobRun, Ledger

log = logging.getLogger(__name__)

LATEST_S = 60.0
"""A run that is noticed later than this was missed; only ``catch_up`` runs it then."""
LOOK_AT_MOST_S = 30.0
"""Between two looks, however far the next job is: the wall clock may be set meanwhile."""


class Calendar:
    """Asks for the actions of jobs that are due.

    Parameters
    ----------
    zone
        The time zone of all schedules, an IANA name or ``local``.
    requested
        Called after actions were asked for; it wakes dispatch.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        ledger: Ledger,
        clock: Clock,
        zone: str,
        mode: Mode,
        requested: Callable[[], None],
    ) -> None:
        self._jobs = tuple(jobs)
        self._ledger = ledger
        self._clock = clock
        self._zone = zone
        self._mode = mode
        self._requested = requested
        self._started_at = clock.wall()

    def replace(self, jobs: Sequence[Job]) -> None:
        """Take other jobs; what ran already is remembered by name."""
        self._jobs = tuple(jobs)

    async def run(self) -> None:
        """Keep the calendar for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self.rest_s())

    def rest_s(self) -> float:
        """How long nothing can be due."""
        now = self._clock.wall()
        due = min((next_due(job.schedule, now, self._zone) for job in self._jobs), default=now + LOOK_AT_MOST_S)
        return min(due - now, LOOK_AT_MOST_S)

    async def look(self) -> None:
        """Ask for what is due now."""
        if not self._jobs:
            return
        now = self._clock.wall()
        runs = await self._ledger.last_runs()
        for job in self._jobs:
            due = last_due(job.schedule, now, self._zone)
            if due is None or not self._is_due(job, due, now, runs.get(job.name)):
                continue
            await self._begin(job, due, f"job {job.name}", self._mode)

    async def begin_now(self, name: str, who: str) -> list[Action]:
        """Ask for a job's actions because a person wants them.

        Raises
        ------
        UpkeepError
            When there is no job of that name.
        """
        job = next((job for job in self._jobs if job.name == name), None)
        if job is None:
            known = ", ".join(job.name for job in self._jobs) or "there are none"
            raise UpkeepError(f'unknown job "{name}" (known: {known})')
        return await self._begin(job, self._clock.wall(), f"person {who}, job {job.name}", Mode.ACT)

    def _is_due(self, job: Job, due: float, now: float, last: JobRun | None) -> bool:
        if last is not None:
            return due > last.due_at and (job.catch_up or now - due <= LATEST_S)
        # Never ran: what was due before the agent first knew the job is no missed run.
        return due >= self._started_at

    async def _begin(self, job: Job, due: float, cause: str, mode: Mode) -> list[Action]:
        now = self._clock.wall()
        asked = [
            Action(
                id=0,
                cause=cause,
                rule="",
                labels=(("job", job.name),),
                fired_at=due,
                step=index,
                attempt=1,
                handler=step.handler,
                params=dataclasses.asdict(step.spec),
                resource="",
                status=ActionStatus.REQUESTED,
                requested_at=now,
                mode=mode,
            )
            for index, step in enumerate(job.steps)
        ]
        # The actions first: their key makes asking twice harmless, a run remembered without its actions would be lost.
        stored = await self._ledger.commit_alerts([], asked)
        await self._ledger.save_run(JobRun(job.name, due, now, now, "requested", f"{len(stored)} actions"))
        log.info("job_due name=%s actions=%d", job.name, len(stored))
        self._requested()
        return stored
