"""A handler's parameters as a person types them: units where units are needed, defaults left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import get_type_hints

from agent.located import Duration, Size
from agent.specs import HANDLERS
from reports.records import command

_MILLISECONDS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_BYTES = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))


def apply_command(handler: str, params: Mapping[str, object]) -> str:
    """The command that carries out by hand what an action would have done."""
    return command("upkeep", "apply", handler, *_words(handler, params))


def _words(handler: str, params: Mapping[str, object]) -> list[str]:
    spec = HANDLERS.get(handler)
    if spec is None:
        return [f"{name}={value}" for name, value in params.items() if value is not None]
    hints = get_type_hints(spec, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    return [
        f"{name}={_written(value, hints.get(name))}"
        for name, value in params.items()
        if value is not None and value != defaults.get(name, dataclasses.MISSING)
    ]


def _written(value: object, hint: object) -> str:
    if isinstance(value, int | float):
        if hint in (Duration, Duration | None):
            return _in_units(round(value * 1000), _MILLISECONDS)
        if hint in (Size, Size | None):
            return _in_units(round(value), _BYTES)
    return str(value)


def _in_units(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """The number in the largest unit that leaves it whole."""
    name, factor = next(((name, factor) for name, factor in units if value and value % factor == 0), units[-1])
    return f"{value // factor}{name}"
