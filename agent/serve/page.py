"""The status page and the list of reports as HTML. Whatever was measured or read is cleaned, then escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import reports
from agent.serve.archive import Archived
from agent.serve.status import MOST_ALERTS, MOST_REPORTS, Facts, Now, Records, verdict
from reports import words

REFRESH_S = 15

_FOLDER = Path(__file__).parent
# One look for reports and status: the page of reports lends its style.
_STYLE = (Path(reports.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8") + (
    _FOLDER / "status.css"
).read_text(encoding="utf-8")


class Pages:
    """Renders pages for readers in one time zone."""

    def __init__(self, zone: tzinfo) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
        )
        self._environment.filters.update(_filters(zone))
        self._environment.globals["style"] = Markup(_STYLE)

    def status(self, facts: Facts, told: Now, kept: Records, *, refreshing: bool) -> bytes:
        """The status page; ``refreshing`` says whether it asks to be loaded again."""
        return self._render(
            "status.html.j2",
            facts=facts,
            now=told,
            kept=kept,
            verdict=verdict(told),
            alerts=told.alerts[:MOST_ALERTS],
            refresh_s=REFRESH_S if refreshing else 0,
            more_reports=len(kept.reports) == MOST_REPORTS,
        )

    def archive(self, facts: Facts, found: Sequence[Archived]) -> bytes:
        """The list of all reports."""
        return self._render("archive.html.j2", facts=facts, reports=found)

    def _render(self, template: str, **told: object) -> bytes:
        return self._environment.get_template(template).render(told).encode()


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else words.clean(str(value))


def _number(value: float) -> str:
    """A figure whose unit is not known: thousands, millions and so on by their prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if factor <= abs(value) < 1000 * factor:
            return f"{value / factor:.3g}{words.NBSP}{prefix}"
    return words.plain_number(value)


def _filters(zone: tzinfo) -> dict[str, Callable[..., object]]:
    return {
        "size": words.size,
        "percent": lambda share: words.percent(100 * share),
        "number": _number,
        "duration": words.duration,
        "count": words.count,
        "instant": lambda at: words.instant(at, zone),
        "second": lambda at: words.second(at, zone),
        "machine_time": words.machine_time,
        "zone_name": lambda at: words.zone_name(at, zone),
        "spoken": lambda name: str(name).replace("_", " "),
        "short": words.cut_middle,
        "listing": words.listing,
    }
