"""``upkeep backtest`` on a real store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from agent.backtest import Firing
from agent.cli import main
from agent.commands.backtest import Period
from agent.model import Mode, Series, make_labels
from tests.support.history import make_history, write_file

RULES = """
groups:
  - name: g
    interval: 1m
    rules:
      - alert: Large
        expr: directory_size_bytes{path="/tmp/c"} > 10e9
        for: 2m
        remediation: {steps: [{clean_cache: {path: /tmp/c, down_to: 5GiB}}, {notify: {message: no use}}]}
      - {alert: Calm, expr: directory_size_bytes > 90e9}
      - {alert: Blind, expr: redis_up == 0}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Three hours; from the end of each hour on the cache is too large for ten minutes, and at the end of all again."""
    start = (time.time() - 3 * 3600) // 60 * 60
    size = {Series("directory_size_bytes", make_labels(path="/tmp/c")): lambda t: 11e9 if t % 3600 >= 3000 else 1e9}
    make_history(tmp_path / "state", size, start, start + 3 * 3600, 15)
    write_file(tmp_path / "rules.d" / "r.yaml", RULES)
    return write_file(tmp_path / "upkeep.yaml", "state_dir: state\nshipped_rules: false\ntimezone: UTC\n")


def test_a_week_is_asked_and_what_is_kept_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backtest", "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    large, calm, blind = told["rules"]
    assert (large["rule"], large["fired"], large["error"]) == ("Large", 3, "")
    assert [each["lasted_s"] for each in large["firings"][:2]] == [480.0, 480.0]
    assert large["firings"][0]["labels"] == {"path": "/tmp/c"}
    assert large["firings"][0]["action"]["handler"] == "clean_cache"
    assert large["firings"][0]["action"]["resource"] == "path:/tmp/c"
    assert (calm["fired"], calm["without_data"]) == (0, [])
    assert (blind["fired"], blind["without_data"]) == (0, ["redis_up"])


def test_people_read_what_would_have_been_done(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backtest", "--config", str(config), str(config.parent / "rules.d" / "r.yaml")]) == 0
    out = capsys.readouterr().out
    assert "would have fired 3 times" in out
    assert "clean_cache path:/tmp/c ×3 (observed), then notify" in out
    assert "would not have fired: Calm" in out
    assert "without data: Blind (redis_up)" in out


@pytest.mark.parametrize(
    ("zone", "hours", "night"),
    [("UTC", [21, 22, 23, 0, 5, 6], 4), ("Asia/Tokyo", [12, 13, 20, 21], 2), ("Europe/Berlin", [20, 21, 4, 5], 2)],
)
def test_night_is_local(zone: str, hours: list[int], night: int) -> None:
    winter = 1_767_225_600.0
    firings = [Firing((), winter + hour * 3600, 1.0) for hour in hours]
    assert Period(0.0, 0.0, ZoneInfo(zone), Mode.OBSERVE).at_night(firings) == night


def test_what_cannot_be_asked_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backtest", "--config", str(config), "--rule", "Larg"]) == 1
    assert capsys.readouterr().err == 'unknown rule "Larg" (did you mean "Large"?)\n'
    assert main(["backtest", "--config", str(config), "--end", "30d"]) == 1
    assert capsys.readouterr().err == "cannot backtest: no history is kept of that time\n"
