from __future__ import annotations

from pathlib import Path

import pytest

from agent import config
from agent.errors import FaultyFilesError
from agent.model import Mode
from agent.roots import unsafe_root


def load(tmp_path: Path, text: str) -> config.LoadedConfig:
    path = tmp_path / "upkeep.yaml"
    path.write_text(text)
    path.chmod(0o644)
    return config.load(str(path))


def test_an_empty_file_is_a_working_agent_in_observe_mode(tmp_path: Path) -> None:
    loaded = load(tmp_path, "")
    assert loaded.config == config.Config(state_dir="/var/lib/upkeep")
    assert loaded.config.mode is Mode.OBSERVE
    assert loaded.config.remediation.roots == ()
    assert loaded.config.collect.system is not None
    assert not loaded.warnings


def test_faults_of_every_section_come_at_once(tmp_path: Path) -> None:
    text = (
        "mode: obsrve\ncollect: {interval: 5, disk: false}\nremediation: {roots: [/, /etc/x]}\n"
        "timezone: Europe/Pariss\nlisten: 9898\n"
    )
    with pytest.raises(FaultyFilesError) as caught:
        load(tmp_path, text)
    lines = [fault.line for fault in caught.value.faults]
    assert lines == [1, 2, 3, 3, 4, 5]
    assert '(did you mean "observe"?)' in str(caught.value)
    assert '(did you mean "Europe/Paris"?)' in str(caught.value)


def test_rule_files_are_relative_to_the_configuration_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "rules.d").mkdir()
    (tmp_path / "rules.d" / "a.yaml").write_text("")
    loaded = load(tmp_path, "rule_files: [rules.d/*.yaml, gone.yaml]\n")
    assert loaded.rule_files == (str(tmp_path / "rules.d" / "a.yaml"), str(tmp_path / "gone.yaml"))


def test_keys_without_effect_yet_are_a_warning_with_their_place(tmp_path: Path) -> None:
    loaded = load(tmp_path, "s3: {bucket: b}\n")
    assert [(fault.line, fault.warning) for fault in loaded.warnings] == [(1, True)]


def test_the_whole_example_of_the_contract_is_understood(tmp_path: Path) -> None:
    text = """
mode: observe
state_dir: /var/lib/upkeep
rule_files: [rules.d/*.yaml]
listen: 127.0.0.1:9898
collect:
  interval: 5s
  system: {}
  gpu: {}
  directories: {interval: 60s, paths: [/tmp/evaluation_cache, /var/log/benchmark]}
  redis: [{name: main, url: "redis://127.0.0.1:6379/0"}]
  services: {units: [benchmark-framework.service, redis-server.service, nginx.service]}
  probes: {targets: ["icmp://8.8.8.8"]}
  textfile: {directory: /var/lib/upkeep/textfile}
  evaluation: {database: /var/log/benchmark/metrics.db}
logs:
  - paths: [/var/log/benchmark/*.log]
remediation:
  roots: [/tmp/evaluation_cache, /tmp/model_cache, /var/log/benchmark]
  limits: {actions_per_hour: 6, files_per_action: 100000, bytes_per_action: 200GiB}
retention: {raw: 7d, minutes: 30d, hours: 2y, max_size: 1GiB}
mail: {smtp: "smtp://localhost:25", from: upkeep@host, to: [sre@example.com]}
backups: {directory: /var/backups/redis, keep: 30d}
s3: {bucket: backups, prefix: redis/, endpoint: null}
remote_write: [{url: "http://prometheus:9090/api/v1/write"}]
timezone: local
"""
    assert load(tmp_path, text).config.remediation.limits.bytes_per_action == 200 * 1024**3


@pytest.mark.parametrize(
    "path", ["/", "/tmp", "/home", "/etc/cron.d", "/usr/share/x", "/var/lib", "/data", "relative", ""]
)
def test_no_root_is_one_of_the_hosts_own_folders(path: str) -> None:
    assert unsafe_root(path)


@pytest.mark.parametrize("path", ["/tmp/evaluation_cache", "/var/log/benchmark", "/data/models", "/home/sre/cache"])
def test_a_cache_of_its_own_may_be_a_root(path: str) -> None:
    assert not unsafe_root(path)
