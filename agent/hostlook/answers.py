"""Read what a host's files and programs said; nothing here asks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from agent.commands.common import size
from agent.fs.survey import MIB, FolderLook, Tree
from agent.hostlook.seen import GpuLook, RedisLook, UnitLook, age


def parse_meminfo(raw: bytes) -> dict[str, int]:
    """Bytes by their names in /proc/meminfo; empty where what matters of it is missing."""
    pairs = re.findall(r"^(\w+):\s+(\d+) kB$", raw.decode(errors="replace"), re.MULTILINE)
    memory = {name: int(value) * 1024 for name, value in pairs}
    return memory if {"MemTotal", "MemAvailable"} <= memory.keys() else {}


def describe_host(memory: Mapping[str, int], uptime: bytes) -> str:
    """Name, kernel, processors, memory and time since boot, as far as they are known."""
    system = os.uname()
    words = [system.nodename, f"{system.sysname} {system.release}", f"{os.cpu_count()} cores"]
    if memory:
        words.append(f"{size(memory['MemTotal'])} memory, {size(memory['MemAvailable'])} available")
    if uptime:
        words.append(f"up {age(float(uptime.split()[0]))}")
    return " · ".join(words)


def mount_points(table: bytes) -> dict[str, str]:
    """The options of every mount point of /proc/mounts, those of pseudo file systems too, longest path first."""
    named = (line.split(b" ")[1:4:2] for line in table.splitlines())
    points = {
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)): options.decode()
        for path, options in named
    }
    return dict(sorted(points.items(), key=lambda point: -len(point[0])))


def place_of(path: str, points: Iterable[str]) -> str:
    """The mount point that a path lies on, found without touching the path."""
    return next((point for point in points if path == point or path.startswith(point.rstrip("/") + "/")), "/")


def folders(trees: Sequence[Tree], output: bytes) -> Iterator[FolderLook]:
    """What a walking child said of its trees, and a silent one for each that it did not come to.

    Parameters
    ----------
    trees
        What it was asked.
    output
        A JSON object a line: the folders that a tree's path names, or one folder's figures, of which the last count.
        The last line may be cut off.
    """
    waiting = {tree.path: FolderLook(tree.path, tree.kind, answered=False) for tree in trees}
    told: dict[str, FolderLook] = {}
    for line in output.split(b"\n")[:-1]:
        answer = json.loads(line)
        if "names" in answer:
            silent = waiting.pop(answer["tree"])
            told.update((name, replace(silent, path=name)) for name in answer["names"])
        else:
            told[answer["path"]] = FolderLook(**answer)
    yield from (*told.values(), *waiting.values())


def parse_gpus(text: str) -> tuple[GpuLook, ...]:
    """GPUs from nvidia-smi's table of index, name, percent busy, MiB used, MiB in all and degrees.

    Lines that are none, such as the driver's complaints, are left out; ``[N/A]`` is None.
    """
    gpus = []
    for line in text.splitlines():
        match [part.strip() for part in line.split(",")]:
            case [index, name, busy, used, total, celsius] if index.isdecimal():
                memory = _number(used, MIB), _number(total, MIB)
                gpus.append(GpuLook(int(index), name, _number(busy), memory[0], memory[1], _number(celsius)))
    return tuple(gpus)


def parse_units(text: str) -> tuple[UnitLook, ...]:
    """Units from ``systemctl show``: one block each, an alias once, Redis under the name that exists."""
    units: dict[str, UnitLook] = {}
    for block in text.strip().split("\n\n"):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = said.get("Id", "").removesuffix(".service")
        if name:
            there = said.get("LoadState") != "not-found"
            restarts = said.get("NRestarts", "")
            state = said.get("ActiveState", "unknown") if there else "not installed"
            units[name] = UnitLook(name, state, int(restarts) if restarts.isdecimal() else 0)
    both = [name for name in ("redis-server", "redis") if name in units]
    for name in sorted(both, key=lambda name: units[name].state != "not installed")[: len(both) - 1]:
        del units[name]
    return tuple(units.values())


def parse_info(where: str, answer: bytes) -> RedisLook:
    """What an answer to INFO says."""
    head, _, body = answer.partition(b"\r\n")
    if head.startswith(b"-NOAUTH"):
        return RedisLook(where, "needs a password", {})
    if head.startswith(b"-"):
        return RedisLook(where, f"refuses: {head[1:80].decode(errors='replace').lower()}", {})
    text = body.decode(errors="replace")
    info = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line and not line.startswith("#"))
    if "redis_version" not in info:
        return RedisLook(where, "something answers, but not as Redis does", {})
    keys = sum(int(count) for count in re.findall(r"^db\d+:keys=(\d{1,18}),", text, re.MULTILINE))
    limit, used = figure(info, "maxmemory"), size(figure(info, "used_memory"))
    words = [
        f"Redis {info['redis_version']}",
        f"{used} of {size(limit)}" if limit else used,
        f"{keys:,} keys",
        f"{info.get('connected_clients', '?')} clients",
    ]
    return RedisLook(where, " · ".join(words), info)


def figure(info: Mapping[str, str], name: str) -> float:
    """A figure of Redis' INFO, 0 without one."""
    return _number(info.get(name, "")) or 0.0


def _number(text: str, unit: int = 1) -> float | None:
    """A figure of a size that figures have; None for anything else."""
    return float(text) * unit if re.fullmatch(r"\d{1,18}(\.\d+)?", text) else None
