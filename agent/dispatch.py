"""Carry out what the ledger asks for: brakes → plan → intent → apply → outcome → verify → next rung.

An action is self-contained data in the ledger, so a crash at any instant loses nothing: what was only asked for is
still asked for, what was running is closed as interrupted and planned afresh, what was being verified is verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent import faultpoint, guards
from agent.alerting import OnMissing
from agent.clock import Clock
from agent.config import RemediationConfig
from agent.engine import Engine
from agent.errors import ExpressionError, StoreError, UpkeepError
from agent.guards import Situation
from agent.handlers import Handler, Tools, make
from agent.model import (
    Action,
    ActionStatus,
    Alert,
    AlertState,
    Event,
    Mode,
    Outcome,
    Plan,
    Series,
    Severity,
    Verdict,
)
from agent.promql.nodes import Binary
from agent.rulefile import AlertRule
from agent.silencing import firing_labels, quiet_reason
from agent.store import Circuit, Ledger, Past

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How often an action held back by a waiting brake is asked again."""
PLAN_DEADLINE_S = 900.0
APPLY_DEADLINE_S = 900.0
VERIFY_EVERY_S = 5.0
MAX_ATTEMPTS = 3
CIRCUIT_OPENS_AFTER = 2
CIRCUIT_MEMORY_S = 7 * 86400.0
HOUR_S = 3600.0

_NOT_BEGUN = (ActionStatus.REQUESTED, ActionStatus.AWAITING_APPROVAL)
_STRICTEST_FIRST = (Mode.OBSERVE, Mode.ASK, Mode.ACT)


@dataclass(frozen=True, slots=True)
class Brakes:
    """What the brakes need to know of the world outside the ledger."""

    limits: RemediationConfig
    mode: Mode
    paused: Callable[[], bool]
    host_busy: Callable[[], bool] = lambda: False
    observing: Callable[[], bool] = lambda: False
    """Whether nothing is carried out, whatever mode a rule has: a restored ledger is to be looked at first."""


class Dispatch:
    """Carries out requested actions, one change at a time on the whole host.

    Parameters
    ----------
    ledger
        Where actions are asked for and recorded.
    engine
        Asked whether an alert still stands, before acting and to verify.
    tools
        The edges that handlers work through.
    collect_now
        Re-measures the named metrics and returns the instant: a repair is proven by a fresh sample, never by an old
        one.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        engine: Engine,
        tools: Tools,
        brakes: Brakes,
        clock: Clock,
        collect_now: Callable[[frozenset[str]], Awaitable[float]],
        record: Callable[[list[Event]], Awaitable[None]],
        finished: Callable[[Action], None],
        progress: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._tools = tools
        self._brakes = brakes
        self._clock = clock
        self._collect_now = collect_now
        self._record = record
        self._finished = finished
        self._progress = progress
        self._wake = asyncio.Event()
        # Whoever carries out holds it: a round and a person's request must not both find the same action not begun.
        self._turn = asyncio.Lock()
        self._locked: set[str] = set()
        self.verifying: set[asyncio.Task[None]] = set()
        """Verifications under way; each ends by itself."""

    def wake(self) -> None:
        """Something was asked for."""
        self._wake.set()

    async def recover(self) -> None:
        """Close what a crash left behind: a running action is interrupted, never assumed done nor repeated blindly."""
        for action in await self._ledger.open_actions():
            if action.status is ActionStatus.RUNNING:
                await self._interrupted(action)
            elif action.status is ActionStatus.VERIFYING:
                self._start_verifying(action)

    async def run(self) -> None:
        """Carry out for ever."""
        try:
            while True:
                waiting = await self.round()
                self._progress()
                # wait_for would lose a cancellation that comes with a wake-up, and the agent would never stop.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S if waiting else 30.0):
                        await self._wake.wait()
                self._wake.clear()
        except asyncio.CancelledError:  # after a crash it is run again, and verifications go on meanwhile
            for task in self.verifying:
                task.cancel()
            await asyncio.gather(*self.verifying, return_exceptions=True)
            raise

    async def once(self) -> None:
        """Carry out what is open and wait until it is verified, for ``upkeep run --once``."""
        await self.recover()
        await self.round()
        while self.verifying:
            await asyncio.wait(self.verifying)
            await self.round()

    async def carry_out(self, action: Action) -> Action:
        """Carry out one action that a person asked for and wait for its end; it must be in the ledger already."""
        async with self._turn:
            current = await self._ledger.action(action.id)
            if current is not None and current.status in _NOT_BEGUN:
                await self._advance(current)
        current = await self._ledger.action(action.id)
        while current is not None and current.status is ActionStatus.VERIFYING and self.verifying:
            await asyncio.wait(self.verifying, return_when=asyncio.FIRST_COMPLETED)
            current = await self._ledger.action(action.id)
        return current or action

    # -- one action --

    async def round(self) -> bool:
        """Advance every open action once; whether any is left waiting."""
        waiting = False
        async with self._turn:
            for action in await self._ledger.open_actions():
                self._progress()
                if action.status in _NOT_BEGUN:
                    waiting |= await self._advance(action)
        return waiting

    async def _advance(self, action: Action) -> bool:
        """One action as far as it goes now, whatever breaks; whether it is left waiting."""
        try:
            return await self._consider(action)
        except StoreError as error:
            log.error("ledger_unwritable action=%d error=%s", action.id, error)
            return True
        except Exception as error:
            # Parameters that no rule file could hold, a handler's own fault: it must not keep all others from acting.
            log.exception("action_crashed id=%d", action.id)
            await self._failed_to_plan(action, repr(error))
            return False

    async def _consider(self, action: Action) -> bool:
        try:
            handler = make(action.handler, action.params, self._tools)
        except UpkeepError as error:
            await self._close(action, ActionStatus.REFUSED, "bad_parameters", error=str(error))
            return False
        action = dataclasses.replace(action, resource=_resource(action, handler))
        if not self._still_wanted(action):
            await self._close(action, ActionStatus.REFUSED, "alert_cleared")
            return False
        situation = await self._situation(action, handler)
        reason = guards.first_reason(situation)
        if reason in guards.WAITING:
            await self._wait(action, reason)
            return True
        try:
            plan = await self._plan(handler)
        except UpkeepError as error:
            await self._failed_to_plan(action, str(error))
            return False
        plan = _cut(plan, self._brakes.limits)
        reason = reason or guards.plan_reason(plan, self._brakes.limits.limits.percent_per_action)
        if reason:
            await self._held(dataclasses.replace(action, plan=plan), reason)
            return False
        await self._act(action, handler, plan)
        return False

    async def _plan(self, handler: Handler) -> Plan:
        try:
            async with asyncio.timeout(PLAN_DEADLINE_S):
                return await handler.plan(self._clock.wall())
        except TimeoutError:
            raise UpkeepError(f"cannot plan: no end within {PLAN_DEADLINE_S:.0f} s") from None

    async def _act(self, action: Action, handler: Handler, plan: Plan) -> None:
        """INTENT → apply → OUTCOME; the intent is on disk before anything is touched."""
        faultpoint.reach("intent_before")
        running = dataclasses.replace(
            action, status=ActionStatus.RUNNING, reason="", plan=plan, started_at=self._clock.wall()
        )
        try:
            await self._ledger.save_action(running)
        except StoreError as error:
            log.error("ledger_unwritable action=%d error=%s", action.id, error)
            return
        faultpoint.reach("intent_after")
        log.info("action_started id=%d handler=%s plan=%s", action.id, action.handler, plan.summary)
        self._progress()
        outcome = await self._apply(handler, plan)
        verifying = dataclasses.replace(running, status=ActionStatus.VERIFYING, outcome=outcome)
        await self._save(verifying)
        faultpoint.reach("outcome_after")
        self._start_verifying(verifying)

    async def _apply(self, handler: Handler, plan: Plan) -> Outcome:
        try:
            async with asyncio.timeout(APPLY_DEADLINE_S):
                return await handler.apply(plan)
        except TimeoutError:
            return Outcome(error=f"did not end within {APPLY_DEADLINE_S:.0f} s and was abandoned")
        except UpkeepError as error:
            return Outcome(error=str(error))
        except Exception as error:
            # A handler's own fault is this action's failure, never the end of all acting.
            log.exception("handler_crashed resource=%s", plan.resource)
            return Outcome(error=repr(error))

    async def _wait(self, action: Action, reason: str) -> None:
        """Leave an action open, and say why once, not each time it is asked again."""
        asks = reason == "awaiting_approval"
        status = ActionStatus.AWAITING_APPROVAL if asks else ActionStatus.REQUESTED
        if action.reason == reason and action.status is status:
            return
        plan = action.plan
        if asks and plan is None:
            handler = make(action.handler, action.params, self._tools)
            with contextlib.suppress(UpkeepError):
                plan = await self._plan(handler)
        log.info("action_waits id=%d handler=%s reason=%s", action.id, action.handler, reason)
        await self._ledger.save_action(dataclasses.replace(action, status=status, reason=reason, plan=plan))

    async def _held(self, action: Action, reason: str) -> None:
        """A final reason: observed or refused, and the next rung's turn."""
        following = self._next_rung(action)
        if reason == "observe_mode":
            await self._close(action, ActionStatus.OBSERVED, reason, following=following)
        elif reason == "nothing_to_do":
            await self._close(action, ActionStatus.DONE, reason, verdict=Verdict.NO_EFFECT, following=following)
        else:
            await self._close(action, ActionStatus.REFUSED, reason, following=following)

    async def _failed_to_plan(self, action: Action, why: str) -> None:
        following = self._next_rung(action)
        failed = Verdict.FAILED
        await self._close(action, ActionStatus.DONE, "plan_failed", verdict=failed, error=why, following=following)

    async def _interrupted(self, action: Action) -> None:
        """After a crash: plan afresh where repeating is harmless, else leave it to the next rung."""
        following = self._next_attempt(action) or self._next_rung(action)
        await self._close(action, ActionStatus.INTERRUPTED, "agent_stopped_while_running", following=following)

    def _next_attempt(self, action: Action) -> Action | None:
        # Who asked by hand may have stopped it by hand, and asks again if it is still wanted.
        if action.attempt >= MAX_ATTEMPTS or _by_person(action):
            return None
        try:
            if not make(action.handler, action.params, self._tools).idempotent:
                return None
        except UpkeepError:
            return None  # of another version, which knew this handler
        return dataclasses.replace(
            action,
            id=0,
            attempt=action.attempt + 1,
            status=ActionStatus.REQUESTED,
            reason="",
            plan=None,
            outcome=None,
            started_at=None,
            finished_at=None,
            requested_at=self._clock.wall(),
        )

    # -- verification --

    def _start_verifying(self, action: Action) -> None:
        self._locked.add(action.resource)
        task = asyncio.create_task(self._verify(action))
        self.verifying.add(task)
        task.add_done_callback(self.verifying.discard)

    async def _verify(self, action: Action) -> None:
        try:
            faultpoint.reach("verify_before")
            try:
                verdict, reason = await self._verdict(action)
            except Exception:
                log.exception("verification_crashed action=%d", action.id)
                verdict, reason = Verdict.FAILED, "not_verified"
            following = None if verdict is Verdict.FIXED else self._next_rung(action)
            await self._close(action, ActionStatus.DONE, reason, verdict=verdict, following=following)
            await self._count(action, verdict)
        except StoreError as error:
            log.error("ledger_unwritable action=%d error=%s", action.id, error)
        finally:
            self._locked.discard(action.resource)

    async def _verdict(self, action: Action) -> tuple[Verdict | None, str]:
        """What the action achieved: asked of the alert's own expression, on samples taken after the change."""
        outcome = action.outcome or Outcome()
        if outcome.error:
            return Verdict.FAILED, "apply_failed"
        if make(action.handler, action.params, self._tools).harmless:
            return None, ""
        rule = self._engine.rule_named(action.rule, action.labels) if action.rule else None
        if rule is None:
            done = any(item.result == "done" for item in outcome.items)
            return (Verdict.FIXED if done else Verdict.NO_EFFECT), ""
        return await self._ask_rule(rule, action)

    async def _ask_rule(self, rule: AlertRule, action: Action) -> tuple[Verdict, str]:
        within = _verify_within(rule, action)
        deadline = self._clock.boot() + within
        alert = self._engine.alert(rule.name, action.labels)
        before = alert.value if alert else None
        value: float | None = None
        known = False
        while True:
            at = await self._collect_now(rule.metrics)
            try:
                value, known = await self._engine.verify(action.rule, action.labels, at), True
            except ExpressionError as error:
                log.info("verification_waits action=%d why=%s", action.id, error)
            if known and value is None:
                self._engine.wake(rule.metrics)
                return Verdict.FIXED, ""
            remaining = deadline - self._clock.boot()
            if remaining <= 0:
                break
            await asyncio.sleep(min(VERIFY_EVERY_S, remaining))
        if not known or value is None:
            return Verdict.NO_EFFECT, "not_verified"
        return (Verdict.WORSE if _is_worse(rule, before, value) else Verdict.NO_EFFECT), ""

    async def _count(self, action: Action, verdict: Verdict | None) -> None:
        """Two in a row that did not help open the circuit of this handler on this resource."""
        if verdict is Verdict.FIXED or verdict is None:
            return
        past = await self._ledger.past_actions(within_s=CIRCUIT_MEMORY_S)
        judged = [each.verdict for each in past if _same_work(each, action) and each.verdict is not None]
        if len(judged) < CIRCUIT_OPENS_AFTER or Verdict.FIXED in judged[:CIRCUIT_OPENS_AFTER]:
            return
        now = self._clock.wall()
        why = f"{action.handler} on {action.resource} did not help {CIRCUIT_OPENS_AFTER} times in a row"
        await self._ledger.open_circuit(Circuit(action.handler, action.resource, now, why))
        message = (
            f"circuit opened: {why}; when you know the cause: upkeep circuit close {action.handler}:{action.resource}"
        )
        await self._record([Event("circuit_opened", Severity.ERROR, message, "dispatch", now)])

    def _next_rung(self, action: Action) -> Action | None:
        """One rung up, unless the alert has cleared meanwhile. The last rung is a person's."""
        alert = self._alert_of(action)
        rule = self._engine.rule_named(action.rule, action.labels) if action.rule else None
        if rule is None or alert is None:
            return None
        following = self._engine.request(rule, alert, action.step + 1, self._clock.wall())
        if following is None:
            log.warning("ladder_ended rule=%s labels=%s", action.rule, dict(action.labels))
        return following

    async def _close(
        self,
        action: Action,
        status: ActionStatus,
        reason: str,
        *,
        verdict: Verdict | None = None,
        error: str = "",
        following: Action | None = None,
    ) -> None:
        """End an action and ask for what follows it, in one commit: no crash comes between the two."""
        outcome = action.outcome or (Outcome(error=error) if error else None)
        closed = dataclasses.replace(
            action, status=status, reason=reason, verdict=verdict, outcome=outcome, finished_at=self._clock.wall()
        )
        requests = [following] if following else []
        if action.status is ActionStatus.VERIFYING:
            await self._save(closed, requests)
        else:
            await self._ledger.save_action(closed, requests)
        if requests:
            self._wake.set()
        freed = outcome.bytes_freed if outcome else 0
        log.info(
            "action_%s id=%d handler=%s resource=%s outcome=%s reason=%s bytes_freed=%d",
            status, action.id, action.handler, action.resource, verdict or "-", reason or "-", freed,
        )  # fmt: skip
        self._finished(closed)

    async def _save(self, action: Action, requests: Sequence[Action] = ()) -> None:
        """Commit what was done, however long the ledger cannot be written: it has happened and must be known."""
        refused = False
        while True:
            try:
                return await self._ledger.save_action(action, requests)
            except StoreError as error:
                if not refused:
                    log.error("ledger_unwritable action=%d error=%s", action.id, error)
                refused = True
            self._progress()
            await asyncio.sleep(RETRY_S)

    # -- what the brakes look at --

    def _still_wanted(self, action: Action) -> bool:
        """Whether the alert behind an action still fires; a job's or a person's action always is wanted."""
        return not action.rule or self._alert_of(action) is not None

    def _alert_of(self, action: Action) -> Alert | None:
        """The firing alert behind an action; one whose data went missing counts as none unless missing is its cause.

        An alert that has ended and fires again asks for an action of its own.
        """
        alert = self._engine.alert(action.rule, action.labels)
        if alert is None or (alert.state, alert.fired_at) != (AlertState.FIRING, action.fired_at):
            return None
        return alert if not alert.missing or self._fires_on_missing(action) else None

    def _fires_on_missing(self, action: Action) -> bool:
        rule = self._engine.rule_named(action.rule, action.labels)
        return rule is not None and rule.timing.on_missing is OnMissing.FIRE

    async def _quiet_reason(self, action: Action, now: float) -> str:
        silences, firing = await self._ledger.silences(now), firing_labels(self._engine.alerts())
        return quiet_reason(silences, self._engine.rules.inhibitions, action.rule, action.labels, firing, now)

    async def _situation(self, action: Action, handler: Handler) -> Situation:
        rule = self._engine.rule_named(action.rule, action.labels) if action.rule else None
        fix = rule.remediation if rule else None
        config, now = self._brakes.limits, self._clock.wall()
        quiet = await self._quiet_reason(action, now) if rule else ""
        limit = fix.limit if fix else None
        past = await self._ledger.past_actions(
            within_s=max(HOUR_S, limit.per_s if limit else 0.0, fix.cooldown_s if fix else 0.0)
        )
        others = [each for each in past if each.id != action.id]
        same = [each.age_s for each in others if _same_work(each, action)]
        # A ladder's first rung waits for the cooldown and counts against the rule's limit; the rungs above follow it.
        first_rung = action.step == 0
        return Situation(
            paused=self._brakes.paused(),
            # A ladder begun in one mode goes on in it, but a brake put on meanwhile holds at once.
            mode=Mode.OBSERVE
            if self._brakes.observing()
            else min(action.mode, (fix.mode if fix else None) or self._brakes.mode, key=_STRICTEST_FIRST.index),
            approved=bool(action.extra.get("approved")),
            by_person=_by_person(action),
            harmless=handler.harmless,
            handler_disabled=action.handler in config.disabled_handlers,
            since_boot_s=self._clock.boot(),
            boot_grace_s=config.boot_grace,
            silenced=quiet == "silenced",
            inhibited=quiet == "inhibited",
            host_busy=handler.waits_for_idle_host and self._brakes.host_busy(),
            since_last_s=min(same, default=None),
            cooldown_s=fix.cooldown_s if fix and first_rung else 0.0,
            in_last_hour=sum(each.handler == action.handler and each.age_s < HOUR_S for each in others),
            actions_per_hour=config.limits.actions_per_hour,
            in_limit_period=sum(each.rule == action.rule and each.age_s < limit.per_s for each in others)
            if limit and first_rung
            else 0,
            limit=limit,
            circuit_open=any(_same_work(circuit, action) for circuit in await self._ledger.circuits()),
            locked=action.resource in self._locked,
        )


def _resource(action: Action, handler: Handler) -> str:
    """The key of an action's lock, cooldown and circuit. What tells a person is counted for each alert of its own."""
    if handler.harmless and action.rule:
        return f"{handler.resource()} {Series(action.rule, action.labels)}"
    return handler.resource()


def _by_person(action: Action) -> bool:
    return action.cause.startswith("person")


def _same_work(one: Past | Circuit, action: Action) -> bool:
    return one.handler == action.handler and one.resource == action.resource


def _verify_within(rule: AlertRule, action: Action) -> float:
    steps = rule.remediation.steps if rule.remediation else ()
    return steps[action.step].verify_within_s if action.step < len(steps) else VERIFY_EVERY_S


def _is_worse(rule: AlertRule, before: float | None, after: float) -> bool:
    """Whether the value moved further over the rule's own threshold; only a top-level ``<`` or ``>`` says which way."""
    node = rule.expr.node
    if before is None or not isinstance(node, Binary):
        return False
    if node.op in (">", ">="):
        return after > before
    return node.op in ("<", "<=") and after < before


def _cut(plan: Plan, limits: RemediationConfig) -> Plan:
    """A plan within the caps on files and bytes: what comes first stays, the rest waits for the next run."""
    kept, total = 0, 0
    for item in plan.items[: limits.limits.files_per_action]:
        if total + item.bytes > limits.limits.bytes_per_action:
            break
        kept, total = kept + 1, total + item.bytes
    if kept == len(plan.items):
        return plan
    return dataclasses.replace(plan, items=plan.items[:kept], summary=f"{plan.summary} (cut to {kept} items)")
