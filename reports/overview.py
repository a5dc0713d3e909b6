"""A report in one sentence, in one line and in a handful of figures: what is read when nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from agent.model import Severity
from reports.sections.actions import Actions
from reports.sections.alerts import Alerts
from reports.sections.coverage import Coverage
from reports.sections.host import Host
from reports.sections.needs import Need, Needs
from reports.words import NBSP, clean, count, cut_middle, duration, listing, percent, plain_number, size

MOST_NAMED = 3
"""So many of the things that need a person are named in the verdict; the rest are counted."""

_TELLING = ("mountpoint", "path", "name", "gpu", "device", "file")
"""Labels that say where, the most telling first."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the overview: its name, the figure, and what belongs beside it."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """``quiet``: nothing needs a person, and that is known; ``alarming``: something is an error or worse."""

    verdict: str
    in_short: str
    tiles: tuple[Tile, ...]
    quiet: bool
    alarming: bool


def overview(sections: Mapping[str, object]) -> Overview:
    """What all sections together come to."""
    needs, actions = _part(sections, "needs", Needs), _part(sections, "actions", Actions)
    alerts, host = _part(sections, "alerts", Alerts), _part(sections, "host", Host)
    coverage = _part(sections, "coverage", Coverage)
    return Overview(
        verdict(needs),
        _in_short(needs, actions, alerts),
        (*_deeds(actions, alerts), *_levels(host), *_known(coverage)),
        needs.sampled and not needs.items,
        any(need.severity in (Severity.ERROR, Severity.CRITICAL) for need in needs.items),
    )


def verdict(needs: Needs) -> str:
    """The sentence that also is the subject of the mail."""
    if not needs.items:
        return "All quiet: nothing needs you" if needs.sampled else "No samples yet: nothing can be said"
    named = list(dict.fromkeys(map(_short, needs.items)))
    shown = named[:MOST_NAMED]
    if len(named) > MOST_NAMED:
        shown.append(f"{len(named) - MOST_NAMED} more")
    verb = "needs" if len(needs.items) == 1 else "need"
    return f"{count(len(needs.items), 'thing')} {verb} you: {listing(shown)}".replace(NBSP, " ")


def _part(sections: Mapping[str, object], name: str, kind: type[T]) -> T:
    found = sections[name]
    if not isinstance(found, kind):
        raise TypeError(f"section {name} is a {type(found).__name__}, not a {kind.__name__}")
    return found


def _short(need: Need) -> str:
    """A need in few words: its title and the label that tells most."""
    labels = dict(need.labels)
    name = next((name for name in _TELLING if name in labels), "")
    place = labels.get(name, "")
    if place.isdigit():
        place = f"{name} {place}"
    return f"{clean(need.title, 60)} {cut_middle(place, 40)}".strip()


def _in_short(needs: Needs, actions: Actions, alerts: Alerts) -> str:
    """What happened, in one line of at most four clauses."""
    parts = [f"{count(alerts.fired, 'alert')} fired" if alerts.fired else "No alert fired"]
    if actions.carried_out:
        freed = f" and freed {size(actions.bytes_freed)}" if actions.bytes_freed else ""
        parts.append(f"{count(actions.fixed, 'repair')} of {actions.carried_out} helped{freed}")
    if actions.would_have:
        could = f", {size(actions.would_free_bytes)} to free" if actions.would_free_bytes else ""
        parts.append(f"{count(len(actions.would_have), 'thing')} only observed{could}")
    if needs.repairing:
        parts.append(f"{count(needs.repairing, 'alert')} being repaired now")
    return "; ".join(parts) + "."


def _deeds(actions: Actions, alerts: Alerts) -> list[Tile]:
    tiles = [Tile("Alerts", plain_number(alerts.fired), f"{alerts.firing_now} still firing" if alerts.fired else "")]
    if actions.carried_out:
        took = f"in {duration(actions.repair_s)} each" if actions.repair_s is not None else ""
        failed = f"{actions.without_effect} without effect" if actions.without_effect else took
        tiles.append(Tile("Repaired", f"{actions.fixed} of {actions.carried_out}", failed))
        tiles.append(Tile("Freed", size(actions.bytes_freed), "measured on disk"))
    elif actions.would_free_bytes:
        tiles.append(Tile("Could be freed", size(actions.would_free_bytes), "observed only"))
    return tiles


def _levels(host: Host) -> list[Tile]:
    tiles = []
    if host.fullest is not None:
        tiles.append(Tile("Fullest disk", percent(host.fullest.fill), cut_middle(host.fullest.path, 40)))
    if host.memory_used is not None and host.memory_bytes is not None:
        tiles.append(Tile("Memory used", percent(host.memory_used), f"of {size(host.memory_bytes)}"))
    if host.load1 is not None:
        processors = f"on {count(host.processors, 'processor')}" if host.processors else ""
        tiles.append(Tile("Load", plain_number(host.load1), processors))
    return tiles


def _known(coverage: Coverage) -> list[Tile]:
    if coverage.sampled is None:
        return []
    gaps = len(coverage.gaps) + coverage.gaps_left_out
    return [Tile("Sampled", percent(coverage.sampled, 2), count(gaps, "gap") if gaps else "no gap")]
