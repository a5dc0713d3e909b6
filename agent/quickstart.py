"""``./dev run``: the agent on this host, and two minutes that convince.

First a look at the host, then a story in a sandbox under ./var, told as it happens by the agent itself: nothing here
repairs anything, it only fills caches, writes a log line and reads what the agent recorded. Then it is the agent, until
Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from agent import config, hostlook
from agent.app import Agent
from agent.commands.common import size
from agent.commands.run import EXIT_BUSY, first_of, loop_factory, set_up_logging
from agent.errors import UpkeepError
from agent.model import Action, ActionStatus, AlertState
from agent.process import upkeep
from agent.store import Reader, StoreBusyError

MIB = 1024**2
DAY_S = 86400.0
PATIENCE_S = 45.0
POLL_S = 0.05


def main() -> int:
    """Run until Ctrl-C; returns the exit status."""
    checkout = Path(__file__).resolve().parents[1]
    var = checkout / "var"
    terminal = sys.stdout.isatty()
    set_up_logging(logging.ERROR)
    try:
        prepare(checkout / "examples", var)
        print("This host, as the agent sees it (nothing outside ./var will be changed):\n", flush=True)
        width = shutil.get_terminal_size((100, 24)).columns
        for line in hostlook.lines(hostlook.look(), width, terminal):
            print(line, flush=True)
        print(flush=True)
        agent = Agent(config.load(str(var / "upkeep.yaml")), port_tries=20)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(agent, Story(agent, var, terminal)))
    except StoreBusyError as error:
        print(error, file=sys.stderr)
        return EXIT_BUSY
    except ExceptionGroup as group:
        cause = first_of(group)
        if not isinstance(cause, UpkeepError):
            raise
        print(cause, file=sys.stderr)
        return 1
    except UpkeepError as error:
        print(error, file=sys.stderr)
        return 1
    print("stopped; everything is stored in ./var/state")
    return 0


async def _run(agent: Agent, story: Story) -> None:
    """The agent, and beside it the story; the agent's end is the end of both."""
    telling = asyncio.create_task(story.tell())
    try:
        await agent.run()
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


def prepare(examples: Path, var: Path) -> None:
    """Write the instance's configuration from the examples, with this checkout's own sandbox.

    Raises
    ------
    UpkeepError
        When ./var cannot be written.
    """
    try:
        (var / "rules.d").mkdir(parents=True, exist_ok=True)
        for name in ("evaluation_cache", "stubborn_cache", "log", "outside"):
            (var / name).mkdir(exist_ok=True)
        for source, target in (("quickstart.yaml", "upkeep.yaml"), ("quickstart-rules.yaml", "rules.d/sandbox.yaml")):
            text = (examples / source).read_text(encoding="utf-8")
            path = var / target
            path.write_text(text.replace("/sandbox", str(var)), encoding="utf-8")
            path.chmod(0o644)
    except OSError as error:
        raise UpkeepError(f'cannot write "{error.filename}": {(error.strerror or str(error)).lower()}') from None


class Story:
    """What happens in the sandbox, told in timed lines as the agent records it."""

    def __init__(self, agent: Agent, var: Path, terminal: bool) -> None:
        self._agent = agent
        self._var = var
        self._terminal = terminal
        self._began = time.monotonic()
        self._held: list[int] = []

    async def tell(self) -> None:
        """Tell the story once, then say where to look."""
        try:
            await self._agent.ready.wait()
            self._began = time.monotonic()
            self._say(f"agent started (pid {os.getpid()}); observing the host, acting only in {self._var}")
            await self._clear_up()
            await self._log_line()
            await self._cache()
            await self._stubborn()
            await self._report()
        except TimeoutError:
            self._say("the story stops here: what should have happened did not. See: ./dev upkeep status")
        except sqlite3.Error as error:
            self._say(f"the story stops here: {error}")
        finally:
            for descriptor in self._held:
                os.close(descriptor)
        self._goodbye()

    # -- the scenes --

    async def _log_line(self) -> None:
        self._head("A log line")
        # A file of this run's own: what an earlier run wrote is an alert of its own, which may still stand.
        path = self._var / "log" / f"worker-{os.getpid()}.log"
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR worker 3: CUDA out of memory. GPU 0\n"
        for earlier in path.parent.glob("worker-*.log"):
            earlier.unlink()
        path.touch()
        await asyncio.sleep(1.0)
        with Reader.open(self._agent.state_dir) as reader:
            [(before,)] = reader.sql("SELECT coalesce(max(id), 0) FROM event")[1]
            written = time.monotonic()
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
            self._say(f"appended to log/{path.name}: {line.strip()}")
            async for _ in _polling(0.001):
                found = reader.sql("SELECT message FROM event WHERE id > ? AND kind = 'log_match'", (before,))[1]
                if found:
                    self._say(f"event stored {1000 * (time.monotonic() - written):.0f} ms later")
                    break
        action = await self._action("CudaOutOfMemory", "notify")
        self._say(f'rule CudaOutOfMemory fired → {action.handler}: "{_first_target(action)}"')

    async def _cache(self) -> None:
        self._head("A cache over its limit")
        cache = self._var / "evaluation_cache"
        kept = self._fill_cache(cache)
        total = sum(path.lstat().st_blocks * 512 for path in cache.iterdir())
        self._say(f"filled evaluation_cache with {len(list(cache.iterdir()))} entries, {size(total)}")
        for text in _rule_text(self._var / "rules.d" / "sandbox.yaml", "SandboxCacheTooLarge"):
            print(f"          │ {text}", flush=True)
        await self._firing("SandboxCacheTooLarge")
        self._say("alert SandboxCacheTooLarge fires")
        action = await self._action("SandboxCacheTooLarge", "clean_cache")
        if action.plan:
            self._say(f"plan: {action.plan.summary}")
            for skipped in action.plan.skipped:
                self._say(f"  refused {_beside(skipped.target, self._var)}: {skipped.reason}")
        if action.outcome:
            self._say(
                f"freed {size(action.outcome.bytes_freed)} as the file system saw it "
                f"({size(action.outcome.bytes_removed)} in {len(action.outcome.items)} files)"
            )
        self._say(f"verified by asking the rule again: {action.verdict}")
        there = [path.name for path in kept if path.exists()]
        self._say(
            f"still there: {', '.join(there)}" if len(there) == len(kept) else "SOMETHING THAT WAS REFUSED IS GONE"
        )

    async def _stubborn(self) -> None:
        self._head("A repair that cannot help")
        cache = self._var / "stubborn_cache"
        for index in range(2):
            path = _make(cache / f"in-use-{index}.bin", 4 * MIB, age_s=9 * DAY_S)
            self._held.append(os.open(path, os.O_RDONLY))
        self._say("filled stubborn_cache with files that a process keeps open")
        action = await self._action("SandboxCacheStubborn", "clean_cache")
        self._say(f"first rung: {action.handler}: {action.verdict}, {action.reason.replace('_', ' ')}")
        told = await self._action("SandboxCacheStubborn", "notify")
        self._say(f'next rung: a person is told: "{_first_target(told)}"')
        _empty(cache)

    async def _report(self) -> None:
        self._head("A first report")
        arguments = ["report", "daily", "--title", "First look", "--config", str(self._var / "upkeep.yaml")]
        ended = await upkeep(arguments, deadline_s=60.0)
        if ended.status != 0:
            self._say(f"the report failed: {ended.errors.strip()}")
            return
        subject, html, *_ = ended.output.splitlines()
        self._say(subject)
        self._say(f"file://{html}")

    def _goodbye(self) -> None:
        self._head("It is the agent now, until Ctrl-C")
        if self._agent.address:
            print(f"  status page   {self._agent.address}", flush=True)
        print("  try           ./dev upkeep status", flush=True)
        statement = "SELECT time, handler, status, outcome, bytes_freed FROM actions ORDER BY time DESC LIMIT 5"
        print(f'                ./dev upkeep sql "{statement}"', flush=True)
        print("                ./dev upkeep explain SandboxCacheTooLarge\n", flush=True)

    # -- props --

    def _fill_cache(self, cache: Path) -> list[Path]:
        """Six old files that may go and three that may not; returns those that must still be there afterwards."""
        for index in range(6):
            _make(cache / f"result-{index}.bin", 8 * MIB, age_s=(index + 1) * DAY_S)
        in_use = _make(cache / "in-use.bin", 4 * MIB, age_s=8 * DAY_S)
        self._held.append(os.open(in_use, os.O_RDONLY))
        linked = _make(cache / "second-name.bin", 4 * MIB, age_s=8 * DAY_S)
        precious = _make(self._var / "outside" / "precious.bin", MIB, age_s=8 * DAY_S)
        other_name = self._var / "outside" / "second-name.bin"
        other_name.unlink(missing_ok=True)
        os.link(linked, other_name)
        link = cache / "link-to-outside"
        link.symlink_to(precious)
        return [in_use, linked, link, precious]

    async def _clear_up(self) -> None:
        """An earlier run's props go, and its alerts clear, so that the story can play again."""
        for name in ("evaluation_cache", "stubborn_cache"):
            _empty(self._var / name)
        async for _ in _polling():
            if not any(alert.rule.startswith("Sandbox") for alert in self._agent.parts.engine.alerts()):
                return

    # -- looking at the agent --

    async def _firing(self, rule: str) -> None:
        async for _ in _polling():
            alerts = self._agent.parts.engine.alerts()
            if any(alert.rule == rule and alert.state is AlertState.FIRING for alert in alerts):
                return

    async def _action(self, rule: str, handler: str) -> Action:
        """The rule's action by this handler since the story began, once it has ended."""
        since = time.time() - (time.monotonic() - self._began)
        ended = (ActionStatus.DONE, ActionStatus.REFUSED, ActionStatus.OBSERVED)
        with Reader.open(self._agent.state_dir) as reader:
            async for _ in _polling():
                for action in reader.actions(since=since):
                    if action.rule == rule and action.handler == handler and action.status in ended:
                        return action
        raise TimeoutError

    # -- saying --

    def _head(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if self._terminal else f"\n{text}", flush=True)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)


async def _polling(every_s: float = POLL_S) -> AsyncIterator[None]:
    """Ticks until the patience of a newcomer ends; then TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(every_s)
    raise TimeoutError


def _make(path: Path, length: int, *, age_s: float) -> Path:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, length)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def _empty(folder: Path) -> None:
    """Only plain entries of a sandbox folder that this module made."""
    for path in folder.iterdir():
        with contextlib.suppress(IsADirectoryError):
            path.unlink()


def _rule_text(path: Path, alert: str) -> Iterator[str]:
    """The rule as it stands in the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == f"- alert: {alert}")
    yield lines[start].strip()
    for line in lines[start + 1 :]:
        if not line.startswith(8 * " "):
            return
        yield line[6:]


def _first_target(action: Action) -> str:
    return action.plan.items[0].target if action.plan and action.plan.items else action.reason


def _beside(target: str, var: Path) -> str:
    return os.path.relpath(target, var) if target.startswith("/") else target


if __name__ == "__main__":
    sys.exit(main())
