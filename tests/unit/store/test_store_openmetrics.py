"""Reading the text formats: every line's meaning, and each fault at its line and column."""

from __future__ import annotations

import io
import math
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Fault, FaultyFilesError
from agent.model import Series, make_labels
from agent.store.openmetrics import MAX_FAULTS, MAX_LINE_BYTES, OLDEST_MS, TextReader, labels_text, number_text

NOW = 1_700_000_000.0


def read(text: str | bytes) -> list[tuple[Series, int, float]]:
    raw = text.encode() if isinstance(text, str) else text
    return list(TextReader(io.BytesIO(raw), "file", NOW).samples())


def faults(text: str | bytes) -> list[str]:
    with pytest.raises(FaultyFilesError) as refused:
        read(text)
    return [str(fault) for fault in refused.value.faults]


def test_the_text_format_has_milliseconds() -> None:
    text = """# HELP a some words
# TYPE a counter

a 1 1600000000000
a{} 2.5 1600000001000
a { b = "c" , d="e",} +Inf\t1600000002000
a{b="x y\\\\\\"\\n}"} .5e-3 1600000003000\r
# a comment
"""
    assert read(text) == [
        (Series("a"), 1_600_000_000_000, 1.0),
        (Series("a"), 1_600_000_001_000, 2.5),
        (Series("a", (("b", "c"), ("d", "e"))), 1_600_000_002_000, math.inf),
        (Series("a", (("b", 'x y\\"\n}'),)), 1_600_000_003_000, 0.0005),
    ]


def test_openmetrics_has_seconds_exemplars_and_an_end() -> None:
    text = """# TYPE a counter
# UNIT a seconds
a_total{b="c"} 1 1600000000.123 # {trace="x"} 0.5 1600000000
a_created{b="c"} 1.6e9 1.6e9
# EOF
"""
    labels = (("b", "c"),)
    assert read(text) == [
        (Series("a_total", labels), 1_600_000_000_123, 1.0),
        (Series("a_created", labels), 1_600_000_000_000, 1.6e9),
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1a 1 1600000000000", '1:1: cannot read "1a 1 1600000000000": a sample begins with the name of its metric'),
        ("a", "1:2: the sample has no value"),
        ('a{b="c"}', "1:9: the sample has no value"),
        ("a 1", "1:4: the sample has no instant, and when it was taken cannot be guessed"),
        ("a x 1600000000000", '1:3: cannot read "x" as a value'),
        ("a 1_000 1600000000000", '1:3: cannot read "1_000" as a value'),
        ("a 0x10 1600000000000", '1:3: cannot read "0x10" as a value'),
        ('a{b="c} 1 1600000000000', "1:2: the braces or a quotation mark are not closed"),
        ("a{b=c} 1 1600000000000", '1:3: cannot read "b=c" as labels: write name="value"'),
        ('a{b="c" d="e"} 1 1600000000000', '1:3: cannot read "b="c" d="e"" as labels: write name="value"'),
        ('a{b="c",b="d"} 1 1600000000000', '1:9: the label "b" is there already'),
        ('a{__name__="b"} 1 1600000000000', '1:3: the label "__name__" is there already'),
        ("a-b 1 1600000000000", '1:2: cannot read "-b 1 1600000000000": a blank comes after the name'),
        ("a 1 1600000000000 2", "1:19: nothing but an exemplar may follow the instant"),
        (
            "a 1 1600000000.5",
            '1:5: cannot read "1600000000.5" as an instant: the text format has whole milliseconds; a file of '
            "OpenMetrics, which has seconds, ends with # EOF",
        ),
        ("a 1 x", '1:5: cannot read "x" as an instant: the text format has whole milliseconds'),
        ("a 1 1600000000", '1:5: cannot use "1600000000" as an instant: in milliseconds that is before the year 2000'),
        ("a 1 1800000000000", '1:5: cannot use "1800000000000" as an instant: in milliseconds that is in the future'),
        ("a 1 " + "9" * 400, f'1:5: cannot use "{"9" * 400}" as an instant: in milliseconds that is in the future'),
        ("# TYPE a number", "1:3: cannot read the type: write # TYPE NAME counter|gauge|histogram|gaugehistogram|"
         "stateset|info|summary|unknown|untyped"),
    ],
)  # fmt: skip
def test_a_fault_has_its_place(line: str, fault: str) -> None:
    assert faults(line + "\n") == [f"file:{fault}"]


def test_faults_of_bytes() -> None:
    assert faults(b'a 1 1600000000000\na{b="\xff"} 1 1600000000000\n') == ["file:2:6: this is not UTF-8"]
    long = faults("a 1 1600000000000\n" + "a" * (MAX_LINE_BYTES + 5) + "\n")
    assert long == [f"file:2:{MAX_LINE_BYTES}: the line is longer than 64 KiB"]
    assert faults("a 1 1600000000\nb 1 9e999\n# EOF\n") == [
        'file:2:5: cannot use "9e999" as an instant: in seconds that is in the future'
    ]


def test_after_the_end_nothing_comes() -> None:
    # The last line says that it is OpenMetrics; the first such line ends it.
    assert faults("a 1 1600000000\n# EOF\na 2 1600000001\n# EOF\n") == ["file:3:1: there is more after # EOF"]


def test_every_fault_is_told_up_to_a_number_and_nothing_is_yielded_after_the_first() -> None:
    lines = ["a 1 1600000000000", *["a x 1600000000000", "b 2 1600000000000"] * 30]
    reader = TextReader(io.BytesIO("\n".join(lines).encode()), "file", NOW).samples()
    assert next(reader)[0] == Series("a")
    with pytest.raises(FaultyFilesError) as refused:
        next(reader)
    assert [fault.line for fault in refused.value.faults] == [2 * n + 2 for n in range(MAX_FAULTS)]


def test_an_empty_file_has_no_samples() -> None:
    assert read("") == []
    assert read("# EOF") == []


values = st.floats() | st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)) | st.just("\n"), min_size=1, max_size=8)
labels = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True), texts, max_size=3)


@given(
    st.from_regex(r"[a-z_:][a-z0-9_:]{0,9}", fullmatch=True), labels, values, st.integers(OLDEST_MS, int(NOW * 1000))
)
def test_what_is_written_reads_back(name: str, pairs: dict[str, str], value: float, at: int) -> None:
    pairs.pop("__name__", None)
    series = Series(name, make_labels(pairs))
    lead = f"{name}{labels_text(series.labels)} {number_text(value)}"
    for text in (f"{lead} {at}\n", f"{lead} {at / 1000:.3f}\n# EOF\n"):
        [(read_series, read_at, read_value)] = read(text)
        assert (read_series, read_at) == (series, at)
        assert struct.pack("<d", read_value) == struct.pack("<d", value) or (
            value != value and read_value != read_value
        )


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_no_line_is_without_an_answer(line: str | bytes) -> None:
    raw = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    told: tuple[Fault, ...] = ()
    try:
        read(raw)
    except FaultyFilesError as refused:
        told = refused.faults
    assert all(fault.line and fault.column for fault in told)


def test_no_line_takes_long() -> None:
    began = time.perf_counter()
    for hostile in ("a{" + '"' * 60_000, "a{" + 'b="' * 20_000, "a" + " " * 60_000 + "!", "a{" + "\\" * 60_000):
        faults(hostile + "\n")
    assert time.perf_counter() - began < 2.0
