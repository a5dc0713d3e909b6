"""Units from captured answers of systemctl, and hosts without systemd."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

import pytest

from agent.collectors.services import STATES, ServicesCollector, Unit, parse
from agent.model import Event, Reading

SHOWN = """\
NRestarts=2
LoadState=loaded
ActiveState=active

LoadState=loaded
ActiveState=failed
NRestarts=0

LoadState=not-found
ActiveState=inactive
NRestarts=0

LoadState=loaded
ActiveState=reloading
NRestarts=0

LoadState=masked
ActiveState=inactive

LoadState=loaded
ActiveState=active
"""
NAMES = ("a.service", "b.service", "gone.service", "r.service", "m.service", "data.mount")


def values(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def answering(text: str) -> tuple[str, ...]:
    """A program that prints a captured answer, whatever it is asked."""
    return (sys.executable, "-I", "-S", "-c", f"print({text!r}, end='')")


def test_the_answer_by_place() -> None:
    assert parse(SHOWN, NAMES) == [
        Unit("a.service", "active", 2),
        Unit("b.service", "failed", 0),
        None,
        Unit("r.service", "reloading", 0),
        Unit("m.service", "inactive", None),
        Unit("data.mount", "active", None),
    ]


@pytest.mark.parametrize("text", ["", "LoadState=loaded\nActiveState=active\n"])
def test_an_answer_to_something_else(text: str) -> None:
    with pytest.raises(ValueError, match="instead of 6"):
        parse(text, NAMES)


def test_states_under_node_exporters_names_and_an_unknown_unit_is_absent_and_said_once() -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    async def main() -> tuple[Reading, Reading]:
        collector = ServicesCollector(NAMES, tell, answering(SHOWN))
        return await collector.collect(1.0), await collector.collect(2.0)

    first, second = asyncio.run(main())
    found = values(first)
    for state in STATES:
        assert found[f'node_systemd_unit_state{{name="a.service",state="{state}"}}'] == (state == "active")
        assert found[f'node_systemd_unit_state{{name="r.service",state="{state}"}}'] == 0
    assert found['node_systemd_unit_state{name="r.service",state="reloading"}'] == 1
    assert found['node_systemd_unit_state{name="b.service",state="failed"}'] == 1
    assert found['node_systemd_service_restart_total{name="a.service"}'] == 2
    assert 'node_systemd_service_restart_total{name="data.mount"}' not in found
    assert not [name for name in found if "gone" in name]
    assert first.series is second.series
    assert [event.message for event in told] == ['systemd knows no unit "gone.service"']


@pytest.mark.parametrize(
    ("show", "words"),
    [
        (("/nowhere/systemctl",), "no such file"),
        (("sh", "-c", "echo System has not been booted with systemd >&2; exit 1"), "not been booted"),
        (("true",), "0 units instead of 1"),
    ],
)
def test_without_systemd_there_is_no_value_and_one_event(show: tuple[str, ...], words: str) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    async def main() -> None:
        collector = ServicesCollector(["a.service"], tell, show)
        for at in (1.0, 2.0):
            assert not (await collector.collect(at)).series

    asyncio.run(main())
    assert len(told) == 1
    assert words in told[0].message.lower()


def test_a_systemctl_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.collectors.services.DEADLINE_S", 0.2)
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    reading = asyncio.run(ServicesCollector(["60"], tell, ("sleep",)).collect(1.0))
    assert not reading.series
    assert "no answer within" in told[0].message


@pytest.mark.skipif(
    not os.path.isdir("/run/systemd/system") or shutil.which("systemctl") is None, reason="systemd does not run here"
)
def test_the_real_systemd() -> None:
    units = ["systemd-journald.service", "no-such-unit.service", "basic.target"]
    found = values(asyncio.run(ServicesCollector(units).collect(1.0)))
    assert found['node_systemd_unit_state{name="systemd-journald.service",state="active"}'] == 1
    assert found['node_systemd_unit_state{name="basic.target",state="active"}'] == 1
    assert not [name for name in found if "no-such-unit" in name]
