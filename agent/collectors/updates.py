"""Packages that have an update, and whether a reboot is due, on Debian and its kin.

``apt-get`` is asked without changing anything and without a lock, and only when its lists or the installed packages
have changed since: it takes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Sequence

from agent.model import Reading, Sample, make_labels

DEADLINE_S = 120.0

COMMAND = (
    *("nice", "-n", "19", "apt-get", "--simulate", "--quiet=2"),
    *("-o", "Debug::NoLocking=true", "-o", "Dir::Log::Planner=/dev/null", "dist-upgrade"),
)

_UPGRADE = re.compile(r"^Inst \S+ \[[^]]*\] \((\S+) ([^)]*?)(?: \[\w+\])?\)", re.MULTILINE)


def pending(output: str) -> dict[str, int]:
    """Packages that would be upgraded, security updates and others; new ones they bring along are not counted.

    Parameters
    ----------
    output
        What ``apt-get --simulate`` says: ``Inst NAME [OLD] (NEW ORIGIN:SUITE/ARCHIVE… [ARCHITECTURE])``.
    """
    origins = [match[2].lower() for match in _UPGRADE.finditer(output)]
    security = sum("-security" in origin or "debian-security" in origin for origin in origins)
    return {"security": security, "other": len(origins) - security}


def newer_kernel(running: str, images: Sequence[str]) -> bool:
    """Whether a newer kernel of the running one's flavour is installed.

    Parameters
    ----------
    running
        Its release, such as ``6.1.0-18-amd64``.
    images
        Names in /boot; in a container, and where kernels are kept elsewhere, none is the running one's.
    """
    releases = [image.removeprefix("vmlinuz-") for image in images if image.startswith("vmlinuz-")]
    flavour = running.rpartition("-")[2]
    alike = [release for release in releases if release.rpartition("-")[2] == flavour]
    return running in alike and max(alike, key=_version) != running


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


class UpdatesCollector:
    """What apt would upgrade, and whether a reboot is due.

    Parameters
    ----------
    root
        The root of the file system that is looked at.
    """

    name = "updates"

    def __init__(self, root: str = "/") -> None:
        self._root = root.rstrip("/")
        self._state: tuple[int, ...] = ()
        self._pending: dict[str, int] = {}

    async def collect(self, at: float) -> Reading:
        state = self._changed_ns()
        if not state:
            return Reading(at, (), ())  # not a host of apt's
        if state != self._state and shutil.which("apt-get"):
            self._pending = await self._ask()
            self._state = state if self._pending else ()
        due = os.path.exists(f"{self._root}/run/reboot-required") or newer_kernel(os.uname().release, self._images())
        counts = [
            Sample("apt_upgrades_pending", count, at, make_labels(kind=kind)) for kind, count in self._pending.items()
        ]
        return Reading.of(at, [*counts, Sample("node_reboot_required", float(due), at)])

    def _changed_ns(self) -> tuple[int, ...]:
        try:
            return tuple(os.stat(f"{self._root}/var/lib/{path}").st_mtime_ns for path in ("dpkg/status", "apt/lists"))
        except OSError:
            return ()

    def _images(self) -> list[str]:
        try:
            return os.listdir(f"{self._root}/boot")
        except OSError:
            return []

    async def _ask(self) -> dict[str, int]:
        """What apt says; empty where it fails or takes too long, and it is then asked again in the next round."""
        null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=null, stdout=pipe, stderr=null, env={**os.environ, "LC_ALL": "C"}
        )
        try:
            output, _ = await asyncio.wait_for(child.communicate(), DEADLINE_S)
        except TimeoutError:
            return {}
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    child.kill()
                    await asyncio.wait_for(child.wait(), 1.0)
        return pending(output.decode(errors="replace")) if child.returncode == 0 else {}
