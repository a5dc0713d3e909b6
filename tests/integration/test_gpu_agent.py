"""The real agent beside a driver of our own: samples, events and alerts in the store, and the commands."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import gpus
from tests.support.nvml import H100, Stub, hosts, uuid_of
from tests.support.running import REPOSITORY, Host, scratch_host, until

LAUNCHER = """\
import sys
from agent.gpu import host
from agent.kernel import journal
from agent.cli import main

root, log, look = sys.argv.pop(1), sys.argv.pop(1), host.driver_files
host.driver_files = lambda _: look(root)
journal.find_source = lambda clock: journal.Journal([sys.executable, log + ".py", log])
sys.exit(main())
"""
"""The real agent, but for the root under which it looks for a driver's files, and a journal that is a file."""

JOURNALCTL = """\
import sys, time
after = sys.argv[sys.argv.index("--after-cursor") + 1] if "--after-cursor" in sys.argv else ""
file = open(sys.argv[1])
while True:
    line = file.readline()
    if after:
        after = "" if f'"{after}"' in line else after
    elif line:
        print(line, end="", flush=True)
    if not line:
        time.sleep(0.01)
"""

RULES = """\
      - alert: GpuXid
        expr: increase(gpu_xid_errors_total[5m]) > 0
        on_missing: clear
        labels: {severity: critical}
"""


def command(stub: Stub, folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, str(stub.root), str(folder / "journal"), *arguments]


def start(stub: Stub, host: Host, marker: int = 0) -> None:
    with (host.folder / "agent.log").open("ab") as log:
        host.process = subprocess.Popen(
            command(stub, host.folder, "run", "--verbose", "--config", str(host.config)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=REPOSITORY,
            env=stub.environment(),
        )  # fmt: skip
    until(lambda: "agent_started" in host.log()[marker:], "the agent to start")


def kernel_says(host: Host, number: int, text: str) -> None:
    entry = {"MESSAGE": text, "__CURSOR": f"c{number}", "__REALTIME_TIMESTAMP": str(time.time_ns() // 1000)}
    with (host.folder / "journal").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def upkeep(stub: Stub, host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(stub, host.folder, *arguments, "--config", str(host.config)),
        capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY, env=stub.environment(),
    )  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    made = Stub(tmp_path)
    made.write(hosts(H100, H100))
    return made


def test_from_a_kernel_line_to_an_alert_and_from_a_command_to_a_driver_let_go(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "journal").touch()
    (folder / "journal.py").write_text(JOURNALCTL)
    with scratch_host(folder) as host, contextlib.ExitStack() as stack:
        stack.callback(lambda: stub.change({key: None for key in stub.state if key.startswith("hang.")}))
        host.write(rules=RULES, mode="observe")
        start(stub, host)
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs in the store")

        kernel_says(host, 1, "NVRM: GPU at PCI:0000:1c:00: " + uuid_of(1))
        kernel_says(host, 2, "NVRM: Xid (PCI:0000:1c:00): 79, pid=7, name=train, GPU has fallen off the bus.")
        until(lambda: any(alert["rule"] == "GpuXid" for alert in host.alerts()), "the alert")
        [alert] = [alert for alert in host.alerts() if alert["rule"] == "GpuXid"]
        assert alert["labels"]["UUID"] == uuid_of(1)
        assert alert["labels"]["gpu"] == "1"
        assert alert["labels"]["xid"] == "79"
        [event] = host.json("events", "--kind", "gpu_xid")
        assert event["labels"]["action"] == "reboot"
        assert event["labels"]["process"] == "train"

        listed = json.loads(upkeep(stub, host, "gpu", "list", "--json").stdout)["gpus"]
        assert [(row["gpu"], row["uuid"], row["state"]) for row in listed] == [
            (0, uuid_of(0), "up"),
            (1, uuid_of(1), "up"),
        ]
        assert listed[1]["last_xid"] == 79
        assert listed[0]["total_mib"] == 80559

        probe = gpus.pid_of(host.state)
        released = upkeep(stub, host, "gpu", "release", "--for", "10m")
        assert released.returncode == 0, released.stdout + released.stderr
        assert "the agent has let go of the driver until" in released.stdout
        until(lambda: not gpus.alive(probe), "the probe to be buried")
        until(lambda: host.json("events", "--kind", "gpu_driver"), "the event")
        assert not host.json("query", "gpu_up")
        assert upkeep(stub, host, "gpu", "release", "--for", "0s").returncode == 0
        until(lambda: host.json("query", "count(gpu_up == 1)"), "GPUs again")
        host.stop()

        marker = len(host.log())
        start(stub, host, marker)
        until(lambda: host.json("query", f'gpu_xid_errors_total{{UUID="{uuid_of(1)}"}} == 1'), "the counter again")
        assert len(host.json("events", "--kind", "gpu_xid")) == 1, "a restart told the Xid again"
        host.stop()


def test_without_an_agent_the_list_asks_the_driver_itself(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    with scratch_host(folder) as host:
        host.state.mkdir()
        done = upkeep(stub, host, "gpu", "list")
        assert done.returncode == 0, done.stderr
        assert "NVIDIA H100 80GB HBM3  up" in done.stdout
        stub.loaded(None)
        done = upkeep(stub, host, "gpu", "list")
        assert (done.returncode, done.stdout) == (0, "no GPU: no NVIDIA driver is loaded\n")
