"""What the host's own files say about the driver and about processes: nothing here calls NVML, nothing can hang."""

from __future__ import annotations

import glob
import os
import re
import time
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")
_VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
_USERS_FOR_S = 60.0


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """``loaded`` is whether there is a driver to ask. A version is empty where its file does not tell it."""

    loaded: bool
    loaded_version: str = ""
    installed_version: str = ""

    @property
    def mismatch(self) -> bool | None:
        """Whether what is installed is not what is loaded; None where one of them is not known.

        NVML goes on working in a process that began before the package was replaced, and fails in each one that begins
        afterwards: this is seen before anybody's job breaks.
        """
        if not self.loaded_version or not self.installed_version:
            return None
        return self.loaded_version != self.installed_version


def driver_files(root: str = "/") -> DriverFiles:
    """Look for a driver and its library.

    Parameters
    ----------
    root
        Where the file system begins; tests name another.
    """
    loaded_version = _first_version(
        _text(os.path.join(root, "sys/module/nvidia/version")),
        _text(os.path.join(root, "proc/driver/nvidia/version")).partition("\n")[0],
    )
    devices = any(os.path.exists(os.path.join(root, path)) for path in ("dev/nvidiactl", "dev/dxg"))
    return DriverFiles(devices or bool(loaded_version), loaded_version, _installed_version(root))


def _installed_version(root: str) -> str:
    """The version in the name of the file that the library's link ends at, as NVIDIA's packages name it."""
    for folder in _LIBRARY_FOLDERS:
        path = os.path.join(root, folder, LIBRARY)
        if os.path.lexists(path):
            return _first_version(os.path.basename(os.path.realpath(path)))
    return ""


def _first_version(*texts: str) -> str:
    for text in texts:
        if found := _VERSION.search(text):
            return found[0]
    return ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc tells it; ``state`` is the letter of proc(5)."""

    name: str
    user: str
    state: str


class Processes:
    """Names, owners and states of processes.

    Parameters
    ----------
    proc
        The proc file system.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._users: dict[int, str] = {}
        self._users_until = 0.0

    def all_visible(self) -> bool:
        """Whether a process that is not found is really none: false in a container, which sees only its own."""
        try:
            return os.readlink(f"{self._proc}/self/ns/pid") == _INITIAL_PID_NAMESPACE
        except OSError:
            return False

    def find(self, pid: int) -> Process | None:
        """The process, or None where it is gone."""
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                stat = file.read()
            uid = os.stat(f"{self._proc}/{pid}").st_uid
        except OSError:
            return None
        name = stat[stat.index(b"(") + 1 : stat.rindex(b")")].decode("utf-8", "replace")
        state = stat[stat.rindex(b")") + 2 :][:1].decode("ascii", "replace")
        return Process(name, self._user(uid), state)

    def _user(self, uid: int) -> str:
        """The login name from /etc/passwd, else the number: other directories of users may be servers that hang."""
        now = time.monotonic()
        if now >= self._users_until:
            entries = (line.split(":") for line in _text("/etc/passwd").splitlines())
            self._users = {int(entry[2]): entry[0] for entry in entries if len(entry) > 2 and entry[2].isdigit()}
            self._users_until = now + _USERS_FOR_S  # last: the threads of all GPUs ask here
        return self._users.get(uid, str(uid))


def unit_probes(proc: str = "/proc") -> list[int]:
    """Process numbers of probes that systemd started, by their command."""
    lines = ((path, _text(path)) for path in glob.iglob(f"{proc}/[0-9]*/cmdline"))
    return sorted(int(path.split("/")[-2]) for path, line in lines if "\0-m\0agent.gpu\0" in line)


def device_holders(proc: str = "/proc") -> list[tuple[int, str]]:
    """Processes (pid, name) that have an NVIDIA device open, as far as the caller may see: only root sees all."""
    found: dict[int, str] = {}
    processes = Processes(proc)
    for link in glob.iglob(f"{proc}/[0-9]*/fd/*"):
        try:
            if not os.readlink(link).startswith("/dev/nvidia"):
                continue
        except OSError:
            continue
        pid = int(link.split("/")[-3])
        process = processes.find(pid)
        found[pid] = process.name if process else ""
    return sorted(found.items())
