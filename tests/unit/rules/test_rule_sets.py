"""Rule sets by hash in the ledger: with their text, in the order of their use, and the last good one at a bad start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config, overrides
from agent.app import load_rules
from agent.cli import main
from agent.rulefile import digest_of, join_texts, split_texts
from agent.store import Reader
from tests.support.history import write_file

RULE = "groups: [{name: g, rules: [{alert: Busy, expr: node_load1 > 4}, {alert: Other, expr: node_load1 > 8}]}]\n"


@given(st.dictionaries(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), st.text()))
def test_texts_that_were_joined_come_back(texts: dict[str, str]) -> None:
    assert split_texts(join_texts(texts)) == texts


def test_a_set_is_named_by_its_files_wherever_they_lie() -> None:
    assert digest_of(join_texts({"/a/r.yaml": "x"})) == digest_of(join_texts({"/b/r.yaml": "x"}))
    assert digest_of(join_texts({"/a/r.yaml": "x"})) != digest_of(join_texts({"/a/r.yaml": "y"}))
    with pytest.raises(ValueError, match="cannot split a rule set"):
        split_texts("groups: []\n")


def site(tmp_path: Path, rule: str = RULE) -> Path:
    write_file(tmp_path / "rules.d" / "r.yaml", rule)
    written = "overrides: {Busy: {threshold: 7, for: 90s, mode: act}, Other: {disabled: true}}\n"
    keys = "state_dir: state\nshipped_rules: false\ncollect: {directories: false}\nlogs: []\n"
    return write_file(tmp_path / "upkeep.yaml", keys + written)


def test_what_the_ledger_keeps_is_the_set_with_its_overrides(tmp_path: Path) -> None:
    rules = load_rules(config.load(str(site(tmp_path))))
    again = overrides.from_text(rules.text, "upkeep.yaml")
    assert again == rules
    [rule] = again.alert_rules
    assert (rule.expr.text, rule.timing.for_s) == ("node_load1 > 7", 90.0)


def test_at_a_bad_start_the_last_good_set_is_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = site(tmp_path)
    assert main(["run", "--once", "--config", str(path)]) == 0
    good = load_rules(config.load(str(path)))
    write_file(tmp_path / "rules.d" / "r.yaml", "groups: [{name: g, rules: [{alert: Busy, expr: 'node_load1 >'}]}]\n")
    assert main(["run", "--once", "--config", str(path)]) == 0
    capsys.readouterr()
    assert main(["events", "--config", str(path), "--kind", "rules_refused", "--json"]) == 0
    [event] = json.loads(capsys.readouterr().out)
    assert event["message"].startswith(f"the rules cannot be loaded, those in force before ({good.digest}) are used: ")
    assert "r.yaml:1:" in event["message"]
    with Reader.open(tmp_path / "state") as reader:
        _, uses = reader.sql("SELECT hash, by FROM rule_sets")
        _, [(reloaded,)] = reader.sql("SELECT value FROM latest WHERE metric = 'upkeep_config_last_reload_successful'")
    assert (uses, reloaded) == ([(good.digest, "start")], 0.0)


def test_without_a_last_set_a_bad_start_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = site(tmp_path, "groups: [{name: g, rules: [{alert: A}]}]\n")
    assert main(["run", "--once", "--config", str(path)]) == 1
    assert 'missing key "expr"' in capsys.readouterr().err


def test_alerts_name_the_set_that_judged_them_and_bear_a_persons_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always = RULE.replace("node_load1 > 4", "node_load1 >= 0 or node_time_seconds > 1").replace(
        "node_load1 > 8", "up == 0"
    )
    path = write_file(tmp_path / "upkeep.yaml", "state_dir: state\nshipped_rules: false\nlogs: []\n")
    write_file(tmp_path / "rules.d" / "r.yaml", always)
    assert main(["run", "--once", "--config", str(path)]) == 0
    capsys.readouterr()
    assert main(["alerts", "--config", str(path), "--json"]) == 0
    number = json.loads(capsys.readouterr().out)[0]["id"]
    mark = ["alerts", "mark", str(number), "false", "--config", str(path)]
    assert main(mark) == 1
    assert capsys.readouterr().err == "cannot mark an alert false without a reason: --why TEXT\n"
    assert main([*mark, "--why", "a test machine"]) == 0
    assert main(["alerts", "mark", "9999", "true", "--config", str(path)]) == 1
    assert capsys.readouterr().err == "cannot mark alert 9999: there is none\n"
    assert main(["alerts", "--config", str(path), "--json"]) == 0
    shown = {each["id"]: each for each in json.loads(capsys.readouterr().out)}
    assert shown[number]["useful"] is False
    assert shown[number]["rule_set"] == load_rules(config.load(str(path))).digest
    with Reader.open(tmp_path / "state") as reader:
        _, rows = reader.sql("SELECT rule, false_alarms, precision FROM precision WHERE false_alarms > 0")
    assert rows == [("Busy", 1, 0.0)]
