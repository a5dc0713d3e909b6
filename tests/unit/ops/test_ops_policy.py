from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import FaultyFilesError
from agent.ops.policy import Limits, Policy, load, locate, parse, root_fault, split_glob
from agent.ops.protocol import unquote


def faults_of(raw: bytes) -> list[str]:
    with pytest.raises(FaultyFilesError) as caught:
        parse(raw, "ops.json")
    return [str(fault) for fault in caught.value.faults]


def test_a_policy_is_read_as_it_was_written() -> None:
    policy = Policy(("/tmp/cache", "/tmp/benchmark_*"), Limits(3, 10, 1000), (998,))
    assert parse(policy.to_json().encode(), "ops.json") == policy
    assert parse(b"{}", "ops.json") == Policy()


def test_every_fault_of_a_policy_is_named_at_once() -> None:
    raw = (
        b'{"roots": ["/", "/tmp/fine", "~/x", "/tmp/../etc", "/tmp/fine", "/tmp/*"],'
        b'"limits": {"files_per_action": 0}, "peers": [-1]}'
    )
    faults = faults_of(raw)
    assert len(faults) == 7
    for words in ('"/"', '"~/x"', '"/tmp/../etc"', "named twice", '"/tmp/*"', "files_per_action", '"-1"'):
        assert any(words in fault for fault in faults), words


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cannot read it"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"roots": [], "roots": ["/tmp/x"]}', "repeated"),
        (b'{"root": ["/tmp/x"]}', 'unknown field "root"'),
        (b'{"limits": {"actions_per_hour": 1e3}}', "not a whole number"),
        (b'{"roots": "/tmp/x"}', "not a list"),
        (b" " * 300_000, "larger than"),
    ],
)
def test_a_policy_that_cannot_be_read_says_why(raw: bytes, words: str) -> None:
    assert words in " ".join(faults_of(raw))


@pytest.mark.parametrize(
    "root",
    ["", "/", "~", "~/cache", "..", "$HOME/x", "${X}/y", "relative/x", "/tmp", "/home", "/home/alice", "/etc",
     "/etc/x", "/usr/lib/x", "/var", "/var/lib", "/var/log", "/tmp/", "/tmp//x", "/tmp/x/", "/tmp/./x", "/tmp/x/..",
     "/tmp/../etc", "/proc/1", "/sys/x", "/dev/sda", "/run/x", "/boot/x", "/tmp/*", "/tmp/ab*", "/tmp/*/x",
     "/tmp/be?ch/x", "/tmp/[a]bc", "/tmp/a\nb", "/tmp/a\0b", "/tmp/a\\b", "/root"],
)  # fmt: skip
def test_d8_what_can_never_be_a_root(root: str) -> None:
    assert root_fault(root).startswith("cannot use")


@pytest.mark.parametrize(
    "root",
    [
        "/tmp/evaluation_cache",
        "/home/alice/.cache/huggingface",
        "/var/log/benchmark",
        "/data/models",
        "/tmp/benchmark_*",
    ],
)
def test_what_can_be_a_root(root: str) -> None:
    assert root_fault(root) == ""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/tmp/cache", ("/tmp/cache", "")),
        ("/tmp/cache/", ("/tmp/cache", "")),
        ("/tmp/cache/a b", ("/tmp/cache", "a b")),
        ("/tmp/cache/deep/x/y", ("/tmp/cache/deep", "x/y")),
        ("/tmp/cachet", None),
        ("/tmp", None),
        ("/tmp/benchmark_7/x", ("/tmp/benchmark_*", "benchmark_7/x")),
        ("/tmp/benchmark", None),
        ("/tmp/other/benchmark_7", None),
    ],
)
def test_a_path_belongs_to_its_innermost_root(path: str, expected: tuple[str, str] | None) -> None:
    assert locate(["/tmp/cache", "/tmp/cache/deep", "/tmp/benchmark_*"], path) == expected


COMPONENT = st.text(st.sampled_from("ab*?._-~$ /\\\n"), max_size=6)


@given(st.lists(st.lists(COMPONENT, max_size=4).map(lambda parts: "/" + "/".join(parts)), max_size=4), st.text())
def test_property_no_policy_and_no_path_ever_lead_outside_a_root(roots: list[str], path: str) -> None:
    fine = [root for root in roots if not root_fault(root)]
    for root in fine:
        folder, _ = split_glob(root)
        assert os.path.normpath(folder) == folder
        assert folder not in ("/", "/home", "/etc", "/usr", "/var/lib")
    for candidate in (path, *(root + "/" + path for root in fine)):
        found = locate(fine, candidate)
        if found is not None:
            root, way = found
            whole = os.path.join(os.fsencode(split_glob(root)[0]), unquote(way)).rstrip(b"/")
            assert whole == os.fsencode(candidate).rstrip(b"/")


def test_a_policy_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    path.write_text(Policy(("/tmp/cache",)).to_json())
    path.chmod(0o644)
    assert load(str(path)).roots == ("/tmp/cache",)
    path.chmod(0o664)
    with pytest.raises(FaultyFilesError, match="cannot trust it"):
        load(str(path))


def test_a_policy_that_is_a_link_or_a_fifo_or_missing_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, words in (("link", "cannot open it"), ("fifo", "cannot trust it"), ("none", "cannot open it")):
        with pytest.raises(FaultyFilesError, match=words):
            load(str(tmp_path / name))
