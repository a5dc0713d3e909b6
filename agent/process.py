"""Run one of the agent's own commands as a short-lived child: its memory and its crashes stay its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STOP_S = 5.0
KILLED_S = 1.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended. ``status`` is None when it had to be stopped at its deadline."""

    status: int | None
    output: str
    errors: str


async def upkeep(arguments: Sequence[str], *, deadline_s: float) -> Ended:
    """Run ``upkeep ARGUMENTS`` in its own process group and wait for it.

    At the deadline, or when the caller is cancelled, the whole group is asked to end and then made to.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "agent",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await child.communicate()
    except TimeoutError:
        await _stop(child)
        return Ended(None, "", f"did not end within {deadline_s:g} s")
    except asyncio.CancelledError:
        await asyncio.shield(_stop(child))
        raise
    return Ended(child.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


async def ask(
    argv: Sequence[str], *, deadline_s: float, environment: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """What a small program answers: its status and both outputs. It only reads, so it is killed without asking.

    Raises
    ------
    TimeoutError
        It did not end within the deadline. One that the kernel holds back is left to it.
    OSError
        It cannot be started.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await child.communicate()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await child.communicate()
    return child.returncode or 0, output, errors


async def _stop(child: asyncio.subprocess.Process) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), STOP_S)
            return
