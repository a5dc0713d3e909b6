"""The real agent and real receivers: an Alertmanager, a webhook, an SMTP server; kill -9 on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.grouping import Groups, Notice, Pace, step
from agent.model import make_labels
from agent.notifiers import iso
from tests.support.receivers import (
    Alertmanager,
    Mailbox,
    alertmanager,
    free_port,
    http_server,
    smtp_server,
)
from tests.support.running import Host, scratch_host, until, upkeep

DISCARD = "route: {receiver: none}\nreceivers: [{name: none}]\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with scratch_host(tmp_path) as host:
        yield host


def held(manager: Alertmanager, name: str) -> list[dict[str, Any]]:
    return [each for each in manager.alerts() if each["labels"]["alertname"] == name]


def test_an_alertmanager_has_what_fires_and_its_end_through_its_absence_and_kill_9(host: Host, tmp_path: Path) -> None:
    port = free_port()
    host.write(
        f"notify:\n  routes:\n    - {{name: am, alertmanager: {{url: 'http://127.0.0.1:{port}'}}}}\n"
        "  heartbeat: {every: 1s}\n  labels: {instance: web1}\n",
        mode="observe",
    )
    host.fill(12)
    host.start()
    until(lambda: host.json("notify", "list")[0]["waiting"], "the alert to wait for its receiver")
    with alertmanager(tmp_path / "am", DISCARD, port) as manager:
        [alert] = until(lambda: held(manager, "CacheTooLarge"), "the alert to arrive")
        assert alert["labels"] == {"alertname": "CacheTooLarge", "instance": "web1", "severity": "warning",
                                   "path": str(host.cache)}  # fmt: skip
        assert alert["status"]["state"] == "active"
        until(lambda: held(manager, "UpkeepHeartbeat"), "the sign of life")
        host.kill()
        for path in host.cache.iterdir():
            path.unlink()
        host.start()
        until(lambda: not held(manager, "CacheTooLarge"), "the end to arrive")
        assert host.json("notify", "list")[0]["waiting"] == 0
    host.stop()


def test_people_are_told_by_webhook_slack_and_mail_once_over_kill_9(host: Host) -> None:
    with http_server() as hook, http_server() as chat, smtp_server(Mailbox()) as mailbox:
        host.write(
            f"mail: {{smtp: 'smtp://127.0.0.1:{mailbox.port}', from: upkeep@host.example, to: [sre@example.com]}}\n"
            "notify:\n  routes:\n"
            f"    - {{name: hook, group_wait: 0, webhook: {{url: '{hook.url}'}}}}\n"
            f"    - {{name: chat, group_wait: 0, slack: {{url: '{chat.url}'}}}}\n"
            "    - {name: people, group_wait: 0, mail: {}}\n",
            mode="observe",
        )
        host.fill(12)
        host.start()
        until(lambda: hook.requests and chat.requests and mailbox.mails, "everybody to be told")
        host.kill()
        host.start()
        until(lambda: host.json("query", "upkeep_notifications_waiting"), "the agent to sample itself again")
        time.sleep(1)
        assert (len(hook.requests), len(chat.requests), len(mailbox.mails)) == (1, 1, 1)
        [alert] = hook.requests[0].json["alerts"]
        assert alert["labels"]["alertname"] == "CacheTooLarge"
        assert "observe_mode" in alert["annotations"]["remediation"]
        assert "FIRING" in chat.requests[0].json["text"]
        assert b"Subject: [FIRING:1] CacheTooLarge" in mailbox.mails[0][2]
        host.stop()


def test_notify_test_shows_the_dialogue_and_says_who_did_not_take_it(host: Host, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    with http_server() as hook, smtp_server(Mailbox()) as mailbox:
        secret.write_text(f"{hook.url}/T0/s3cret")
        secret.chmod(0o600)
        host.write(
            f"mail: {{smtp: 'smtp://127.0.0.1:{mailbox.port}', from: upkeep@host.example, to: [sre@example.com]}}\n"
            "notify:\n  routes:\n"
            f"    - {{name: chat, slack: {{url_file: '{secret}'}}}}\n"
            "    - {name: people, mail: {}}\n"
            "    - {name: gone, webhook: {url: 'http://127.0.0.1:1/'}}\n"
        )
        done = upkeep("notify", "test", config=host.config, status=1)
        assert "> POST http://localhost" in done.stdout
        assert "s3cret" not in done.stdout + done.stderr
        assert "> RCPT TO:<sre@example.com>" in done.stdout
        assert "NOT SENT: cannot reach 127.0.0.1:1: connection refused" in done.stdout
        assert hook.requests[0].json["attachments"][0]["title"] == "UpkeepTest"
        assert b"Subject: [FIRING:1] UpkeepTest" in mailbox.mails[0][2]
        [result] = json.loads(upkeep("notify", "test", "people", "--json", config=host.config).stdout)
        assert (result["route"], result["error"]) == ("people", None)
        assert "did you mean" in upkeep("notify", "test", "peple", config=host.config, status=1).stderr


def test_a_silence_and_a_cause_are_named_beside_the_alert_they_keep_quiet(host: Host) -> None:
    host.write(
        rules=f"""
      - alert: Cause
        expr: directory_size_bytes{{path="{host.cache}"}} > 8 * 1024^2
inhibit:
  - source: 'alertname="Cause"'
    target: 'alertname="CacheTooLarge"'
    equal: [path]
""",
    )
    host.fill(12)
    host.start()

    def quiet() -> dict[str, str]:
        return {each["rule"]: each["quiet"] for each in host.alerts() if each["state"] == "firing"}

    until(lambda: quiet() == {"Cause": "", "CacheTooLarge": "inhibited by Cause"}, "the inhibition to be named")
    [waits] = until(lambda: host.actions(handler="clean_cache"), "the action that waits")
    assert (waits["status"], waits["reason"]) == ("requested", "inhibited")
    upkeep("silence", "add", 'alertname="Cause"', "--for", "1h", "--every", "* * * * *", "--zone", "Europe/Berlin",
           "--why", "moving house", config=host.config)  # fmt: skip
    assert quiet()["Cause"] == "silenced by 1: moving house"
    [silence] = host.json("silence", "list")
    assert (silence["every"], silence["active"]) == ("CRON_TZ=Europe/Berlin * * * * *", True)
    host.stop()


IDLE = """
import asyncio, json, sys
from agent import config
from agent.app import Agent

async def main():
    agent = Agent(config.load(sys.argv[1]))
    running = asyncio.create_task(agent.run())
    await agent.ready.wait()
    await asyncio.sleep(0.5)
    print(json.dumps([sorted(sys.modules), sorted(task.get_name() for task in asyncio.all_tasks())]))
    agent.stop()
    await running

asyncio.run(main())
"""


def test_without_a_route_nothing_of_it_is_imported_or_runs(host: Host) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", IDLE, str(host.config)], capture_output=True, text=True, check=True
    )
    modules, tasks = json.loads(done.stdout)
    assert "agent.app" in modules
    mine = {"agent.routing", "agent.mail", "agent.web", "agent.spool", "agent.aside", "agent.notifiers.webhook",
            "aiosmtplib", "http.client", "email.message"}  # fmt: skip
    assert mine & set(modules) == set()
    assert "notify" not in tasks


# -- beside a real Alertmanager --------------------------------------------------------------------------------------

REFERENCE = """
route: {{receiver: hook, group_by: [alertname], group_wait: 2s, group_interval: 4s, repeat_interval: 11s}}
receivers: [{{name: hook, webhook_configs: [{{url: '{url}', send_resolved: true}}]}}]
"""
PACE = Pace(("alertname",), 2.0, 4.0, 11.0)
TIMELINE = (
    (0.0, {"A1"}), (1.0, {"A1", "A2"}), (4.5, {"A1", "A2", "B1"}), (5.0, {"A1", "A2", "B1", "A3"}),
    (8.5, {"A1", "B1", "A3"}), (12.5, {"A1", "A3"}), (27.5, {"A3"}), (29.5, set()),
)  # fmt: skip
END_S = 36.0


def firing_at(second: float) -> set[str]:
    return next(names for begun, names in reversed(TIMELINE) if begun <= second)


def told(said: list[tuple[float, str, frozenset[tuple[str, str]]]]) -> list[tuple[str, frozenset[tuple[str, str]]]]:
    return [(group, alerts) for _, group, alerts in said]


@pytest.mark.slow
def test_it_groups_and_repeats_as_a_real_alertmanager_does(tmp_path: Path) -> None:
    """The same half minute of alerts to both: the same notifications in each group, at the same seconds."""
    began: dict[str, float] = {}
    with http_server() as hook, alertmanager(tmp_path / "am", REFERENCE.format(url=hook.url)) as manager:
        at = start = time.time()
        arrived: list[float] = []
        before: set[str] = set()
        while at - start < END_S:
            names = firing_at(at - start)
            began = {name: began.get(name, at) for name in names}
            ended = [{"labels": labels_of(name), "endsAt": iso(at)} for name in before - names]
            manager.post(
                [{"labels": labels_of(n), "startsAt": iso(t), "endsAt": iso(at + 60)} for n, t in began.items()] + ended
            )
            before = names
            time.sleep(0.25)
            arrived += [time.time() - start] * (len(hook.requests) - len(arrived))
            at = time.time()
        theirs = [(second, *said(one)) for second, one in zip(arrived, hook.requests, strict=True)]
    ours = []
    groups: Groups = {}
    begun: dict[str, float] = {}
    for quarter in range(int(END_S * 4)):
        second = quarter / 4
        begun = {name: begun.get(name, second) for name in firing_at(second)}
        firing = [Notice(make_labels(labels_of(name)), since) for name, since in begun.items()]
        groups, now = step("hook", groups, firing, lambda notice: False, PACE, second)
        for one in now:
            alerts = frozenset((each.label("n"), "firing" if each.firing else "resolved") for each in one.notices)
            ours.append((second, dict(one.group)["alertname"], alerts))
    for name in ("A", "B"):
        mine, real = ([each for each in every if each[1] == name] for every in (ours, theirs))
        assert told(mine) == told(real)
        assert [abs(one[0] - other[0]) < 1.5 for one, other in zip(mine, real, strict=True)] == [True] * len(mine)
        assert all(later[0] > earlier[0] for earlier, later in pairwise(real))


def labels_of(name: str) -> dict[str, str]:
    return {"alertname": name[0], "n": name[1:]}


def said(request: Any) -> tuple[str, frozenset[tuple[str, str]]]:
    body = request.json
    return body["groupLabels"]["alertname"], frozenset((a["labels"]["n"], a["status"]) for a in body["alerts"])
