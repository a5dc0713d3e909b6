from __future__ import annotations

import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ops import protocol
from agent.ops.protocol import (
    MAX_LINE_BYTES,
    Found,
    Hello,
    Item,
    Items,
    Measure,
    ProtocolError,
    RefusedError,
    Reply,
    Request,
    Survey,
    batches,
    decode_reply,
    decode_request,
    encode,
    quote,
    split,
    unquote,
)

PRINTABLE = st.text().filter(str.isprintable)


def of(hint: object) -> st.SearchStrategy[typing.Any]:
    """Values of a hint as the protocol allows them."""
    if typing.get_origin(hint) is tuple:
        return st.lists(of(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if typing.get_args(hint) and type(None) in typing.get_args(hint):
        return st.none() | of(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if hasattr(hint, "__dataclass_fields__"):
        return message(typing.cast(type, hint))
    return {
        str: PRINTABLE,
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(-(2.0**60), 2.0**60),
    }[typing.cast(type, hint)]


def message(cls: type) -> st.SearchStrategy[typing.Any]:
    return st.builds(cls, **{name: of(hint) for name, hint in typing.get_type_hints(cls).items()})


@given(st.integers(0, 2**63 - 1), st.sampled_from(typing.get_args(Request)).flatmap(message))
def test_every_request_arrives_as_it_was_sent(number: int, request: Request) -> None:
    assert decode_request(encode(number, request)[:-1]) == (number, request)


@given(st.integers(0, 2**63 - 1), st.sampled_from(typing.get_args(Reply)).flatmap(message))
def test_every_reply_arrives_as_it_was_sent(number: int, reply: Reply) -> None:
    assert decode_reply(encode(number, reply)) == (number, reply)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "Expecting value"),
        (b"[]", "it is no object"),
        (b'{"id": 1}', 'unknown verb "None"'),
        (b'{"id": 1, "verb": "Hello"}', 'unknown verb "Hello"'),
        (b'{"id": 1, "verb": ["hello"]}', "unknown verb"),
        (b'{"verb": "measure", "root": "/a/b", "path": ""}', 'needs an "id"'),
        (b'{"id": true, "verb": "measure", "root": "/a/b", "path": ""}', 'needs an "id"'),
        (b'{"id": -1, "verb": "measure", "root": "/a/b", "path": ""}', 'needs an "id"'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b"}', 'missing field "path"'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": "", "shell": "x"}', 'unknown field "shell"'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": 3}', '"path" is not text'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": null}', '"path" is not text'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": "a\\nb"}', '"path" is not text'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": "\\ud800"}', '"path" is not text'),
        (b'{"id": 1, "verb": "measure", "root": "/a/b", "path": "", "path": "x"}', "a key is repeated"),
        (b'{"id": 1, "verb": "hello", "version": true, "distrust_clock_s": 0}', '"version" is not a whole number'),
        (b'{"id": 1, "verb": "hello", "version": 1.0, "distrust_clock_s": 0}', '"version" is not a whole number'),
        (b'{"id": 1, "verb": "hello", "version": 1, "distrust_clock_s": NaN}', "NaN is no number here"),
        (b'{"id": 1, "verb": "hello", "version": 1, "distrust_clock_s": 1e999}', "is not a number"),
        (b'{"id": 1, "verb": "hello", "version": 36893488147419103232, "distrust_clock_s": 0}', "not a whole number"),
        (b'{"id": 1, "verb": "hello", "version": ' + b"9" * 5000 + b', "distrust_clock_s": 0}', "cannot read a line"),
        (b'{"id": 1, "verb": "items", "items": {}}', '"items" is not a list'),
        (b'{"id": 1, "verb": "items", "items": [1]}', "items[0]. must be an object"),
        (b'{"id": 1, "verb": "items", "items": [{"path": "a"}]}', 'missing field "items[0].bytes"'),
        (
            b'{"id": 1, "verb": "prune", "root": "", "path": "", "use": "ctime", "keep_used_within_s": 0, "count": 1}',
            '"use" is not one of atime, mtime',
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "cannot read a line"),
        (b" " * (MAX_LINE_BYTES + 1), "at most"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_fault(line: bytes, fault: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(line)
    assert fault in str(caught.value)


def test_a_request_is_not_a_reply() -> None:
    with pytest.raises(ProtocolError, match='unknown reply "None"'):
        decode_reply(encode(1, Hello(1, 0.0)))


@given(st.binary(max_size=300))
def test_a_name_survives_its_quoting_and_holds_nothing_unprintable(name: bytes) -> None:
    text = quote(name)
    assert text.isprintable()
    assert unquote(text) == name


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_names_never_look_the_same(one: bytes, other: bytes) -> None:
    assert (quote(one) == quote(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.bin", "plain name.bin"),
        ("größe".encode(), "größe"),
        (b"a\nb", "a\\x0ab"),
        (b"back\\slash", "back\\\\slash"),
        (b"bad\xff", "bad\\xff"),
        ("right\u202eleft".encode(), "right\\xe2\\x80\\xaeleft"),
    ],
)
def test_quoting_as_a_person_sees_it(name: bytes, text: str) -> None:
    assert quote(name) == text


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "..", "a/../b", "a//b", "a/", ".", "a/.", "\\x2e\\x2e", "a\\x00b", "a\\x2f\\x2e\\x2e/b", "\\q", "\\",
     "x" * 256, "/".join("a" * 65), "\\x2fetc"],
)  # fmt: skip
def test_a_path_that_is_no_plain_way_down_is_refused(path: str) -> None:
    with pytest.raises(RefusedError) as caught:
        split(path)
    assert caught.value.reason == "bad_path"


@given(st.text())
def test_whatever_a_path_says_its_components_only_lead_down(path: str) -> None:
    try:
        parts = split(path)
    except RefusedError:
        return
    assert all(part not in (b"", b".", b"..") and b"/" not in part and b"\0" not in part for part in parts)


@given(st.lists(st.binary(min_size=1, max_size=4000).map(quote), max_size=40))
def test_every_batch_fits_in_a_line_and_none_is_lost(paths: list[str]) -> None:
    items = [Item(path, 2**64 - 1, 2**64 - 1, 2**64 - 1, -(2**63), -(2**63)) for path in paths]
    found = list(batches(items))
    assert [item for batch in found for item in batch] == items
    assert all(len(encode(2**63 - 1, Found(batch))) <= MAX_LINE_BYTES for batch in found)


def test_the_largest_batch_fits_in_a_line() -> None:
    longest = quote(b"\xff" * protocol.MAX_PATH_BYTES)
    items = [Item(longest, 1, 2**64 - 1, 2**64 - 1, 2**63, 2**63)] * 300
    items += [Item("\U0001f5d1" * 128, 1, 2**64 - 1, 2**64 - 1, 2**63, 2**63)] * 600
    assert all(len(encode(1, Items(batch))) <= MAX_LINE_BYTES for batch in batches(items))


def test_a_survey_is_readable_on_the_wire() -> None:
    line = encode(3, Survey("/tmp/cache", "", 60.0, None, "mtime", 600.0, 10))
    assert json.loads(line) == {
        "id": 3, "verb": "survey", "root": "/tmp/cache", "path": "", "older_than_s": 60.0, "down_to_bytes": None,
        "use": "mtime", "keep_used_within_s": 600.0, "limit": 10,
    }  # fmt: skip
    assert decode_request(encode(3, Measure("/tmp/cache", "a b")))[1] == Measure("/tmp/cache", "a b")
