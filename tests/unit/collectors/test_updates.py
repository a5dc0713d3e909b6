"""What apt would upgrade, from its recorded words and from the real one."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from agent.collectors.updates import UpdatesCollector, newer_kernel, pending

RECORDED = Path(__file__).parents[2] / "testdata" / "apt_dist_upgrade.txt"


def test_upgrades_are_counted_and_new_packages_are_not() -> None:
    assert pending(RECORDED.read_text()) == {"security": 2, "other": 2}
    assert pending("") == {"security": 0, "other": 0}


@pytest.mark.parametrize(
    ("running", "images", "newer"),
    [
        ("6.1.0-18-amd64", ["vmlinuz-6.1.0-18-amd64", "vmlinuz-6.1.0-9-amd64"], False),
        ("6.1.0-9-amd64", ["vmlinuz-6.1.0-18-amd64", "vmlinuz-6.1.0-9-amd64", "config-6.1.0-9-amd64"], True),
        ("6.1.0-9-amd64", ["vmlinuz-6.1.0-18-cloud", "vmlinuz-6.1.0-9-amd64"], False),
        ("6.1.0-9-amd64", ["vmlinuz-6.1.0-18-amd64"], False),
        ("6.1.0-9-amd64", [], False),
    ],
)
def test_a_newer_kernel_of_the_same_flavour_waits_for_a_reboot(running: str, images: list[str], newer: bool) -> None:
    assert newer_kernel(running, images) is newer


def found(collector: UpdatesCollector) -> dict[str, float]:
    reading = asyncio.run(collector.collect(1.0))
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def root_of(folder: Path) -> Path:
    (folder / "var/lib/dpkg").mkdir(parents=True)
    (folder / "var/lib/dpkg/status").touch()
    (folder / "var/lib/apt/lists").mkdir(parents=True)
    (folder / "run").mkdir()
    return folder


def test_a_host_of_another_kind_has_nothing_to_say(tmp_path: Path) -> None:
    assert found(UpdatesCollector(str(tmp_path))) == {}


def test_apt_is_asked_again_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of apt-get that counts how often it is asked."""
    tools, root = tmp_path / "bin", root_of(tmp_path / "root")
    tools.mkdir()
    (tools / "apt-get").write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\n[ ! -e {tmp_path}/fail ] && cat {RECORDED}\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    collector = UpdatesCollector(str(root))
    expected = {
        'apt_upgrades_pending{kind="security"}': 2,
        'apt_upgrades_pending{kind="other"}': 2,
        "node_reboot_required": 0,
    }
    assert found(collector) == found(collector) == expected
    assert (tmp_path / "asked").read_text() == "\n"
    (root / "run" / "reboot-required").touch()
    assert found(collector)["node_reboot_required"] == 1
    os.utime(root / "var/lib/dpkg/status", (1, 1))
    (tmp_path / "fail").touch()
    assert set(found(collector)) == {"node_reboot_required"}  # what is not known is absent
    (tmp_path / "fail").unlink()
    assert found(collector) == expected | {"node_reboot_required": 1}
    assert (tmp_path / "asked").read_text() == "\n" * 3


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="not a host of apt's")
def test_the_real_apt_is_understood() -> None:
    values = found(UpdatesCollector())
    assert values['apt_upgrades_pending{kind="security"}'] >= 0
    assert values["node_reboot_required"] in (0, 1)
