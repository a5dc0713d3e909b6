"""Debian's node_exporter on loopback, and what it exports."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from agent.model import Series

PROGRAM = shutil.which("prometheus-node-exporter")

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@contextlib.contextmanager
def running(arguments: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start it on a free port of loopback; gives the address of its metrics and the process.

    Parameters
    ----------
    arguments
        Which collectors it runs, and how.
    """
    if PROGRAM is None:
        raise FileNotFoundError("cannot start node_exporter: prometheus-node-exporter is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PROGRAM, f"--web.listen-address=127.0.0.1:{port}", "--web.max-requests=1", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/metrics"
        _wait_until_it_answers(address)
        yield address, process
    finally:
        process.terminate()
        process.wait()


def scrape(address: str) -> str:
    """What it exports now, as text."""
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode())


def parse(text: str) -> tuple[dict[Series, float], dict[str, str]]:
    """Values by series, and types by name, from the text format (without escaped quotes in labels)."""
    values: dict[Series, float] = {}
    types: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            types[name] = kind
        elif match := _LINE.fullmatch(line):
            pairs = tuple(sorted((name, value) for name, value in _LABEL.findall(match[2] or "") if value))
            values[Series(match[1], pairs)] = float(match[3])
    return values, types


def _wait_until_it_answers(address: str) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            scrape(address)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return
