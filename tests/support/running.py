"""Start the real ``upkeep run`` in a scratch folder, look at it from outside, stop it or kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 40.0


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What ``condition`` returns once it is true; fails naming what was awaited."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience_s:g} s for {what}")


def upkeep(*arguments: str, config: Path | None = None, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run one command of upkeep; ``status`` is the exit status it must have."""
    command = [sys.executable, "-P", "-m", "agent", *arguments, *(["--config", str(config)] if config else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY)
    assert status is None or done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Host:
    """A scratch host: a configuration, rules, a cache and a log under one folder, and the agent that watches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.logs = folder / "log"
        self.state = folder / "state"
        self.config = folder / "upkeep.yaml"
        self.rules = folder / "rules.yaml"
        self.cache.mkdir()
        self.logs.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self, config: str = "", rules: str = "", *, mode: str = "act") -> None:
        """Write the configuration and the rules; what is given is added to the ordinary ones."""
        self.config.write_text(
            f"mode: {mode}\nstate_dir: {self.state}\nshipped_rules: false\nrule_files: [rules.yaml]\n"
            f"collect:\n  interval: 500ms\n  directories: {{interval: 500ms, paths: [{self.cache}]}}\n"
            f"logs:\n  - paths: [{self.logs}/*.log]\n"
            f"remediation: {{roots: [{self.cache}], boot_grace: 0}}\n{config}"
        )
        self.rules.write_text(
            f"""groups:
  - name: scratch
    interval: 1s
    rules:
      - alert: CacheTooLarge
        expr: directory_size_bytes{{path="{self.cache}"}} > 8 * 1024^2
        labels: {{severity: warning}}
        remediation:
          cooldown: 0s
          steps:
            - clean_cache: {{path: {self.cache}, down_to: 4200KiB, use: mtime}}
              verify_within: 10s
            - notify: {{message: the cache does not shrink}}
      - alert: OutOfMemory
        expr: increase(log_matches_total{{pattern="cuda_out_of_memory"}}[5m]) > 0
        on_missing: clear
        remediation: {{cooldown: 0s, steps: [{{notify: {{message: out of GPU memory}}}}]}}
{rules}
patterns:
  - name: cuda_out_of_memory
    regex: 'ERROR.*CUDA out of memory(?:.*GPU (?P<gpu>\\d+))?'
    severity: critical
"""
        )
        for path in (self.config, self.rules):
            path.chmod(0o644)

    def start(self, *, wait: bool = True, **environment: str) -> subprocess.Popen[bytes]:
        """Start the agent; by default wait until it says that it has started."""
        log = (self.folder / "agent.log").open("ab")
        marker = (self.folder / "agent.log").stat().st_size
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent", "run", "--verbose", "--config", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
            cwd=REPOSITORY,
        )
        log.close()
        if wait:
            until(
                lambda: "agent_started" in self.log()[marker:] or self.process.poll() is not None, "the agent to start"
            )
            assert self.process.poll() is None, self.log()[marker:]
        return self.process

    def stop(self) -> float:
        """Stop it as systemd would; returns how long that took, in seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=15) == 0, self.log()[-3000:]
        return time.monotonic() - began

    def kill(self) -> None:
        """As a power cut: the agent and all its children at once."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def json(self, *arguments: str) -> Any:
        return json.loads(upkeep(*arguments, "--json", config=self.config, status=None).stdout or "[]")

    def actions(self, **wanted: str) -> list[dict[str, Any]]:
        """Actions, oldest first, whose fields are as wanted."""
        found = self.json("actions")
        return [action for action in reversed(found) if all(action[key] == value for key, value in wanted.items())]

    def alerts(self) -> list[dict[str, Any]]:
        return self.json("alerts")  # type: ignore[no-any-return]

    def fill(self, count: int = 12, mib: int = 1, age_s: float = 86400.0) -> list[Path]:
        """Files in the cache, the first the oldest."""
        made = []
        for index in range(count):
            path = self.cache / f"file-{index:03d}.bin"
            path.write_bytes(os.urandom(mib * 1024 * 1024))
            then = time.time() - age_s - (count - index) * 3600
            os.utime(path, (then, then))
            made.append(path)
        return made


@contextlib.contextmanager
def scratch_host(folder: Path) -> Iterator[Host]:
    """A host that is gone, with every process it started, when the test ends."""
    host = Host(folder)
    try:
        yield host
    finally:
        host.kill()
