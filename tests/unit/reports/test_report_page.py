from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from report_world import CACHE, DAY_S, HOUR_S, Shape, World, cleaning, make, match, open_world, sample

from agent.model import ActionStatus, Reading, Series, Verdict, make_labels
from agent.store.read import Reader
from reports.build import ReportDocument, build, write
from reports.form import render
from reports.period import Period
from reports.words import clean

BERLIN = ZoneInfo("Europe/Berlin")
END = 1_763_938_800.0  # Monday, midnight in Berlin
_VOID = frozenset({"meta", "br"})


class Page(HTMLParser):
    """Every element, attribute and text of a page; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def document(folder: Path, period: Period, *, title: str | None = None, at: float = END) -> ReportDocument:
    with Reader.open(folder) as reader:
        return build(reader, period, title=title, host="gpu-node-07", at=at)


@pytest.fixture(scope="module")
def working_day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    gap = (END - 6 * HOUR_S, END - 5 * HOUR_S)
    make(folder, Shape(END - DAY_S, END, 60.0, gaps=(gap,), spikes=(END - 3 * HOUR_S,)))
    return folder


def test_page_and_text_tell_the_same(working_day: Path) -> None:
    told = document(working_day, Period.last(DAY_S, END, BERLIN))
    page, text = render(told)
    for said in (
        "2 things need you: DiskFullIn24Hours /data and ModelCacheTooLarge /tmp/model_cache",
        "Repair did not clear it: clean_cache had no effect.",
        "upkeep explain DiskFullIn24Hours",
        "3 repairs of 4 helped and freed 6.3 GiB",
        "upkeep apply clean_cache path=/var/log/benchmark older_than=3d down_to=8GiB",
        "ERROR worker 47: CUDA out of memory. GPU 3",
        "No data for 1 h 1 min",
        "hard link",
        "Europe/Berlin, UTC+01:00",
    ):
        words = " ".join(re.sub(r"\s+", " ", " ".join(Page(page).texts)).split())
        assert said in words, said
        assert said in " ".join(text.split()), said
    assert told.subject == f"gpu-node-07: {told.verdict}"


def test_the_spike_is_in_the_words(working_day: Path) -> None:
    host = document(working_day, Period.last(DAY_S, END, BERLIN)).sections["host"]
    busy = next(chart for chart in host.charts if chart.title == "Processors busy")  # type: ignore[attr-defined]
    assert max(busy.line.high) == pytest.approx(98.5, abs=0.1)


def test_the_page_needs_nothing_else(working_day: Path) -> None:
    page, _ = render(document(working_day, Period.last(DAY_S, END, BERLIN)))
    parsed = Page(page)
    assert not parsed.elements.keys() & {"script", "link", "img", "iframe", "object", "form", "base", "style-src"}
    assert not [value for _, name, value in parsed.attributes if name in ("src", "href", "style", "xlink:href")]
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"https?://", page)
    assert len(page.encode()) < 500_000
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {value for _, name, value in parsed.attributes if name == "aria-labelledby"}
    assert referred <= set(ids)


def test_a_quiet_day_is_a_short_page(tmp_path: Path) -> None:
    async def quiet() -> None:
        async with open_world(tmp_path, END - 3 * HOUR_S) as world:
            await sample(world, Shape(END - 3 * HOUR_S, END, 60.0))

    asyncio.run(quiet())
    told = document(tmp_path, Period.last(3 * HOUR_S, END, BERLIN))
    page, text = render(told)
    assert told.verdict == "All quiet: nothing needs you"
    assert 'class="verdict quiet"' in page
    assert len(text.splitlines()) < 40
    assert "WHAT NEEDS YOU" not in text


def test_the_first_minute_gives_a_first_look(tmp_path: Path) -> None:
    async def begin() -> None:
        async with open_world(tmp_path, END - 40) as world:
            await sample(world, Shape(END - 40, END, 1.0))
            labels = make_labels(path=CACHE, severity="warning")
            alert = await world.alert("SandboxCacheTooLarge", labels, at=END - 20, ended=END - 10)
            await world.action(cleaning(alert, at=END - 20))

    asyncio.run(begin())
    told = document(tmp_path, Period.last(DAY_S, END, BERLIN), title="First look")
    written = write(told, tmp_path / "reports")
    assert written.html.name == "first-look-2025-11-23.html"
    text = written.text.read_text(encoding="utf-8")
    assert text.startswith("First look of gpu-node-07\n")
    assert "* /data: 92 % full" in text
    assert "clean_cache on /tmp/evaluation_cache, freed 2.1 GiB" in text
    assert "1 file: symlink" in text
    assert "Sampled 100 % of the time since Sun 23 Nov, 23:59, without a gap" in text


def test_a_store_without_a_sample_says_so(tmp_path: Path) -> None:
    async def nothing() -> None:
        async with open_world(tmp_path, END):
            pass

    asyncio.run(nothing())
    told = document(tmp_path, Period.last(DAY_S, END, BERLIN))
    page, text = render(told)
    assert told.verdict == "No samples yet: nothing can be said"
    assert "There are no samples in this period." in text
    assert 'class="verdict warning"' in page


def test_files_are_whole_private_and_replaced(tmp_path: Path, working_day: Path) -> None:
    told = document(working_day, Period.of("weekly", None, END, BERLIN))
    first = write(told, tmp_path / "new" / "reports")
    again = write(replace(told, host="renamed"), tmp_path / "new" / "reports")
    assert first == again
    assert first.html.name == "weekly-2025-11-23.html"
    assert "renamed" in again.html.read_text(encoding="utf-8")
    assert sorted(os.listdir(first.html.parent)) == [first.html.name, first.text.name]
    assert stat.S_IMODE(first.html.stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, working_day: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = document(working_day, Period.last(DAY_S, END, BERLIN))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.build.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(told, tmp_path)
    assert os.listdir(tmp_path) == []


# ── hostile text ─────────────────────────────────────────────────────────────────────────────────────────────────────

_ATTACKS = (
    "<script>alert(%s)</script>", "</title><script>%s</script>", '"><img src=x onerror=%s>', "'><svg/onload=%s>",
    "<b>%s</b>", "--><iframe src=//%s>", "]]><a href='javascript:%s'>", "</style><style>%s{}</style>", "{{ %s }}",
    "{%% for x in %s %%}", "&lt;script&gt;%s", "\u202e%s\u202c", "\x1b[2J\x1b[31m%s\x1b[0m", "\x1b]8;;http://x\x07%s",
    "%s\r\nBcc: victim@example.com", "%s\x00\x01\x7f\x9f", "\u2066\u2069\u200b\ufeff%s", "\ud800%s", "%s\u2028\u2029",
    "z\u0300\u0301\u0302\u0303%s", "`${%s}`", "<!--%s", "<plaintext>%s", "</textarea><xmp>%s", "\\\"%s\\'",
    "%s" + "A" * 5_000, "<%s " + "x=y " * 900, "$(rm -rf %s)", "=cmd|' /C %s'!A0", "ﷺ" * 80 + "%s",
)  # fmt: skip
PAYLOADS = [_ATTACKS[number % len(_ATTACKS)] % f"zq{number}zq" for number in range(2_000)]
_PER_PAGE = 26 + 8 * 6 + 12 * 3  # what one page shows: trees and mounts, stories, lines of logs


async def _hostile(folder: Path, payloads: list[str], samples: int) -> None:
    """One store that shows many hostile strings: as rules, labels, paths, log lines, files, patterns, messages."""
    strings = iter([text.encode("utf-8", "replace").decode() for text in payloads])
    at = END - HOUR_S
    async with open_world(folder, at) as world:
        names = [next(strings) for _ in range(26)]
        series = tuple(
            [Series("directory_size_bytes", make_labels(path=name)) for name in names[:14]]
            + [Series(f"node_filesystem_{figure}_bytes", make_labels(mountpoint=name, device=name, fstype="x"))
               for name in names[14:] for figure in ("size", "avail")]
        )  # fmt: skip
        for second in range(samples):
            values = [float(i + 1) * (second + 1) * 1e6 for i in range(14)] + [5e9, 5e9 - second * 1e8] * 12
            await world.store.metrics.append([Reading(at + second, series, values)])
        await _hostile_ledger(world, at, strings)
        left = list(strings)
        events = [match(f"p{i % 12}", text, at=at + i, file=left[-1]) for i, text in enumerate(left)]
        await world.store.metrics.add_events(events)


async def _hostile_ledger(world: World, at: float, strings: object) -> None:
    texts = iter(strings)  # type: ignore[call-overload]
    for _ in range(8):
        labels = make_labels(path=next(texts), severity="critical")
        alert = await world.alert(next(texts), labels, at=at)
        action = cleaning(alert, at=at, verdict=Verdict.FAILED, path=next(texts))
        assert action.plan is not None
        assert action.outcome is not None
        hostile = replace(action.plan, summary=next(texts))
        await world.action(replace(action, plan=hostile, outcome=replace(action.outcome, error=next(texts))))
        observed = cleaning(alert, at=at + 1, status=ActionStatus.OBSERVED, path=next(texts), reason="observe_mode")
        await world.action(replace(observed, attempt=2))


def test_two_thousand_hostile_strings_stay_text(tmp_path: Path) -> None:
    asyncio.run(_hostile(tmp_path / "calm", [f"calm zq{n}zq" for n in range(_PER_PAGE)], 14))
    calm = Page(render(document(tmp_path / "calm", Period.last(HOUR_S, END, BERLIN)))[0])
    allowed = {(tag, name) for tag, name, _ in calm.attributes}
    shown = set()
    for first in range(0, len(PAYLOADS), _PER_PAGE):
        folder = tmp_path / str(first)
        asyncio.run(_hostile(folder, _page_full(first), 14 if first < 3 * _PER_PAGE else 2))
        html, text = render(document(folder, Period.last(HOUR_S, END, BERLIN)))
        page = Page(html)
        assert page.elements.keys() <= calm.elements.keys()
        assert {(tag, name) for tag, name, _ in page.attributes} <= allowed
        assert not [value for _, _, value in page.attributes if "zq" in value]
        _nothing_unseen(html)
        _nothing_unseen(text)
        shown |= set(re.findall(r"zq(\d+)zq", " ".join(page.texts)))
    assert len(shown) == len(PAYLOADS)


def _page_full(first: int) -> list[str]:
    return (PAYLOADS[first:] + PAYLOADS)[:_PER_PAGE]


def _nothing_unseen(text: str) -> None:
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]", text
    )


def test_a_payload_is_shown_as_it_was_written(tmp_path: Path) -> None:
    payload = "<img src=x onerror=\"alert(1)\"> & 'quoted'"
    asyncio.run(_hostile(tmp_path, [f"calm {n}" for n in range(_PER_PAGE - 1)] + [payload], 2))
    html, text = render(document(tmp_path, Period.last(HOUR_S, END, BERLIN)))
    assert clean(payload, 80) in " ".join(Page(html).texts)
    assert payload in " ".join(text.split())
