from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import control, inhibit
from agent.control import Controls
from agent.errors import ExpressionError, UpkeepError
from agent.model import Action, ActionStatus, Mode
from agent.silencing import covers, parse_matchers, silence_of
from agent.store import Silence
from tests.support.bench import Bench, bench


@pytest.mark.parametrize(
    ("text", "now", "held"),
    [
        (None, 100.0, False),
        ("", 100.0, True),
        ('{"until": null}', 100.0, True),
        ('{"until": 200}', 100.0, True),
        ('{"until": 200}', 200.0, False),
        ("garbage", 100.0, True),
        ('{"until": "soon"}', 100.0, True),
        ("[]", 100.0, True),
    ],
)
def test_a_pause_is_a_file_and_one_that_cannot_be_read_pauses(
    tmp_path: Path, text: str | None, now: float, held: bool
) -> None:
    if text is not None:
        (tmp_path / "inhibit").write_text(text)
    assert inhibit.paused(tmp_path, now) is held


def test_pause_and_resume_are_each_others_opposite(tmp_path: Path) -> None:
    inhibit.pause(tmp_path, 200.0, "sre")
    assert inhibit.paused(tmp_path, 199.0)
    inhibit.resume(tmp_path)
    inhibit.resume(tmp_path)
    assert not inhibit.paused(tmp_path, 199.0)


def silence(matchers: str, *, starts_at: float = 100.0, for_s: float = 50.0, every: str = "") -> Silence:
    return Silence(matchers, "why", "who", starts_at, for_s, every)


@pytest.mark.parametrize(("at", "held"), [(99.0, False), (100.0, True), (149.9, True), (150.0, False)])
def test_a_silence_lasts_from_its_start_for_its_length(at: float, held: bool) -> None:
    assert covers(silence('a="b"'), at) is held


def test_a_recurring_silence_holds_after_each_of_its_instants() -> None:
    nightly = silence('a="b"', starts_at=0.0, for_s=3600.0, every="*/120 * * * *")
    assert covers(nightly, 7200.0 * 1000 + 10)


@pytest.mark.parametrize(
    ("matchers", "held"),
    [
        ('alertname="DiskFull"', True),
        ('alertname="DiskFull",mountpoint="/data"', True),
        ('mountpoint=~"/da.*"', True),
        ('alertname="DiskFull",mountpoint!="/data"', False),
        ('alertname="Other"', False),
    ],
)
def test_a_silence_matches_by_name_and_labels(matchers: str, held: bool) -> None:
    found = silence_of([silence(matchers)], "DiskFull", (("mountpoint", "/data"),), 120.0)
    assert (found is not None) is held


@pytest.mark.parametrize("text", ["", "{}", 'a=~".*"', "rate(x[5m])", "a==b"])
def test_matchers_that_match_all_or_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_matchers(text)


def play(folder: Path, scene: Callable[[Bench, Controls], Awaitable[None]]) -> None:
    async def run() -> None:
        async with bench(folder, mode=Mode.ASK) as made:

            async def run_job(name: str, who: str) -> list[Action]:
                return []

            async def reload() -> str:
                return "refused: two faults"

            controls = Controls(
                ledger=made.store.ledger,
                clock=made.clock,
                carry_out=made.dispatch.carry_out,
                run_job=run_job,
                reload=reload,
                wake=made.dispatch.wake,
                forget=made.store.forget,
                state_dir=folder,
            )
            await scene(made, controls)

    asyncio.run(run())


def test_a_silence_needs_a_reason_and_matchers_that_can_be_read(tmp_path: Path) -> None:
    async def scene(on: Bench, controls: Controls) -> None:
        fields: dict[str, Any] = {"matchers": 'alertname="X"', "for_s": 60, "every": "", "why": "moving"}
        await control.perform(controls, "sre", "silence_add", fields)
        for wrong in ({"why": " "}, {"matchers": "("}, {"every": "daily"}):
            with pytest.raises(UpkeepError):
                await control.perform(controls, "sre", "silence_add", {**fields, **wrong})
        [kept] = await on.store.ledger.silences(on.clock.wall())
        assert kept.by == "sre"
        await control.perform(controls, "sre", "silence_end", {"id": kept.id})
        with pytest.raises(UpkeepError, match="there is none"):
            await control.perform(controls, "sre", "silence_end", {"id": kept.id})

    play(tmp_path, scene)


def test_an_action_that_waits_goes_on_once_a_person_approved_it_and_says_who(tmp_path: Path) -> None:
    async def scene(on: Bench, controls: Controls) -> None:
        on.fill(6)
        await on.step()
        [waiting] = on.actions()
        await control.perform(controls, "sre (uid 1000)", "approve", {"id": waiting.id})
        await on.step()
        [done] = on.actions()
        assert done.status is ActionStatus.DONE
        assert done.extra["approved"] == "sre (uid 1000)"
        with pytest.raises(UpkeepError, match="does not wait"):
            await control.perform(controls, "sre", "approve", {"id": waiting.id})

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("delete_all", {}),
        ("__init__", {}),
        ("approve", {}),
        ("approve", {"id": 1, "who": "root"}),
        ("circuit_close", {"name": "x:y"}),
    ],
)
def test_verbs_and_fields_outside_the_list_are_refused(tmp_path: Path, verb: str, fields: dict[str, Any]) -> None:
    async def scene(on: Bench, controls: Controls) -> None:
        with pytest.raises(UpkeepError):
            await control.perform(controls, "sre", verb, fields)

    play(tmp_path, scene)


def test_the_socket_answers_each_request_whatever_it_holds_and_names_the_peer(tmp_path: Path) -> None:
    async def scene(on: Bench, controls: Controls) -> None:
        path = tmp_path / "control.sock"
        serving = asyncio.create_task(control.serve(path, controls))
        for _ in range(500):
            if path.exists():
                break
            await asyncio.sleep(0.01)
        assert path.stat().st_mode & 0o777 == 0o660

        def raw(line: bytes) -> dict[str, Any]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(path))
                connection.sendall(line + b"\n")
                with connection.makefile() as replies:
                    return json.loads(replies.readline())  # type: ignore[no-any-return]

        for line in (b"", b"[]", b"{}", b"\xff", b'{"verb": 1}', b'{"verb": "reload", "x": 1}', b"[" * 5000):
            assert "error" in await asyncio.to_thread(raw, line), line
        fields = {"matchers": 'a="b"', "for_s": 60, "every": "", "why": "test"}
        await asyncio.to_thread(control.ask, path, "silence_add", fields)
        [kept] = await on.store.ledger.silences(on.clock.wall())
        assert kept.by == control.myself()
        with pytest.raises(UpkeepError, match="two faults"):
            await asyncio.to_thread(control.ask, path, "reload", {})
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert not path.exists()

    play(tmp_path, scene)


def test_without_an_agent_asking_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        control.ask(tmp_path / "control.sock", "reload", {})
