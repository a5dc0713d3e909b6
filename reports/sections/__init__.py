"""What a report consists of. A section reads the store and returns a frozen dataclass; its templates give it form."""

from __future__ import annotations

from typing import Protocol

from agent.store.read import Reader
from reports.period import Period
from reports.sections.actions import ActionsSection
from reports.sections.alerts import AlertsSection
from reports.sections.caches import CachesSection
from reports.sections.coverage import CoverageSection
from reports.sections.host import HostSection
from reports.sections.logs import LogsSection
from reports.sections.needs import NeedsSection


class Section(Protocol):
    """One part of a report; ``name`` is also the name of its two templates."""

    @property
    def name(self) -> str: ...

    def build(self, read: Reader, period: Period) -> object:
        """What is told, as data: instants in seconds since the epoch, sizes in bytes, text as it was stored."""


SECTIONS: tuple[Section, ...] = (
    NeedsSection(),
    ActionsSection(),
    AlertsSection(),
    HostSection(),
    CachesSection(),
    LogsSection(),
    CoverageSection(),
)
"""In the order in which they are read."""
