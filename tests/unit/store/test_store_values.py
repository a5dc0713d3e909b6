"""The text of a row: lossless, standard JSON, and what SQLite reads in it."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from contextlib import closing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.model import STALE
from agent.store.rollup import Summary, combine, decode_row, encode_row, summarize
from agent.store.series import decode_labels, decode_values, encode_labels, encode_values, seal

any_float64 = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
finite = st.floats(allow_nan=False, allow_infinity=False)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@given(st.lists(st.one_of(any_float64, st.floats(), st.just(STALE))))
@example([STALE, math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 2.0**63, 1e16, -1e15, 123456789.0])
@example([-0.0, 10.0, 100.0])
@example([1.0, 20.0, 300.0])
def test_every_float64_comes_back_bit_by_bit(values: list[float]) -> None:
    text = encode_values(values)

    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [bits(value) for value in decode_values(text)] == [bits(value) for value in values]


@given(st.lists(st.integers(-(2**53), 2**53), max_size=5))
def test_integers_are_taken_as_they_are(values: list[int]) -> None:
    assert decode_values(encode_values(values)) == values


def test_a_row_is_short() -> None:
    assert encode_values([1.0, 2.5, 3.0, 1e20, math.nan, math.inf, -math.inf, STALE]) == (
        '[1.0,2.5,3.0,1e+20,"NaN","+Inf","-Inf",null]'
    )
    assert encode_values((7.0, 8.0, 9.25)) == "[7,8,9.25]"


@given(st.lists(st.one_of(any_float64, st.just(STALE)), max_size=4), st.data())
def test_a_changed_bit_of_a_row_is_an_error_or_changes_no_value(values: list[float], data: st.DataObject) -> None:
    text = seal(encode_values(values))
    assert [bits(value) for value in decode_values(text)] == [bits(value) for value in values]
    changed = bytearray(text.encode())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode_values(changed.decode("utf-8", "replace"))
    except ValueError:
        return
    assert [bits(value) for value in found] == [bits(value) for value in values]


@given(st.lists(finite, min_size=1, max_size=20))
def test_sqlite_reads_the_same_numbers(values: list[float]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        read = connection.execute("SELECT value FROM json_each(?)", (encode_values(values),)).fetchall()

    # SQLite's own decimal reader may be one unit in the last place off.
    assert [value for (value,) in read] == pytest.approx(values, rel=1e-15)


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1)))
def test_labels_come_back(pairs: dict[str, str]) -> None:
    labels = tuple(sorted(pairs.items()))
    # A lone surrogate is no Unicode text and no label.
    if any(ord(char) in range(0xD800, 0xE000) for pair in labels for part in pair for char in part):
        return
    assert decode_labels(encode_labels(labels)) == labels


@given(st.lists(st.one_of(finite, st.just(math.nan), st.just(STALE)), max_size=30))
def test_a_summary_counts_numbers_only(values: list[float]) -> None:
    numbers = [value for value in values if not math.isnan(value)]
    summary = summarize(values)

    if not numbers:
        assert summary is None
        return
    assert summary is not None
    assert (summary.low, summary.high, summary.last, summary.size) == (
        min(numbers),
        max(numbers),
        numbers[-1],
        len(numbers),
    )


@given(st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=1), min_size=1))
def test_an_hour_of_minutes_says_what_its_samples_say(minutes: list[list[int]]) -> None:
    parts = [part for part in map(summarize, minutes) if part is not None]
    whole = summarize([value for minute in minutes for value in minute])
    assert whole is not None

    combined = combine(parts)

    assert combined[:2] + combined[3:] == whole[:2] + whole[3:]
    assert combined.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-9)


summaries = st.one_of(
    st.none(),
    st.lists(st.one_of(finite, st.sampled_from([math.inf, -math.inf])), min_size=1, max_size=9).map(summarize),
)


@given(st.lists(summaries))
def test_rollup_rows_come_back(row: list[Summary | None]) -> None:
    back = decode_row(*encode_row(row))

    assert len(back) == len(row)
    for found, wanted in zip(back, row, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert found[:2] + found[3:] == wanted[:2] + wanted[3:]
            assert found.mean == pytest.approx(wanted.mean, rel=1e-11, nan_ok=True)
