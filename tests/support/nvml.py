"""A driver of our own: ``libnvidia-ml.so.1`` built from tests/support/nvml_stub, and states for it to be in."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
MIB = 1 << 20

H100: Mapping[str, object] = {
    "name": "NVIDIA H100 80GB HBM3", "minor": 0, "pci": "0:1b:0", "gpu_util": 97, "mem_util": 41, "enc_util": 0,
    "dec_util": 0, "temperature": 61, "power": 655000, "power_limit": 700000, "sm_clock": 1755, "mem_clock": 2619,
    "pstate": 0, "reasons": 4, "pcie_gen": 5, "pcie_width": 16, "pcie_gen_max": 5, "pcie_width_max": 16,
    "memory_used": 60000 * MIB, "memory_free": 20000 * MIB, "memory_reserved": 559 * MIB, "violation.0": 88_000_000,
    "violation.1": 0, "threshold.0": 95, "threshold.1": 92, "threshold.2": 95, "threshold.3": 87, "mig": 0,
    "field.3": 0, "field.4": 0, "field.5": 0, "field.6": 0, "field.82": 68, "field.83": 123_456_789, "field.94": 2,
    "field.142": 0, "field.143": 0, "field.144": 0, "field.145": 0, "field.38": 0, "field.45": 0, "field.52": 0,
    "field.59": 0, "field.230": 0, **{f"nvlink.{link}": 1 for link in range(18)}, "processes": f"1:{60000 * MIB}",
}  # fmt: skip
"""A data centre card under load: it has ECC, row remapping, NVLink, MIG."""

L40S: Mapping[str, object] = {
    **{key: value for key, value in H100.items() if not key.startswith(("nvlink", "mig", "field.82"))},
    "name": "NVIDIA L40S", "power": 210000, "power_limit": 350000, "sm_clock": 2520, "pcie_gen": 4, "pcie_gen_max": 4,
    "enc_util": 60, "memory_used": 12000 * MIB, "memory_free": 33000 * MIB,
}  # fmt: skip

RTX_4080: Mapping[str, object] = {
    "name": "NVIDIA GeForce RTX 4080 SUPER", "minor": 0, "pci": "0:1:0", "gpu_util": 2, "mem_util": 1, "enc_util": 0,
    "dec_util": 0, "temperature": 38, "power": 14000, "power_limit": 320000, "sm_clock": 210, "mem_clock": 405,
    "pstate": 8, "reasons": 1, "pcie_gen": 1, "pcie_width": 16, "pcie_gen_max": 4, "pcie_width_max": 16,
    "memory_used": 700 * MIB, "memory_free": 15300 * MIB, "memory_reserved": 376 * MIB, "violation.0": 0,
    "violation.1": 0, "threshold.0": 99, "threshold.1": 96, "field.82": 0, "field.83": 55_000, "field.94": 0,
    "processes": "", "graphics": "",
}  # fmt: skip
"""A consumer card: no ECC, no row remapping, no NVLink, and 0 for a memory sensor that it does not have."""


def uuid_of(number: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{number:012d}"


def hosts(*cards: Mapping[str, object]) -> dict[str, object]:
    """The state of a host with these cards, in this order."""
    state: dict[str, object] = {
        "driver": "590.48.01",
        "nvml": "13.590.48.01",
        "cuda": 13010,
        "count": len(cards),
    }
    for index, card in enumerate(cards):
        state |= {f"{index}.uuid": uuid_of(index), f"{index}.minor": index}
        state |= {f"{index}.{key}": value for key, value in card.items() if key != "minor"}
        state[f"{index}.pci"] = f"0:{0x1B + index:x}:0"
    return state


@functools.cache
def library_folder() -> Path:
    """Where the library was built; once a run of the suite."""
    folder = Path(tempfile.mkdtemp(prefix="nvml-stub-"))
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(target), str(SOURCE)],
        check=True,
        timeout=60,
    )
    return folder


class Stub:
    """The stub and the state it is in.

    Parameters
    ----------
    folder
        Where its state, its list of calls and a host's files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.calls_file = folder / "calls"
        self._file = folder / "nvml"
        self.state: dict[str, object] = {}
        self.loaded("590.48.01")

    def write(self, state: Mapping[str, object] | None = None, /, **changed: object) -> None:
        """Be in ``state`` (else in the one before), with changes; a change to None takes a line away.

        A dot in a key is written as two underscores.
        """
        if state is not None:
            self.state = dict(state)
        self.change({key.replace("__", "."): value for key, value in changed.items()})

    def change(self, changes: Mapping[str, object]) -> None:
        """As :meth:`write`, with keys as they stand in the file."""
        self.state |= changes
        self.state = {key: value for key, value in self.state.items() if value is not None}
        scratch = self._file.with_suffix(".new")
        scratch.write_text("".join(f"{key}={value}\n" for key, value in self.state.items()))
        scratch.rename(self._file)

    def loaded(self, version: str | None) -> None:
        """Say in the host's files which driver is loaded; None: there is none."""
        file = self.root / "proc/driver/nvidia/version"
        file.unlink(missing_ok=True)
        if version:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Release Build\n")

    def installed(self, version: str) -> None:
        """Say in the host's files which library is installed."""
        folder = self.root / "usr/lib/x86_64-linux-gnu"
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "libnvidia-ml.so.1"
        link.unlink(missing_ok=True)
        link.symlink_to(f"libnvidia-ml.so.{version}")

    def environment(self) -> dict[str, str]:
        """What a probe needs to load the stub instead of a driver's library."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(library_folder()),
            "NVML_STUB_STATE": str(self._file),
            "NVML_STUB_CALLS": str(self.calls_file),
        }

    def calls(self) -> list[str]:
        """The functions that were called, in order."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        return [line.split()[0] for line in text.splitlines()]
