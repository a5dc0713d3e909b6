"""``upkeep ops policy``: what root's hands will follow."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from agent.commands import ops
from agent.ops.policy import parse


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "upkeep.yaml"
    path.write_text(f"state_dir: {tmp_path}/state\nremediation: {{roots: [/tmp/evaluation_cache]}}\n")
    path.chmod(0o644)
    return path


def test_whose_state_directory_it_is_may_ask(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = configuration.with_name("state")
    state.mkdir()
    if os.geteuid() == 0:
        os.chown(state, 12345, -1)
    assert ops.run(Namespace(what="policy", config=str(configuration))) == 0
    policy = parse(capsys.readouterr().out.encode(), "ops.json")
    assert policy.peers == (12345 if os.geteuid() == 0 else os.geteuid(),)
    assert policy.roots == ("/tmp/evaluation_cache",)


def test_without_a_state_directory_nobody_else_may(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ops.run(Namespace(what="policy", config=str(configuration))) == 0
    said = capsys.readouterr()
    assert parse(said.out.encode(), "ops.json").peers == ()
    assert f'cannot tell who the agent is from "{configuration.with_name("state")}"' in said.err
