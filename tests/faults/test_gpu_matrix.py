"""Every NVML return code on every call that is used: no exception, and no value but the true one or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nvml import H100, MIB, Stub, hosts
from tests.support.running import REPOSITORY

CODES = [*range(1, 31), 999, 4242]
"""All that nvml.h knows, and one that it does not."""

CARD = {
    **H100, "enc_util": 7, "dec_util": 3, "pstate": 2, "violation.1": 11, "mig": 1, "reasons": 0xFC,
    **{f"field.{number}": 100 + number for number in (3, 4, 5, 6, 29, 30, 31, 38, 45, 52, 59, 82, 142, 143)},
    "mig.0.id": 7, "mig.0.name": "MIG 1g.10gb", "mig.0.memory_used": 100 * MIB, "mig.0.memory_free": 9900 * MIB,
    "field.144": 1, "field.145": 1, "field.230": 4, "processes": "1:4194304", "graphics": "1:1048576",
}  # fmt: skip
"""A card without a single 0: a 0 in a reading is then one that somebody made up."""

SAYS_NOTHING_OF_A_GPU = {
    "nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlSystemGetCudaDriverVersion_v2", "nvmlEventSetCreate",
    "nvmlEventSetWait_v2", "nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes", "nvmlEventSetFree",
}  # fmt: skip
"""Whatever these return, every GPU is read all the same."""

CHILD = """\
import json, os, sys
from agent.gpu import server
from agent.gpu.protocol import Seen, decode, encode

server.EVENT_WAIT_MS = 2
path, base = os.environ["NVML_STUB_STATE"], open(os.environ["NVML_STUB_STATE"]).read()

def look(mode=""):
    with open(path + ".new", "w") as file:
        file.write(base + mode)
    os.rename(path + ".new", path)
    probe = server.Probe()
    try:
        seens = [probe.read(), probe.read()]
    finally:
        probe.close()
    _, seen = decode(encode(1, seens[-1]), Seen)
    first = {gpu.uuid: gpu for gpu in seens[0].gpus}
    gpus = {}
    for gpu in seen.gpus:
        columns = gpu.columns if gpu.columns is not None else first[gpu.uuid].columns
        values = [[c.metric, *map(list, c.labels), v] for c, v in zip(columns or (), gpu.values, strict=True)]
        gpus[gpu.uuid] = [gpu.state, values]
    return {"state": seen.state, "code": seen.code, "gpus": gpus}

print(json.dumps(look()), flush=True)
for line in sys.stdin:
    print(json.dumps(look(line)), flush=True)
"""


def asked(stub: Stub, modes: list[str]) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(f"{mode}\n" for mode in modes),
        capture_output=True,
        text=True,
        env=stub.environment(),
        cwd=REPOSITORY,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def calls_used(tmp_path: Path) -> list[str]:
    """What the probe really calls on such a host, in no particular order."""
    stub = Stub(tmp_path)
    stub.write(hosts(CARD, CARD))
    asked(stub, ["return.nvmlDeviceGetMemoryInfo_v2=13", "return.nvmlDeviceGetCurrentClocksEventReasons=13"])
    return sorted(set(stub.calls()))


def table(seen: object) -> dict[str, float]:
    assert isinstance(seen, dict)
    found = {}
    for uuid, (_, values) in seen["gpus"].items():
        for *key, value in values:
            # a name that cannot be read is absent too
            found[json.dumps([uuid, [part for part in key if part[0] != "GPU_I_PROFILE"]])] = value
    return found


@pytest.mark.slow
def test_no_return_code_of_any_call_breaks_the_probe_or_makes_a_value_up(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    stub.write(hosts(CARD, CARD))
    names = calls_used(tmp_path)
    assert len(names) >= 35, names
    cases = [(name, code) for name in names for code in CODES]
    healthy, *seen = asked(stub, [f"return.{name}={code}" for name, code in cases])
    true = table(healthy)
    assert len(true) > 100
    assert all(value != 0 for key, value in true.items() if "nvlink_links" not in key and "orphaned" not in key)
    assert len(seen) == len(cases)
    for (name, code), one in zip(cases, seen, strict=True):
        wrong = {key: value for key, value in table(one).items() if true.get(key) != value}
        if name == "nvmlDeviceGetMemoryInfo_v2" or name.endswith("RunningProcesses_v3"):
            # what remains is told truly: an older call's figures, the other kind of processes
            wrong = {key: value for key, value in wrong.items() if value == 0 and "orphaned" not in key}
        assert wrong == {}, f"{name} returned {code}: {wrong}"
        if name in SAYS_NOTHING_OF_A_GPU and code not in (1, 9, 18):
            assert one["state"] == "ready"
            assert len(one["gpus"]) == 2, f"{name} returned {code}"  # type: ignore[arg-type]


def test_no_return_code_of_a_single_field_makes_a_value_up(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    stub.write(hosts(CARD))
    modes = [f"0.field.{field}.return={code}" for field in (3, 82, 83, 144, 230) for code in CODES]
    healthy, *seen = asked(stub, modes)
    true = table(healthy)
    for mode, one in zip(modes, seen, strict=True):
        assert {key: value for key, value in table(one).items() if true.get(key) != value} == {}, mode
        lost = one["state"] != "ready" or any(state != "up" for state, _ in one["gpus"].values())  # type: ignore[attr-defined]
        assert lost == (int(mode.partition("=")[2]) in (1, 9, 15, 18, 28)), mode
