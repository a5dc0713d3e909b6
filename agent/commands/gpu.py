"""``upkeep gpu``: the probe itself, what is known of the GPUs, and letting go of the driver."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.commands.common import as_owner_of, clock_time, duration, loaded, print_json, print_table
from agent.config import Config
from agent.control import myself
from agent.errors import StoreError, UpkeepError
from agent.gpu import host, release
from agent.gpu.client import LOCK, holder
from agent.gpu.protocol import DRIVER_WORDS, GpuError, Seen

FRESH_S = 60.0
"""How old samples may be to be shown instead of asking the driver afresh."""

LONGEST_RELEASE_S = 24 * 3600.0
MARGIN_S = 10.0

_COLUMNS = {
    "gpu_up": "up",
    "DCGM_FI_DEV_GPU_UTIL": "use_percent",
    "DCGM_FI_DEV_FB_USED": "used_mib",
    "DCGM_FI_DEV_FB_FREE": "free_mib",
    "DCGM_FI_DEV_FB_RESERVED": "reserved_mib",
    "DCGM_FI_DEV_GPU_TEMP": "celsius",
    "DCGM_FI_DEV_POWER_USAGE": "watts",
    "DCGM_FI_DEV_PSTATE": "pstate",
    "DCGM_FI_DEV_XID_ERRORS": "last_xid",
}

Row = dict[str, object]


def run(arguments: Namespace) -> int:
    """Serve as the probe, list the GPUs, or let go of the driver."""
    if arguments.what == "serve":
        from agent.gpu import server

        return server.main()
    if arguments.what == "release":
        return _release(arguments)
    settings = loaded(arguments).config
    rows, note = _stored(Path(settings.state_dir)), ""
    if not rows:
        rows, note = _asked(settings)
    if arguments.json:
        print_json({"gpus": rows, "note": note})
    else:
        _print(rows)
        if note:
            print(note)
    return 0


def _print(rows: Sequence[Row]) -> None:
    names = ("gpu", "name", "state", "use %", "used MiB", "total MiB", "°C", "W", "P", "UUID")
    keys = ("gpu", "name", "state", "use_percent", "used_mib", "total_mib", "celsius", "watts", "pstate", "uuid")
    print_table(names, [[row.get(key) for key in keys] for row in rows])


def _stored(state_dir: Path) -> list[Row]:
    """What a running agent sampled; nothing where that is not fresh."""
    import json

    from agent.store.read import Reader

    marks = ", ".join("?" * len(_COLUMNS))
    statement = f"SELECT metric, labels, value FROM latest WHERE metric IN ({marks}) AND age_s < ?"
    try:
        with Reader.open(state_dir) as reader:
            _, found = reader.sql(statement, [*_COLUMNS, FRESH_S])
    except StoreError:
        return []
    gpus: dict[str, Row] = {}
    for metric, text, value in found:
        labels = json.loads(str(text))
        if "UUID" in labels and "GPU_I_ID" not in labels:
            row = gpus.setdefault(labels["UUID"], _named(labels))
            row[_COLUMNS[str(metric)]] = value
    known = [row for row in gpus.values() if "up" in row]
    for row in known:
        row["state"] = "up" if row.pop("up") == 1 else "DOWN"
    return _ordered(known)


def _named(labels: Mapping[str, str]) -> Row:
    return {"gpu": int(labels.get("gpu") or -1), "name": labels.get("modelName", ""), "uuid": labels["UUID"]}


def _ordered(rows: Sequence[Row]) -> list[Row]:
    for row in rows:
        parts = [row.get(key) for key in ("used_mib", "free_mib", "reserved_mib")]
        if parts[0] is not None and parts[1] is not None:
            row["total_mib"] = sum(float(str(part)) for part in parts if part is not None)
    return sorted(rows, key=lambda row: (int(str(row["gpu"])), str(row["uuid"])))


def _asked(settings: Config) -> tuple[list[Row], str]:
    """What a probe of our own sees, where no agent samples; and what there is to say of the driver."""
    from agent.app import probe
    from agent.clock import SystemClock

    async def ask() -> Seen:
        own = probe(settings, SystemClock())
        try:
            return await own.read()
        finally:
            await own.close()

    as_owner_of(Path(settings.state_dir))
    try:
        seen = asyncio.run(ask())
    except (OSError, GpuError) as error:
        raise UpkeepError(f"cannot ask the driver: {error}") from None
    rows = []
    for gpu in seen.gpus:
        row: Row = {"gpu": gpu.index, "name": gpu.name, "uuid": gpu.uuid, "state": gpu.state}
        for column, value in zip(gpu.columns or (), gpu.values, strict=True):
            if column.metric in _COLUMNS and not column.labels:
                row[_COLUMNS[column.metric]] = value
        rows.append(row)
    if seen.state == "ready":
        return _ordered(rows), "" if rows else "no GPU: the driver is loaded and lists none"
    words = DRIVER_WORDS[seen.state]
    return _ordered(rows), "no GPU: " * (seen.state == "no_driver") + words + f" ({seen.message})" * bool(seen.message)


def _release(arguments: Namespace) -> int:
    """Write it down, wait until the probe has gone, and name whoever else has a device open."""
    settings = loaded(arguments).config
    seconds = duration(arguments.duration or "10m")
    if seconds > LONGEST_RELEASE_S:
        raise UpkeepError(f'cannot release for "{arguments.duration}": nobody would watch the GPUs; at most 24h')
    until = time.time() + seconds
    try:
        release.release(Path(settings.state_dir), until if seconds else 0.0, myself())
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UpkeepError(f'cannot write to "{settings.state_dir}": {why}') from None
    if not seconds:
        print("the GPUs are watched again")
        return 0
    interval_s = (settings.collect.gpu.interval if settings.collect.gpu else None) or settings.collect.interval
    left = _wait_for_probes(Path(settings.state_dir), interval_s + MARGIN_S)
    for pid in left:
        print(f"the probe {pid} has not ended: it hangs in the driver, which only a reboot may free")
    others = [(pid, name) for pid, name in host.device_holders() if pid not in left]
    for pid, name in others:
        print(f"{name or 'a process'} ({pid}) has a GPU open: a reset needs it to end")
    if not left:
        print(f"the agent has let go of the driver until {clock_time(until)}; sooner: upkeep gpu release --for 0s")
    return 1 if left else 0


def _wait_for_probes(state_dir: Path, patience_s: float) -> list[int]:
    """The probes of this agent that are left after a while: its own child, and the unit's."""
    deadline = time.monotonic() + patience_s
    while True:
        held = holder(state_dir / LOCK)
        left = sorted({*([held] if held else []), *host.unit_probes()})
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.1)
