"""OpenMetrics and Prometheus' text format: how a sample is written, how lines are read, each fault at its place.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats and the OpenMetrics specification 1.0.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import BinaryIO

from agent.errors import Fault, FaultyFilesError
from agent.metrics import METRICS, Metric
from agent.model import Labels, Series, make_labels

EOF = b"# EOF"
MAX_LINE_BYTES = 64 << 10
MAX_FAULTS = 20
OLDEST_MS = 946_684_800_000
"""The year 2000: an instant before is one of seconds read as milliseconds, or a clock that was never set."""

AHEAD_S = 86400.0
"""An instant may be so far ahead: clocks differ, but what lies beyond would hide what comes."""

RECORDED = Metric("", "untyped", "", "Made by a rule.", "self")

# What no line of text should carry, as Python would write it: terminals act on it, and parsers cut lines at it.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code != 10}
_VALUE = {92: "\\\\", 34: '\\"', 10: "\\n"}
_NUMBERS = {math.inf: "+Inf", -math.inf: "-Inf"}

_TYPES = ["counter", "gauge", "histogram", "gaugehistogram", "stateset", "info", "summary", "unknown", "untyped"]
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_BRACES = r'\{(?:[^"}]|"(?:[^"\\]|\\.)*")*+\}'
_SAMPLE = re.compile(rf"({_NAME}[ \t]*(?:{_BRACES})?)[ \t]*(?<=[ \t}}])(\S+)(?:[ \t]+([^#\s]\S*))?[ \t]*(#.*)?")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,|$)')
_VALUE_TEXT = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?|nan)", re.I)
_SECONDS = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?", re.I)
_MILLISECONDS = re.compile(r"-?\d+")
_ESCAPE = re.compile(r'\\([\\"n])')


# -- writing ---------------------------------------------------------------------------------------------------------


def head(name: str, names: set[str]) -> Iterator[str]:
    """The lines before the samples of one metric, of the metrics named.

    A family is named without the suffix of its samples; what does not follow the rules of its type is unknown.
    """
    metric = METRICS.get(name, RECORDED)
    suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
    family = name.removesuffix(suffix)
    kind: str = metric.type
    if kind == "untyped" or (suffix and (family == name or family in names)):
        family, kind = name, "unknown"
    yield f"# TYPE {family} {kind}"
    if metric.unit and family.endswith(f"_{metric.unit}"):
        yield f"# UNIT {family} {metric.unit}"
    yield f"# HELP {family} {metric.help.translate(_VALUE)}"


def labels_text(labels: Labels) -> str:
    """Labels in braces, or nothing."""
    if not labels:
        return ""
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in labels]) + "}"


def number_text(value: float) -> str:
    """A value, which reads back bit by bit unless it is a NaN with a payload."""
    return repr(value) if math.isfinite(value) else _NUMBERS.get(value, "NaN")


def _escaped(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    # File names hold any byte: what is not UTF-8 came as a lone surrogate, and is written as one.
    readable = text.encode("utf-8", "backslashreplace").decode()
    return readable.translate(_CONTROLS).translate(_VALUE)


# -- reading ---------------------------------------------------------------------------------------------------------


class TextReader:
    """The samples of one file, in its order. OpenMetrics is told by its last line; instants there are in seconds.

    Parameters
    ----------
    file, name
        A file that can be sought in, and its name for messages.
    now
        The wall clock.
    """

    def __init__(self, file: BinaryIO, name: str, now: float) -> None:
        self._file, self._name = file, name
        self._newest_ms = round((now + AHEAD_S) * 1000)
        self._openmetrics = _last_line(file) == EOF
        self._known: dict[str, Series] = {}
        self._faults: list[Fault] = []

    def samples(self) -> Iterator[tuple[Series, int, float]]:
        """Series, instant in milliseconds, value. After the first fault no more come; the rest is only checked.

        Raises
        ------
        FaultyFilesError
            At the end, with the first :data:`MAX_FAULTS` faults and their lines and columns.
        """
        self._file.seek(0)
        number, ended = 0, False
        while raw := self._file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if ended:
                self._faults.append(Fault(self._name, number, 1, "there is more after # EOF"))
                break
            try:
                found = self._line(raw)
            except _Wrong as wrong:
                self._faults.append(Fault(self._name, number, wrong.column, str(wrong)))
                if len(self._faults) == MAX_FAULTS or len(raw) > MAX_LINE_BYTES:
                    break
                continue
            ended = self._openmetrics and raw.rstrip() == EOF
            if found is not None and not self._faults:
                yield found
        if self._faults:
            raise FaultyFilesError(self._faults)

    def _line(self, raw: bytes) -> tuple[Series, int, float] | None:
        if len(raw) > MAX_LINE_BYTES:
            raise _Wrong(MAX_LINE_BYTES, f"the line is longer than {MAX_LINE_BYTES >> 10} KiB")
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _Wrong(error.start + 1, "this is not UTF-8") from None
        if not text.strip():
            return None
        if text.startswith("#"):
            self._comment(text)
            return None
        parts = _SAMPLE.fullmatch(text)
        if parts is None:
            raise _unreadable(text)
        series = self._known.get(parts[1])
        if series is None:
            series = self._known[parts[1]] = _series(parts[1])
        value = _value(parts)
        return series, self._instant(parts), value

    def _comment(self, text: str) -> None:
        words = text.split(None, 3)
        if len(words) > 1 and words[1] == "TYPE" and (len(words) < 4 or words[3].strip() not in _TYPES):
            raise _Wrong(text.find("TYPE") + 1, f"cannot read the type: write # TYPE NAME {'|'.join(_TYPES)}")

    def _instant(self, parts: re.Match[str]) -> int:
        text, column = parts[3], parts.start(3) + 1
        if text is None:
            raise _Wrong(parts.end(2) + 1, "the sample has no instant, and when it was taken cannot be guessed")
        if self._openmetrics:
            if not _SECONDS.fullmatch(text):
                raise _Wrong(column, f'cannot read "{text}" as an instant: OpenMetrics has seconds since the epoch')
            at = float(text) * 1000
        else:
            if not _MILLISECONDS.fullmatch(text):
                hint = "; a file of OpenMetrics, which has seconds, ends with # EOF" if _SECONDS.fullmatch(text) else ""
                raise _Wrong(
                    column, f'cannot read "{text}" as an instant: the text format has whole milliseconds{hint}'
                )
            at = float(int(text)) if len(text) < 20 else math.inf
        if not OLDEST_MS <= at <= self._newest_ms:
            unit = "seconds" if self._openmetrics else "milliseconds"
            when = "before the year 2000" if at < OLDEST_MS else "in the future"
            raise _Wrong(column, f'cannot use "{text}" as an instant: in {unit} that is {when}')
        return round(at)


def untimed(raw: bytes, name: str) -> Iterator[tuple[int, Series, float]]:
    """Line, series and value of a text without instants, as programs leave it for a collector.

    Raises
    ------
    FaultyFilesError
        At the end, with the first :data:`MAX_FAULTS` faults and their lines and columns.
    """
    faults: list[Fault] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode().rstrip("\r")
            if not text.strip() or text.startswith("#"):
                continue
            parts = _SAMPLE.fullmatch(text)
            if parts is None:
                raise _unreadable(text)
            if parts[3] is not None:
                raise _Wrong(parts.start(3) + 1, "the sample has an instant of its own: leave it out")
            found = (number, _series(parts[1]), _value(parts))
        except UnicodeDecodeError as error:
            faults.append(Fault(name, number, error.start + 1, "this is not UTF-8"))
        except _Wrong as wrong:
            faults.append(Fault(name, number, wrong.column, str(wrong)))
        else:
            yield found
        if len(faults) == MAX_FAULTS:
            break
    if faults:
        raise FaultyFilesError(faults)


class _Wrong(Exception):
    """What is wrong with a line, and at which column."""

    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column = column


def _last_line(file: BinaryIO) -> bytes:
    size = file.seek(0, 2)
    file.seek(max(0, size - 4096))
    return file.read().rstrip().rpartition(b"\n")[2]


def _series(text: str) -> Series:
    """A metric's name and the labels in its braces."""
    name, brace, rest = text.partition("{")
    inner = rest.rstrip().removesuffix("}")
    pairs: dict[str, str] = {}
    at = 0
    while brace and inner[at:].strip():
        found = _LABEL.match(inner, at)
        column = len(name) + at + 2
        if found is None:
            raise _Wrong(column, f'cannot read "{inner[at:][:40]}" as labels: write name="value"')
        if found[1] in pairs or found[1] == "__name__":
            raise _Wrong(column, f'the label "{found[1]}" is there already')
        pairs[found[1]] = _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], found[2])
        at = found.end()
    return Series(name.strip(), make_labels(pairs))


def _value(parts: re.Match[str]) -> float:
    if not _VALUE_TEXT.fullmatch(parts[2]):
        raise _Wrong(parts.start(2) + 1, f'cannot read "{parts[2][:40]}" as a value')
    value = float(parts[2])
    return math.nan if value != value else value


def _unreadable(text: str) -> _Wrong:
    """Where a line stops being a sample."""
    name = re.match(_NAME, text)
    if name is None:
        return _Wrong(1, f'cannot read "{text[:40]}": a sample begins with the name of its metric')
    at = name.end()
    if text[at:].lstrip(" \t").startswith("{"):
        braces = re.compile(rf"[ \t]*{_BRACES}").match(text, at)
        if braces is None:
            return _Wrong(text.index("{", at) + 1, "the braces or a quotation mark are not closed")
        at = braces.end()
    if not text[at:].strip():
        return _Wrong(at + 1, "the sample has no value")
    if text[at] not in " \t" and text[at - 1] != "}":
        return _Wrong(at + 1, f'cannot read "{text[at:][:40]}": a blank comes after the name')
    words = re.compile(r"[ \t]*\S+(?:[ \t]+\S+)?[ \t]*").match(text, at)
    return _Wrong((words.end() if words else at) + 1, "nothing but an exemplar may follow the instant")
