"""What the store says of its own limits: an event when one is reached, figures at each tick."""

from __future__ import annotations

from collections.abc import Sequence

from agent.model import Event, Series, Severity, make_labels
from agent.store.metrics import Metrics
from agent.store.retention import DAY_S
from agent.store.wal import SPACED_S, Wal

AGAIN_AFTER_S = DAY_S
"""What goes on is said once a day."""

_FIGURES = (
    Series("upkeep_store_bytes"),
    Series("upkeep_store_log_bytes"),
    Series("upkeep_store_series"),
    Series("upkeep_store_refused_values_total"),
    Series("upkeep_store_lost_rows_total"),
)


class Watch:
    """Knows what was said already.

    Parameters
    ----------
    metrics
        What may refuse and lose.
    ledger_log
        The log of the other file, which grows under a reader as that of metrics.db does, and never refuses.
    """

    def __init__(self, metrics: Metrics, ledger_log: Wal) -> None:
        self._metrics, self._ledger_log = metrics, ledger_log
        self._said: dict[str, float] = {}
        self._refused = 0
        self._lost = 0
        self._bytes = 0

    def figures(self) -> tuple[tuple[Series, ...], Sequence[float]]:
        """Sizes and counts, as series and values."""
        metrics = self._metrics
        log_bytes = metrics.log.size_bytes() + self._ledger_log.size_bytes()
        return _FIGURES, [
            float(self._bytes),
            float(log_bytes),
            float(metrics.series_known),
            float(metrics.refused_values),
            float(metrics.dropped_rows),
        ]

    async def look(self, at: float, store_bytes: int) -> list[Event]:
        """What has come to be since the last look.

        Parameters
        ----------
        at
            The wall clock.
        store_bytes
            What the files of the store take.
        """
        self._bytes = store_bytes
        metrics, events = self._metrics, []
        for log, meanwhile in (
            (metrics.log, f"until then samples are committed every {SPACED_S:g} s, and beyond that wait in memory"),
            (self._ledger_log, "nothing of the ledger waits for that"),
        ):
            if await log.look() and self._first(f"held {log.path}", at):
                words = f'cannot empty "{log.path}" ({log.size_bytes() >> 20} MiB): {log.holders()}; {meanwhile}'
                events.append(Event("store_log_held", Severity.WARNING, words, "store", at))
        refused, self._refused = metrics.refused_values - self._refused, metrics.refused_values
        if refused and self._first("refused", at):
            words = (
                f'cannot take in new series of "{metrics.refused_metric}": {metrics.series_known} series are known, '
                "and retention.max_series allows no more, or no more of one metric; those that are known go on"
            )
            labels = make_labels(metric=metrics.refused_metric)
            events.append(Event("series_refused", Severity.WARNING, words, "store", at, labels))
        lost, self._lost = metrics.dropped_rows - self._lost, metrics.dropped_rows
        if lost and self._first("lost", at):
            words = f"lost {lost} rows of samples that waited in memory: {metrics.fault or 'the file takes them again'}"
            events.append(Event("samples_lost", Severity.ERROR, words, "store", at))
        return events

    def _first(self, what: str, at: float) -> bool:
        """Whether this is to be said now."""
        last = self._said.get(what)
        if last is not None and last <= at < last + AGAIN_AFTER_S:
            return False
        self._said[what] = at
        return True
