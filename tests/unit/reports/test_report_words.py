from __future__ import annotations

import time
import unicodedata
from importlib.resources import files
from typing import BinaryIO
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import words
from reports.words import NBSP

BERLIN = ZoneInfo("Europe/Berlin")


def _berlin() -> BinaryIO:
    return (files("tzdata") / "zoneinfo" / "Europe" / "Berlin").open("rb")  # type: ignore[return-value]


def plain(text: str) -> str:
    return text.replace(NBSP, " ")


@given(st.text(max_size=3000), st.integers(10, 500))
def test_clean_text_is_one_short_visible_line(text: str, longest: int) -> None:
    line = words.clean(text, longest)
    assert len(line) <= longest
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert words.clean(line, longest) == line


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mERROR\x1b[0m bad", "ERROR bad"),
        ("\x1b]0;owned\x07ok", "ok"),
        ("a\r\nBcc: x@example.com", "a Bcc: x@example.com"),
        ("safe\u202egnp.exe", "safe gnp.exe"),
        ("zero\u200bwidth\ufeff", "zero width"),
        ("z\u0301\u0302\u0303\u0304algo", "z\u0301\u0302algo"),
        ("\x00\x07", ""),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_strange_text_becomes_calm(raw: str, shown: str) -> None:
    assert words.clean(raw) == shown


def test_a_line_of_megabytes_costs_nothing() -> None:
    begin = time.process_time()
    assert len(words.clean("\u202ex" * 5_000_000)) == words.LONGEST_TEXT
    assert time.process_time() - begin < 0.5


def test_a_cut_path_keeps_its_end() -> None:
    assert words.cut_middle("/data/" + "x" * 200 + "/model.bin", 30) == "/data/xxx…xxxxxxxxxx/model.bin"
    assert words.cut_middle("/short", 30) == "/short"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (8 * 1024**3, "8.0 GiB"), (1023.99 * 1024**2, "1.0 GiB"),
     (-3.5 * 1024**2, "−3.5 MiB"), (float("nan"), "unknown"), (2.0**90, "1073741824 EiB")],
)  # fmt: skip
def test_sizes(number: float, said: str) -> None:
    assert plain(words.size(number)) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 %"), (0.01, "< 0.1 %"), (3.14, "3.1 %"), (42.4, "42 %"), (99.999, "99.9 %"), (100, "100 %")],
)
def test_only_all_of_it_is_a_hundred_percent(number: float, said: str) -> None:
    assert plain(words.percent(number)) == said


def test_what_is_known_is_never_overstated() -> None:
    assert plain(words.percent(99.9999, 2)) == "99.99 %"
    assert plain(words.percent(100.0, 2)) == "100 %"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0042, "4 ms"), (0.9999, "1.0 s"), (9.96, "10 s"), (59.7, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
     (86_399.9, "1 d"), (93_600, "1 d 2 h"), (90_061, "1 d 1 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert plain(words.duration(seconds)) == said


def test_stretches_of_time_in_the_readers_zone() -> None:
    monday, sunday = 1_763_334_000.0, 1_763_938_800.0
    assert plain(words.span(monday, sunday, BERLIN)) == "Mon 17 Nov to Sun 23 Nov 2025"
    assert plain(words.span(monday, monday + 86400, BERLIN)) == "Mon 17 Nov 2025"
    assert plain(words.span(monday, monday + 60, BERLIN)) == "Mon 17 Nov 2025, 00:00 to 00:01"
    assert words.zone_name(monday, BERLIN) == "Europe/Berlin, UTC+01:00"
    with _berlin() as file:
        assert words.zone_name(monday, ZoneInfo.from_file(file, key="local")) == "CET, UTC+01:00"
    assert words.zone_name(monday - 120 * 86400, BERLIN) == "Europe/Berlin, UTC+02:00"
