"""Why an alert is neither acted upon nor told: the words for ``upkeep alerts`` and ``explain``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from agent import rulefile
from agent.config import LoadedConfig
from agent.errors import FaultyFilesError
from agent.matching import Inhibition, full_labels, inhibitor_of
from agent.model import Alert
from agent.silencing import firing_labels, silence_of
from agent.store import Reader, Silence

_SILENCES = (
    'SELECT matchers, why, "by", starts_at, for_s, every, id FROM ledger.silence WHERE ended_at IS NULL ORDER BY id'
)


def quiet_words(reader: Reader, settings: LoadedConfig, standing: Sequence[Alert], at: float) -> list[str]:
    """For each alert what keeps it quiet, such as ``silenced by 3: moving house``; empty for one that is heard."""
    silences = [Silence(*row) for row in reader.sql(_SILENCES)[1]]
    inhibitions, firing = _inhibitions(settings), firing_labels(standing)
    words = []
    for alert in standing:
        silence = silence_of(silences, alert.rule, alert.labels, at)
        cause = inhibitor_of(inhibitions, full_labels(alert.rule, alert.labels), firing)
        if silence is not None:
            words.append(f"silenced by {silence.id}: {silence.why}")
        else:
            words.append(f"inhibited by {dict(cause)['alertname']}" if cause is not None else "")
    return words


def _inhibitions(settings: LoadedConfig) -> Iterable[Inhibition]:
    """Of the files that speak of any; all others need not be read for this."""
    paths = [*(rulefile.shipped() if settings.config.shipped_rules else ()), *settings.rule_files]
    try:
        return rulefile.load([path for path in paths if "inhibit:" in _text(path)]).inhibitions
    except FaultyFilesError:
        return ()  # `upkeep check` says what is wrong with them


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
