"""What people may tell a running agent, over ``<state_dir>/control.sock``: one JSON line asks, one answers.

The socket is 0660, group ``upkeep``; who asked is taken from the kernel (SO_PEERCRED), never from the request. With no
agent running a command takes the state lock and does the same itself, through the same :class:`Controls`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent import inhibit
from agent.clock import Clock
from agent.errors import StoreError, UpkeepError
from agent.model import Action, ActionStatus, Mode, done_by_person
from agent.silencing import check_every, parse_matchers
from agent.store import Ledger, Silence
from agent.store.forget import Forgotten

MAX_LINE_BYTES = 64 * 1024
DEADLINE_S = 10.0


# -- the verbs -------------------------------------------------------------------------------------------------------


class Controls:
    """The verbs. Each public coroutine is one; its parameters are the request's fields, checked against its types.

    Parameters
    ----------
    carry_out
        Carries out one action that is in the ledger already and returns how it ended.
    run_job
        Asks for the actions of the named job, for the named person.
    reload
        Reads configuration and rules again; returns why it was refused, or nothing.
    wake
        Tells dispatch that something waits.
    forget
        Erases the stored lines of a pattern.
    state_dir
        Where the brakes are that are files.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        carry_out: Callable[[Action], Awaitable[Action]],
        run_job: Callable[[str, str], Awaitable[list[Action]]],
        reload: Callable[[], Awaitable[str]],
        wake: Callable[[], None],
        forget: Callable[[str], Awaitable[Forgotten]],
        state_dir: Path,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._carry_out = carry_out
        self._run_job = run_job
        self._reload = reload
        self._wake = wake
        self._forget = forget
        self._state_dir = state_dir

    async def silence_add(self, who: str, matchers: str, for_s: float, every: str, why: str) -> object:
        """Keep alerts from acting; a reason is required."""
        if not why.strip():
            raise UpkeepError("cannot add a silence without a reason: --why TEXT")
        parse_matchers(matchers)
        if every:
            check_every(every)
        silence = Silence(matchers, why, who, self._clock.wall(), float(for_s), every)
        return {"id": (await self._ledger.add_silence(silence)).id}

    async def silence_end(self, who: str, id: int) -> object:
        if not await self._ledger.end_silence(id):
            raise UpkeepError(f"cannot end silence {id}: there is none that is active")
        return {}

    async def circuit_close(self, who: str, name: str) -> object:
        """Close the circuit ``HANDLER:RESOURCE``."""
        handler, _, resource = name.partition(":")
        if not await self._ledger.close_circuit(handler, resource):
            raise UpkeepError(f'cannot close circuit "{name}": it is not open')
        self._wake()
        return {}

    async def alert_mark(self, who: str, id: int, useful: bool, why: str) -> object:
        """What a person says of an alert afterwards; a false alarm needs a reason."""
        if not useful and not why.strip():
            raise UpkeepError("cannot mark an alert false without a reason: --why TEXT")
        if not await self._ledger.mark_alert(id, useful=useful, why=why, by=who):
            raise UpkeepError(f"cannot mark alert {id}: there is none")
        return {}

    async def approve(self, who: str, id: int) -> object:
        action = await self._ledger.action(id)
        if action is None or action.status is not ActionStatus.AWAITING_APPROVAL:
            raise UpkeepError(f"cannot approve action {id}: it does not wait for approval")
        extra = {**action.extra, "approved": who}
        await self._ledger.save_action(
            dataclasses.replace(action, status=ActionStatus.REQUESTED, reason="", extra=extra)
        )
        self._wake()
        return {}

    async def apply(self, who: str, handler: str, params: dict[str, Any]) -> object:
        """Carry out a handler that a person asked for, now, and say how it ended."""
        now = self._clock.wall()
        action = Action(
            id=0, cause=f"person {who}", rule="", labels=(), fired_at=now, step=0, attempt=1, handler=handler,
            params=params, resource="", status=ActionStatus.REQUESTED, requested_at=now, mode=Mode.ACT,
        )  # fmt: skip
        [stored] = await self._ledger.commit_alerts([], [action])
        return {"id": (await self._carry_out(stored)).id}

    async def job_run(self, who: str, name: str) -> object:
        """Run a job now."""
        asked = await self._run_job(name, who)
        for action in asked:
            await self._carry_out(action)
        return {"actions": len(asked)}

    async def forget(self, who: str, pattern: str) -> object:
        """Erase the stored lines of a pattern; the ledger says who did and how many, not what they said."""
        done = await self._forget(pattern)
        text = f'erased {done.events} stored lines of pattern "{pattern}"'
        await self._ledger.commit_alerts([], [done_by_person("forget", text, who, self._clock.wall())])
        return {**dataclasses.asdict(done), "captured": sorted(done.captured)}

    async def state_accept(self, who: str) -> object:
        """End the observing that began with a restore; the ledger says who did."""
        if not inhibit.observing(self._state_dir):
            raise UpkeepError("cannot accept the state: it was not restored, or was accepted already")
        record = done_by_person("state_accept", "the configured mode is in force again", who, self._clock.wall())
        await self._ledger.commit_alerts([], [record])
        inhibit.accept(self._state_dir)
        self._wake()
        return {}

    async def reload(self, who: str) -> object:
        refused = await self._reload()
        if refused:
            raise UpkeepError(refused)
        return {}


VERBS = (
    "silence_add",
    "silence_end",
    "circuit_close",
    "alert_mark",
    "approve",
    "apply",
    "job_run",
    "reload",
    "state_accept",
    "forget",
)


async def perform(controls: Controls, who: str, verb: str, fields: Mapping[str, object]) -> object:
    """One verb with fields as a request gives them.

    Raises
    ------
    UpkeepError
        For an unknown verb, fields that do not fit, or what the verb itself refuses.
    """
    if verb not in VERBS:
        raise UpkeepError(f'unknown verb "{verb}"')
    method = getattr(controls, verb)
    wanted = {name: each for name, each in inspect.signature(method).parameters.items() if name != "who"}
    if set(fields) != set(wanted):
        raise UpkeepError(f"cannot use these fields for {verb}: {', '.join(sorted(fields))}")
    return await method(who, **fields)


# -- the socket ------------------------------------------------------------------------------------------------------


async def serve(path: Path, controls: Controls) -> None:
    """Answer requests until cancelled."""
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(
        lambda reader, writer: _answer(reader, writer, controls), path, limit=MAX_LINE_BYTES
    )
    path.chmod(0o660)
    async with server:
        try:
            await server.serve_forever()
        finally:
            path.unlink(missing_ok=True)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, controls: Controls) -> None:
    try:
        who = _peer(writer.get_extra_info("socket"))
        async with asyncio.timeout(DEADLINE_S):
            line = await reader.readline()
        try:
            request = json.loads(line)
            answer: dict[str, object] = {"ok": await perform(controls, who, request.pop("verb"), request)}
        except (UpkeepError, StoreError) as error:
            answer = {"error": str(error)}
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            answer = {"error": "cannot read the request: not an object with a verb and its fields"}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    except (OSError, TimeoutError, ValueError):
        pass  # the peer went away, or wrote no line: nobody is left to be told
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _peer(sock: socket.socket) -> str:
    """The login name and uid at the other end, as the kernel knows them."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return name_of(uid)


def name_of(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def myself() -> str:
    return name_of(os.getuid())


def ask(path: Path, verb: str, fields: Mapping[str, object], *, deadline_s: float | None = DEADLINE_S) -> object:
    """Ask a running agent, from a command.

    Raises
    ------
    ConnectionError
        When no agent listens there.
    UpkeepError
        When it refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(deadline_s)
        try:
            connection.connect(os.fspath(path))
        except FileNotFoundError:
            raise ConnectionRefusedError from None
        connection.sendall(json.dumps({"verb": verb, **fields}).encode() + b"\n")
        with connection.makefile("rb") as replies:
            line = replies.readline()
    if not line:
        raise UpkeepError("cannot hear the agent: it hung up")
    answer = json.loads(line)
    if "error" in answer:
        raise UpkeepError(answer["error"])
    return answer["ok"]
