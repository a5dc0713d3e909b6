"""``report``: write a report, as a rung or on the calendar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from agent import specs
from agent.model import ItemResult, Outcome, Plan, PlanItem


class Report:
    """Has one report written."""

    idempotent: ClassVar[bool] = True
    harmless: ClassVar[bool] = True
    waits_for_idle_host: ClassVar[bool] = False

    def __init__(self, spec: specs.Report, write_report: Callable[[str], Awaitable[str]]) -> None:
        self._period = spec.period
        self._write_report = write_report

    def resource(self) -> str:
        return f"report:{self._period}"

    async def plan(self, at: float) -> Plan:
        return Plan("report", self.resource(), f"write the {self._period} report", (PlanItem("write", self._period),))

    async def apply(self, plan: Plan) -> Outcome:
        written = [await self._write_report(item.target) for item in plan.items]
        return Outcome(tuple(ItemResult(item.target, "done") for item in plan.items), text="\n".join(written))
