"""A real FUSE mount whose server takes a request and never answers: the kernel's own hang."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.collectors.filesystem import LocalFilesystems, RemoteFilesystems
from agent.model import Reading

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

_REQUEST_BYTES = 1 << 18
_HEADER = struct.Struct("<IIQ")  # struct fuse_in_header begins so: length, opcode, unique
_ANSWER = struct.Struct("<IiQ")
_INIT = struct.Struct("<IIIIHHIIHHI7I")  # struct fuse_init_out of protocol 7.31


class Server:
    """The server's end: it agrees on the protocol, and then only takes requests."""

    def __init__(self, point: Path) -> None:
        self.point = point
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"hanging", os.fsencode(point), b"fuse", 6, options.encode()):  # MS_NOSUID | MS_NODEV
            error = ctypes.get_errno()
            os.close(self.device)
            pytest.skip(f"cannot mount FUSE here: {os.strerror(error)}")
        _, _, unique = _HEADER.unpack_from(os.read(self.device, _REQUEST_BYTES))
        agreed = _INIT.pack(7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7)
        os.write(self.device, _ANSWER.pack(_ANSWER.size + len(agreed), 0, unique) + agreed)

    def take_request(self) -> None:
        """From here on whoever asked cannot be interrupted."""
        os.read(self.device, _REQUEST_BYTES)

    def abort(self) -> None:
        """The server dies: all who wait get an error."""
        if self.device >= 0:
            os.close(self.device)
            self.device = -1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    point = tmp_path / "hanging"
    point.mkdir()
    made = Server(point)
    try:
        yield made
    finally:
        made.abort()
        subprocess.run(["umount", "--lazy", point], check=True)


def errors(reading: Reading) -> dict[str, float]:
    return {
        dict(series.labels)["mountpoint"]: value
        for series, value in zip(reading.series, reading.values, strict=True)
        if series.metric == "node_filesystem_device_error"
    }


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_mount_whose_server_hangs_costs_its_patience_once_and_never_the_agent(server: Server) -> None:
    async def story() -> None:
        local, remote = LocalFilesystems(), RemoteFilesystems(deadline_s=0.5)
        point = str(server.point)
        first = asyncio.create_task(remote.collect(1.0))
        await asyncio.to_thread(server.take_request)
        assert errors(await first)[point] == 1
        assert point not in errors(await local.collect(1.0))

        started = time.monotonic()
        assert errors(await remote.collect(2.0))[point] == 1
        assert time.monotonic() - started < 0.4, "the hung mount was waited for again"

        process = remote._child._process
        assert process is not None
        started = time.monotonic()
        await remote.close()
        assert time.monotonic() - started < 1.5, "the agent could not stop"
        assert process.returncode is None, "the kernel let the child go: the mount did not really hang"
        assert state_of(process.pid) in "DZ"
        server.abort()
        await asyncio.wait_for(process.wait(), 10)

    asyncio.run(story())
