"""From alerts to receivers: who is told of what, once, through three days without a receiver, kill and restart."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent import config as configuration
from agent import mail
from agent.clock import ManualClock
from agent.config import Config, Endpoint, Mail, MailRoute, Notifications, Route
from agent.errors import DeliveryError, FaultyFilesError
from agent.matching import Inhibition
from agent.model import Action, ActionStatus, Alert, AlertState, Event, Mode, Severity, make_labels
from agent.routing import Delivery, Router
from agent.spool import Spool
from agent.store import Silence
from tests.support.receivers import Hook, Mailbox, free_port, http_server, smtp_server
from tests.support.virtual import LoopClock, run

T0 = 1_700_000_000.0
DAY_S = 86400.0


class Inline:
    """Waits for its thread where it stands: in virtual time nothing else may be waited for."""

    def __init__(self, name: str) -> None:
        pass

    async def run(self, work: Callable[[], object], deadline_s: float) -> object:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(work).result()


@dataclasses.dataclass
class World:
    """What the router asks of engine and ledger."""

    standing: list[Alert] = dataclasses.field(default_factory=list)
    silenced: list[Silence] = dataclasses.field(default_factory=list)
    done: list[Action] = dataclasses.field(default_factory=list)
    events: list[Event] = dataclasses.field(default_factory=list)
    inhibitions: tuple[Inhibition, ...] = ()
    remediation: object = None

    @property
    def rules(self) -> World:
        return self

    def alerts(self) -> list[Alert]:
        return self.standing

    def annotations(self, alert: Alert, at: float) -> dict[str, str]:
        return {"summary": f"{alert.rule} is {alert.value:g}"}

    def rule_named(self, name: str, labels: object) -> World:
        return self

    async def silences(self, at: float) -> list[Silence]:
        return self.silenced

    async def episode(self, rule: str, labels: object, fired_at: float) -> list[Action]:
        return [action for action in self.done if (action.rule, action.fired_at) == (rule, fired_at)]

    async def notes(self, after: int) -> list[Action]:
        return [action for action in self.done if action.id > after and action.rule == ""]

    async def last_note(self) -> int:
        return max((action.id for action in self.done), default=0)

    async def record(self, events: list[Event]) -> None:
        self.events += events


def fires(rule: str, at: float, severity: str = "critical", **labels: str) -> Alert:
    return Alert(rule, make_labels(labels, severity=severity), AlertState.FIRING, 1.0, at, at)


def action(
    number: int,
    handler: str,
    status: ActionStatus,
    *,
    rule: str = "",
    fired_at: float = 0.0,
    reason: str = "",
    message: str = "",
) -> Action:
    ended = T0 if status is ActionStatus.DONE else None
    return Action(
        id=number, cause=rule or "job nightly", rule=rule, labels=(), fired_at=fired_at, step=0,
        attempt=1, handler=handler, params={"message": message}, resource="r", status=status, reason=reason,
        requested_at=T0, finished_at=ended, mode=Mode.ACT,
    )  # fmt: skip


def routed(route: Route, **notify: Any) -> Config:
    return Config(mail=Mail(from_="upkeep@host.example", to=("sre@example.com",)),
                  notify=Notifications(routes=(route,), labels={"instance": "web1"}, **notify))  # fmt: skip


def hooked(hook: Hook, **how: Any) -> Route:
    return Route(name="hook", webhook=Endpoint(url=hook.url), **how)


class Stage:
    """A router in slow motion: each look and each delivery when the test says so."""

    def __init__(self, folder: Path, config: Config, world: World) -> None:
        self.clock, self.world = ManualClock(T0), world
        self._folder, self._config = folder, config
        self.restart()

    def restart(self) -> None:
        self.router = Router(
            self._config, state_dir=self._folder, engine=self.world, ledger=self.world,  # type: ignore[arg-type]
            clock=self.clock, record=self.world.record, url="http://web1:9898/", aside=Inline,
        )  # fmt: skip

    async def after(self, seconds: float, *, deliver: bool = True) -> None:
        self.clock.advance(seconds)
        await self.router.look()
        while deliver and await self.router.deliveries[0].round() == 0:
            pass


Story = Callable[[Stage, Hook], Coroutine[Any, Any, None]]


def play(folder: Path, story: Story, world: World | None = None, **how: Any) -> World:
    chosen = world or World()
    with http_server() as hook:
        asyncio.run(story(Stage(folder, routed(hooked(hook, **how)), chosen), hook))
    return chosen


def names(hook: Hook) -> list[list[str]]:
    return [[f"{each['labels']['alertname']}:{each['status']}" for each in one.json["alerts"]] for one in hook.requests]


def test_a_firing_alert_is_told_in_the_form_of_alertmanagers_webhook(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("DiskFull", T0, mountpoint="/data")]
        await stage.after(0)
        assert hook.requests == []
        await stage.after(30)
        [request] = hook.requests
        labels = {"alertname": "DiskFull", "instance": "web1", "mountpoint": "/data", "severity": "critical"}
        assert request.json == {
            "receiver": "hook",
            "status": "firing",
            "alerts": [
                {
                    "status": "firing",
                    "labels": labels,
                    "annotations": {"summary": "DiskFull is 1"},
                    "startsAt": "2023-11-14T22:13:20.000Z",
                    "endsAt": "0001-01-01T00:00:00Z",
                    "generatorURL": "http://web1:9898/",
                    "fingerprint": request.json["alerts"][0]["fingerprint"],
                }
            ],
            "groupLabels": {"alertname": "DiskFull"},
            "commonLabels": labels,
            "commonAnnotations": {"summary": "DiskFull is 1"},
            "externalURL": "",
            "version": "4",
            "groupKey": '{}/{route="hook"}:{alertname="DiskFull"}',
            "truncatedAlerts": 0,
        }
        stage.world.standing = []
        await stage.after(300)
        assert names(hook)[1:] == [["DiskFull:resolved"]]

    play(tmp_path, story)


def test_a_route_takes_its_severities_and_matches(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("A", T0, "info"), fires("B", T0, team="gpu"), fires("C", T0, team="web")]
        await stage.after(60)
        assert names(hook) == [["B:firing"]]

    play(tmp_path, story, severities=(Severity.CRITICAL,), match='team="gpu"')


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        (ActionStatus.RUNNING, "", False),
        (ActionStatus.VERIFYING, "", False),
        (ActionStatus.REQUESTED, "", False),
        (ActionStatus.REQUESTED, "host_busy", False),
        (ActionStatus.REQUESTED, "paused", True),
        (ActionStatus.REQUESTED, "cooldown", True),
        (ActionStatus.AWAITING_APPROVAL, "awaiting_approval", True),
        (ActionStatus.OBSERVED, "observe_mode", True),
        (ActionStatus.DONE, "", True),
    ],
)
def test_people_are_told_once_no_remediation_is_at_work(
    tmp_path: Path, status: ActionStatus, reason: str, told: bool
) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("Cache", T0)]
        await stage.after(60)
        assert bool(hook.requests) is told

    step = action(1, "clean_cache", status, rule="Cache", fired_at=T0, reason=reason)
    play(tmp_path, story, World(done=[step], remediation=object()))
    everything = World(done=[step], remediation=object())

    async def all_told(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("Cache", T0)]
        await stage.after(60)
        assert len(hook.requests) == 1

    play(tmp_path / "all", all_told, everything, tell="all")


def test_what_was_tried_and_said_is_told_with_the_alert(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("Cache", T0)]
        await stage.after(60)
        [alert] = hook.requests[0].json["alerts"]
        assert alert["annotations"]["remediation"] == "clean_cache r: done (nothing_to_do)"
        assert alert["annotations"]["message"] == "the cache does not shrink"

    steps = [
        action(1, "clean_cache", ActionStatus.DONE, rule="Cache", fired_at=T0, reason="nothing_to_do"),
        action(2, "notify", ActionStatus.DONE, rule="Cache", fired_at=T0, message="the cache does not shrink"),
    ]
    play(tmp_path, story, World(done=steps, remediation=object()))


def test_silenced_and_inhibited_alerts_are_not_told_until_they_are_heard_again(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.silenced = [Silence('alertname="Quiet"', "why", "who", T0, 600.0)]
        stage.world.inhibitions = (Inhibition('alertname="Bus"', 'alertname="Hot"', ("gpu",)),)
        stage.world.standing = [fires("Quiet", T0), fires("Bus", T0, gpu="0"), fires("Hot", T0, gpu="0")]
        await stage.after(60)
        assert names(hook) == [["Bus:firing"]]
        await stage.after(600)
        assert names(hook)[1:] == [["Quiet:firing"]]

    play(tmp_path, story)


def test_a_message_of_a_job_is_told_once_and_an_old_one_never(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        await stage.after(0)
        stage.world.done += [action(8, "notify", ActionStatus.DONE, message="the backup is done")]
        await stage.after(1)
        stage.restart()
        await stage.after(1)
        [request] = hook.requests
        assert request.json["alerts"][0]["annotations"]["message"] == "the backup is done"
        assert request.json["groupLabels"] == {"alertname": "UpkeepMessage"}

    play(tmp_path, story, World(done=[action(7, "notify", ActionStatus.DONE, message="old")]))


def test_a_restart_tells_nothing_twice_and_an_end_that_came_meanwhile_once(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("A", T0), fires("B", T0)]
        await stage.after(60)
        stage.restart()
        await stage.after(400)
        assert sorted(names(hook)) == [["A:firing"], ["B:firing"]]
        stage.world.standing = [fires("A", T0)]
        stage.restart()
        await stage.after(400)
        assert names(hook)[2:] == [["B:resolved"]]
        stage.restart()
        await stage.after(400)
        assert len(hook.requests) == 3

    play(tmp_path, story)


def test_a_group_that_changed_while_nobody_listened_is_one_that_names_everybody(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        hook.always = 503
        stage.world.standing = [fires("A", T0, mountpoint="/")]
        await stage.after(60)
        stage.world.standing = [fires("A", T0 + 400, mountpoint="/data")]
        await stage.after(400)
        stage.world.standing = []
        await stage.after(400)
        tried, hook.always = len(hook.requests), 200
        await stage.after(1)
        [late] = hook.requests[tried:]
        ends = {each["labels"]["mountpoint"]: each["status"] for each in late.json["alerts"]}
        assert ends == {"/": "resolved", "/data": "resolved"}
        assert [event.kind for event in stage.world.events] == ["notification_delayed", "notification_recovered"]

    play(tmp_path, story)


def test_what_is_refused_lets_the_others_pass_and_is_given_up_at_last(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("A", T0)]
        hook.answers = [400, 200, 400, 400, 400, 400]
        await stage.after(60)
        stage.world.standing = [fires("A", T0), fires("B", T0 + 60)]
        await stage.after(59)
        assert names(hook) == [["A:firing"], ["B:firing"]]
        for rest in (600, 3600, 6 * 3600, 6 * 3600):
            await stage.after(rest + 60)
        assert [event.kind for event in stage.world.events] == ["notification_refused", "notification_dropped"]

    play(tmp_path, story, repeat_interval=30 * DAY_S)


def test_a_spool_that_cannot_be_written_is_said_again_when_it_can(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        (tmp_path / "spool").write_text("a file where a folder is wanted")
        stage.world.standing = [fires("A", T0)]
        await stage.after(60)
        assert hook.requests == []
        (tmp_path / "spool").unlink()
        await stage.after(1)
        assert names(hook) == [["A:firing"]]

    play(tmp_path, story)


def test_mail_to_alone_is_a_route_and_without_anybody_there_is_none() -> None:
    assert configuration.routes(Config()) == ()
    assert configuration.routes(Config(mail=Mail())) == ()
    [route] = configuration.routes(Config(mail=Mail(to=("sre@example.com",))))
    assert (route.name, route.mail) == ("mail", MailRoute())
    assert Severity.INFO not in route.severities


# -- three days without an SMTP server -------------------------------------------------------------------------------


def test_an_smtp_server_away_for_three_days_costs_no_mail_and_sends_none_twice(tmp_path: Path) -> None:
    """In virtual time; the sockets, the refusals and the server that comes back are real."""
    port, count = free_port(), 40
    settings = Mail(smtp=f"smtp://127.0.0.1:{port}", from_="upkeep@host.example", to=("sre@example.com",))
    tries: list[float] = []

    async def story() -> tuple[list[Event], int]:
        clock, world = LoopClock(), World()
        waiting = mail.spool(tmp_path, max_bytes=50 * 1024**2, max_age_s=7 * DAY_S)

        loop = asyncio.get_running_loop()

        def now() -> float:
            return T0 + loop.time()

        def send(content: bytes) -> None:
            tries.append(now())
            written, reader = mail.waiting_mail(content)
            mail.send(written, settings, reader)

        def report(index: int, subject: str, at: float) -> None:
            message = mail.Message(f"report {index}", subject, "text\n" * 100)
            mail.enqueue(waiting, message, settings, to=settings.to, at=at)

        def delivery() -> asyncio.Task[None]:
            made = Delivery(
                "mail", waiting, send, deadline_s=60, clock=clock, record=world.record, aside=Inline("mail"),
                remember=True, look_s=30.0,
            )  # fmt: skip
            return asyncio.create_task(made.run())

        task = delivery()
        for index in range(count):
            for _ in range(2):  # whoever makes a report twice sends it once
                report(index, f"report {index}", clock.wall())
            await asyncio.sleep(3 * DAY_S / count)
            if index % 10 == 4:  # and the agent is killed now and then
                task.cancel()
                await asyncio.wait([task])
                task = delivery()
        away = len(tries)
        with smtp_server(Mailbox(port=port)) as mailbox:
            for _ in range(200):
                await asyncio.sleep(30)
                if not waiting.entries():
                    break
            for index in range(count):
                report(index, "again", clock.wall())
            await asyncio.sleep(600)
            subjects = [content.split(b"Subject: ")[1].split(b"\r\n")[0].decode() for _, _, content in mailbox.mails]
        task.cancel()
        await asyncio.wait([task])
        assert subjects == [f"report {index}" for index in range(count)]
        return world.events, away

    events, away = run(story())
    assert [event.kind for event in events][-1] == "notification_recovered"
    assert away < 3 * DAY_S / 150, "it is left alone for longer each time"
    gaps = [later - earlier for earlier, later in pairwise(tries[:away])]
    assert max(gaps) <= 301


def test_back_off_grows_has_jitter_and_obeys_retry_after(tmp_path: Path) -> None:
    rests: list[float] = []

    def unreachable(content: bytes) -> None:
        raise DeliveryError("nobody there", retry_after_s=1000.0 if len(rests) == 12 else 0.0)

    async def story() -> None:
        spool = Spool(tmp_path / "s", max_bytes=1 << 20, max_age_s=1e9)
        spool.put("a", b"{}", T0)
        world, jitter = World(), iter([0.0, 1.0] * 10)
        made = Delivery("x", spool, unreachable, deadline_s=1, clock=ManualClock(T0), record=world.record,
                        aside=Inline("x"), jitter=lambda: next(jitter))  # fmt: skip
        for _ in range(13):
            rest = await made.round()
            assert rest is not None
            rests.append(rest)
        assert len(world.events) == 1, "said once"

    asyncio.run(story())
    assert rests[:4] == [1.0, 4.0, 4.0, 16.0]
    assert rests[8:12] == [150.0, 300.0, 150.0, 300.0]
    assert rests[12] == 1000.0


# -- the whole router ------------------------------------------------------------------------------------------------


def test_a_receiver_that_hangs_holds_up_nobody_else_and_a_stop_is_at_once(tmp_path: Path) -> None:
    async def story(slow: Hook, quick: Hook) -> None:
        world = World(standing=[fires("A", T0)])
        routes = (
            Route(name="slow", webhook=Endpoint(url=slow.url, timeout=30.0), group_wait=0.0),
            Route(name="quick", webhook=Endpoint(url=quick.url), group_wait=0.0),
        )
        router = Router(Config(notify=Notifications(routes=routes)), state_dir=tmp_path, engine=world, ledger=world,  # type: ignore[arg-type]
                        clock=ManualClock(T0), record=world.record)  # fmt: skip
        task = asyncio.create_task(router.run())
        async with asyncio.timeout(5):
            while not quick.requests:  # noqa: ASYNC110 - the server is a thread
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

    with http_server() as slow, http_server() as quick:
        slow.answers.append(lambda handler: time.sleep(2.0))
        asyncio.run(story(slow, quick))


def test_a_sign_of_life_ends_when_a_loop_is_stuck(tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        alive = True
        beat = configuration.Heartbeat(every=60.0, ask=Endpoint(url=f"{hook.url}/ping"))
        world = World()
        router = Router(Config(notify=Notifications(heartbeat=beat)), state_dir=tmp_path, engine=world, ledger=world,  # type: ignore[arg-type]
                        clock=LoopClock(), record=world.record, alive=lambda: alive, aside=Inline)  # fmt: skip
        task = asyncio.create_task(router.run())
        await asyncio.sleep(601)
        asked = len(hook.requests)
        alive = False
        await asyncio.sleep(600)
        assert (asked, len(hook.requests)) == (11, 11)
        assert {(each.method, each.path) for each in hook.requests} == {("GET", "/ping")}
        task.cancel()
        await asyncio.wait([task])

    with http_server() as hook:
        run(story(hook))


def test_state_that_cannot_be_read_tells_what_stands_once_more(tmp_path: Path) -> None:
    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("A", T0)]
        await stage.after(60)
        for text in ("", "[]", json.dumps({"note": 1, "routes": {"hook": {"group_by": ["alertname"], "groups": [1]}}})):
            (tmp_path / "spool" / "told.json").write_text(text)
            stage.restart()
            await stage.after(1)
        assert len(hook.requests) == 4

    play(tmp_path, story)


def test_what_has_arrived_is_not_sent_again_when_the_disk_will_not_let_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise OSError(30, "read-only file system")

    async def story(stage: Stage, hook: Hook) -> None:
        stage.world.standing = [fires("A", T0)]
        monkeypatch.setattr(Spool, "done", broken)
        await stage.after(60)
        await stage.after(1)
        assert names(hook) == [["A:firing"]]

    play(tmp_path, story)


# -- what an operator writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("notify: {routes: [{name: x}]}", "give one of mail, webhook, slack, alertmanager"),
        ("notify: {routes: [{name: x, mail: {}}]}", 'there is no "mail"'),
        ("mail: {}\nnotify: {routes: [{name: x, mail: {}}]}", 'neither it nor "mail" says to whom'),
        ("notify: {routes: [{name: X Y, webhook: {url: http://a/}}]}", "cannot name a route"),
        ("notify: {routes: [{name: x, webhook: {url: ftp://a/}}]}", "write http://HOST/"),
        ("notify: {routes: [{name: x, webhook: {url: 'http://u:geheim@a/'}}]}", "password_file names a file"),
        ("notify: {routes: [{name: x, webhook: {}}]}", 'give either "url" or "url_file"'),
        ("notify: {routes: [{name: x, webhook: {url: http://a/, username: u}}]}", '"username" and "password_file"'),
        ("notify: {routes: [{name: x, match: 'a=', webhook: {url: http://a/}}]}", "a="),
        (
            "notify: {routes: [{name: x, webhook: {url: http://a/}}, {name: x, webhook: {url: http://b/}}]}",
            "repeated route",
        ),
        ("notify: {heartbeat: {every: 10m}}", "would think the agent silent"),
        ("mail: {to: ['a@b.example, c@d.example']}", "an address is NAME@HOST"),
        ('mail: {to: ["a@b.example\\nBcc: x@y"]}', "an address is NAME@HOST"),
        ("mail: {smtp: 'smtp://u:geheim@host'}", "write smtp://HOST:PORT"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "upkeep.yaml"
    path.write_text(text)
    path.chmod(0o644)
    with pytest.raises(FaultyFilesError, match=re.escape(words)) as caught:
        configuration.load(str(path))
    assert "geheim" not in str(caught.value)
