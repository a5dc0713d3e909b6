"""The composition root: builds every part from a configuration, owns the one task group, stops it in order.

Data flows one way: collectors and logs write to the store; the engine reads it and asks for actions; dispatch carries
them out. Nothing below this module knows another runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent import config, control, inhibit, memory, overrides, process, rulefile, schedule, systemd
from agent.calendar import Calendar
from agent.clock import Clock, SystemClock, boot_id
from agent.collectors import GpuCollector, KernelCollector, SelfCollector, build
from agent.config import LoadedConfig
from agent.control import Controls
from agent.dispatch import Brakes, Dispatch
from agent.engine import Engine
from agent.errors import FaultyFilesError, StoreError, UpkeepError
from agent.gpu import xid
from agent.gpu.client import LOCK, ChildLink, Probe, SocketLink
from agent.handlers import Tools
from agent.kernel import journal
from agent.kernel.book import Book
from agent.kernelwatch import KEY as KERNEL_KEY
from agent.kernelwatch import KernelWatch, restored
from agent.logwatch.keep import Keeping, Stored, StoreLines
from agent.logwatch.patterns import compile_patterns
from agent.logwatch.runner import LogWatch
from agent.model import Action, Event, Reading, Series, Severity
from agent.notifiers.journal import Journal
from agent.ops.client import OpsClient
from agent.ops.policy import Limits, Policy
from agent.rulefile import RuleSet
from agent.sampler import Sampler
from agent.store import Reader, Retention, Store
from agent.store.metrics import MINUTES_SPAN_S
from agent.supervisor import Supervisor
from agent.timewatch import Change, TimeWatch

if TYPE_CHECKING:
    from agent.routing import Router

log = logging.getLogger(__name__)

OPS_SOCKET = "/run/upkeep/ops.sock"
GPU_SOCKET = "/run/upkeep/gpu.sock"
KERNEL_COUNTERS = ("gpu_xid_errors_total", "kernel_messages_total", "DCGM_FI_DEV_XID_ERRORS")
MAINTAIN_EVERY_S = 60.0
REPORT_DEADLINE_S = 300.0
LOGS_SOUGHT_S = 1.0
CANCEL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that was built; the commands' and tests' way to look inside a running agent."""

    store: Store
    ops: OpsClient
    engine: Engine
    dispatch: Dispatch
    sampler: Sampler
    calendar: Calendar


class Agent:
    """One agent on one state directory.

    Parameters
    ----------
    loaded
        The configuration and the rule files it names.
    port_tries
        How many ports from the one of `listen` on may be tried until one is free.
    """

    def __init__(self, loaded: LoadedConfig, clock: Clock | None = None, *, port_tries: int = 1) -> None:
        self._loaded = loaded
        self._port_tries = port_tries
        self.address = ""
        self._clock = clock or SystemClock()
        self._figures = _Figures()
        self._stopping = asyncio.Event()
        self._first_sample = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._supervisor = Supervisor(self._clock, self._crashed)
        self._logwatch: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup
        self._router: Router | None = None
        self._patterns: object = None
        self._book = Book()
        self.parts: Parts
        self.ready = asyncio.Event()

    @property
    def state_dir(self) -> Path:
        return Path(self._loaded.config.state_dir)

    def stop(self) -> None:
        """Begin to stop; :meth:`run` returns once everything has been put away."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until :meth:`stop`.

        Raises
        ------
        StoreError
            Another agent holds the state directory, or the files are of a newer version.
        FaultyFilesError
            The rules cannot be loaded.
        """
        async with contextlib.AsyncExitStack() as stack:
            # First of all: a port that is taken is a mistake of the configuration, and nothing has begun yet.
            page = self._bind(stack)
            await self._take_overrides()
            store = await self._open_store()
            stack.push_async_callback(store.close)
            ops = hands(self._loaded.config, self._clock)
            stack.push_async_callback(ops.close)
            sampler = self._make_sampler(store)
            # Rules are read while the first samples are taken: neither waits for the other.
            reading = asyncio.create_task(asyncio.to_thread(load_rules, self._loaded))
            stack.callback(reading.cancel)
            async with asyncio.TaskGroup() as group:
                self._group = group
                ticked = self._supervisor.progress("sampler", patience_s=30.0)
                tasks = [self._keep("sampler", lambda: sampler.run(ticked))]
                try:
                    rules = await self._rules_or_last(reading, store)
                    self._build(store, ops, sampler, rules)
                    tasks += await self._start()
                    if page:
                        tasks.append(self._serve_pages(page))
                    await self._stopping.wait()
                finally:
                    systemd.notify("STOPPING=1")
                    tasks += [self._logwatch] if self._logwatch else []
                    await _end(tasks)

    async def once(self) -> None:
        """One pass of everything: sample, judge, carry out what was asked for, then stop."""
        async with self.built():
            parts = self.parts
            await self._tell_what_was_mended()
            await parts.engine.restore()
            await self._remember_rules(parts.engine.rules)
            await parts.sampler.once()
            await parts.engine.once()
            await parts.dispatch.once()

    @contextlib.asynccontextmanager
    async def built(self) -> AsyncIterator[None]:
        """Everything built and nothing running."""
        async with contextlib.AsyncExitStack() as stack:
            store = await self._open_store()
            stack.push_async_callback(store.close)
            reading = asyncio.create_task(asyncio.to_thread(load_rules, self._loaded))
            rules = await self._rules_or_last(reading, store)
            ops = hands(self._loaded.config, self._clock)
            stack.push_async_callback(ops.close)
            sampler = self._make_sampler(store)
            stack.push_async_callback(sampler.close)
            self._build(store, ops, sampler, rules)
            yield

    def controls(self) -> Controls:
        """What people may tell this agent."""
        return Controls(
            ledger=self.parts.store.ledger,
            clock=self._clock,
            carry_out=self.parts.dispatch.carry_out,
            run_job=self.parts.calendar.begin_now,
            reload=self.reload,
            wake=self.parts.dispatch.wake,
            forget=self.parts.store.forget,
            state_dir=self.state_dir,
        )

    # -- building --

    async def _take_overrides(self) -> None:
        """What this site says of single Xids; a file with faults ends the start as one of rules would."""
        gpu = self._loaded.config.collect.gpu
        if gpu is not None and gpu.xid_file is not None:
            self._book = Book(await asyncio.to_thread(xid.load_overrides, gpu.xid_file))

    async def _open_store(self) -> Store:
        kept = self._loaded.config.retention
        limits = Retention(
            raw_s=kept.raw,
            minutes_s=kept.minutes,
            hours_s=kept.hours,
            events_s=kept.events,
            max_size_bytes=kept.max_size,
            max_series=kept.max_series,
        )
        return await Store.open(self.state_dir, clock=self._clock, limits=limits)

    def _make_sampler(self, store: Store) -> Sampler:
        watch = TimeWatch(self._clock)

        async def append(readings: Sequence[Reading]) -> None:
            if (change := watch.look()) is not None:
                await self._time_changed(store, change)
            await store.metrics.append_tick(readings, self._clock.boot())
            self._first_sample.set()

        async def tell(event: Event) -> None:
            await store.metrics.add_events([event])

        settings = self._loaded.config
        gpu = GpuCollector(probe(settings, self._clock), self._book, tell)
        sources = build(settings.collect, [self._figures], gpu=gpu, kernel=KernelCollector(self._book), tell=tell)
        sampler = Sampler(sources, append, self._clock, tell)
        for source in sources:
            if isinstance(source.collector, SelfCollector):
                source.collector.add(sampler.figures)
                source.collector.add(self._notification_figures)
                source.collector.add(store.copies.figures)
                source.collector.add(store.watch.figures)
        return sampler

    def _build(self, store: Store, ops: OpsClient, sampler: Sampler, rules: RuleSet) -> None:
        settings = self._loaded.config
        dispatch: Dispatch

        engine = Engine(
            rules,
            mode=settings.mode,
            clock=self._clock,
            recent=store.metrics,
            reach_s=lambda: MINUTES_SPAN_S,
            history=self._history,
            ledger=store.ledger,
            append=store.metrics.append,
            record=store.metrics.add_events,
            requested=lambda: dispatch.wake(),
            changed=self._tell_people,
            progress=self._supervisor.progress("engine", patience_s=120.0),
        )
        dispatch = Dispatch(
            ledger=store.ledger,
            engine=engine,
            tools=Tools(ops, Journal(store.metrics.add_events, self._clock), self._write_report, self._paused),
            brakes=Brakes(
                settings.remediation,
                settings.mode,
                self._paused,
                observing=lambda: inhibit.observing(self.state_dir),
            ),
            clock=self._clock,
            collect_now=sampler.collect_now,
            record=store.metrics.add_events,
            finished=self._ended,
            # An action may take its whole deadline between two rounds.
            progress=self._supervisor.progress("dispatch", patience_s=1200.0),
        )
        calendar = Calendar(
            rules.jobs,
            ledger=store.ledger,
            clock=self._clock,
            zone=settings.timezone,
            mode=settings.mode,
            requested=dispatch.wake,
        )
        self.parts = Parts(store, ops, engine, dispatch, sampler, calendar)
        self._router = self._make_router(store, engine)

    def _make_router(self, store: Store, engine: Engine) -> Router | None:
        """Who tells people of alerts; None, and nothing imported, where nobody is to be told."""
        settings = self._loaded.config
        if settings.mail is None and not settings.notify.routes and settings.notify.heartbeat is None:
            return None
        from agent.routing import Router

        return Router(
            settings,
            state_dir=self.state_dir,
            engine=engine,
            ledger=store.ledger,
            clock=self._clock,
            record=store.metrics.add_events,
            alive=lambda: not self._supervisor.stuck(),
            url=self.address,
        )

    def _tell_people(self) -> None:
        if self._router is not None:
            self._router.wake()

    def _ended(self, action: Action) -> None:
        self._figures.count(action)
        self._tell_people()

    def _notification_figures(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        return self._router.figures() if self._router is not None else ((), ())

    @contextlib.contextmanager
    def _history(self) -> Iterator[Reader]:
        with Reader.open(self.state_dir) as reader:
            yield reader

    async def _start(self) -> list[asyncio.Task[None]]:
        parts = self.parts
        await self._tell_what_was_mended()
        await parts.engine.restore()
        await self._remember_rules(parts.engine.rules)
        await self._first_sample.wait()
        await parts.dispatch.recover()
        tasks = [
            self._keep("engine", parts.engine.run),
            self._keep("dispatch", parts.dispatch.run),
            self._keep("calendar", parts.calendar.run),
            self._keep("control", lambda: control.serve(self.state_dir / "control.sock", self.controls())),
            self._keep("maintenance", self._maintain),
            self._keep("watchdog", self._feed_watchdog),
            *await self._watch_kernel(),
        ]
        if self._router is not None:
            tasks.append(self._keep("notify", self._router.run))
        await self._watch_logs(parts.engine.rules)
        self._signals()
        # What was built at start stays for ever: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        memory.give_back_code()
        self.ready.set()
        systemd.notify("READY=1", "STATUS=watching")
        log.info("agent_started pid=%d state_dir=%s mode=%s", os.getpid(), self.state_dir, self._loaded.config.mode)
        return tasks

    def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return self._group.create_task(self._supervisor.keep(name, loop), name=name)

    async def _watch_logs(self, rules: RuleSet) -> None:
        """Watch with these patterns; tails go on from where their offsets were committed."""
        if self._patterns == rules.patterns and self._logwatch and not self._logwatch.done():
            return
        if self._logwatch:
            self._logwatch.cancel()
            await asyncio.wait([self._logwatch])
        if self._stopping.is_set():
            return  # what is begun now nobody would cancel
        self._patterns = rules.patterns
        globs = [path for logs in self._loaded.config.logs for path in logs.paths]
        if not globs:
            return
        keeping = Keeping(
            [
                (path, Stored(StoreLines(logs.store_lines), logs.redact_emails))
                for logs in self._loaded.config.logs
                for path in logs.paths
            ]
        )
        parts = self.parts

        sought = asyncio.Event()

        async def watch() -> None:
            # Made anew after a crash: what was not committed is read again from the stored offsets.
            stored = await parts.store.metrics.offsets()
            await LogWatch(
                globs,
                compile_patterns(rules.patterns),
                parts.store.metrics.commit_log,
                self._clock,
                stored=stored,
                wake=parts.engine.wake,
                keeping=keeping,
                # Not the watchdog's business: a log on a hung mount may hold this loop up, and nothing else.
                progress=sought.set,
            ).run()

        self._logwatch = self._keep("logs", watch)
        # Files that are there now are old, those that come later are new: not ready before that line is drawn. A hung
        # mount may hold the search up, and must not hold up the agent.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOGS_SOUGHT_S):
                await sought.wait()

    async def _watch_kernel(self) -> list[asyncio.Task[None]]:
        """Go on in the kernel's log behind what was committed in this boot."""
        collect = self._loaded.config.collect
        if collect.kernel is None:
            return []
        parts = self.parts
        stored = restored((await parts.store.metrics.offsets()).get(KERNEL_KEY), boot_id())
        self._book.restore(stored or {})

        async def told() -> None:
            # Twice: a counter that is new is 0 at first, so that rules see it rise.
            for _ in range(2):
                await parts.sampler.collect_now(KERNEL_COUNTERS)
                await asyncio.sleep(0.002)  # the store tells instants apart by the millisecond
            parts.engine.wake(KERNEL_COUNTERS)

        watch = KernelWatch(
            journal.find_source(self._clock),
            self._book,
            parts.store.metrics.commit_log,
            self._clock,
            boot_id=boot_id(),
            stored=stored,
            told=told,
        )
        return [self._keep("kernel", watch.run)]

    # -- while running --

    async def reload(self) -> str:
        """Read configuration and rules again: all of it or nothing. Returns why it was refused, or nothing.

        Rules, patterns and jobs are taken over; other keys of the configuration need a restart, and that is said.
        """
        async with self._reloading:  # of two at once the one that read the older files must not come last
            return await self._reload()

    async def _reload(self) -> str:
        systemd.reloading()
        try:
            loaded = await asyncio.to_thread(config.load, self._loaded.path)
            rules = await asyncio.to_thread(load_rules, loaded)
            await self.parts.engine.replace(rules)
        except (UpkeepError, OSError) as error:
            self._figures.reload_ok = False
            message = f"reload refused, the rules in force stay: {error}"
            log.error("reload_refused faults=%d", len(error.faults) if isinstance(error, FaultyFilesError) else 1)
            await self._record("reload_refused", Severity.ERROR, message)
            systemd.notify("READY=1", "STATUS=watching; the last reload was refused")
            return message
        self._figures.reload_ok = True
        self.parts.calendar.replace(rules.jobs)
        await self._watch_logs(rules)
        await self._remember_rules(rules, "reload")
        changed = loaded.config != self._loaded.config
        note = "; the configuration changed too and needs a restart" if changed else ""
        log.info("reloaded rules=%s%s", rules.digest, note)
        await self._record("reloaded", Severity.INFO, f"rule set {rules.digest} is in force{note}")
        systemd.notify("READY=1", "STATUS=watching")
        return ""

    async def _tell_what_was_mended(self) -> None:
        """What opening the store found wrong; without the old ledger nothing acts until a person has looked.

        Cooldowns, limits and open circuits are gone with it.
        """
        store = self.parts.store
        await store.metrics.add_events(store.notices)
        if store.ledger_lost:
            inhibit.pause(self.state_dir, None, "the ledger was damaged and a new one begun; look, then: upkeep resume")

    async def _time_changed(self, store: Store, change: Change) -> None:
        """The clock was set, or the host slept: told, and known to the store before it takes the next sample."""
        if change.asleep_s:
            await store.metrics.epochs.begin("resumed", change.asleep_s)
            await self._record("host_resumed", Severity.INFO, f"the host slept for {change.asleep_s:.0f} s")
        if change.stepped_s:
            await store.metrics.epochs.begin("stepped", change.stepped_s)
            way = "forward" if change.stepped_s > 0 else "back"
            message = f"the clock was set {way} by {abs(change.stepped_s):.0f} s"
            await self._record("clock_stepped", Severity.WARNING, message)

    async def _reload_asked_by_signal(self) -> None:
        try:
            await self.reload()
        except Exception:
            log.exception("reload_crashed")  # in the task group it would be the end of the agent

    async def _rules_or_last(self, reading: asyncio.Task[RuleSet], store: Store) -> RuleSet:
        """The rules as they are written; where they are faulty, those that were in force last, and it is said."""
        try:
            return await reading
        except FaultyFilesError as refused:
            last = await store.ledger.last_rules()
            if last is None:
                raise
            try:
                rules = await asyncio.to_thread(overrides.from_text, last[1], self._loaded.path)
            except (UpkeepError, ValueError):
                raise refused from None
            self._figures.reload_ok = False
            message = f"the rules cannot be loaded, those in force before ({last[0]}) are used: {refused}"
            log.error("rules_refused faults=%d used=%s", len(refused.faults), last[0])
            event = Event("rules_refused", Severity.ERROR, message, "agent", self._clock.wall())
            await store.metrics.add_events([event])
            return rules

    async def _remember_rules(self, rules: RuleSet, by: str = "start") -> None:
        try:
            await self.parts.store.ledger.keep_rules(rules.digest, rules.text, by)
        except StoreError as error:
            log.error("rules_not_kept hash=%s error=%s", rules.digest, error)

    def _paused(self) -> bool:
        return inhibit.paused(self.state_dir, self._clock.wall())

    async def _record(self, kind: str, severity: Severity, message: str) -> None:
        try:
            await self.parts.store.metrics.add_events([Event(kind, severity, message, "agent", self._clock.wall())])
        except StoreError as why:
            log.error("event_lost kind=%s error=%s", kind, why)

    async def _crashed(self, name: str, error: BaseException) -> None:
        with contextlib.suppress(AttributeError):  # before there is a store
            await self._record("task_crashed", Severity.ERROR, f"{name} crashed and is started again: {error!r}")

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(MAINTAIN_EVERY_S)
            await self.parts.store.maintain(self._clock.wall())

    async def _feed_watchdog(self) -> None:
        """Tell systemd that we live, as long as every critical loop gets round."""
        interval = systemd.watchdog_interval_s()
        if interval is None:
            return
        while True:
            stuck, frozen_s = self._supervisor.stuck(), self.parts.store.frozen_s()
            if stuck and not frozen_s:
                log.error("watchdog_withheld stuck=%s", ",".join(stuck))
            else:
                # A disk that takes no writes is not mended by a restart, which would lose the rows that wait.
                state = f"the state directory takes no writes, for {frozen_s:.0f} s" if frozen_s > 1 else "watching"
                systemd.notify("WATCHDOG=1", f"STATUS={state}")
            await asyncio.sleep(interval)

    async def _write_report(self, period: str) -> str:
        ended = await process.upkeep(["report", period, "--config", self._loaded.path], deadline_s=REPORT_DEADLINE_S)
        if ended.status != 0:
            raise UpkeepError(f"cannot write the {period} report: {ended.errors.strip() or 'it was stopped'}")
        return ended.output.strip()

    def _bind(self, stack: contextlib.AsyncExitStack) -> socket.socket | None:
        """The socket of the pages, and its address for people; None without ``listen``."""
        if not self._loaded.config.listen:
            return None
        from agent.serve import address, bind  # aiohttp and jinja2: only where pages are wanted

        bound = bind(self._loaded.config.listen, self._port_tries)
        stack.callback(bound.close)
        self.address = address(bound)
        return bound

    def _serve_pages(self, bound: socket.socket) -> asyncio.Task[None]:
        from agent.serve import Facts, serve, size_limits

        parts, settings = self.parts, self._loaded.config
        facts = Facts(
            self.state_dir,
            parts.store.metrics.recent,
            self._clock,
            schedule.zone(settings.timezone),
            settings.mode,
            alerts=parts.engine.alerts,
            paused=self._paused,
            stuck=self._supervisor.stuck,
            limits=lambda: size_limits(parts.engine.rules),
        )
        named = urlsplit(f"//{settings.listen}").hostname or ""
        return self._keep("serve", lambda: serve(bound, facts, named=named))

    def _signals(self) -> None:
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._group.create_task(self._reload_asked_by_signal()))


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel, and again what goes on: ``asyncio.wait_for`` of Python 3.11 loses one that comes with a wake-up."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_EVERY_S)


class _Figures:
    """What the agent counts of itself: actions by handler and outcome, and whether the last reload was taken."""

    def __init__(self) -> None:
        self.reload_ok = True
        self._counts: dict[tuple[str, str], int] = {}
        self._series: tuple[Series, ...] = (Series("upkeep_config_last_reload_successful"),)

    def __call__(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        return self._series, [float(self.reload_ok), *map(float, self._counts.values())]

    def count(self, action: Action) -> None:
        key = (action.handler, str(action.verdict or action.status))
        self._counts[key] = self._counts.get(key, 0) + 1
        self._series = (
            self._series[0],
            *(Series("upkeep_actions_total", (("handler", name), ("outcome", end))) for name, end in self._counts),
        )


def load_rules(loaded: LoadedConfig) -> RuleSet:
    """The shipped rules and those of the site, with the site's overrides, as one set.

    Raises
    ------
    FaultyFilesError
        With every fault of every file.
    """
    rules, faults = overrides.apply(
        rulefile.load(rule_paths(loaded)), loaded.config.overrides, loaded.path, loaded.override_places
    )
    if any(not fault.warning for fault in faults):
        raise FaultyFilesError([fault for fault in faults if not fault.warning])
    return rules


def rule_paths(loaded: LoadedConfig) -> list[str]:
    """The rule files in use: the shipped ones, then the site's."""
    return [*(rulefile.shipped() if loaded.config.shipped_rules else ()), *loaded.rule_files]


def hands(settings: config.Config, clock: Clock) -> OpsClient:
    """The hands: systemd's where its socket is, else a child of our own with the configuration's policy."""
    if os.path.exists(OPS_SOCKET) and systemd.started():
        return OpsClient.connect(OPS_SOCKET, clock)
    return OpsClient.spawn(ops_policy(settings), clock)


def probe(settings: config.Config, clock: Clock) -> Probe:
    """The probe of the GPUs: systemd's under systemd, where the agent itself may open no device; else a child."""
    state_dir = Path(settings.state_dir)
    link = SocketLink(GPU_SOCKET) if systemd.started() else ChildLink(state_dir / LOCK)
    return Probe(link, clock, state_dir)


def ops_policy(settings: config.Config) -> Policy:
    """What the hands may touch under this configuration. Their hourly cap is a fence behind dispatch's own limits."""
    caps = settings.remediation.limits
    limits = Limits(
        actions_per_hour=max(60, 10 * caps.actions_per_hour),
        files_per_action=caps.files_per_action,
        bytes_per_action=caps.bytes_per_action,
    )
    return Policy(settings.remediation.roots, limits)


@contextlib.asynccontextmanager
async def alone(loaded: LoadedConfig) -> AsyncIterator[Controls]:
    """The verbs of :mod:`agent.control` with no agent running: the state lock is taken for as long as one takes."""
    agent = Agent(loaded)
    async with agent.built():
        yield agent.controls()
