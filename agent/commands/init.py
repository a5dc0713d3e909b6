"""``upkeep init``: a commented configuration, with every key and its default, and a folder for rules."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from agent.config import Collect, Config, Limits, Logs, Notifications, RemediationConfig, Retention
from agent.errors import UpkeepError
from agent.located import key_of

_NESTED: dict[str, type] = {
    "collect": Collect,
    "remediation": RemediationConfig,
    "limits": Limits,
    "retention": Retention,
    "notify": Notifications,
}

_EXAMPLE_RULE = """\
# A rule of this site. Prometheus alerting rules work unchanged; `remediation` is what Upkeep adds.
# Check it with: upkeep check    See its values now with: upkeep explain DataDiskFull
groups:
  - name: site
    rules:
      - alert: DataDiskFull
        expr: node_filesystem_avail_bytes{mountpoint="/data"} / node_filesystem_size_bytes < 0.10
        for: 5m
        labels: {severity: warning}
        annotations: {summary: '{{ $labels.mountpoint }} has {{ $value | humanizePercentage }} free'}
        remediation:
          steps:
            - notify: {message: /data is nearly full}
"""


def run(arguments: Namespace) -> int:
    """Write the files; what exists is left as it is and said so."""
    folder = Path(arguments.directory)
    state = "/var/lib/upkeep" if arguments.system else "state"
    files = {
        folder / "upkeep.yaml": "\n".join(_configuration(state)) + "\n",
        folder / "rules.d" / "site.yaml": _EXAMPLE_RULE,
    }
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_new(path, text)
    except OSError as error:
        raise UpkeepError(f'cannot write "{error.filename}": {(error.strerror or str(error)).lower()}') from None
    print(f"\nnext: upkeep check --config {folder / 'upkeep.yaml'} && upkeep run --config {folder / 'upkeep.yaml'}")
    return 0


def _write_new(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        print(f"kept      {path}")
        return
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"written   {path}")


def _configuration(state: str) -> Iterator[str]:
    yield "# Every key with its default. A line without # is in force; an empty file would be a working agent too."
    yield ""
    yield f"state_dir: {state}"
    yield "mode: observe"
    yield ""
    yield from _keys(Config, Config(), "# ", skip={"state_dir", "mode"})


def _keys(cls: type, value: object, lead: str, skip: frozenset[str] | set[str] = frozenset()) -> Iterator[str]:
    """Each key of a dataclass as commented YAML, its words above it."""
    for item in dataclasses.fields(cls):
        key = key_of(item)
        if key in skip or item.metadata.get("later"):
            continue
        inner = getattr(value, item.name)
        yield f"{lead}# {item.metadata['help']}"
        if key in _NESTED:
            yield f"{lead}{key}:"
            yield from _keys(_NESTED[key], inner, lead + "  ")
        else:
            yield f"{lead}{key}: {_written(item.name, inner)}"


def _written(name: str, value: object) -> str:
    """A default as an operator would write it."""
    if isinstance(value, tuple) and value and isinstance(value[0], Logs):
        return "[" + ", ".join(f"{{paths: [{', '.join(logs.paths)}]}}" for logs in value) + "]"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if dataclasses.is_dataclass(value):
        held = {key_of(item): getattr(value, item.name) for item in dataclasses.fields(value)}
        inner = ", ".join(f"{key}: {_written(key, each)}" for key, each in held.items() if each is not None)
        return f"{{{inner}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if name == "percent_per_action":
        return f"{float(str(value)):.0%}"
    if isinstance(value, float):
        return _duration(value)
    if isinstance(value, int) and name.endswith(("size", "bytes_per_action")):
        return f"{value // 1024**3}GiB" if value % 1024**3 == 0 else f"{value // 1024**2}MiB"
    return "null" if value is None else str(value)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"
