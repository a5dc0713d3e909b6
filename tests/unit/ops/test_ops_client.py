from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent.clock import ManualClock, SystemClock
from agent.errors import OpsError
from agent.ops.client import OpsClient
from agent.ops.policy import Policy
from agent.ops.protocol import Measured, RefusedError
from agent.ops.server import serve
from tests.support.hands import DAY_S, put

ROOT = Path(__file__).parents[3]


def with_hands(root: Path, work: Callable[[OpsClient], Awaitable[None]], **more: float) -> None:
    async def main() -> None:
        ops = OpsClient.spawn(Policy((str(root),)), SystemClock(), **more)
        try:
            await work(ops)
        finally:
            await ops.close()

    asyncio.run(main())


def child_of(ops: OpsClient) -> asyncio.subprocess.Process:
    connection = ops._connection
    assert connection is not None
    assert connection.process is not None
    return connection.process


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_a_survey_and_a_prune_through_a_real_child(cache: Path) -> None:
    for number in range(700):  # several batches
        put(cache / f"{number % 7}" / f"{number:03}", age_s=DAY_S + number * 60)

    async def work(ops: OpsClient) -> None:
        survey = await ops.survey(
            str(cache),
            older_than_s=DAY_S + 99.5 * 60,
            down_to_bytes=None,
            use="atime",
            keep_used_within_s=600,
            limit=1000,
        )
        assert len(survey.items) == 600
        assert survey.items[0].path == "6/699"
        done = await ops.prune(str(cache), survey.items, use="atime", keep_used_within_s=600)
        assert (len(done.results), done.error) == (600, "")
        assert {result.result for result in done.results} == {"done"}
        assert done.bytes_removed == 600 * 4096
        again = await ops.prune(str(cache), [], use="atime", keep_used_within_s=600)
        assert (again.results, again.bytes_removed) == ((), 0)

    with_hands(cache, work)
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 100


def test_a_path_under_no_root_is_refused_by_name_and_the_hands_stay(cache: Path) -> None:
    async def work(ops: OpsClient) -> None:
        for path in ("/etc", str(cache.parent), str(cache) + "t"):
            with pytest.raises(RefusedError) as caught:
                await ops.measure(path)
            assert caught.value.reason == "outside_roots"
        pid = child_of(ops).pid
        with pytest.raises(RefusedError) as caught:
            await ops.measure(str(cache / "none"))
        assert caught.value.reason == "missing"
        assert isinstance(await ops.measure(str(cache)), Measured)
        assert child_of(ops).pid == pid

    with_hands(cache, work)


def test_dead_hands_are_started_again(cache: Path) -> None:
    async def work(ops: OpsClient) -> None:
        await ops.measure(str(cache))
        dead = child_of(ops)
        dead.kill()
        await dead.wait()
        await ops.measure(str(cache))
        assert child_of(ops).pid != dead.pid

    with_hands(cache, work)


def test_silent_hands_are_given_up_killed_and_started_again(cache: Path) -> None:
    async def work(ops: OpsClient) -> None:
        await ops.measure(str(cache))
        silent = child_of(ops)
        os.kill(silent.pid, signal.SIGSTOP)
        with pytest.raises(OpsError, match=r"silent for 0\.5 s"):
            await ops.measure(str(cache))
        assert silent.returncode == -signal.SIGKILL
        await ops.measure(str(cache))

    with_hands(cache, work, silence_s=0.5)


def test_hands_lost_during_a_prune_are_told_in_the_result(cache: Path) -> None:
    for number in range(600):
        put(cache / f"{number:03}", age_s=DAY_S + number)
    path = str(cache.parent / "ops.sock")

    def serve_and_close(sock: socket.socket) -> None:
        with sock:
            serve(sock, Policy((str(cache),)))

    async def cut_after_first_results(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Real hands behind a wire that breaks when the first batch has been answered."""
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(asyncio.to_thread(serve_and_close, theirs))
        back_reader, back_writer = await asyncio.open_unix_connection(sock=ours)
        forth = asyncio.create_task(_pump(reader, back_writer))
        async for line in back_reader:
            writer.write(line)
            if b'"reply":"results"' in line:
                await forth
                break
        for side in (writer, back_writer):
            side.close()
            await asyncio.gather(side.wait_closed(), return_exceptions=True)
        await asyncio.gather(forth, serving)

    async def main() -> None:
        async with await asyncio.start_unix_server(cut_after_first_results, path):
            ops = OpsClient.connect(path, SystemClock())
            survey = await ops.survey(
                str(cache), older_than_s=60.0, down_to_bytes=None, use="atime", keep_used_within_s=600, limit=1000
            )
            done = await ops.prune(str(cache), survey.items, use="atime", keep_used_within_s=600)
        kinds = [result.result for result in done.results]
        assert (kinds.count("done"), kinds.count("unknown"), kinds.count("not_reached")) == (256, 256, 88)
        assert "they have ended" in done.error
        assert (done.bytes_removed, done.bytes_freed) == (256 * 4096, 0)

    asyncio.run(main())
    assert len(list(cache.iterdir())) == 600 - 256


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lines to the hands, until two batches have come: the second stays on the wire."""
    batches = 0
    async for line in reader:
        batches += b'"verb":"items"' in line
        if batches == 2:
            return
        writer.write(line)
    writer.close()


def test_a_cancelled_request_hangs_up_and_the_next_one_is_not_confused(cache: Path) -> None:
    for number in range(2000):
        put(cache / str(number))

    async def work(ops: OpsClient) -> None:
        await ops.measure(str(cache))
        first = child_of(ops).pid
        survey = asyncio.create_task(
            ops.survey(str(cache), older_than_s=60.0, down_to_bytes=None, use="atime", keep_used_within_s=0, limit=5000)
        )
        await asyncio.sleep(0)
        survey.cancel()
        with pytest.raises(asyncio.CancelledError):
            await survey
        assert (await ops.measure(str(cache))).files == 2000
        assert first != child_of(ops).pid

    with_hands(cache, work)


def test_requests_at_once_wait_for_each_other(cache: Path) -> None:
    put(cache / "file")

    async def work(ops: OpsClient) -> None:
        answers = await asyncio.gather(*(ops.measure(str(cache)) for _ in range(20)))
        assert {answer.files for answer in answers} == {1}

    with_hands(cache, work)


def test_a_policy_that_would_be_refused_is_refused_before_anything_starts() -> None:
    with pytest.raises(OpsError, match='cannot use "/etc" as a root'):
        OpsClient.spawn(Policy(("/etc", "/tmp/x")), SystemClock())


def test_hands_that_cannot_be_reached_say_so(tmp_path: Path) -> None:
    async def main() -> None:
        ops = OpsClient.connect(str(tmp_path / "none.sock"), SystemClock())
        with pytest.raises(OpsError, match="cannot reach the hands: No such file"):
            await ops.measure("/tmp/cache")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "they have ended"),
        (b"nonsense\n", "cannot read a line"),
        (b'{"id":9,"reply":"welcome","version":1,"roots":[]}\n', "an answer to another question"),
        (b'{"id":0,"reply":"refused","reason":"peer","message":"cannot serve this user"}\n', "cannot serve this user"),
        (b'{"id":1,"reply":"refused","reason":"version","message":"cannot speak it"}\n', "cannot speak it"),
        (b'{"id":1,"reply":"ready"}\n', "they said ready"),
        (b"x" * 600_000, "cannot hear the hands"),
    ],
)
def test_whatever_the_hands_say_out_of_protocol_is_one_clear_error(tmp_path: Path, answer: bytes, words: str) -> None:
    path = str(tmp_path / "ops.sock")

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def main() -> None:
        async with await asyncio.start_unix_server(lie, path):
            ops = OpsClient.connect(path, SystemClock())
            with pytest.raises(OpsError, match=words):
                await ops.measure("/tmp/cache/x")
            await ops.close()

    asyncio.run(main())


def test_a_clock_that_was_stepped_before_the_hands_began_is_told_to_them(cache: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        ops = OpsClient.spawn(Policy((str(cache),)), clock)
        clock.step_wall(400 * DAY_S)
        with pytest.raises(RefusedError) as caught:
            await ops.survey(
                str(cache), older_than_s=60.0, down_to_bytes=None, use="atime", keep_used_within_s=0, limit=10
            )
        assert caught.value.reason == "clock_jumped"
        await ops.close()

    asyncio.run(main())


def test_hands_behind_a_systemd_socket_read_their_own_policy_and_serve_many_in_turn(cache: Path) -> None:
    put(cache / "file")
    path = str(cache.parent / "ops.sock")
    policy = cache.parent / "ops.json"
    policy.write_text(Policy((str(cache),)).to_json())
    policy.chmod(0o644)
    start = (
        "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "from agent.ops import policy, server; load = policy.load; "
        "policy.load = lambda: load(sys.argv[1]); server.main()"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        os.set_inheritable(listening.fileno(), True)
        move = "exec 3<&" + str(listening.fileno()) + '; exec "$@"'
        process = subprocess.Popen(
            ["bash", "-c", move, "-", sys.executable, "-c", start, str(policy)], close_fds=False, cwd=ROOT
        )

    async def main() -> None:
        one, two = (OpsClient.connect(path, SystemClock(), silence_s=20) for _ in range(2))
        for _ in range(3):
            assert (await one.measure(str(cache))).files == 1
            assert (await two.measure(str(cache))).files == 1
        with pytest.raises(RefusedError):
            await one.measure("/etc")

    try:
        asyncio.run(main())
    finally:
        process.kill()
        process.wait()
