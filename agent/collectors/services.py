"""Units of systemd under node_exporter's names: all asked at once by one ``systemctl show``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent import process
from agent.errors import cause
from agent.model import Reading, Series, make_labels
from agent.told import States, Tell, nobody

DEADLINE_S = 5.0
STATES = ("active", "activating", "deactivating", "failed", "inactive")
"""The states that node_exporter tells of; one of systemd's others is told of while a unit is in it."""

_SHOW = ("systemctl", "show", "--property=LoadState,ActiveState,NRestarts", "--")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that systemd knows. ``restarts`` is None for what is no service."""

    name: str
    state: str
    restarts: int | None


def parse(text: str, names: Sequence[str]) -> list[Unit | None]:
    """The units asked for, in their order; None for one that systemd does not know.

    An alias is answered under another name: what is asked and what is answered belong together by their places.

    Raises
    ------
    ValueError
        The text is not the answer to these names.
    """
    blocks = text.strip().split("\n\n") if text.strip() else []
    if len(blocks) != len(names):
        raise ValueError(f"cannot read the answer of systemctl: {len(blocks)} units instead of {len(names)}")
    units: list[Unit | None] = []
    for name, block in zip(names, blocks, strict=True):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        known = fields.get("LoadState") not in ("not-found", None) and bool(fields.get("ActiveState"))
        restarts = fields.get("NRestarts", "")
        count = int(restarts) if restarts.isdigit() and name.endswith(".service") else None
        units.append(Unit(name, fields["ActiveState"], count) if known else None)
    return units


class ServicesCollector:
    """The units of the configuration. Where systemd does not run they are absent, which is said once.

    Parameters
    ----------
    units
        Whole names of units.
    tell
        Records an event when systemd or a unit is missing, or is back.
    show
        What is asked; the units follow.
    """

    name = "services"

    def __init__(self, units: Sequence[str], tell: Tell = nobody, show: Sequence[str] = _SHOW) -> None:
        self._units = tuple(dict.fromkeys(units))
        self._show = tuple(show)
        self._states = States("services", tell)
        self._layout: list[tuple[str, str | None]] = []
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        try:
            answer = await self._ask()
            units = parse(answer, self._units)
        except (OSError, ValueError) as error:
            await self._states.wrong("systemd", "absent", f"cannot ask systemd: {cause(error)}", at)
            return Reading(at, (), [])
        await self._states.right("systemd", "systemd answers again", at)
        for name, unit in zip(self._units, units, strict=True):
            if unit is None:
                await self._states.wrong(name, "unknown", f'systemd knows no unit "{name}"', at)
            else:
                await self._states.right(name, f'systemd knows "{name}" again', at)
        return self._reading(at, [unit for unit in units if unit is not None])

    def _reading(self, at: float, units: list[Unit]) -> Reading:
        layout: list[tuple[str, str | None]] = []
        values: list[float] = []
        for unit in units:
            states = STATES if unit.state in STATES else (*STATES, unit.state)
            layout += [(unit.name, state) for state in states]
            values += [float(state == unit.state) for state in states]
            if unit.restarts is not None:
                layout.append((unit.name, None))
                values.append(unit.restarts)
        if layout != self._layout:
            self._layout = layout
            self._series = tuple(_series(name, state) for name, state in layout)
        return Reading(at, self._series, values)

    async def _ask(self) -> str:
        try:
            status, output, errors = await process.ask(
                (*self._show, *self._units), deadline_s=DEADLINE_S, environment=_ENVIRONMENT
            )
        except TimeoutError:
            raise ValueError(f"no answer within {DEADLINE_S:g} s") from None
        if status:
            first = next(iter(errors.decode(errors="replace").strip().splitlines()), "")
            raise ValueError(first or f"systemctl ended with {status}")
        return output.decode(errors="replace")


def _series(name: str, state: str | None) -> Series:
    if state is None:
        return Series("node_systemd_service_restart_total", make_labels(name=name))
    return Series("node_systemd_unit_state", make_labels(name=name, state=state))
