"""What judging costs: two hundred rules over two thousand series, beside the same rules on the same samples in
Prometheus.

The rules are mixed as the world's are: six in ten compare what is now, three in ten are rates over minutes, one in ten
looks back over an hour. A sample every five seconds, an evaluation every fifteen. Ours is the engine with its store,
all threads counted; the clock is moved by hand, with a pause between evaluations: caches are cold, as in an agent.

Prometheus finds the same samples in blocks that promtool made of them, up to some minutes after now, so that all its
windows are full. It evaluates once a second for half a minute; what a second one costs without rules is taken off.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import uvloop

from agent import rulefile
from agent.clock import ManualClock
from agent.engine import Engine
from agent.model import Mode, Reading, Series
from agent.store import Reader, Retention, Store
from benchmarks.common import Goal, Result, connect, cpu_s, free_port, started, version_of

MIX = (
    (64, "share", "{a} > 99"),
    (40, "bytes", "{a} / {b} * 100 > 300 and {b} > 0"),
    (40, "counter", "rate({a}[5m]) > 1e9"),
    (12, "counter", "rate({a}[2m]) / rate({b}[2m]) > 50 and rate({b}[2m]) > 0"),
    (10, "counter", "sum without (device) (rate({a}[5m])) > 1e9"),
    (10, "counter", "increase({a}[1h]) > 1e9"),
    (6, "bytes", "predict_linear({a}[1h], 4 * 3600) < 0 and {a} > 0"),
    (4, "bytes", "deriv({a}[5m]) > 1e9"),
    (4, "counter", "delta({a}[30m]) > 1e12"),
    (3, "share", "avg_over_time({a}[30m]) > 99"),
    (3, "share", "max_over_time({a}[1h]) > 101"),
    (2, "share", "changes({a}[15m]) > 1000"),
    (2, "share", "absent({a})"),
)
"""How many rules, of what kind of series, and what they ask; ``b`` is the metric of the next such rule."""

DEVICES, WIDTH = 10, 100
RULES = sum(count for count, _, _ in MIX)
STANDING = 3
"""So many alerts stand all the time: what ends them is asked for, too."""
GROUP = 10
INTERVAL_S, EVERY_S = 5, 15
BEFORE_S, AFTER_S = 3720, 300
WARM_UP, EVALUATIONS, EVENTS, PAUSE_S = 3, 20, 100, 0.2
PEER_WARM_UP_S, PEER_S = 5, 30
PEER = "prometheus"

EVENT_RULE = """\
- name: event
  rules:
  - {alert: Event, expr: 'increase(log_matches_total{pattern="oom"}[5m]) > 1e9'}
"""


class Host:
    """Two hundred metrics of ten devices each, tick after tick the same for all who ask."""

    def __init__(self) -> None:
        self._chance = random.Random(7)
        self._kinds = [kind for count, kind, _ in MIX for _ in range(count)]
        self.series = tuple(
            Series(f"m{number}", (("device", str(device)), ("host", "bench")))
            for number in range(RULES)
            for device in range(DEVICES)
        )
        self.collectors = [self.series[first : first + WIDTH] for first in range(0, len(self.series), WIDTH)]
        self._values = [[float(self._chance.randrange(5 * 10**8, 10**9)) for _ in range(DEVICES)] for _ in range(RULES)]

    def tick(self) -> list[float]:
        """The next values of all series."""
        for number, (kind, row) in enumerate(zip(self._kinds, self._values, strict=True)):
            for device in range(DEVICES):
                if kind == "counter":
                    row[device] += self._chance.randrange(10_000)
                elif kind == "bytes":
                    row[device] += self._chance.randrange(-4096, 8192)
                else:
                    row[device] = round(self._chance.random() * 98, 2)
            if number < STANDING:
                row[0] = 99.5
        return [value for row in self._values for value in row]

    def readings(self, at: float) -> list[Reading]:
        """The next values, as collectors of a hundred series each read them."""
        values = self.tick()
        return [Reading(at, series, values[n * WIDTH : (n + 1) * WIDTH]) for n, series in enumerate(self.collectors)]


def measure() -> Iterable[Result]:
    """All figures, from one run."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder, version = Path(name), version_of(PEER)
        (folder / "rules.yaml").write_text("groups:\n" + "".join(_groups(RULES)))
        (folder / "half.yaml").write_text("groups:\n" + "".join(_groups(RULES, every=2)))
        (folder / "event.yaml").write_text("groups:\n" + "".join(_groups(RULES)) + EVENT_RULE)
        ours = {name: uvloop.run(_judged_s(folder, name)) for name in ("rules.yaml", "half.yaml", "event.yaml")}
        peer = f"prometheus {version.split()[2].split('+')[0]}" if version else f"{PEER}: not installed"
        theirs_s = _evaluated_by_prometheus_s(folder) if version else None
    whole_s, half_s = (statistics.median(ours[name][0]) for name in ("rules.yaml", "half.yaml"))
    yield Result(
        "rules",
        "one evaluation, 200 rules over 2,000 series, CPU",
        "ms",
        1000 * whole_s,
        Goal(25, "ours"),
        peer,
        None if theirs_s is None else 1000 * theirs_s,
    )
    yield Result("rules", "the slowest of them", "ms", 1000 * max(ours["rules.yaml"][0]))
    event_s = statistics.median(ours["event.yaml"][1])
    yield Result("rules", "one event among 200 rules, CPU", "ms", 1000 * event_s, Goal(0.5, "ours"))
    yield Result("rules", "100 rules every 15 s, of a core", "%", 100 * half_s / EVERY_S)


def _groups(count: int, every: int = 1) -> Iterator[str]:
    """Groups of ten rules, in YAML that both read."""
    expressions = list(_expressions())[:count:every]
    for first in range(0, len(expressions), GROUP):
        yield f"- name: g{first}\n  rules:\n"
        for number, expr in enumerate(expressions[first : first + GROUP], start=first):
            yield f"  - {{alert: Rule{number}, expr: '{expr}', labels: {{severity: warning}}}}\n"


def _expressions() -> Iterator[str]:
    first = 0
    for count, _, template in MIX:
        for number in range(count):
            yield template.format(a=f"m{first + number}", b=f"m{first + (number + 1) % count}")
        first += count


# -- ours ------------------------------------------------------------------------------------------------------------


async def _judged_s(folder: Path, rules: str) -> tuple[list[float], list[float]]:
    """Processor seconds of some full evaluations, and of evaluations for an event each."""
    state = folder / f"state-{rules}"
    (folder / rules).chmod(0o644)  # files that others may write are refused
    clock, host = ManualClock(wall=float(int(time.time()))), Host()
    store = await Store.open(state, clock=clock, limits=Retention())
    judged = asyncio.Semaphore(0)
    engine = Engine(
        rulefile.load([str(folder / rules)]),
        mode=Mode.OBSERVE,
        clock=clock,
        recent=store.metrics,
        reach_s=lambda: 8 * 3600.0,
        history=lambda: Reader.open(state),
        ledger=store.ledger,
        append=store.metrics.append,
        record=store.metrics.add_events,
        requested=lambda: None,
        progress=judged.release,
    )
    await _sampled(store, clock, host, BEFORE_S)
    # The first few find files cold and windows that nothing was carried for.
    full = [await _full_s(engine, store, clock, host) for _ in range(WARM_UP + EVALUATIONS)][WARM_UP:]
    assert len(engine.alerts()) <= STANDING
    events = await _events_s(engine, store, clock, judged) if rules == "event.yaml" else []
    await store.close()
    return full, events


async def _sampled(store: Store, clock: ManualClock, host: Host, seconds: int) -> None:
    for _ in range(seconds // INTERVAL_S):
        clock.advance(INTERVAL_S)
        await store.metrics.append(host.readings(clock.wall()))


async def _full_s(engine: Engine, store: Store, clock: ManualClock, host: Host) -> float:
    await _sampled(store, clock, host, EVERY_S)
    await store.metrics.settled()
    await asyncio.sleep(PAUSE_S)
    before = time.process_time()
    await engine.once()
    return time.process_time() - before


async def _events_s(engine: Engine, store: Store, clock: ManualClock, judged: asyncio.Semaphore) -> list[float]:
    running = asyncio.create_task(engine.run())
    await judged.acquire()  # the first round of all groups
    series, seconds = (Series("log_matches_total", (("file", "a.log"), ("pattern", "oom"))),), []
    for number in range(EVENTS):
        clock.advance(0.1)
        await store.metrics.append([Reading(clock.wall(), series, [float(number)])])
        await store.metrics.settled()
        await asyncio.sleep(PAUSE_S / 10)
        before = time.process_time()
        engine.wake({"log_matches_total"})
        await judged.acquire()
        seconds.append(time.process_time() - before)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return seconds


# -- Prometheus ------------------------------------------------------------------------------------------------------


def _evaluated_by_prometheus_s(folder: Path) -> float:
    """Processor seconds of one evaluation of all rules."""
    blocks = folder / "blocks"
    _blocks(folder / "samples.om", blocks)
    shutil.copytree(blocks, folder / "blocks-idle")
    (folder / "with.yml").write_text(f"global: {{evaluation_interval: 1s}}\nrule_files: [{folder}/rules.yaml]\n")
    (folder / "without.yml").write_text("global: {evaluation_interval: 1s}\n")
    port = free_port()
    idle_port = free_port()
    with (
        (folder / "prometheus.log").open("wb") as said,
        started(_prometheus(folder / "with.yml", blocks, port), said) as judging,
        started(_prometheus(folder / "without.yml", folder / "blocks-idle", idle_port), said) as idle,
        closing(connect(port)),
        closing(connect(idle_port)),
    ):
        time.sleep(PEER_WARM_UP_S)
        before, rounds = cpu_s(judging.pid) - cpu_s(idle.pid), _rounds(port)
        time.sleep(PEER_S)
        return (cpu_s(judging.pid) - cpu_s(idle.pid) - before) / (_rounds(port) - rounds)


def _blocks(samples: Path, blocks: Path) -> None:
    """The samples as promtool stores them."""
    host, at = Host(), int(time.time()) - BEFORE_S
    with samples.open("w") as file:
        for _ in range((BEFORE_S + AFTER_S) // INTERVAL_S):
            values = zip(host.series, host.tick(), strict=True)
            file.writelines(f"{series} {value!r} {at}\n" for series, value in values)
            at += INTERVAL_S
        file.write("# EOF\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(samples), str(blocks)]
    subprocess.run(command, check=True, capture_output=True)


def _prometheus(config: Path, blocks: Path, port: int) -> list[str]:
    return [
        PEER,
        f"--config.file={config}",
        f"--storage.tsdb.path={blocks}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]


def _rounds(port: int) -> float:
    """How often all groups were evaluated."""
    with closing(connect(port)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    counts = [float(line.split()[-1]) for line in lines if line.startswith("prometheus_rule_group_iterations_total{")]
    return statistics.mean(counts)
