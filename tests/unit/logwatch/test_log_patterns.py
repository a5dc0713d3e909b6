"""Patterns: what is refused, what is found, and that every engine and every way of finding agrees with Python's re."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.errors import PatternError
from agent.logwatch import patterns as module
from agent.logwatch.expression import analyse
from agent.logwatch.patterns import Matcher, Pattern, check_samples, compile_patterns, readable
from tests.support.logs import SHIPPED

PIECES = ["a", "b", "ERROR", "foo", "bar", " ", r"\d", r"\w", r"[^a]", r"[a-c]", ".", r"\.", "x", r"\s", r"\b", "é"]
SHAPES = ["{}", "(?:{})?", "(?:{})+", "(?:{})*", "(?:{}|foo)", "(?i:{})", "(?P<g>{})", "(?:{}){{2}}"]


@st.composite
def regexes(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(PIECES)), min_size=1, max_size=6))
    named = False
    out = []
    for shape, piece in parts:
        if "?P<" in shape and named:
            shape = "{}"
        named |= "?P<" in shape
        out.append(shape.format(piece))
    return draw(st.sampled_from(["", "^"])) + "".join(out) + draw(st.sampled_from(["", "$"]))


TOKENS = ["a", "b", "A", "c", "ERROR", "foo", "BAR", "bar", " ", "7", ".", "x", "\t", "_"]
LINES = st.lists(st.lists(st.sampled_from(TOKENS), max_size=12).map("".join), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(regex=regexes(), lines=LINES)
@example(regex=r"^\b", lines=["a"])
@example(regex=r"[a-c]$", lines=[*[""] * 6, "aaaaERRORa"])
def test_every_way_finds_what_pythons_re_finds(regex: str, lines: list[str]) -> None:
    pattern = Pattern("p", regex)
    try:
        matchers = [compile_patterns([pattern]), compile_patterns([pattern], use_hyperscan=False)]
    except PatternError:
        assert re.search(regex, "", re.ASCII) or "\\b" in regex
        return
    data = "".join(f"{line}\n" for line in lines).encode()
    expected = [number for number, line in enumerate(lines) if re.search(regex, line, re.ASCII)]
    for matcher in [*matchers, *_other_choices(pattern)]:
        found = [data.count(b"\n", 0, match.start) for match in matcher.scan(data)]
        assert found == expected


def _other_choices(pattern: Pattern) -> list[Matcher]:
    """The matcher as it is after it has found prefixes or whole expressions to be cheaper, or hits to be dense."""
    made = []
    needs = analyse(pattern.regex)
    for expression in {needs.prefix, module._supported(needs.whole)} - {None}:
        assert expression is not None
        matcher = compile_patterns([pattern])
        finder = matcher._finder
        assert isinstance(finder, module._HyperscanFinder)
        finder._expressions, finder._untold = {0: expression}, []
        finder._bulk, finder._once = module._database(finder._expressions, 0), None
        made.append(matcher)
        dense = compile_patterns([pattern])
        assert isinstance(dense._finder, module._HyperscanFinder)
        dense._finder._expressions, dense._finder._untold = {0: expression}, []
        dense._finder._scan = lambda *_: False  # type: ignore[method-assign]
        made.append(dense)
    return made


def test_shipped_patterns_and_their_groups() -> None:
    matcher = compile_patterns(SHIPPED)
    data = (
        b"2026-01-01 INFO all is well\n"
        b"2026-01-01 ERROR worker 3: CUDA out of memory. Tried 2 GiB, GPU 17 full\n"
        b"ERROR CUDA out of memory\n"
        b"ERROR evaluation failed, ERROR CUDA out of memory on GPU 0\n"
        b"evaluation failed with no level\n"
        b"ERROR in the \xff\xfe evaluation failed\n"
    )
    found = [(match.pattern.name, data.count(b"\n", 0, match.start), match.groups) for match in matcher.scan(data)]
    assert found == [
        ("cuda_out_of_memory", 1, (("gpu", "17"),)),
        ("cuda_out_of_memory", 2, ()),
        ("evaluation_failed", 3, ()),
        ("cuda_out_of_memory", 3, (("gpu", "0"),)),
        ("evaluation_failed", 5, ()),
    ]


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        (r"(?=a)b", "look-around is not supported"),
        (r"a(?!b)", "look-around is not supported"),
        (r"(?<!a)b", "look-around is not supported"),
        (r"(a)\1", "back-references are not supported"),
        (r"(?:a{900}){900}", "it is too large"),
        (r"(?:\pL{100}){10}", "it is too large"),
        ("x" * 5000, "it is 5000 characters long"),
        (r"a*", "it matches the empty line"),
        (r"(?P<file>a)", 'the group name "file" is taken'),
        (r"(", "missing )"),
    ],
)
def test_refusals_name_the_pattern_and_the_reason(regex: str, reason: str) -> None:
    with pytest.raises(PatternError, match=f'^cannot use pattern "bad": .*{re.escape(reason)}'):
        compile_patterns([Pattern("good", "fine"), Pattern("bad", regex)])


def test_a_name_is_used_once() -> None:
    with pytest.raises(PatternError, match="another pattern has this name"):
        compile_patterns([Pattern("one", "a"), Pattern("one", "b")])


@pytest.mark.parametrize(
    "regex", [r"[[:alpha:]]+ failed", r"\pL+ failed", r"\Qa.b\E failed", r"x{,3}? failed", r"failed\z"]
)
def test_what_only_re2_can_read_is_tried_on_every_line(regex: str) -> None:
    assert analyse(regex).whole is None
    matcher = compile_patterns([Pattern("p", regex)])
    data = b"nothing\nxa.b failed\nabc failed\nx{,3} failed\n"
    assert [match.start for match in matcher.scan(data)] == [
        match.start for match in compile_patterns([Pattern("p", regex)], use_hyperscan=False).scan(data)
    ]
    assert any(matcher.scan(data))


def test_beyond_ascii_characters_are_counted_and_broken_ones_do_not_hide_the_rest() -> None:
    matcher = compile_patterns([Pattern("p", "Gerät .{3} ausgefallen")])
    lines = [
        "Gerät äöü ausgefallen".encode(),
        b"Ger\xe4t abc ausgefallen",
        "\udcff Gerät äöü ausgefallen".encode("utf-8", "surrogateescape"),
    ]
    data = b"\n".join(lines) + b"\n"
    assert [data.count(b"\n", 0, match.start) for match in matcher.scan(data)] == [0, 2]


def test_the_cheaper_choice_is_taken_on_hot_literals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WEIGHING_BYTES", 1 << 18)
    matcher = compile_patterns([Pattern("p", r"GET /api/\d+ 500")])
    finder = matcher._finder
    assert isinstance(finder, module._HyperscanFinder)
    before = dict(finder._expressions)
    data = b"2026-01-01 GET /api/17 200 in 3 ms by a client of some length or other\n" * 3000 + b"GET /api/1 500\n"
    for _ in range(3):
        assert len(list(matcher.scan(data))) == 1
    assert finder._expressions != before
    assert finder._expressions[0] == analyse(r"GET /api/\d+ 500").whole


def test_samples_that_do_not_behave_are_faults() -> None:
    pattern = Pattern("p", "ERROR.*failed", match=("ERROR it failed", "WARNING it failed"), no_match=("ERROR failed",))
    assert check_samples(pattern) == [
        'pattern "p" does not match its sample "WARNING it failed"',
        'pattern "p" matches "ERROR failed", which its samples say it must not',
    ]
    assert check_samples(Pattern("p", "(?=x)")) == [
        'cannot use pattern "p": look-around is not supported: its time cannot be bounded'
    ]
    assert all(check_samples(each) == [] for each in SHIPPED)


@given(st.binary(max_size=300), st.integers(2, 80))
def test_readable_text_is_bounded_and_shows_no_control_character(raw: bytes, limit: int) -> None:
    text = readable(raw, limit)
    assert len(text) <= limit
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_readable_drops_escapes_whole() -> None:
    assert readable(b"\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \xe2\x81\xa6x", 80) == "red link x"
    assert readable(b"0123456789", 5) == "0123…"
