"""What reads the host. A collector reads one source and knows no threshold; the sampler owns the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from agent.collectors.cgroups import CgroupsCollector
from agent.collectors.directories import DirectoriesCollector
from agent.collectors.disk import DiskCollector
from agent.collectors.filesystem import LocalFilesystems, RemoteFilesystems
from agent.collectors.gpu import GpuCollector
from agent.collectors.hardware import HardwareCollector
from agent.collectors.kernel import KernelCollector
from agent.collectors.network import LinksCollector, NetworkCollector
from agent.collectors.processes import ProcessesCollector
from agent.collectors.self_ import Figures, SelfCollector
from agent.collectors.system import PressureCollector, SystemCollector
from agent.collectors.updates import DEADLINE_S, UpdatesCollector
from agent.config import Collect, CollectorConfig
from agent.model import Reading
from agent.told import Tell, nobody

__all__ = ["Closing", "Collector", "Figures", "GpuCollector", "KernelCollector", "SelfCollector", "Source", "build"]


class Collector(Protocol):
    """Reads one source.

    ``name`` is the label ``collector`` of the agent's own metrics; up to a colon it is the family that the metric
    table calls ``source``. A value that could not be read is absent from the reading. Whatever can hang has a
    deadline of its own; the sampler never starts a second reading while one is under way.
    """

    @property
    def name(self) -> str: ...

    async def collect(self, at: float) -> Reading: ...


@runtime_checkable
class Closing(Protocol):
    """A collector that holds something, such as a child process, to let go when the agent stops."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A collector and how the sampler runs it.

    ``inline`` says that ``collect`` never waits: the sampler then runs it where it stands, without a task.
    ``deadline_s`` is when it is given up; None takes the sampler's own.
    """

    collector: Collector
    interval_s: float
    inline: bool = False
    deadline_s: float | None = None


SLOW_INTERVAL_S = 10.0
"""The least interval of what is dear to read and judged by its rate over minutes: paging, pressure, links, the agent's
own figures, and file systems that are asked through a child."""


PATIENCE_S = DEADLINE_S + 1.0
"""For what is looked through as a whole and seldom: each has deadlines of its own, the longest is that of apt."""

GPU_DEADLINE_S = 15.0
"""The collector answers within its probe's deadline; this is for a probe that cannot even be started."""


def build(
    config: Collect,
    figures: Iterable[Figures] = (),
    *,
    gpu: GpuCollector | None = None,
    kernel: KernelCollector | None = None,
    tell: Tell = nobody,
) -> list[Source]:
    """The collectors that a configuration asks for, in the order in which they are read.

    Parameters
    ----------
    config
        The key ``collect``.
    figures
        What else the agent says of itself, such as the store's size.
    gpu, kernel
        Collectors that share what others fill; without them there are none.
    tell
        Records the event of a source whose state changes.
    """
    sources: list[Source] = []

    def add(key: CollectorConfig | None, often: Collector, seldom: Collector | None = None, **how: bool) -> None:
        if key is None:
            return
        interval_s = key.interval or config.interval
        sources.append(Source(often, interval_s, inline=True))
        if seldom is not None:
            sources.append(Source(seldom, max(interval_s, SLOW_INTERVAL_S), **how))

    add(config.system, SystemCollector(), PressureCollector(), inline=True)
    add(config.filesystem, LocalFilesystems(), RemoteFilesystems())
    add(config.disk, DiskCollector())
    add(config.network, NetworkCollector(), LinksCollector(), inline=True)
    for key, slow, interval_s in (
        (config.hardware, HardwareCollector(), 60.0),
        (config.cgroups, CgroupsCollector(), 30.0),
        (config.processes, ProcessesCollector(), 30.0),
        (config.updates, UpdatesCollector(), 3600.0),
    ):
        if key is not None:
            sources.append(Source(slow, key.interval or interval_s, deadline_s=PATIENCE_S))
    if config.kernel is not None and kernel is not None:
        sources.append(Source(kernel, config.kernel.interval or config.interval, inline=True))
    if config.gpu is not None and gpu is not None:
        sources.append(Source(gpu, config.gpu.interval or config.interval, deadline_s=GPU_DEADLINE_S))
    if config.directories is not None and config.directories.paths:
        directories = DirectoriesCollector(config.directories.paths)
        interval_s = config.directories.interval or config.interval
        sources.append(Source(directories, interval_s, deadline_s=directories.longest_s))
    sources += _configured(config, tell)
    sources.append(Source(SelfCollector(figures), max(config.interval, SLOW_INTERVAL_S), inline=True))
    return sources


def _configured(config: Collect, tell: Tell) -> Iterator[Source]:
    """What runs only where its key is written, and is loaded only then."""
    if config.redis:
        from agent.collectors.redis import RedisCollector

        for instance in config.redis:
            interval_s = instance.interval or config.interval
            deadline_s = max(instance.timeout, interval_s) + 1.0
            yield Source(RedisCollector(instance, tell), interval_s, deadline_s=deadline_s)
    if config.services is not None and config.services.units:
        from agent.collectors.services import DEADLINE_S as ASKING_S
        from agent.collectors.services import ServicesCollector

        collector = ServicesCollector(config.services.units, tell)
        yield Source(collector, config.services.interval or config.interval, deadline_s=ASKING_S + 2.0)
    if config.textfile is not None:
        from agent.collectors.textfile import TextfileCollector

        textfile = TextfileCollector(config.textfile.directory, tell)
        yield Source(textfile, config.textfile.interval or config.interval)
    if config.probes is not None:
        from agent.collectors.probes import ProbeCollector

        for target in dict.fromkeys(config.probes.targets):
            probe = ProbeCollector(target, config.probes.timeout, tell)
            yield Source(probe, config.probes.interval or config.interval, deadline_s=config.probes.timeout + 2.0)
    if config.evaluation is not None:
        from agent.collectors.evaluation import PATIENCE_S, EvaluationCollector

        evaluation = EvaluationCollector(config.evaluation.database, tell)
        yield Source(evaluation, config.evaluation.interval or config.interval, deadline_s=PATIENCE_S + 2.0)
