from __future__ import annotations

import grp
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import yamlfile
from agent.located import MappingNode, Scalar


def read(tmp_path: Path, text: str | bytes) -> yamlfile.Parsed:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)
    return yamlfile.read([str(path)])[str(path)]


def messages(parsed: yamlfile.Parsed) -> list[str]:
    return [f"{fault.line}:{fault.column}: {fault.message}" for fault in parsed.faults]


@pytest.mark.parametrize("text", ["NO", "12:30", "010", "9999-99-99", "0x1F", "1e3", "~"])
def test_a_scalar_is_its_text_and_nothing_is_guessed(tmp_path: Path, text: str) -> None:
    parsed = read(tmp_path, f"key: {text}\n")
    assert not parsed.faults
    assert isinstance(parsed.root, MappingNode)
    assert parsed.root.get("key") == Scalar(text, True, 1, 6)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", '3:1: repeated key "a" (first on line 1)'),
        ("a: &x 1\n", '1:4: cannot use an anchor ("&x"): aliases are not allowed'),
        ("a: *x\n", '1:4: cannot use an alias ("*x"): write the value out'),
        ("a: !!python/object/apply:os.system [true]\n", "1:4: cannot use a tag"),
        ("a: 1\n---\nb: 2\n", "2:1: cannot use a second document: one file holds one"),
        ("a: [1, 2\n", "cannot parse: did not find expected ',' or ']'"),
        ("? [a, b]\n: 1\n", "1:3: cannot use this as a key: a key is one word"),
        ("a: b\x07\n", "1:5: cannot parse: "),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "nested deeper than 32"),
    ],
)
def test_what_yaml_allows_and_we_do_not_is_a_fault_at_its_place(tmp_path: Path, text: str, fault: str) -> None:
    assert any(fault in message for message in messages(read(tmp_path, text)))


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
    )
    assert read(tmp_path, bomb).faults


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    assert messages(read(tmp_path, b"a: 1\nb: \xff\n")) == ["2:4: cannot read: byte 0xff is not UTF-8"]


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    assert "larger than 256 KiB" in messages(read(tmp_path, "#" * (yamlfile.MAX_BYTES + 1)))[0]


def test_a_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "open.yaml"
    path.write_text("a: 1\n")
    path.chmod(0o646)
    assert "others may write it" in yamlfile.read([str(path)])[str(path)].faults[0].message


def test_a_missing_file_and_a_folder_are_said_so(tmp_path: Path) -> None:
    parsed = yamlfile.read([str(tmp_path / "none.yaml"), str(tmp_path)])
    assert parsed[str(tmp_path / "none.yaml")].faults[0].message == "cannot read: no such file or directory"
    assert "cannot read" in parsed[str(tmp_path)].faults[0].message


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="ab:-[]{}*&!|>'\"#\n ,?%@", max_size=200)))
def test_no_text_makes_a_traceback_and_every_rejection_has_a_place(text: str) -> None:
    root, faults = yamlfile.parse("f.yaml", text)
    assert root is None or not isinstance(root, Exception)
    for fault in faults:
        assert fault.line >= 0
        assert fault.message
    # What a child would send reads back as what it parsed.
    plain = json.loads(json.dumps(yamlfile._encode(root, faults)))
    assert yamlfile._decode("f.yaml", plain) == (root, faults)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group")
@pytest.mark.parametrize(("owner", "group", "trusted"), [(0, 54321, True), (0, 54322, False), (1, 54321, False)])
def test_the_editors_group_may_write_what_root_owns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, group: int, trusted: bool
) -> None:
    editors = grp.struct_group((yamlfile.EDITORS, "x", 54321, []))
    monkeypatch.setattr(yamlfile.grp, "getgrnam", {yamlfile.EDITORS: editors}.__getitem__)
    path = tmp_path / "r.yaml"
    path.write_text("groups: []\n")
    path.chmod(0o664)
    os.chown(path, owner, group)
    faults = yamlfile.read([str(path)], apart=False)[str(path)].faults
    assert [fault.message[:12] for fault in faults] == ([] if trusted else ["cannot trust"])
