from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

import pytest

from agent import handlers, specs
from agent.clock import ManualClock
from agent.errors import UpkeepError
from agent.handlers import Tools, make
from agent.model import Event, Severity
from agent.notifiers.journal import Journal


class Told:
    def __init__(self) -> None:
        self.messages: list[str] = []

    async def notify(self, message: str) -> None:
        self.messages.append(message)


async def write_report(period: str) -> str:
    return f"/reports/{period}.html"


def tools(told: Told) -> Tools:
    return Tools(None, told, write_report)  # type: ignore[arg-type]


def test_every_handler_has_parameters_and_every_parameter_its_words() -> None:
    assert specs.HANDLERS.keys() == handlers._FACTORIES.keys()
    for cls in specs.HANDLERS.values():
        assert cls.__doc__
        assert all(field.metadata.get("help") for field in dataclasses.fields(cls))


def test_an_unknown_handler_is_an_error_a_person_can_read() -> None:
    with pytest.raises(UpkeepError, match='unknown handler "rm"'):
        make("rm", {}, tools(Told()))


def test_notify_tells_and_changes_nothing() -> None:
    told = Told()
    handler = make("notify", {"message": "the cache does not shrink"}, tools(told))
    assert handler.harmless
    plan = asyncio.run(handler.plan(0.0))
    assert told.messages == []
    outcome = asyncio.run(handler.apply(plan))
    assert told.messages == ["the cache does not shrink"]
    assert [item.result for item in outcome.items] == ["done"]


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(UpkeepError, match="empty"):
        make("notify", {"message": " "}, tools(Told()))


def test_report_is_written_by_the_edge_and_named_in_the_outcome() -> None:
    handler = make("report", {"period": "daily"}, tools(Told()))
    outcome = asyncio.run(handler.apply(asyncio.run(handler.plan(0.0))))
    assert (handler.resource(), outcome.text) == ("report:daily", "/reports/daily.html")


def test_the_journal_logs_a_message_in_one_line_and_records_it(caplog: pytest.LogCaptureFixture) -> None:
    recorded: list[Event] = []

    async def record(events: Sequence[Event]) -> None:
        recorded.extend(events)

    with caplog.at_level(logging.WARNING):
        asyncio.run(Journal(record, ManualClock(wall=5.0)).notify("two\nlines"))
    assert recorded == [Event("notification", Severity.WARNING, "two\nlines", "notify", 5.0)]
    assert caplog.messages == [r"notify message='two\nlines'"]
