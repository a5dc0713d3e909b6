"""Memory, limits and OOM kills of units and containers, from cgroup v2, as cAdvisor names them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.model import Reading, Sample, make_labels

MOST = 100
"""So many control groups, those with a limit first, then the largest."""

DEPTH = 4
"""Kubernetes' containers lie deepest: kubepods.slice, a class, a pod, the container."""

LEFT_OUT = re.compile(r"(user\.slice|init\.scope|run-.*\.scope|session-.*\.scope)")
"""What comes and goes with each login or command: its names would be series without end."""

_AT_ONCE = 50
"""Groups that are read before others get a turn: a millisecond."""


@dataclass(frozen=True, slots=True)
class Group:
    """A control group: its path below the root, what it holds, may hold (None: no limit), and its OOM kills."""

    path: str
    usage_bytes: int
    limit_bytes: int | None
    oom_kills: int


def parse(path: str, current: str, most: str, events: str) -> Group:
    """A group from the texts of its ``memory.current``, ``memory.max`` and ``memory.events``.

    Raises
    ------
    ValueError
        They are not of a cgroup of version 2.
    """
    limit = None if most.strip() == "max" else int(most)
    counts = dict(line.split() for line in events.splitlines())
    return Group(path, int(current), limit, int(counts.get("oom_kill", 0)))


def samples(groups: list[Group], at: float) -> list[Sample]:
    """The samples of those groups that matter most, in the order of their paths."""
    ranked = sorted(groups, key=lambda group: (group.limit_bytes is None, -group.usage_bytes))
    made = []
    for group in sorted(ranked[:MOST], key=lambda group: group.path):
        labels = make_labels(id=group.path)
        made.append(Sample("container_memory_usage_bytes", group.usage_bytes, at, labels))
        made.append(Sample("container_oom_events_total", group.oom_kills, at, labels))
        if group.limit_bytes is not None:
            made.append(Sample("container_spec_memory_limit_bytes", group.limit_bytes, at, labels))
    return made


class CgroupsCollector:
    """Services, containers, and every group with a limit. In a container, ``/`` is the container itself.

    Parameters
    ----------
    root
        Where the tree of version 2 is mounted; a host without it, or with memory under version 1, has nothing to say.
    """

    name = "cgroups"

    def __init__(self, root: str = "/sys/fs/cgroup") -> None:
        self._root = root
        self._last = Reading(0.0, (), ())

    async def collect(self, at: float) -> Reading:
        groups = []
        for number, path in enumerate(self._paths("", DEPTH)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            group = self._read(path or "/")
            if group is not None and (group.limit_bytes is not None or path.endswith((".service", ".scope"))):
                groups.append(group)
        reading = Reading.of(at, samples(groups, at))
        if reading.series == self._last.series:
            reading = Reading(at, self._last.series, reading.values)
        self._last = reading
        return reading

    def _paths(self, path: str, depth: int) -> Iterator[str]:
        yield path
        if not depth:
            return
        try:
            with os.scandir(self._root + path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return  # it has ended
        for name in sorted(names):
            if not LEFT_OUT.fullmatch(name):
                yield from self._paths(f"{path}/{name}", depth - 1)

    def _read(self, path: str) -> Group | None:
        folder = self._root if path == "/" else self._root + path
        try:
            return parse(path, *(_text(f"{folder}/memory.{name}") for name in ("current", "max", "events")))
        except OSError:
            return None  # the host's own root, a group without a memory controller, or one that has ended


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
