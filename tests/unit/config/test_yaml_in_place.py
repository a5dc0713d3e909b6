"""Parsed in a child or where one stands: the same answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import yamlfile

TEXTS = {
    "fine": "mode: act\nlogs: [{paths: [/var/log/a.log]}]\n",
    "empty": "",
    "repeated": "a: 1\na: 2\n",
    "alias": "a: &x 1\nb: *x\n",
    "broken": "a: [1, 2\n",
    "control": "a: \x07\n",
    "deep": "[" * 40 + "]" * 40,
}


@pytest.mark.parametrize("name", TEXTS)
def test_both_ways_agree(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(TEXTS[name])
    path.chmod(0o644)
    assert yamlfile.read([str(path)], apart=False) == yamlfile.read([str(path)])
