"""What follows once a migration is over: memory compared, the guest let go, the outcome told."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.machine import Machine
from qemu_ring.migration.channels.channel import Connection
from qemu_ring.migration.downtime import Downtime, GuestDowntime
from qemu_ring.migration.engine.destination import Receiver
from qemu_ring.migration.engine.idle import go_on_at_source
from qemu_ring.migration.engine.locked_memory import LOCK_ADVICE
from qemu_ring.migration.engine.outcome import find_outcome, is_in_postcopy
from qemu_ring.migration.engine.recovery import lost_channel
from qemu_ring.migration.engine.source import SourceWatch
from qemu_ring.migration.errors import (
    GuestAt,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
)
from qemu_ring.migration.plan import MigrationPlan
from qemu_ring.migration.result import MigrationResult, Totals
from qemu_ring.qmp import DisconnectedError, MigrationStatus, QmpError, commands
from qemu_ring.tasks import stopped, to_the_end
from qemu_ring.verify import Block, Comparison, compare

__all__ = ["Completion"]


class Completion:
    """Sees to it that a guest that is held goes on, whatever becomes of its verification.

    Args:
        source: the guest's former QEMU.
        watch: of the migration.
        plan: says where the guest goes on.
        blocks: memory to compare; empty for none.
        guest_downtime: waited for, if there is one.

    Attributes:
        receiver: the destination's; None while there is none.
    """

    def __init__(
        self,
        source: Machine,
        watch: SourceWatch,
        plan: MigrationPlan,
        blocks: Sequence[Block],
        guest_downtime: GuestDowntime | None,
    ) -> None:
        self.receiver: Receiver | None = None
        self._source = source
        self._watch = watch
        self._plan = plan
        self._blocks = blocks
        self._guest_downtime = guest_downtime
        self._comparison: Comparison | None = None
        self._problem = ""
        self._was_resumed = False
        self._is_to_go_on = not plan.leave_paused
        self._going_on = asyncio.Lock()

    @property
    def is_held(self) -> bool:
        """Whether the guest is paused when it has arrived, and not as its caller wants it."""
        return bool(self._blocks) and self._is_to_go_on

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Let a guest go on as soon as it is at a destination that does not do so by itself."""
        assert self.receiver is not None
        if self.is_held or not self._is_to_go_on or self.receiver.runs_by_itself:
            yield
            return
        task = asyncio.create_task(self._follow(), name="guest's resumption")
        try:
            yield
        finally:
            await stopped(task)

    async def conclude(self) -> MigrationResult:
        """See that the destination completes it, too; verify; let the guest go on.

        It may be called again if it was cancelled. It has no deadline of its own.

        Raises:
            MigrationError: the destination failed, or memory could not be compared.
        """
        watch, receiver = self._watch, self.receiver
        arrived = watch.ended_at
        if receiver is not None:
            try:
                await receiver.complete()
            except QemuRingError as error:
                raise await self._error(await receiver.failure(error)) from error
            at = receiver.arrived_at
            arrived = time.monotonic() if at is None else at.event.arrived
            await self._verify()
            try:
                await to_the_end(self._go_on())
                if self._was_resumed:
                    await receiver.resumed()
            except QemuRingError as error:
                raise await self._error(await receiver.failure(error)) from error
        with suppress(QmpError):  # the guest has moved: its former QEMU may go
            await watch.refresh()
        seconds = max(arrived, watch.ended_at) - watch.started_at
        downtime = await self._downtime()
        return MigrationResult(
            status=watch.status,
            kind=self._plan.kind_name,
            channel=self._plan.channel.words,
            seconds=seconds,
            switched_to_postcopy=watch.switched_to_postcopy,
            downtime=downtime,
            totals=Totals.of(watch.info),
            timeline=watch.recorder.timeline,
            comparison=self._comparison,
            outcome=await find_outcome(self._source, self._destination),
            goal=watch.goal_outcome(
                seconds,
                # Comparing memory is no part of what the goal allows.
                downtime.seconds if self._comparison is None else downtime.switchover_seconds,
            ),
            problem=self._problem,
            stalled=watch.stalled,
        )

    async def why_not_completed(self, connection: Connection | None) -> Exception:
        """Make the error that tells what became of a migration that is over, or is paused.

        Args:
            connection: by which it went; it may know why.
        """
        watch = self._watch
        if isinstance(watch.failure, QmpError):
            what = "the source is lost"
            lost = isinstance(watch.failure, DisconnectedError)
            if lost and not await self._source.has_ended():
                what = "the source's monitor is lost, and what became of its QEMU is not known"
            error = await self._error(f"{what}: {watch.failure.message}")
            error.__cause__ = watch.failure
            return error
        if watch.failure is not None:
            return watch.failure
        if watch.is_paused:
            return await lost_channel(self._source, self._destination)
        if watch.cancelled:
            if not watch.abort_reason:
                return await self._error("the migration was cancelled", MigrationCancelledError)
            words = f"the migration was aborted: {watch.abort_reason}"
            return await self._error(words, MigrationAbortedError)
        with suppress(QmpError):
            await watch.refresh()  # QEMU may have noted the reason after it told of the failure
        reason = watch.info.error_desc or "the source's QEMU gives no reason"
        if self.receiver is not None:
            reason += await self.receiver.reason()
        if connection is not None:
            reason += await connection.reason()
        hint = ""
        if self._plan.multifd is not None and self._plan.multifd.zero_copy:
            hint = _zero_copy_hint(reason)
        return await self._error(f"the migration {watch.status}: {reason}", hint=hint)

    async def let_go(self) -> None:
        """Let a guest that is held go on, if it has moved; for a migration that is left."""
        if self._has_nothing_to_do():
            return
        assert self.receiver is not None
        sends, receives = [await _migration(one) for one in (self._source, self.receiver.machine)]
        has_moved = MigrationStatus.COMPLETED in (sends, receives) or is_in_postcopy(sends)
        if has_moved and receives is not None and receives is not MigrationStatus.FAILED:
            with suppress(QemuRingError):  # it is gone, and with it the guest
                await self._go_on()

    @property
    def _destination(self) -> Machine | None:
        return None if self.receiver is None else self.receiver.machine

    async def _verify(self) -> None:
        if not self._blocks or self._comparison is not None:
            return
        try:
            self._comparison = await compare(self._blocks)
        except Exception as error:  # whatever it was, the guest stands still
            with suppress(QemuRingError):
                await to_the_end(self._go_on())
            raise await self._error(f"memory was not compared: {error}") from error

    async def _follow(self) -> None:
        watch = self._watch
        await watch.until(lambda: watch.over or watch.in_postcopy)
        if watch.completed or watch.in_postcopy:
            with suppress(QemuRingError):  # whoever completes it is told
                await self._go_on()

    def _has_nothing_to_do(self) -> bool:
        """Whether the guest is where it is to be, or will be without our help."""
        if self.receiver is not None and self.receiver.runs_by_itself:
            return True
        return not self._is_to_go_on

    async def _go_on(self) -> None:
        """Let the guest run where it is to."""
        async with self._going_on:
            if self._has_nothing_to_do():
                return
            where = GuestAt.DESTINATION
            if self._comparison is not None and not self._comparison.equal:
                where = self._plan.if_stale
            if self._watch.was_running and where is GuestAt.SOURCE:
                try:
                    await go_on_at_source(self._source.monitor)
                except (
                    QmpError,
                    DeadlineError,
                ) as error:  # the destination has its disks, or it is gone
                    self._problem = error.message
            elif self._watch.was_running and where is GuestAt.DESTINATION:
                assert self.receiver is not None
                await self.receiver.resume()
                self._was_resumed = True
            self._is_to_go_on = False

    async def _downtime(self) -> Downtime:
        stopped, receiver, reported = (
            self._watch.stopped_at,
            self.receiver,
            self._watch.info,
        )
        seconds = switchover = guest = unsure = None
        if stopped is not None and receiver is not None:
            if receiver.resumed_at is not None:
                seconds, unsure = stopped.until(receiver.resumed_at)
            if (ready := receiver.ready_at) is not None:
                switchover, unsure = stopped.until(ready)
        if self._guest_downtime is not None and seconds is not None:
            guest = await self._guest_downtime.wait()
        qemu = None if reported.downtime_ms is None else reported.downtime_ms / 1000
        known = None if unsure is None or math.isinf(unsure) else unsure
        return Downtime(seconds, switchover, guest, qemu, known)

    async def _error(
        self, message: str, kind: type[MigrationError] = MigrationError, *, hint: str = ""
    ) -> MigrationError:
        outcome = await find_outcome(self._source, self._destination)
        waits = outcome.destination == "inmigrate" and outcome.guest_at is GuestAt.SOURCE
        steps = ["start the destination anew before the next try: it waits only once"] * waits
        return kind(message, hint="; ".join([*steps, *[hint] * bool(hint)]), outcome=outcome)


def _zero_copy_hint(reason: str) -> str:
    """What to do where pages could not be sent without a copy; "" if that was not why."""
    if "MSG_ZEROCOPY" in reason:
        return LOCK_ADVICE
    return "do without zero copy" if "ero copy" in reason else ""


async def _migration(machine: Machine) -> MigrationStatus | None:
    """What a side says of its migration; None if it says nothing."""
    try:
        return (await commands.query_migrate(machine.monitor)).status
    except QmpError:
        return None
