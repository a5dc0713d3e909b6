"""``upkeep gpu``: the probe. Its main thread answers the agent and never calls NVML; each GPU has a thread that does.

It ends by itself when the agent hangs up or it is told to terminate, but not before every call has come back: a process
that dies inside the driver can take the GPU with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pynvml

from agent import memory
from agent.gpu import nvml
from agent.gpu.device import Device, Reading, describe
from agent.gpu.host import Processes
from agent.gpu.nvml import BrokenError, Calls, GoneError, NeedsResetError
from agent.gpu.protocol import (
    MAX_LINE_BYTES,
    VERSION,
    CallTime,
    Column,
    DriverState,
    Gpu,
    GpuError,
    GpuState,
    Orphan,
    Read,
    Seen,
    Xid,
    decode,
    encode,
    without_driver,
)
from agent.gpu.worker import Worker
from agent.ops.protocol import quote

PATIENCE_S = 3.0
"""How long an answer waits for calls; what has not come back by then is said to hang, and is waited for no more."""

LIST_AGAIN_S = 60.0
EVENT_WAIT_MS = 500
"""A wait for events cannot be cut short: letting go of the driver takes so long. A round costs 40 µs."""

MOST_XIDS = 1000
LISTEN_FD = 3  # sd_listen_fds(3)


@dataclass(frozen=True, slots=True)
class Listed:
    """A GPU as the driver lists it."""

    handle: object
    uuid: str
    index: int
    minor: int
    name: str
    pci: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What holds for the driver as a whole; ``faults`` are GPUs that do not even give their name."""

    gpus: tuple[Listed, ...]
    faults: tuple[str, ...]
    driver_version: str
    nvml_version: str
    cuda_version: str


class Driver:
    """NVML's session: begun once for the life of the process. A session that breaks is the agent's to renew, with a new
    process, which also takes the library that is installed by then."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._begun = False
        self._listing: Listing | None = None
        self._list_at = 0.0
        self.events: object = None

    def look(self, again: bool) -> Listing:
        """The GPUs, asked for anew once a minute or when ``again`` says so.

        Raises
        ------
        BrokenError
            There is no driver to speak to.
        """
        if not self._begun:
            self._calls.begin("nvmlInitWithFlags", 0)
            self._begun = True
        now = time.monotonic()
        if self._listing is None or again or now >= self._list_at:
            self._listing = self._list()
            self._list_at = now + LIST_AGAIN_S
            if self.events is None:
                self.events = self._subscribe(self._listing)
        return self._listing

    def end(self) -> None:
        """Let go of the driver."""
        if self.events is not None:
            self._ask("nvmlEventSetFree", self.events)
        if self._begun:
            self._ask("nvmlShutdown")

    def _list(self) -> Listing:
        calls = self._calls
        found: list[Listed] = []
        faults: list[str] = []
        for index in range(calls.begin("nvmlDeviceGetCount")):
            try:
                handle = calls.begin("nvmlDeviceGetHandleByIndex", index)
                uuid = calls.begin("nvmlDeviceGetUUID", handle)
                found.append(Listed(handle, quote(uuid.encode()), index, **describe(calls, handle)))
            except BrokenError as error:
                if error.code in nvml.BROKEN:
                    raise
                faults.append(f"GPU {index}: {error}")
            except (GoneError, NeedsResetError):
                faults.append(f"GPU {index}: lost or waiting for a reset")
        cuda = self._ask("nvmlSystemGetCudaDriverVersion_v2")
        return Listing(
            tuple(found),
            tuple(faults),
            quote((self._ask("nvmlSystemGetDriverVersion") or "").encode()),
            quote((self._ask("nvmlSystemGetNVMLVersion") or "").encode()),
            "" if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        )

    def _ask(self, name: str, *arguments: object, key: tuple[object, ...] = ()) -> Any:
        """As :meth:`Calls.ask`, where the loss of a single GPU is no reason to know nothing of all others."""
        try:
            return self._calls.ask(name, *arguments, key=key)
        except (GoneError, NeedsResetError):
            return None

    def _subscribe(self, listing: Listing) -> object:
        """An event set for the Xids of all GPUs that have such events; None where there is none."""
        events = self._ask("nvmlEventSetCreate")
        if events is None:
            return None
        for gpu in listing.gpus:
            kinds = self._ask("nvmlDeviceGetSupportedEventTypes", gpu.handle, key=(gpu.uuid,)) or 0
            if kinds & pynvml.nvmlEventTypeXidCriticalError:
                kind = pynvml.nvmlEventTypeXidCriticalError
                self._ask("nvmlDeviceRegisterEvents", gpu.handle, kind, events, key=(gpu.uuid,))
        return events


class Xids:
    """Waits for Xid events, in a thread of its own."""

    def __init__(self) -> None:
        self._worker: Worker[None] = Worker("events")
        self._found: deque[Xid] = deque(maxlen=MOST_XIDS)
        self._stopping = False

    def watch(self, events: object, names: dict[int, str]) -> None:
        """Begin, where that has not been done; ``names`` gives the UUID of each device handle."""
        if events is not None and not self._worker.busy and not self._stopping and self._worker.failure is None:
            self._worker.begin(lambda: self._wait(events, names))

    def take(self) -> tuple[Xid, ...]:
        taken = []
        while self._found:
            taken.append(self._found.popleft())
        return tuple(taken)

    def stop(self) -> None:
        self._stopping = True
        self._worker.stop()

    def _wait(self, events: object, names: dict[int, str]) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                event = self._worker.calls.ask("nvmlEventSetWait_v2", events, EVENT_WAIT_MS)
            except (GoneError, NeedsResetError):
                event = None  # one GPU is lost: the others go on
            if event is not None and event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                uuid = names.get(_address(event.device), "")
                self._found.append(Xid(uuid, int(event.eventData), time.time()))
            elif time.monotonic() - began < EVENT_WAIT_MS / 2000:
                time.sleep(EVENT_WAIT_MS / 1000)  # an error that comes at once must not become a busy loop


def _address(handle: object) -> int:
    """Handles are pointers; two that ctypes made of one pointer are not equal."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


@dataclass(slots=True)
class _Known:
    """A GPU that was listed once, its thread, and the columns that the agent has been told."""

    listed: Listed
    worker: Worker[Reading]
    device: Device
    layout: int = 0
    columns: tuple[Column, ...] = ()
    present: bool = True
    lost: bool = False


class Probe:
    """What a reading is made of."""

    def __init__(self) -> None:
        self._session: Worker[Listing] = Worker("session")
        self._driver = Driver(self._session.calls)
        self._xids = Xids()
        self._known: dict[str, _Known] = {}
        self._layouts = 0
        self._look_again = False
        self._listing: Listing | None = None
        self._processes = Processes()

    def read(self) -> Seen:
        """Everything that can be said within :data:`PATIENCE_S`."""
        until = time.monotonic() + PATIENCE_S
        if not self._session.busy:
            again, self._look_again = self._look_again, False
            self._session.begin(lambda: self._driver.look(again))
        session_answers = self._session.wait(until)
        if session_answers and isinstance(self._session.failure, BrokenError):
            return self._seen(nvml.driver_state(self._session.failure.code), self._session.failure.code, "", ())
        if session_answers and self._session.result is not None:
            self._take(self._session.result)
        asked = [known for known in self._known.values() if known.present and not known.worker.busy]
        for known in asked:
            known.worker.begin(known.device.read)
        for known in asked:
            known.worker.wait(until)
        gpus = tuple(self._gpu(known) for known in self._known.values())
        broken = [f.code for known in asked if isinstance(f := known.worker.failure, BrokenError)]
        if broken:
            return self._seen(nvml.driver_state(broken[0]), broken[0], "", ())
        if not session_answers:
            call, seconds = self._session.hangs_in()
            return self._seen("hung", 0, f"{call} has not come back for {seconds:.0f} s", gpus)
        return self._seen("ready", 0, "", gpus)

    def close(self) -> None:
        """Let go of the driver once every call has come back. It takes as long as it takes."""
        self._xids.stop()
        for known in self._known.values():
            known.worker.stop()
        self._session.begin(self._end)  # a job that is under way comes first
        self._session.stop()

    def _end(self) -> Listing:
        self._driver.end()
        return Listing((), (), "", "", "")

    def _take(self, listing: Listing) -> None:
        if listing is self._listing:
            return
        self._listing = listing
        for known in self._known.values():
            known.present = False
        for listed in listing.gpus:
            if listed.uuid in self._known:
                self._known[listed.uuid].listed = listed
                self._known[listed.uuid].present = True
                continue
            worker: Worker[Reading] = Worker(f"GPU {listed.index}")
            device = Device(listed.handle, worker.calls, self._processes)
            self._known[listed.uuid] = _Known(listed, worker, device)
        self._xids.watch(self._driver.events, {_address(gpu.handle): gpu.uuid for gpu in listing.gpus})

    def _gpu(self, known: _Known) -> Gpu:
        worker, listed = known.worker, known.listed
        state: GpuState = "up"
        call, call_s = "", 0.0
        columns: tuple[Column, ...] | None = None
        values: tuple[float, ...] = ()
        orphans: tuple[Orphan, ...] = ()
        if worker.busy:
            state = "hung"
            call, call_s = worker.hangs_in()
        elif not known.present or isinstance(worker.failure, GoneError):
            state = "lost"
            self._look_again = self._look_again or not known.lost
        elif isinstance(worker.failure, NeedsResetError):
            state = "needs_reset"
        elif worker.result is not None:
            found = tuple(value.column for value in worker.result.values)
            values = tuple(value.value for value in worker.result.values)
            orphans = worker.result.orphans
            if found != known.columns:
                self._layouts += 1
                known.columns, known.layout, columns = found, self._layouts, found
        known.lost = state == "lost"
        return Gpu(
            listed.uuid, listed.index, listed.minor, listed.name, listed.pci,
            state, call, call_s, known.layout, columns, values, orphans,
        )  # fmt: skip

    def _seen(self, state: DriverState, code: int, message: str, gpus: tuple[Gpu, ...]) -> Seen:
        listing = self._listing or Listing((), (), "", "", "")
        times: dict[str, float] = {}
        for calls in (self._session.calls, *(known.worker.calls for known in self._known.values())):
            for call, seconds in calls.take_times().items():
                times[call] = max(seconds, times.get(call, 0.0))
        return Seen(
            os.getpid(), state, code, message or (nvml.words(code) if code else ""),
            listing.driver_version, listing.nvml_version, listing.cuda_version, gpus,
            tuple(CallTime(call, seconds) for call, seconds in sorted(times.items())),
            self._xids.take(), listing.faults,
        )  # fmt: skip


def serve(sock: socket.socket, answer: Callable[[], Seen]) -> None:
    """Answer one agent until it hangs up."""
    for line in _lines(sock):
        try:
            number, question = decode(line, Read)
            if question.version != VERSION:
                return
            sock.sendall(encode(number, answer()))
        except (GpuError, OSError):
            return  # hanging up says it: nobody but the agent speaks here


def _lines(sock: socket.socket) -> Iterator[bytes]:
    with sock.makefile("rb") as file:
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            yield line


def main() -> int:
    """``python -m agent.gpu``: started by systemd with its socket, or by the agent with a connected one as stdin."""
    _give_back_memory()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the agent's, which then hangs up
    with _agent() as sock:
        if not _alone():
            serve(sock, lambda: without_driver("stuck", "an earlier probe of the unit has not ended yet"))
            return 0
        probe = Probe()
        try:
            _serve_first(sock, probe)
        finally:
            probe.close()
    return 0


def _agent() -> socket.socket:
    """The agent that speaks to this probe: one for the whole of its life."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return socket.socket(fileno=os.dup(0))
    with socket.socket(fileno=LISTEN_FD) as listening:
        return listening.accept()[0]


def _alone() -> bool:
    """Whether no earlier probe of the unit lives on inside a call. Started by the agent, the agent has made sure."""
    folder = os.environ.get("RUNTIME_DIRECTORY")
    if "LISTEN_PID" not in os.environ or not folder:
        return True
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and kept open for the life of the process
    except BlockingIOError:
        return False
    return True


def _serve_first(sock: socket.socket, probe: Probe) -> None:
    """Serve the agent. From the first word of its end on no signal can cut :meth:`Probe.close` short."""
    try:
        serve(sock, probe.read)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def _give_back_memory() -> None:
    """Loading pynvml needs twice what it then keeps: without this the probe is 22 MiB instead of 12."""
    memory.give_back_code()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
