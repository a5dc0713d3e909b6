"""The form of a document: one HTML page that needs nothing else, and a text that says the same."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import charts, words

if TYPE_CHECKING:
    from reports.build import ReportDocument

_FOLDER = Path(__file__).parent / "templates"
_TEXT_WIDTH = 96


def render(document: ReportDocument) -> tuple[str, str]:
    """The page and its text twin."""
    page = _environment(document.period.zone, html=True).get_template("page.html.j2")
    text = _environment(document.period.zone, html=False).get_template("text.txt.j2")
    told = {"document": document, "period": document.period, "overview": document.overview, **document.sections}
    return re.sub(r"\n\s*\n+", "\n", page.render(told)) + "\n", _tidy(text.render(told))


def _environment(zone: tzinfo, *, html: bool) -> Environment:
    """Every value that is printed is cleaned first and, on the page, escaped; only drawn charts are markup."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize if html else _finalize_plain,
    )
    numbers = itertools.count(1)
    made.globals["next_number"] = lambda: next(numbers)
    made.filters.update(_filters(zone))
    if html:
        made.filters["svg"] = lambda chart, described_by: Markup(charts.svg(chart, zone, described_by))
    return made


def _filters(zone: tzinfo) -> dict[str, Callable[..., object]]:
    return {
        "size": words.size,
        "change": lambda number: ("+" if number > 0 else "") + words.size(number),
        "percent": words.percent,
        "number": words.plain_number,
        "duration": words.duration,
        "count": words.count,
        "instant": lambda at: words.instant(at, zone),
        "second": lambda at: words.second(at, zone),
        "day": lambda at: words.day(at, zone),
        "machine_time": words.machine_time,
        "span": lambda pair: words.span(pair[0], pair[1], zone),
        "zone_name": lambda at: words.zone_name(at, zone),
        "in_words": lambda chart: charts.in_words(chart, zone),
        "spoken": lambda name: str(name).replace("_", " "),
        "short": words.cut_middle,
        "listing": words.listing,
        "wrapped": _wrapped,
    }


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else words.clean(str(value))


def _finalize_plain(value: object) -> str:
    if isinstance(value, Wrapped):
        return value
    return words.clean(str(value)).replace(words.NBSP, " ")


class Wrapped(str):
    """Text that was cleaned before it was broken into lines."""

    __slots__ = ()


def _wrapped(text: str, indent: int = 0, longest: int = words.LONGEST_TEXT) -> Wrapped:
    """A paragraph of the text twin: cleaned, then broken into lines that keep their indent."""
    line = words.clean(str(text), longest).replace(words.NBSP, " ")
    margin = " " * indent
    return Wrapped(("\n" + margin).join(textwrap.wrap(line, _TEXT_WIDTH - indent, break_on_hyphens=False)))


def _tidy(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
