"""``notify``: tell a person. The last rung of most ladders."""

from __future__ import annotations

from typing import ClassVar

from agent import specs
from agent.model import ItemResult, Outcome, Plan, PlanItem
from agent.notifiers import Notifier


class Notify:
    """Sends one message through the notifier."""

    idempotent: ClassVar[bool] = True
    harmless: ClassVar[bool] = True
    waits_for_idle_host: ClassVar[bool] = False

    def __init__(self, spec: specs.Notify, notifier: Notifier) -> None:
        self._spec = spec
        self._notifier = notifier

    def resource(self) -> str:
        return "notify"

    async def plan(self, at: float) -> Plan:
        message = self._spec.message
        return Plan("notify", self.resource(), f"tell a person: {message}", (PlanItem("notify", message),))

    async def apply(self, plan: Plan) -> Outcome:
        for item in plan.items:
            await self._notifier.notify(item.target)
        return Outcome(tuple(ItemResult(item.target, "done") for item in plan.items))
