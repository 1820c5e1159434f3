"""Watching a migration at its source: events, figures, and the rules of the plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from qemu_ring._compat import timeout as deadline
from qemu_ring.dirty import StallWatch
from qemu_ring.machine import Machine
from qemu_ring.migration.downtime import Moment
from qemu_ring.migration.engine.outcome import is_in_postcopy
from qemu_ring.migration.engine.steering import Steering
from qemu_ring.migration.goal import GoalAction, GoalOutcome
from qemu_ring.migration.plan import MigrationPlan, Postcopy
from qemu_ring.migration.timeline import Sample, TimelineRecorder
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    DisconnectedError,
    Event,
    MigrationInfo,
    MigrationStatus,
    QmpError,
    commands,
)
from qemu_ring.tasks import stopped

__all__ = ["SourceWatch"]

_SWITCH_SECONDS = 5.0
"""Until postcopy has switched over when told to, unless its channel is stuck."""
_POLL_SECONDS = 0.005
_STALL_SECONDS = 0.5
"""Between two looks at whether the vCPUs run."""
_EVENTS = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
_SWITCHOVER_STATES = {"finish-migrate", "postmigrate", "colo"}
"""Run states of a guest that its migration stopped, and nobody else."""


class SourceWatch:
    """Follows one migration from before its start; an async context manager.

    Attributes:
        status: the source's, from its events.
        info: its last reply to query-migrate.
        recorder: the timeline so far.
        failure: what ended the watch other than the migration's end, be it the source's loss
            or an exception of `on_sample`; None as a rule.
        is_silent: whether the source did not answer when asked last.
        abort_reason: which rule had it cancelled, in words; empty if none had.
        stopped_at: when the migration stopped the guest; None if it did not, or that was missed.
        started_at, ended_at: of the migration.
        switched_to_postcopy: whether it came to that.
        pauses: how often postcopy lost its channel.
        was_running: whether the guest ran until the migration stopped it.
        stalled: numbers of vCPUs that KVM did not let run, as `StallWatch` finds them.
        suspended: whether the rules of the plan do not count now.
    """

    def __init__(
        self,
        machine: Machine,
        plan: MigrationPlan,
        sample_seconds: float,
        on_sample: Callable[[Sample], None] | None,
        on_connected: Callable[[], None],
        steering: Steering | None = None,
        on_cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._source = machine.monitor
        self._steering = steering
        self._plan = plan
        self._sample_seconds = sample_seconds
        self._on_sample = on_sample
        self._on_connected = on_connected
        self._on_cancel = on_cancel
        self._events = self._source.events(*_EVENTS)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._busy = False
        self._begun = False
        self._cancel_asked = False
        self._held_back = False
        self._switch_asked_at: float | None = None
        self._let_through = False
        self._passes = 0
        self._least_remaining: int | None = None
        self._passes_without_progress = 0
        self.status = MigrationStatus.NONE
        self.info = MigrationInfo()
        self.started_at = self.ended_at = time.monotonic()
        self.recorder = TimelineRecorder(self.started_at)
        self.failure: Exception | None = None
        self.is_silent = False
        self.abort_reason = ""
        self.stopped_at: Moment | None = None
        self.switched_to_postcopy = False
        self.pauses = 0
        self.was_running = True
        self.stalled: tuple[int, ...] = ()
        self._stalls = StallWatch()
        self._stalls_due = 0.0
        self.suspended = False
        self._suspended_seconds = 0.0

    async def __aenter__(self) -> SourceWatch:
        self.was_running = (await commands.query_status(self._source)).running
        self._events.__enter__()
        self._task = asyncio.create_task(self._run(), name="migration watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        try:
            await stopped(self._task)
            if self._looking is not None:
                await stopped(self._looking)
        finally:
            self._events.__exit__(kind, error, traceback)

    @property
    def over(self) -> bool:
        """Whether the migration has ended, or cannot be watched any more."""
        return self.failure is not None or self.status.is_final

    @property
    def completed(self) -> bool:
        """Whether all has been sent."""
        return self.status is MigrationStatus.COMPLETED

    @property
    def is_pre_switchover(self) -> bool:
        """Whether it waits to be let through."""
        return self.status is MigrationStatus.PRE_SWITCHOVER

    @property
    def is_paused(self) -> bool:
        """Whether postcopy lost its channel, and waits for another."""
        return self.status is MigrationStatus.POSTCOPY_PAUSED

    @property
    def in_postcopy(self) -> bool:
        """Whether the guest has moved before its memory, be it paused or not."""
        return is_in_postcopy(self.status)

    @property
    def settled(self) -> bool:
        """Whether it makes no further pass by itself."""
        return self.over or self.is_pre_switchover or self.in_postcopy

    @property
    def cancelled(self) -> bool:
        """Whether it ended because it was to.

        QEMU shuts the channel down before it notes why, and may then call it failed.
        """
        return self.status is MigrationStatus.CANCELLED or (
            self._cancel_asked and self.status is MigrationStatus.FAILED
        )

    async def find_status(self) -> MigrationStatus:
        """Ask which state it is in, once it is not about to switch over to postcopy.

        To cancel it at that moment would lose the guest. No switchover is begun from now on. A
        channel that is stuck keeps it from that; it is not waited for.
        """
        self._held_back = True
        stuck = time.monotonic() + _SWITCH_SECONDS
        while True:
            status = (await self._ask()).status or MigrationStatus.NONE
            if not self._may_switch(status) or time.monotonic() > stuck:
                return status
            await asyncio.sleep(_POLL_SECONDS)

    async def end(self) -> MigrationStatus:
        """Cancel it, and wait until it is over; asks, because there may be nobody who watches."""
        await self._cancel()
        while True:
            status = (await self._ask()).status
            if status is not None and status.is_final:
                await self.until(lambda: self.over)
                return status
            await asyncio.sleep(_POLL_SECONDS)

    async def start_postcopy(self) -> None:
        """Ask for the switchover to postcopy."""
        # Before it is sent: when cancelled, it may be carried out all the same.
        self._switch_asked_at = time.monotonic()
        try:
            await commands.migrate_start_postcopy(self._source)
        except CommandError:
            self._switch_asked_at = None
            raise

    async def let_through(self) -> None:
        """Let a switchover that waits go on; no error if it has gone on already."""
        self._let_through = True
        try:
            await commands.migrate_continue(self._source, MigrationStatus.PRE_SWITCHOVER)
        except CommandError:
            await self.refresh()
            if self.info.status is MigrationStatus.PRE_SWITCHOVER:
                raise

    def has_passes(self, count: int) -> bool:
        """Whether more than so many passes have ended."""
        return len(self.recorder.timeline.iterations) > count

    def resumed(self, seconds: float) -> None:
        """Have the rules of the plan count again, without so many seconds."""
        self.suspended = False
        self._suspended_seconds += seconds
        if self._steering is not None:
            self._steering.convergence.resumed(seconds)

    def goal_outcome(self, seconds: float, downtime: float | None) -> GoalOutcome | None:
        """Whether the plan's goal was kept, with these times; None if it has none."""
        if self._steering is None:
            return None
        return self._steering.convergence.outcome(seconds, downtime)

    async def refresh(self) -> None:
        """Ask again, because QEMU adds up the totals only after it calls it completed."""
        self.info = await self._ask()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until it is so, and all that was told until then is on record; no deadline."""
        while self._busy or not predicate():
            self._changed.clear()
            await self._changed.wait()

    async def _ask(self) -> MigrationInfo:
        return await commands.query_migrate(self._source)

    async def _cancel(self) -> None:
        self._cancel_asked = True
        self._on_cancel()
        await commands.migrate_cancel(self._source)

    def _may_switch(self, status: MigrationStatus) -> bool:
        """Whether postcopy was told to switch over, and may do so at any moment in this state."""
        if self._switch_asked_at is None:
            return False
        if status is MigrationStatus.PRE_SWITCHOVER:
            return self._let_through
        return status in (MigrationStatus.ACTIVE, MigrationStatus.DEVICE)

    async def _run(self) -> None:
        try:
            while not self.over:
                try:
                    event = await self._next()
                    self._busy = True
                    await self._take(event)
                    self.is_silent = False
                except CommandTimeoutError:  # it hangs, which is not its end
                    self.is_silent = True
                except DisconnectedError:
                    if not await self._regained():
                        raise
                self._end_passes()
                self._busy = False
                self._changed.set()
        except Exception as error:  # noqa: BLE001 - of `on_sample`, too; whoever waits is told
            self.failure = error
        finally:
            self._busy = False
            self._changed.set()

    async def _regained(self) -> bool:
        """Go on by a new connection, if there can be one. What came meanwhile is missed."""
        if not await self._machine.regain():
            return False
        with suppress(QmpError):  # lost again: the next event tells
            self._events.__exit__(None, None, None)
            self._events = self._source.events(*_EVENTS)
            self._events.__enter__()
            if self._looking is not None:
                self._looking.cancel()
                self._looking = None
            self.info = await self._ask()
            status = self.info.status or MigrationStatus.NONE
            if status is not MigrationStatus.NONE and status is not self.status:
                self._enter(status, time.monotonic(), missed=True)
            if status is MigrationStatus.ACTIVE:  # what was asked for may not have been heard
                self._switch_asked_at, self.abort_reason, self._cancel_asked = None, "", False
        return True

    async def _take(self, event: Event | None) -> None:
        if event is not None:
            self._note(event)
        if self._begun:
            if event is None or event.name == "MIGRATION_PASS" or self.settled:
                await self._sample()
            if self._looking is not None and (self.settled or self._looking.done()):
                looking, self._looking = self._looking, None
                await looking
            await self._apply_rules()

    async def _look_who_stopped_it(self, event: Event) -> None:
        with suppress(QmpError):  # one that is gone, or hangs, is noticed by those who follow it
            state = (await commands.query_status(self._source)).status
            if state in _SWITCHOVER_STATES:
                self.was_running, self.stopped_at = True, Moment(event, self._machine)
            else:
                self.was_running = state == "running"

    async def _next(self) -> Event | None:
        """The next event; None when it is time for a sample."""
        clock = deadline(self._sample_seconds)
        try:
            async with clock:
                return await anext(self._events)
        except TimeoutError:
            if not clock.expired():
                raise
        return None

    def _note(self, event: Event) -> None:
        if event.name == "STOP":
            # Not waited for: the figures of a last pass are to be had only right now.
            look = self._look_who_stopped_it(event)
            self._looking = asyncio.create_task(look, name="who stopped it")
        elif event.name == "RESUME":
            self.was_running = True
            if self._looking is not None:
                self._looking.cancel()
                self._looking = None
        elif event.name == "MIGRATION_PASS":
            self._passes = int(event.data["pass"])
            self.recorder.begin(self._passes, event.arrived)
            # Postcopy's urgent channel is connected no sooner than at the switchover.
            if self._passes > 1 and self._plan.postcopy is None:
                self._on_connected()
        elif event.name == "MIGRATION":
            self._enter(MigrationStatus(event.data["status"]), event.arrived)

    def _enter(self, status: MigrationStatus, at: float, *, missed: bool = False) -> None:
        """Note that it is in another state; what it `missed` may be how it began."""
        if not self._begun and (missed or status is MigrationStatus.SETUP):
            self._begun, self.started_at = True, at
            self.recorder = TimelineRecorder(at)
        self.ended_at = at
        self.switched_to_postcopy |= is_in_postcopy(status)
        self.pauses += status is MigrationStatus.POSTCOPY_PAUSED
        self.status = status
        if self.over or self.status is MigrationStatus.POSTCOPY_ACTIVE:
            self._on_connected()

    async def _sample(self) -> None:
        self.info = await self._ask()
        sample = self.recorder.add(self.info)
        if sample is not None and self._on_sample is not None:
            self._on_sample(sample)
        if time.monotonic() >= self._stalls_due and not self.settled:
            self._stalls_due = time.monotonic() + _STALL_SECONDS
            found = await self._stalls.poll(self._source)
            self.stalled = tuple(sorted({*self.stalled, *found}))

    def _end_passes(self) -> None:
        if not self._begun:
            return
        passes_over = self.over or self.in_postcopy
        for iteration in self.recorder.end_passes(over=self.ended_at if passes_over else None):
            self._count_progress(iteration.remaining)

    def _count_progress(self, remaining: int | None) -> None:
        if remaining is None:
            return
        if self._least_remaining is None or remaining < self._least_remaining:
            self._least_remaining = remaining
            self._passes_without_progress = 0
        else:
            self._passes_without_progress += 1

    async def _apply_rules(self) -> None:
        """Switch to postcopy, keep to the goal, or abort, when the plan says so."""
        if self.settled or self._held_back or self.suspended:
            return
        if self.status is MigrationStatus.CANCELLING:
            return
        kind, asked = self._plan.kind, self._switch_asked_at
        if isinstance(kind, Postcopy) and asked is None and self._passes > kind.after_passes:
            with suppress(CommandError):  # it may have switched over by itself
                await self.start_postcopy()
            return
        if asked is not None and time.monotonic() < asked + _SWITCH_SECONDS:
            return
        reason = self._reason_to_abort() or await self._keep_to_goal()
        if reason and not self.abort_reason:
            self.abort_reason = reason
            await self._cancel()

    async def _keep_to_goal(self) -> str:
        """Do what is decided for the plan's goal; returns why it is to be given up, if it is."""
        sample = self.recorder.latest
        if self._steering is None or sample is None:
            return ""
        for decision in await self._steering.steer(sample):
            if decision.action is GoalAction.CANCEL:
                return decision.reason
            if decision.action is GoalAction.POSTCOPY:
                with suppress(CommandError):  # it may have switched over by itself
                    await self.start_postcopy()
        return ""

    def _reason_to_abort(self) -> str:
        rules = self._plan.abort
        seconds = time.monotonic() - self.started_at - self._suspended_seconds
        if rules.seconds is not None and seconds > rules.seconds:
            return f"it took longer than {rules.seconds:g} s"
        if rules.iterations is not None and self._passes > rules.iterations:
            return f"it made more than {rules.iterations} passes"
        limit = rules.no_progress_iterations
        if limit is not None and self._passes_without_progress >= limit:
            return f"{limit} passes in a row had no less to send"
        return ""
