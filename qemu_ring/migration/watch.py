"""Watching a migration at its source: events, figures, and the rules of the plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import QemuRingError
from qemu_ring.migration.plan import MigrationPlan, Postcopy
from qemu_ring.migration.timeline import Sample, TimelineRecorder
from qemu_ring.qmp import CommandError, Event, MigrationInfo, MigrationStatus, Monitor, commands

__all__ = ["Watch"]

_POSTCOPY = {
    MigrationStatus.POSTCOPY_DEVICE,
    MigrationStatus.POSTCOPY_ACTIVE,
    MigrationStatus.POSTCOPY_RECOVER_SETUP,
    MigrationStatus.POSTCOPY_RECOVER,
}


class Watch:
    """Follows one migration from before its start; an async context manager.

    Attributes:
        status: the source's, from its events.
        info: its last reply to query-migrate.
        recorder: the timeline so far.
        failure: what ended the watch other than the migration's end; None as a rule.
        abort_reason: which rule had it cancelled, in words; empty if none had.
        stopped_at: when the source's guest stopped last, host monotonic clock.
        started_at, ended_at: of the migration.
        switched_to_postcopy: whether it came to that.
        pauses: how often postcopy lost its channel.
        was_running: whether the guest ran at the start.
    """

    def __init__(
        self,
        source: Monitor,
        plan: MigrationPlan,
        sample_seconds: float,
        on_sample: Callable[[Sample], None] | None,
        on_connected: Callable[[], None],
    ) -> None:
        self._source = source
        self._plan = plan
        self._sample_seconds = sample_seconds
        self._on_sample = on_sample
        self._on_connected = on_connected
        self._events = source.events("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._begun = False
        self._cancel_asked = False
        self._passes = 0
        self._least_remaining: int | None = None
        self._passes_without_progress = 0
        self.status = MigrationStatus.NONE
        self.info = MigrationInfo()
        self.started_at = self.ended_at = time.monotonic()
        self.recorder = TimelineRecorder(self.started_at)
        self.failure: QemuRingError | None = None
        self.abort_reason = ""
        self.stopped_at: float | None = None
        self.switched_to_postcopy = False
        self.pauses = 0
        self.was_running = True

    async def __aenter__(self) -> Watch:
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
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
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
    def in_postcopy_running(self) -> bool:
        """Whether the guest has moved, and its memory follows."""
        return self.status in _POSTCOPY

    @property
    def in_postcopy(self) -> bool:
        """Whether the guest has moved before its memory, be it paused or not."""
        return self.in_postcopy_running or self.status is MigrationStatus.POSTCOPY_PAUSED

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

    async def cancel(self) -> None:
        """Ask for the migration's end."""
        self._cancel_asked = True
        await commands.migrate_cancel(self._source)

    def has_passes(self, count: int) -> bool:
        """Whether more than so many passes have ended."""
        return len(self.recorder.timeline.iterations) > count

    async def refresh(self) -> None:
        """Ask again, because QEMU adds up the totals only after it calls it completed."""
        self.info = await commands.query_migrate(self._source)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until it is so, and all that was told until then is on record; no deadline."""
        while self._busy or not predicate():
            self._changed.clear()
            await self._changed.wait()

    async def _run(self) -> None:
        try:
            while not self.over:
                event = await self._next()
                self._busy = True
                if event is not None:
                    self._note(event)
                if self._begun:
                    await self._sample(asked=event is None or event.name == "MIGRATION_PASS")
                    await self._apply_rules()
                self._busy = False
                self._changed.set()
        except QemuRingError as error:
            self.failure = error
        finally:
            self._busy = False
            self._changed.set()

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
            self.stopped_at = event.arrived
        elif event.name == "MIGRATION_PASS":
            self._passes = int(event.data["pass"])
            self.recorder.begin(self._passes, event.arrived)
            # Postcopy's urgent channel is connected no sooner than at the switchover.
            if self._passes > 1 and not isinstance(self._plan.kind, Postcopy):
                self._on_connected()
        elif event.name == "MIGRATION":
            status = MigrationStatus(event.data["status"])
            if not self._begun and status is MigrationStatus.SETUP:
                self._begun, self.started_at = True, event.arrived
                self.recorder = TimelineRecorder(event.arrived)
            self.ended_at = event.arrived
            self.switched_to_postcopy |= status in _POSTCOPY
            self.pauses += status is MigrationStatus.POSTCOPY_PAUSED
            self.status = status
            if self.over or self.status is MigrationStatus.POSTCOPY_ACTIVE:
                self._on_connected()

    async def _sample(self, *, asked: bool) -> None:
        if asked or self.settled:
            self.info = await commands.query_migrate(self._source)
            sample = self.recorder.add(self.info)
            if sample is not None and self._on_sample is not None:
                self._on_sample(sample)
        passes_over = self.over or self.in_postcopy
        ended = self.recorder.end_passes(over=self.ended_at if passes_over else None)
        for iteration in ended:
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
        """Switch to postcopy, or abort, when the plan says so."""
        if self.settled or self.status is MigrationStatus.CANCELLING:
            return
        kind = self._plan.kind
        if isinstance(kind, Postcopy) and self._passes > kind.after_passes:
            with suppress(CommandError):  # it may have switched over by itself
                await commands.migrate_start_postcopy(self._source)
            return
        reason = self._reason_to_abort()
        if reason and not self.abort_reason:
            self.abort_reason = reason
            await self.cancel()

    def _reason_to_abort(self) -> str:
        rules = self._plan.abort
        seconds = time.monotonic() - self.started_at
        if rules.seconds is not None and seconds > rules.seconds:
            return f"it took longer than {rules.seconds:g} s"
        if rules.iterations is not None and self._passes > rules.iterations:
            return f"it made more than {rules.iterations} passes"
        limit = rules.no_progress_iterations
        if limit is not None and self._passes_without_progress >= limit:
            return f"{limit} passes in a row had no less to send"
        return ""
