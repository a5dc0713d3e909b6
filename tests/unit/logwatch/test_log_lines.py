"""What a line says beside its match: its own time, its repetitions, JSON fields, colours; and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import PatternError
from agent.logwatch.counts import FileCounts, LabelBound
from agent.logwatch.linetime import time_of
from agent.logwatch.patterns import Pattern, Rate, check_regex, compile_patterns, without_ansi
from agent.rulefile import from_nodes
from agent.yamlfile import read

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"2026-01-01T12:00:00Z ERROR", NOON),
        (b"2026-01-01 12:00:00,250 ERROR", NOON + 0.25),
        (b"[2026-01-01T13:00:00.5+01:00] x", NOON + 0.5),
        (b"2026/01/01 12:00:00 [error] nginx", NOON),
        (b"2026-01-01T10:30:00.123456-0130 x", NOON + 0.123456),
        (b"Jan  1 12:00:00 host app[1]: x", NOON),
        (b"<13>Jan  1 12:00:00 host app: x", NOON),
        (b"[  100.500000] Out of memory", NOON - 1000 + 100.5),
        (b'{"level":"error","time":"2026-01-01T12:00:00Z"}', NOON),
        (b'{"ts": 1767268800.25}', NOON + 0.25),
        (b'{"@timestamp" : 1767268800123}', NOON + 0.123),
        (b'{"timestamp": "1767268800000000000"}', NOON),
        (b"2026-02-30T12:00:00Z ERROR", None),
        (b"2026-01-01 ERROR worker", None),
        (b"2026-01-01T12:00:001 x", None),
        (b"ERROR 2026-01-01T12:00:00Z", None),
        (b"Foo  1 12:00:00 host", None),
        (b'{"time": "soon"}', None),
        (b"", None),
    ],
)
def test_a_line_states_its_time(line: bytes, expected: float | None) -> None:
    found = time_of(line, NOON, booted_at=NOON - 1000, zone=UTC)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-6))


def test_a_time_without_a_zone_is_local() -> None:
    east = timezone(timedelta(hours=2))
    assert time_of(b"2026-01-01 14:00:00 x", NOON, zone=east) == NOON


@pytest.mark.parametrize(("now", "year"), [("2026-01-01", 2025), ("2025-12-31", 2025), ("2026-06-01", 2026)])
def test_syslog_without_a_year_is_the_nearest(now: str, year: int) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    line = b"Dec 31 23:00:00 host x" if year == 2025 else b"May 30 23:00:00 host x"
    found = time_of(line, at, zone=UTC)
    assert found is not None
    assert datetime.fromtimestamp(found, UTC).year == year


@given(st.binary(max_size=200))
def test_no_line_breaks_the_reading_of_times(line: bytes) -> None:
    found = time_of(line, NOON)
    assert found is None or isinstance(found, float)
    time_of(b"{" + line, NOON)


@given(st.lists(st.sampled_from([b"\x1b[31m", b"\x1b]0;t\x07", b"\x1b", b"[", b"ERROR", b"\n", b"m", b";", b"\x1b]"])))
def test_taking_colours_out_keeps_every_line(parts: list[bytes]) -> None:
    data = b"".join(parts)
    cleaned, start, stop = without_ansi(data, 0, len(data))
    assert bytes(cleaned[start:stop]).count(b"\n") == data.count(b"\n")
    assert b"\x1b[31m" not in bytes(cleaned[start:stop])


def test_colours_do_not_hide_a_word_and_an_unfinished_command_hides_nothing() -> None:
    for raw in (b"\x1b[1mERR\x1b[0;31mOR\x1b[m x", b"\x1b]8;;http://x\x07ERROR", b"\x1b]ERROR"):
        cleaned, start, stop = without_ansi(raw, 0, len(raw))
        assert b"ERROR" in bytes(cleaned[start:stop]), raw


def _matching(pattern: Pattern, *lines: str) -> list[str]:
    data = "".join(line + "\n" for line in lines).encode()
    return [data[match.start : match.end].decode() for match in compile_patterns([pattern]).scan(data)]


@pytest.mark.parametrize("use_hyperscan", [True, False])
def test_excluded_lines_do_not_count(use_hyperscan: bool) -> None:
    matcher = compile_patterns([Pattern("p", "ERROR", exclude="handled|é")], use_hyperscan=use_hyperscan)
    assert len(list(matcher.scan("ERROR\nERROR handled\nERROR é\nINFO\n".encode()))) == 1


def test_json_lines_match_by_their_values() -> None:
    pattern = Pattern("p", r"\{", fields=(("level", "error|fatal"), ("ctx.gpu", r"(?P<gpu>\d+)")))
    good = '{"level":"error","ctx":{"gpu":3}}'
    assert _matching(
        pattern,
        good,
        '{"level":"errors","ctx":{"gpu":3}}',
        '{"level":"error","ctx":{"gpu":null}}',
        '{"level":"error","ctx":[3]}',
        '{"level":"info","message":"{\\"level\\":\\"error\\",\\"ctx\\":{\\"gpu\\":3}}"}',
        '["level","error"]',
        '{"level":"error"',
        "{" + '"a":[' * 5000,
    ) == [good]
    (match,) = compile_patterns([pattern]).scan(good.encode() + b"\n")
    assert match.groups == (("gpu", "3"),)


@pytest.mark.parametrize("place", ["regex", "exclude", "fields", "multiline"])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("(?=x)a", "look-around"),
        ("(?<!x)a", "look-around"),
        (r"(a)\1", "back-references"),
        ("(a{1000}){9}", "too large"),
    ],
)
def test_what_cannot_be_bounded_is_refused_at_its_place(tmp_path, place: str, bad: str, why: str) -> None:  # type: ignore[no-untyped-def]
    written = {
        "regex": f"    regex: '{bad}'\n",
        "exclude": f"    exclude: '{bad}'\n    regex: ERROR\n",
        "fields": f"    fields: {{level: '{bad}'}}\n",
        "multiline": f"    multiline: {{mode: start, regex: '{bad}'}}\n    regex: ERROR\n",
    }[place]
    path = tmp_path / "r.yaml"
    path.write_text(f"patterns:\n  - name: p\n{written}")
    rules, faults = from_nodes(read([str(path)]))
    assert rules is None
    (fault,) = faults
    assert why in fault.message
    assert fault.line == 3
    assert path.read_text().splitlines()[2][fault.column - 1 :].startswith(f"'{bad}")


@pytest.mark.parametrize(
    "bad", ["(?P=x)", "(?P<x>a)(?P=x)", r"\k<x>", "(?#c)a", "(?>a)", "a++", "(?(1)a|b)", r"\Z(?=a)"]
)
def test_no_way_around_the_refusal(bad: str) -> None:
    with pytest.raises(PatternError):
        check_regex("p", bad)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{name: p}", 'missing key "regex"'),
        ("{name: p, regex: E, rate: 0 within 1m}", "cannot read"),
        ("{name: p, regex: E, rate: 5 within 0s}", "its span"),
        ("{name: p, regex: E, multiline: {mode: start, regex: x, max_lines: 0}}", "max_lines"),
        ("{name: p, regex: E, multiline: {mode: start, regex: x, max_bytes: 1MiB}}", "max_bytes"),
        ("{name: p, regex: E, multiline: {mode: begin, regex: x}}", "start, end, continue, until"),
        ("{name: p, regex: '(?P<logged_at>E)'}", "taken"),
        ("{name: p, regex: E, exclude: 'x*'}", "empty line"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(tmp_path, written: str, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "r.yaml"
    path.write_text(f"patterns:\n  - {written}\n")
    rules, faults = from_nodes(read([str(path)]))
    assert rules is None
    assert message in str(faults[0])


def test_fields_alone_make_a_pattern(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "r.yaml"
    path.write_text(
        "patterns:\n  - name: p\n    fields: {ctx.level: error}\n"
        '    samples: {match: [\'{"ctx": {"level": "error"}}\'], no_match: [\'ctx level error\']}\n'
    )
    rules, faults = from_nodes(read([str(path)]))
    assert rules is not None, faults


def _counts(stored: dict[str, object] | None = None) -> FileCounts:
    return FileCounts("/x.log", ["p"], LabelBound(), stored or {})


def test_a_rate_is_reached_once_for_each_full_window_and_label() -> None:
    counts, rate, one, other = _counts(), Rate(3, 10.0), (("gpu", "0"),), (("gpu", "1"),)
    assert [counts.reached("p", one, rate, at) for at in (0.0, 1.0, 2.0, 3.0, 4.0)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert not counts.reached("p", other, rate, 4.0)
    assert [counts.reached("p", other, rate, at) for at in (13.9, 14.0, 15.0)] == [False, False, True]
    assert counts.reached("p", other, rate, 16.0, times=1000)


def test_a_rate_goes_on_after_a_restart_and_a_clock_set_back() -> None:
    counts, rate = _counts(), Rate(2, 10.0)
    assert not counts.reached("p", (), rate, 100.0)
    again = _counts(_as_stored(counts))
    assert again.reached("p", (), rate, 105.0)
    assert not again.reached("p", (), rate, 200.0)
    assert not again.reached("p", (), rate, 50.0)


def _as_stored(counts: FileCounts) -> dict[str, object]:
    stored: dict[str, object] = json.loads(json.dumps(counts.to_json()))
    return stored
