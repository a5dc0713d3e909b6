"""The status page: what it says of what it is told, and that nothing of it is markup."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    Event,
    Mode,
    Outcome,
    Plan,
    PlanItem,
    Series,
    Severity,
    Verdict,
    make_labels,
)
from agent.rulefile import load
from agent.serve import size_limits
from agent.store import Silence
from tests.support.site import GIB, Site, sampled, site

AT = 1_700_002_800.0
CACHE = "/tmp/evaluation_cache"


class Seen(HTMLParser):
    """Elements with their attributes, and the text of the page."""

    VOID = frozenset({"meta", "br", "rect", "circle", "path"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attrs))] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attrs))] += 1

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def run(folder: Path, body: Callable[[Site], Awaitable[None]], mode: Mode = Mode.OBSERVE) -> None:
    async def main() -> None:
        async with site(folder, ManualClock(wall=AT), mode) as running:
            await body(running)

    asyncio.run(main())


def firing(rule: str, severity: str, **labels: str) -> Alert:
    held = make_labels({"severity": severity, **labels})
    return Alert(rule, held, AlertState.FIRING, 9.2 * GIB, AT - 600, AT - 300)


async def acted(
    running: Site, alert: Alert, status: ActionStatus, verdict: Verdict | None = None, reason: str = "", freed: int = 0
) -> None:
    asked = Action(
        0, f"alert {alert.rule}", alert.rule, alert.labels, random.random(), 0, 1, "clean_cache", {"path": CACHE},
        f"cache:{CACHE}", ActionStatus.REQUESTED, requested_at=AT - 200,
    )  # fmt: skip
    [stored] = await running.store.ledger.commit_alerts([], [asked])
    plan = Plan("clean_cache", "cache", "remove", (PlanItem("remove", "/x", int(3 * GIB)),))
    outcome = Outcome(bytes_freed=freed) if freed else None
    await running.store.ledger.save_action(
        dataclasses.replace(stored, status=status, verdict=verdict, reason=reason, plan=plan, outcome=outcome)
    )


async def page(running: Site, target: str = "/") -> Seen:
    answer = await running.ask(target)
    assert answer.status == 200
    return Seen(answer.text)


# -- the first line --------------------------------------------------------------------------------------------------


def test_the_verdict_says_the_worst_thing_first(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        async def first() -> str:
            return re.sub(r"\s+", " ", re.findall(r"<title>(.*?) · testhost</title>", (await running.ask("/")).text)[0])

        assert await first() == "No new samples: nothing can be said of now"
        await sampled(running, ManualClock(wall=AT))
        assert await first() == "All quiet: no alert fires"
        running.alerts = [dataclasses.replace(firing("High", "info"), state=AlertState.PENDING)]
        assert await first() == "All quiet: no alert fires"
        running.alerts = [firing(name, "warning") for name in ("A", "B", "C", "D")]
        assert await first() == "4 alerts fire: A, B, C and 1 more"
        running.stuck = ["engine"]
        assert await first() == "The agent is stuck: engine"

    run(tmp_path, body)


def _up(name: str) -> Series:
    return Series("upkeep_collector_up", make_labels(collector=name))


def test_a_collector_that_fails_is_not_quiet(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT), [(_up("network"), 0.0)])
        seen = await page(running)
        assert "Cannot read: network" in seen.text
        assert "Not read: network" in seen.text

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("mode", "paused", "said"),
    [
        (Mode.OBSERVE, False, "observe mode: repairs are planned, nothing is changed"),
        (Mode.ASK, False, "ask mode: repairs wait for upkeep approve"),
        (Mode.ACT, False, "act mode: repairs are carried out"),
        (Mode.ACT, True, "paused: nothing is changed until upkeep resume"),
    ],
)
def test_the_brakes_are_said_beside_the_verdict(tmp_path: Path, mode: Mode, paused: bool, said: str) -> None:
    async def body(running: Site) -> None:
        running.paused = paused
        seen = await page(running)
        assert said in seen.text
        assert f"Mode {mode} Paused {'yes' if paused else 'no'} Circuits none open Silences none" in seen.text

    run(tmp_path, body, mode)


# -- the parts -------------------------------------------------------------------------------------------------------


def test_the_host_in_figures(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT))
        text = (await page(running)).text.replace("\u00a0", " ")
        assert "Processors 25 % busy in the last minute" in text
        assert "Load 1.25 on 4 processors" in text
        assert "Memory 38 % of 64.0 GiB used" in text
        assert "Up 7 d" in text
        assert "/data 98 % 80.0 GiB 3.9 TiB /boot read-only 88 % 123 MiB 1.0 GiB / 61 % 39.0 GiB 100 GiB" in text

    run(tmp_path, body)


def test_a_directory_is_shown_beside_the_limit_of_its_rule(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT))
        running.limits = {CACHE: 10 * GIB}
        text = (await page(running)).text.replace("\u00a0", " ")
        assert f"{CACHE} 9.2 GiB 92 % of 10.0 GiB 340 /data/models 812 GiB none 340" in text

    run(tmp_path, body)


def test_limits_are_read_from_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        "groups:\n  - name: caches\n    rules:\n"
        + "".join(
            f"      - {{alert: A{n}, expr: '{expr}', labels: {{severity: warning}}}}\n"
            for n, expr in enumerate(
                (
                    'directory_size_bytes{path="/a"} > 10 * 1024^3',
                    'directory_size_bytes{path="/a"} > 5 * 1024^3',
                    'directory_size_bytes{path=~"/b.*"} > 7',
                    'directory_files{path="/c"} > 7',
                    'directory_size_bytes{path="/d"} < 7',
                )
            )
        )
    )
    assert size_limits(load([str(file)])) == {"/a": 5 * 1024**3}


def test_alerts_come_worst_first_and_no_more_than_fit(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        running.alerts = [firing(f"Minor{n}", "info") for n in range(60)] + [
            dataclasses.replace(firing("Waiting", "critical"), state=AlertState.PENDING, fired_at=None),
            dataclasses.replace(firing("Lost", "error"), missing=True),
            firing("Odd", "whatever"),
            firing("Worst", "critical", path="/p"),
        ]
        seen = await page(running)
        body_of_table = seen.text[seen.text.index("Firing ones first") :]
        order = [body_of_table.index(name) for name in ("Worst", "Lost", "Odd", "Minor0")]
        assert order == sorted(order)
        assert "Lost firing, its data is missing error" in body_of_table
        assert "Odd firing warning" in body_of_table
        assert "14 more: upkeep alerts" in body_of_table
        assert "Waiting" not in body_of_table

    run(tmp_path, body)


def test_actions_events_and_brakes_come_from_the_files(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        alert = firing("EvaluationCacheTooLarge", "warning", path=CACHE)
        await acted(running, alert, ActionStatus.DONE, Verdict.FIXED, freed=int(2.5 * GIB))
        await acted(running, alert, ActionStatus.REFUSED, reason="cooldown")
        await running.store.metrics.add_events(
            [Event("log_match", Severity.CRITICAL, "CUDA out of memory", "logwatch", AT - 30)]
        )
        await running.store.ledger.add_silence(Silence('alertname="A"', "maintenance", "me", AT - 10, 3600.0))
        await running.store.ledger.add_silence(Silence('alertname="B"', "over", "me", AT - 7200, 3600.0))
        text = (await page(running)).text.replace("\u00a0", " ")
        row = f"clean_cache on {CACHE} for alert EvaluationCacheTooLarge Tue 14 Nov, 23:56"
        assert f"{row} refused cooldown would be 3.0 GiB {row} fixed 2.5 GiB" in text
        assert "CUDA out of memory Tue 14 Nov, 23:59 critical log match" in text
        assert 'Silences alertname="A" (maintenance) Reports' in text

    run(tmp_path, body)


def test_it_asks_for_itself_again_unless_told_not_to(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        assert (await running.ask("/")).headers["refresh"] == "15"
        off = await running.ask("/?refresh=off")
        assert "refresh" not in off.headers
        assert '<a href="/">Keep it fresh</a>' in off.text

    run(tmp_path, body)


def test_a_damaged_store_costs_its_part_of_the_page_only(tmp_path: Path) -> None:
    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT))
        (tmp_path / "metrics.db").rename(tmp_path / "elsewhere.db")
        seen = await page(running)
        assert "Actions, events and brakes are not shown: cannot read the store" in seen.text
        assert "File systems, fullest first" in seen.text
        assert "Circuits unknown" in seen.text

    run(tmp_path, body)


# -- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title></section><h1>x",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)",
    "<!-- <![CDATA[ ]]> -->",
    "&lt;b&gt;&#60;b&#62;",
    "\u202egnp.exe\u2066 \u200b\ufeff",
    "\x1b[31mred\x1b]0;title\x07",
    "line\r\nSet-Cookie: x=y\r\n\r\n<b>",
    "\ud800\udcff broken",
    "Z" + "\u0300" * 200,
    "<svg/onload=alert(1)>" * 50_000,
)


def test_hostile_text_makes_no_element_and_no_header(tmp_path: Path) -> None:
    plain, hostile = ["harmless"] * len(HOSTILE), list(HOSTILE)

    async def made_of(folder: Path, words: list[str]) -> tuple[Seen, dict[str, str]]:
        async with site(folder, ManualClock(wall=AT), Mode.ACT) as running:
            extra = []
            for n, text in enumerate(words):
                labels = make_labels(mountpoint=f"/{n}{text}", device=f"/dev/{n}{text}", fstype="x")
                extra += [(Series(f"node_filesystem_{name}_bytes", labels), 5.0) for name in ("size", "avail")]
                extra.append((Series("directory_size_bytes", make_labels(path=f"/{n}{text}")), 5.0))
                extra.append((_up(f"{n}{text}"), 0.0))
            await sampled(running, ManualClock(wall=AT), extra)
            running.alerts = [firing(f"{n}{text}", "error", path=text) for n, text in enumerate(words)]
            running.stuck = words
            running.limits = {f"/{n}{text}": 5.0 for n, text in enumerate(words)}
            storable = [text.encode("utf-8", "replace").decode() for text in words]
            for text in storable[-8:]:
                [stored] = await running.store.ledger.commit_alerts(
                    [],
                    [
                        Action(
                            0, text, text, make_labels(path=text), random.random(), 0, 1, text, {"path": text}, text,
                            ActionStatus.REQUESTED, reason=text, requested_at=AT,
                        )
                    ],
                )  # fmt: skip
                assert stored.id
            await running.store.metrics.add_events([Event(t, Severity.ERROR, t, t, AT) for t in storable])
            for text in storable:
                await running.store.ledger.add_silence(Silence(text, text, text, AT - 1, 60.0))
            answer = await running.ask("/")
            metrics = await running.ask("/metrics")
            assert metrics.status == 200
            return Seen(answer.text), answer.headers

    (tmp_path / "plain").mkdir()
    (tmp_path / "hostile").mkdir()
    expected, headers = asyncio.run(made_of(tmp_path / "plain", plain))
    found, theirs = asyncio.run(made_of(tmp_path / "hostile", hostile))
    assert found.elements == expected.elements
    assert theirs.keys() == headers.keys()
    assert "<script>alert(1)</script>" in found.text, "it is shown, as text"
    assert "\u202e" not in found.text
    assert "\x1b" not in found.text


def test_a_page_of_a_large_host_takes_no_more_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    extra = [
        (Series("node_network_receive_bytes_total", make_labels(device=f"eth{n}", host="x")), float(n))
        for n in range(2000)
    ]

    async def body(running: Site) -> None:
        await sampled(running, ManualClock(wall=AT), extra)
        alert = firing("EvaluationCacheTooLarge", "warning", path=CACHE)
        for n in range(200):
            await acted(running, alert, ActionStatus.DONE, Verdict.FIXED, freed=n + 1)
        events = [Event("log_match", Severity.ERROR, f"line {n} " + "x" * 300, "logwatch", AT - n) for n in range(3000)]
        await running.store.metrics.add_events(events)
        await page(running)
        took = []
        for _ in range(7):
            began = time.perf_counter()
            await running.ask("/")
            took.append(time.perf_counter() - began)
        assert sorted(took)[3] < 0.1

    run(tmp_path, body)
