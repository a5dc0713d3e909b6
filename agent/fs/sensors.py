"""Read what hardware tells of itself: temperatures, clocks of processors, software RAID.

A sensor is asked over a bus, of a drive or of a firmware, and may take its time or never answer; so this runs as a
program of its own. Its arguments are where /proc and /sys are mounted; it prints ``[METRIC, {LABEL: VALUE}, NUMBER]``
as lines of JSON, each as soon as it is known. What cannot be read is left out.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator

Found = tuple[str, dict[str, str], float]

_TEMPERATURES = {
    "input": "node_hwmon_temp_celsius",
    "max": "node_hwmon_temp_max_celsius",
    "crit": "node_hwmon_temp_crit_celsius",
}
_TEMPERATURE = re.compile(r"(temp\d+)_(input|max|crit)")
_CPU = re.compile(r"cpu(\d+)")
_RAID = re.compile(r"(\d+) blocks .*\[(\d+)/(\d+)\] \[([U_]+)\]")
_STATES = ("active", "inactive", "recovering", "resync", "check")


def temperatures(sys_folder: str) -> Iterator[Found]:
    """Each sensor of /sys/class/hwmon, in degrees."""
    above = f"{sys_folder}/class/hwmon"
    for chip_folder in _listed(above):
        folder = f"{above}/{chip_folder}"
        labels_of_chip = {"chip": chip_name(folder)}
        for place in (folder, f"{folder}/device"):  # drivers older than Linux 3.9 keep their sensors in the device
            for name in _listed(place):
                known = _TEMPERATURE.fullmatch(name)
                value = _number(f"{place}/{name}") if known else None
                if known and value is not None:
                    yield _TEMPERATURES[known[2]], {**labels_of_chip, "sensor": known[1]}, value / 1000


def chip_name(folder: str) -> str:
    """What node_exporter calls a chip: its bus and device, which stay, where its number may not."""
    device = f"{folder}/device"
    if os.path.exists(device):
        bus, name = os.path.realpath(device).split("/")[-2:]
        words = [_clean(word) for word in (bus, name)]
        if words[1]:
            return "_".join(filter(None, words))
    return _clean(_text(f"{folder}/name") or "") or _clean(os.path.basename(os.path.realpath(folder)))


def _clean(name: str) -> str:
    return re.sub(r"[^a-z0-9:_]", "_", name.strip().lower()).strip("_")


def clocks(sys_folder: str) -> Iterator[Found]:
    """The present clock of each processor, in hertz."""
    above = f"{sys_folder}/devices/system/cpu"
    for name in _listed(above):
        cpu = _CPU.fullmatch(name)
        kilohertz = _number(f"{above}/{name}/cpufreq/scaling_cur_freq") if cpu else None
        if cpu and kilohertz is not None:
            yield "node_cpu_scaling_frequency_hertz", {"cpu": cpu[1]}, kilohertz * 1000


def raids(text: str) -> Iterator[Found]:
    """Each array of /proc/mdstat: its state, its disks by state, and how many it should have.

    As node_exporter reads them: an array under repair is in that state and not also active.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        device, *words = line.split() or [""]
        if line[:1] in ("", " ") or device == "Personalities" or words[:1] != [":"]:
            continue
        below = [each for each in lines[number + 1 : number + 4] if each.startswith(" ")]
        state = _repair(below) or words[1]
        for each in _STATES:
            yield "node_md_state", {"device": device, "state": each}, float(each == state)
        active, required = _disks(line, below)
        counts = {"active": active, "failed": line.count("(F)"), "spare": line.count("(S)")}
        for each, count in counts.items():
            yield "node_md_disks", {"device": device, "state": each}, count
        yield "node_md_disks_required", {"device": device}, required


def _repair(below: list[str]) -> str | None:
    for word, state in (("recovery", "recovering"), ("resync", "resync"), ("check", "check")):
        if any(re.search(rf"\b{word}\b", line) for line in below):
            return state
    return None


def _disks(line: str, below: list[str]) -> tuple[int, int]:
    """How many work, and how many should."""
    known = _RAID.search(below[0]) if below else None
    if known:
        return int(known[3]), int(known[2])
    count = line.count("[") if re.search(r"\b(raid0|linear)\b", line) else 0
    return count, count


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(path: str) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def main(proc: str, sys_folder: str) -> None:
    """Print all that can be read, the quickest first."""
    for found in (raids(_text(f"{proc}/mdstat") or ""), clocks(sys_folder), temperatures(sys_folder)):
        for each in found:
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
