"""A thread that does one job at a time: a job that hangs holds this thread and nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from agent.gpu.nvml import BrokenError, Calls, GoneError, NeedsResetError

T = TypeVar("T")
Job = Callable[[], T]

Failure = BrokenError | GoneError | NeedsResetError


class Worker(Generic[T]):
    """Runs jobs in a thread of its own.

    Parameters
    ----------
    name
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self.calls = Calls()
        self.result: T | None = None
        """What the last job returned; None where it failed."""
        self.failure: Failure | None = None
        self._jobs: SimpleQueue[Job[T] | None] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        # A daemon, so that the interpreter does not wait for it behind our back: :meth:`stop` does, in the open.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return not self._idle.is_set()

    def begin(self, job: Job[T]) -> None:
        """Start a job; to be called only when the last one has ended."""
        self._idle.clear()
        self.result, self.failure = None, None
        self._jobs.put(job)

    def wait(self, until: float) -> bool:
        """Whether the job ended before ``until`` on the monotonic clock."""
        return self._idle.wait(max(until - time.monotonic(), 0.0))

    def stop(self) -> None:
        """End the thread once its job has come back, however long that takes: nothing may be cut off inside a call."""
        self._jobs.put(None)
        self._thread.join()

    def hangs_in(self) -> tuple[str, float]:
        """The call that has not come back and its age in seconds."""
        under_way = self.calls.under_way
        return (under_way[0], time.monotonic() - under_way[1]) if under_way else ("", 0.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self.result = job()
            except (BrokenError, GoneError, NeedsResetError) as failure:
                self.failure = failure
            finally:
                self._idle.set()
