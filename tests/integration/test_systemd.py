"""The units on a real systemd: this machine's own root as an overlay, booted by nspawn, installed by install.sh.

Everything happens in the overlay, in a network of its own; the machine itself is only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.collectors.filesystem import parse_mounts
from tests.support.running import REPOSITORY, until

SOURCE = "usr/src/upkeep"
UNITS = ("upkeep.service", "upkeep-ops.socket", "upkeep-ops.service", "upkeep-gpu.socket", "upkeep-gpu.service")
CACHE = "/tmp/evaluation_cache"
"""On a file system of its own there: an overlay says of its files that they are on another device than their folder."""
LEAST_EXPOSED = {"upkeep.service": 18, "upkeep-ops.service": 20, "upkeep-gpu.service": 10}
"""The most that ``systemd-analyze security`` may say, in tenths."""

CONFIGURATION = f"""
mode: act
state_dir: /var/lib/upkeep
shipped_rules: false
collect:
  interval: 500ms
  directories: {{interval: 500ms, paths: [{CACHE}]}}
logs: [{{paths: [/var/log/upkeep-test/*.log]}}]
remediation: {{roots: [{CACHE}], boot_grace: 0}}
"""

RULE = f"""
groups:
  - name: scratch
    interval: 1s
    rules:
      - alert: CacheTooLarge
        expr: directory_size_bytes{{path="{CACHE}"}} > 8 * 1024^2
        labels: {{severity: warning}}
        remediation:
          cooldown: 0s
          steps:
            - clean_cache: {{path: {CACHE}, down_to: 4200KiB, use: mtime}}
              verify_within: 10s
"""


class Machine:
    """A machine that systemd runs, over an overlay of this one.

    Parameters
    ----------
    root
        Where the overlay is mounted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.init = 0
        self._container: subprocess.Popen[bytes] | None = None

    def container(self, *arguments: str) -> list[str]:
        return ["systemd-nspawn", "--quiet", f"--directory={self.root}", "--register=no", "--keep-unit", *arguments]

    def install(self) -> str:
        """Run install.sh before the boot, with the machine's network: pip fetches what it does not have."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
        passed = [f"--setenv={name}={value}" for name, value in kept.items()]
        done = subprocess.run(
            self.container(*passed, "--pipe", "sh", f"/{SOURCE}/systemd/install.sh"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def boot(self, log: Path) -> None:
        with log.open("wb") as output:
            self._container = subprocess.Popen(
                self.container("--private-network", "--console=passive", "--boot", "--", "--unit=multi-user.target"),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        pid = self._container.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")

        def booted() -> bool:
            assert self._container is not None
            if self._container.poll() is not None:
                cannot(f"cannot boot a machine: {log.read_text(errors='replace').strip()}")
            if not self.init:
                self.init = next((int(child) for child in children.read_text().split() if _is_init(child)), 0)
            return bool(self.init) and self.run("systemctl", "is-active", "basic.target", status=None) == "active\n"

        until(booted, "systemd to boot")

    def run(self, *command: str, status: int | None = 0, user: str = "", text: str = "") -> str:
        """Run a command there with ``text`` as its input; returns its output. ``status`` is its due exit status."""
        enter = ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*enter, *become, *command],
            input=text, capture_output=True, text=True, timeout=60, check=False, env=environment,
        )  # fmt: skip
        if status is not None:
            assert done.returncode == status, (
                f"{command}: {done.returncode}\n{done.stdout}{done.stderr}{self.journal()}"
            )
        return done.stdout

    def json(self, *command: str) -> Any:
        return json.loads(self.run("upkeep", *command, "--json", status=None) or "[]")

    def properties(self, unit: str) -> Mapping[str, str]:
        return dict(line.split("=", 1) for line in self.run("systemctl", "show", unit).splitlines() if "=" in line)

    def process(self, unit: str) -> Mapping[str, str]:
        """/proc/PID/status of a unit's main process."""
        text = self.run("cat", f"/proc/{self.properties(unit)['MainPID']}/status")
        return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

    def journal(self) -> str:
        if not self.init:
            return ""
        command = [
            "nsenter",
            f"--target={self.init}",
            "--mount",
            "--pid",
            "journalctl",
            "--no-pager",
            "-n60",
            "-uupkeep*",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file of root's."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "write", path, text=text)

    def stop(self) -> None:
        """Halt it; nspawn takes every process along."""
        if self._container is None:
            return
        self._container.terminate()
        try:
            self._container.wait(20)
        except subprocess.TimeoutExpired:
            self._container.kill()
            self._container.wait()


def _is_init(pid: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "systemd\n"  # before it is run, its name is nspawn's


def cannot(reason: str) -> None:
    """A merge must see this test run; elsewhere it says why it does not."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """This machine's root with a layer in memory over it; the checkout is copied, wherever it lies."""
    layer, root = folder / "layer", folder / "root"
    layer.mkdir()
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=1g", "upkeep-test", layer], check=True)
    try:
        for name in ("up/etc", "work"):
            (layer / name).mkdir(parents=True)
        (layer / "up/etc/machine-id").touch()
        places = f"lowerdir=/,upperdir={layer}/up,workdir={layer}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", places, "overlay", root], check=True)
        try:
            leave_out = shutil.ignore_patterns(".*", "var", "__pycache__")
            shutil.copytree(REPOSITORY, root / SOURCE, ignore=leave_out)
            yield root
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    finally:
        subprocess.run(["umount", "-l", layer], check=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("booting a machine needs root")
    if not shutil.which("systemd-nspawn"):
        cannot("systemd-nspawn is missing: apt-get install systemd-container")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        cannot("mounting is not allowed here, not even for root")
    folder = tmp_path_factory.mktemp("machine")
    with overlay(folder) as root:
        machine = Machine(root)
        try:
            written = machine.install()
            assert "systemctl enable --now" in written
            machine.boot(folder / "boot.log")
            machine.run("install", "-d", "-m", "755", "-o", "nobody", "-g", "nogroup", CACHE)
            machine.write("/etc/upkeep/upkeep.yaml", CONFIGURATION)
            machine.write("/etc/upkeep/ops.json", machine.run("upkeep", "ops", "policy"))
            yield machine
        finally:
            machine.stop()


@pytest.fixture
def running(machine: Machine) -> Machine:
    machine.run("systemctl", "start", "upkeep-ops.socket", "upkeep.service")
    return machine


pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_the_units_are_right_and_tight(machine: Machine) -> None:
    paths = [f"/usr/local/lib/systemd/system/{unit}" for unit in UNITS]
    assert machine.run("sh", "-c", f"systemd-analyze verify {' '.join(paths)} 2>&1") == ""
    for unit, tenths in LEAST_EXPOSED.items():
        path = f"/usr/local/lib/systemd/system/{unit}"
        machine.run("systemd-analyze", "security", "--offline=true", f"--threshold={tenths}", path)


def test_it_is_ready_within_two_seconds_and_unprivileged(machine: Machine) -> None:
    machine.run("systemctl", "stop", "upkeep.service")
    machine.run("systemctl", "start", "upkeep.service")
    unit = machine.properties("upkeep.service")
    took_s = (int(unit["ActiveEnterTimestampMonotonic"]) - int(unit["ExecMainStartTimestampMonotonic"])) / 1e6
    assert took_s <= 2.0
    agent = machine.process("upkeep.service")
    assert agent["Uid"].split()[0] == machine.run("id", "-u", "upkeep").strip()
    assert [agent[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd", "Amb")] == ["0" * 16] * 4
    folder = machine.run("stat", "-c", "%a %U %G", "/var/lib/upkeep", "/var/lib/upkeep/metrics.db")
    assert folder.splitlines() == ["2750 upkeep upkeep", "640 upkeep upkeep"]


def test_confined_it_sees_the_host_as_it_is(running: Machine) -> None:
    def value(expression: str) -> list[dict[str, Any]]:
        return running.json("query", expression)  # type: ignore[no-any-return]

    until(lambda: value(f'directory_size_bytes{{path="{CACHE}"}}'), "the size of the cache")
    for metric in ("node_load1", "node_memory_MemAvailable_bytes", "node_disk_reads_completed_total"):
        assert value(metric), metric
    seen = {row["labels"]["mountpoint"]: row["values"][-1][1] for row in value("node_filesystem_readonly")}
    mounts = parse_mounts(running.run("cat", "/proc/1/mounts").encode())
    assert seen == {mount.path: 0.0 for mount in mounts}, "neither mounts of the unit's own nor a read-only view"
    assert "Traceback" not in running.journal()


def test_a_reload_takes_a_new_rule_and_refuses_a_bad_one(running: Machine) -> None:
    rule = "groups: [{name: g, interval: 1s, rules: [{alert: Always, expr: vector(1)}]}]\n"
    running.write("/etc/upkeep/rules.d/more.yaml", rule)
    running.run("systemctl", "reload", "upkeep.service")
    until(lambda: [alert for alert in running.json("alerts") if alert["rule"] == "Always"], "the new rule's alert")
    running.write("/etc/upkeep/rules.d/more.yaml", rule.replace("expr", "exqr"))
    running.run("systemctl", "reload", "upkeep.service")
    until(lambda: "reload was refused" in running.properties("upkeep.service")["StatusText"], "the refusal")
    assert [alert for alert in running.json("alerts") if alert["rule"] == "Always"]
    running.run("rm", "/etc/upkeep/rules.d/more.yaml")
    running.run("systemctl", "reload", "upkeep.service")


def test_it_cleans_what_others_own_through_the_hands(running: Machine) -> None:
    fill = f"cd {CACHE} && for i in 1 2 3 4 5 6; do head -c 2M /dev/urandom >f$i; touch -d '-'$((9-i))'days' f$i; done"
    running.run("sh", "-c", f"{fill}; chown nobody:nogroup f*; chmod 644 f*; chmod 755 .")
    running.write("/etc/upkeep/rules.d/cache.yaml", RULE)
    running.run("systemctl", "reload", "upkeep.service")
    until(
        lambda: [action for action in running.json("actions") if action["outcome"] == "fixed"], "the cache to be clean"
    )
    assert running.run("ls", CACHE).split() == ["f5", "f6"]
    hands = running.process("upkeep-ops.service")
    assert hands["Uid"].split()[0] == "0"
    # DAC_OVERRIDE, FOWNER and LEASE of capabilities(7), and no more.
    assert int(hands["CapEff"], 16) == int(hands["CapBnd"], 16) == 1 << 1 | 1 << 3 | 1 << 28


def test_the_hands_serve_nobody_else(running: Machine) -> None:
    ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/upkeep/ops.sock'); print(s.recv(999))"
    running.run("/opt/upkeep/bin/python", "-c", ask, status=1, user="nobody")
    assert "the policy does not name it" in running.run("/opt/upkeep/bin/python", "-c", ask)


def test_a_report_is_made_in_the_unit(running: Machine) -> None:
    running.run("upkeep", "apply", "report", "period=daily", "--yes")
    made = running.run("sh", "-c", "ls -l /var/lib/upkeep/reports/*.html")
    assert made.startswith("-rw-r----- 1 upkeep upkeep"), made
    assert "<svg" in running.run("sh", "-c", "cat /var/lib/upkeep/reports/*.html")


def test_the_watchdog_restarts_one_that_hangs(running: Machine) -> None:
    running.write("/run/systemd/system/upkeep.service.d/test.conf", "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n")
    running.run("systemctl", "daemon-reload")
    running.run("systemctl", "restart", "upkeep.service")
    before = running.properties("upkeep.service")
    time.sleep(3)  # longer than the watchdog's patience: it is fed
    assert running.properties("upkeep.service")["MainPID"] == before["MainPID"]
    running.run("kill", f"-{signal.SIGSTOP.value}", before["MainPID"])
    until(lambda: running.properties("upkeep.service")["NRestarts"] == "1", "the watchdog")
    until(lambda: running.properties("upkeep.service")["ActiveState"] == "active", "the next agent")
    assert running.properties("upkeep.service")["MainPID"] != before["MainPID"]
    assert "Watchdog timeout" in running.journal()
    assert "Current thread" in running.journal(), "the stack of the one that hung"
    running.run("rm", "-r", "/run/systemd/system/upkeep.service.d")
    running.run("systemctl", "daemon-reload")


def test_it_stops_within_two_seconds(running: Machine) -> None:
    began = time.monotonic()
    running.run("systemctl", "stop", "upkeep.service")
    assert time.monotonic() - began <= 2.0
    assert running.properties("upkeep.service")["Result"] == "success"
    assert running.run("sh", "-c", "ls /var/lib/upkeep/*-wal 2>/dev/null; true") == ""


def test_installing_again_keeps_what_people_wrote_and_uninstalling_keeps_what_is_theirs(running: Machine) -> None:
    before = running.run("sh", "-c", "cat /etc/upkeep/upkeep.yaml /etc/upkeep/ops.json")
    pid = running.properties("upkeep.service")["MainPID"]
    running.run("sh", f"/{SOURCE}/systemd/install.sh")
    assert running.run("sh", "-c", "cat /etc/upkeep/upkeep.yaml /etc/upkeep/ops.json") == before
    after = running.properties("upkeep.service")
    assert after["ActiveState"] == "active"
    assert after["MainPID"] != pid
    running.run("sh", f"/{SOURCE}/systemd/install.sh", "--uninstall")
    assert running.run("systemctl", "is-active", *UNITS, status=None).split() == ["inactive"] * 5
    left = running.run(
        "sh", "-c", "ls -d /opt/upkeep /usr/local/bin/upkeep /usr/local/lib/s*/*/upkeep* 2>/dev/null; true"
    )
    assert left == ""
    assert running.run("ls", "/var/lib/upkeep/ledger.db", "/etc/upkeep/upkeep.yaml")


def test_with_destdir_it_only_lays_out_files(tmp_path: Path) -> None:
    subprocess.run(
        ["sh", str(REPOSITORY / "systemd/install.sh")],
        check=True, capture_output=True, env={**os.environ, "DESTDIR": str(tmp_path)},
    )  # fmt: skip
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    lib = "usr/local/lib"
    assert found == {
        *(f"{lib}/systemd/system/{unit}" for unit in UNITS),
        f"{lib}/sysusers.d/upkeep.conf",
        f"{lib}/tmpfiles.d/upkeep.conf",
        "opt/upkeep/share/doc/upkeep/install.md",
        "usr/local/bin/upkeep",
    }
