"""Ask a host what it holds, within a budget.

Whatever may hang (a mount, the GPU driver, systemd, a large tree) is asked through child processes that are left at the
deadline; what they had said by then is shown, and the rest is said to be missing.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from agent.collectors.filesystem import Mount, Status, ask, parse_mounts
from agent.fs import statfs, survey
from agent.fs.survey import DAY_S, MIB, Tree, matches
from agent.hostlook.answers import (
    describe_host,
    folders,
    mount_points,
    parse_gpus,
    parse_info,
    parse_meminfo,
    parse_units,
    place_of,
)
from agent.hostlook.findings import findings
from agent.hostlook.seen import GpuLook, Look, MountLook, RedisLook, UnitLook

GIB = 1024**3

REDIS_DEADLINE_S = 0.3
MARGIN_S = 0.15
"""What is kept of the budget for putting the answers together, and for children to hand theirs over."""

SMALLEST_MOUNT_BYTES = 64 * MIB

UNITS = ("benchmark-framework.service", "redis-server.service", "redis.service", "nginx.service")

Answer = TypeVar("Answer", tuple[GpuLook, ...], tuple[UnitLook, ...])


def known_trees(home: str) -> tuple[Tree, ...]:
    """The caches and logs that are looked for, those that the shipped rules watch first and the largest last."""
    caches = (Tree(f"{home}/.cache/{name}", "cache", "", 30 * DAY_S) for name in ("huggingface", "torch", "uv", "pip"))
    return (
        Tree("/tmp/evaluation_cache", "cache", "", 3 * DAY_S, limit_bytes=10 * GIB),
        Tree("/tmp/model_cache", "cache", "", 7 * DAY_S, by_writing=True, limit_bytes=50 * GIB),
        Tree("/var/log/benchmark", "log", r"\.log$", 7 * DAY_S, by_writing=True, errors=True),
        Tree("/var/log", "log", r"\.log$", 7 * DAY_S, by_writing=True),
        Tree("/var/log/journal", "data"),
        Tree("/tmp/benchmark_*", "temporary", "", DAY_S),
        Tree("/var/cache/apt", "data"),
        Tree("/var/lib/systemd/coredump", "data"),
        Tree("/var/crash", "data"),
        *caches,
        Tree("/data/*", "data"),
        Tree("/var/lib/docker", "data"),
        Tree("/var/lib/containerd", "data"),
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where the host is read; tests name others. Commands are argument lists, complete but for their questions."""

    trees: tuple[Tree, ...]
    mounts: str = "/proc/self/mounts"
    meminfo: str = "/proc/meminfo"
    uptime: str = "/proc/uptime"
    reboot: str = "/run/reboot-required"
    redis: tuple[str, int] = ("127.0.0.1", 6379)
    gpus: tuple[str, ...] = ("nvidia-smi",)
    systemd: str = "/run/systemd/system"
    systemctl: tuple[str, ...] = ("systemctl",)
    walker: tuple[str, ...] = (sys.executable, "-I", "-S", survey.__file__)


def look(budget_s: float = 2.0, places: Places | None = None) -> Look:
    """Look at the host once.

    Parameters
    ----------
    budget_s
        How long the whole look may take; what has not answered by then is missing from it, and said to be.
    places
        Where to read; this host's own by default.
    """
    start, at = time.monotonic(), time.time()
    until = start + budget_s - MARGIN_S
    places = places or Places(known_trees(os.path.expanduser("~")))
    table, memory = _read(places.mounts), parse_meminfo(_read(places.meminfo))
    children = _Children()
    try:
        walks = _start_walks(children, places, mount_points(table), until)
        gpus = _start_gpus(children, places)
        units = _start_units(children, places)
        mounts = _Mounts(children, table)
        redis = ask_redis(places.redis, min(REDIS_DEADLINE_S, until - start))
        children.wait(until)
    finally:
        children.end()
    seen = Look(
        host=describe_host(memory, _read(places.uptime)),
        mounts=mounts.answers(),
        gpus=_heard("nvidia-smi", gpus, parse_gpus, budget_s),
        folders=tuple(folder for trees, child in walks for folder in folders(trees, child.output)),
        redis=redis,
        units=_heard("systemctl", units, parse_units, budget_s),
        findings=(),
        at=at,
    )
    return replace(seen, findings=findings(seen, reboot_required=os.path.exists(places.reboot), memory=memory))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


# -- children: whatever may hang --


class _Child:
    """A program that was asked something. ``answers`` lines, or its end, are its whole answer."""

    def __init__(self, argv: Sequence[str], question: bytes = b"", answers: int = 0, *, gentle: bool = False) -> None:
        self._answers, self._gentle = answers, gentle
        self.output = b""
        self.ended = False
        self.process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if question else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        if self.process and self.process.stdin:
            with suppress(OSError):
                self.process.stdin.write(question)  # far below a pipe's capacity: cannot block

    def take(self, pipe: int) -> bool:
        """Read what is there; whether more is to come."""
        chunk = os.read(pipe, 65536)
        self.output += chunk
        self.ended = not chunk or 0 < self._answers <= self.output.count(b"\n")
        return not self.ended

    def leave(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        if process.poll() is None:
            # To kill a process inside a driver's call can freeze the GPU for good: it is asked to end, then left.
            (process.terminate if self._gentle and not self.ended else process.kill)()


_left_behind: list[subprocess.Popen[bytes]] = []
"""Children that the kernel holds back. They are kept here because a collected one would warn of itself."""


class _Children:
    def __init__(self) -> None:
        self._all: list[_Child] = []

    def start(self, argv: Sequence[str], question: bytes = b"", answers: int = 0, *, gentle: bool = False) -> _Child:
        child = _Child(argv, question, answers, gentle=gentle)
        self._all.append(child)
        return child

    def wait(self, until: float) -> None:
        """Collect what they say until all have said it, or the deadline."""
        with selectors.DefaultSelector() as selector:
            for child in self._all:
                if child.process and child.process.stdout:
                    selector.register(child.process.stdout, selectors.EVENT_READ, child)
            while selector.get_map() and (left_s := until - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if not key.data.take(key.fd):
                        selector.unregister(key.fileobj)

    def end(self) -> None:
        """Leave them all, and wait once for all of them together."""
        running = [(child, child.process) for child in self._all if child.process]
        for child, process in running:
            child.leave(process)
        until = time.monotonic() + MARGIN_S / 3
        for _, process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _left_behind.append(process)


def _heard(name: str, child: _Child | str, parse: Callable[[str], Answer], budget_s: float) -> Answer | str:
    """What a program listed, or in a sentence why it lists nothing."""
    if isinstance(child, str):
        return child
    if not child.ended:
        return f"{name} did not answer within {budget_s:g} s"
    return parse(child.output.decode(errors="replace")) or f"{name} lists nothing"


# -- the questions --


class _Mounts:
    """The file systems, each once: those that cannot hang are asked at once, the others through a child."""

    def __init__(self, children: _Children, table: bytes) -> None:
        self._mounts = {mount.path: mount for mount in parse_mounts(table)}
        if table and "/" not in self._mounts:  # a container's own root is an overlay, which the collector leaves out
            self._mounts["/"] = Mount("overlay", "/", "overlay", local=True)
        self._remote = [path for path, mount in self._mounts.items() if not mount.local]
        asked = {path: ask(path) for path, mount in self._mounts.items() if mount.local}
        self._statuses: dict[str, Status] = {path: status for path, status in asked.items() if status is not None}
        self._closed = set(asked) - set(self._statuses)
        """Those that answered, but not to us: below a folder that this user may not enter."""
        self._child: _Child | None = None
        if self._remote:
            question = "".join(f"{place} {os.fsencode(path).hex()}\n" for place, path in enumerate(self._remote))
            argv = (sys.executable, "-I", "-S", statfs.__file__)
            self._child = children.start(argv, question.encode(), len(self._remote))

    def answers(self) -> tuple[MountLook, ...]:
        """What is worth showing, the fullest first; a silent one before all."""
        for line in self._child.output.splitlines() if self._child else ():
            place, *figures = line.split()
            path = self._remote[int(place)]
            if figures[0] != b"error":
                self._statuses[path] = tuple(map(int, figures))
            elif b"Permission denied" in line:
                self._closed.add(path)
        mounts: dict[str, MountLook] = {}
        for path, mount in sorted(self._mounts.items(), key=lambda item: len(item[0])):
            if path in self._closed:
                continue
            status = self._statuses.get(path)
            device = mount.device if mount.device.startswith("/") else path
            if status is None:
                mounts[path] = MountLook(path, mount.kind, answered=False)
            elif status[0] >= SMALLEST_MOUNT_BYTES:  # bind mounts of one device say the same: the shortest path tells
                mounts.setdefault(device, MountLook(path, mount.kind, True, *status[:5]))
        return tuple(sorted(mounts.values(), key=lambda mount: (mount.answered, -mount.fill)))


def _start_walks(
    children: _Children, places: Places, points: Mapping[str, str], until: float
) -> list[tuple[tuple[Tree, ...], _Child]]:
    """One child for each mount point that holds a tree, so that a dead one costs its own trees only."""
    trees = [*places.trees]
    for tree in places.trees:
        trees += [replace(tree, path=point) for point in points if tree.kind == "data" and matches(point, tree.path)]
    by_place: dict[str, list[Tree]] = {}
    for tree in dict.fromkeys(trees):
        place = place_of(tree.path, points)
        unknown_use = "noatime" in points.get(place, "").split(",")  # the last write is all that is known there
        by_place.setdefault(place, []).append(replace(tree, by_writing=tree.by_writing or unknown_use))
    walks = []
    for group in by_place.values():
        request = {"trees": [asdict(tree) for tree in group], "points": list(points), "until": until - MARGIN_S / 3}
        child = children.start((*places.walker, json.dumps(request)))
        walks.append((tuple(group), child))
    return walks


def _start_gpus(children: _Children, places: Places) -> _Child | str:
    if not shutil.which(places.gpus[0]):
        return "a driver, but no nvidia-smi to ask it" if os.path.exists("/proc/driver/nvidia") else "no GPU"
    columns = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu"
    query = (f"--query-gpu={columns}", "--format=csv,noheader,nounits")
    return children.start((*places.gpus, *query), gentle=True)


def _start_units(children: _Children, places: Places) -> _Child | str:
    if not os.path.isdir(places.systemd):
        return "systemd does not run here"
    properties = "--property=Id,LoadState,ActiveState,NRestarts"
    return children.start((*places.systemctl, "show", properties, "--", *UNITS))


def ask_redis(address: tuple[str, int], deadline_s: float) -> RedisLook:
    """What the Redis at an address says of itself, within a deadline for the whole exchange."""
    until = time.monotonic() + deadline_s
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, deadline_s) as link:
            link.sendall(b"*1\r\n$4\r\nINFO\r\n")
            answer = _read_bulk(link, until)
    except ConnectionRefusedError:
        return RedisLook(where, "nothing listens", {})
    except TimeoutError:
        return RedisLook(where, f"does not answer within {deadline_s * 1000:.0f} ms", {})
    except OSError as error:
        return RedisLook(where, (error.strerror or str(error)).lower(), {})
    return parse_info(where, answer)


def _read_bulk(link: socket.socket, until: float) -> bytes:
    """A bulk string with its head, or an error line; what else comes ends with the connection or 1 MiB."""
    answer = b""
    while len(answer) < MIB:
        link.settimeout(max(0.001, until - time.monotonic()))
        chunk = link.recv(65536)
        answer += chunk
        head, end, body = answer.partition(b"\r\n")
        length = int(head[1:]) if re.fullmatch(rb"\$\d{1,9}", head) else 0
        if not chunk or (end and len(body) >= length):
            break
        if time.monotonic() >= until:
            raise TimeoutError
    return answer
