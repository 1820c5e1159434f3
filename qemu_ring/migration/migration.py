"""One live migration, driven from its first probe to its last cleanup."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.aftermath import find_aftermath
from qemu_ring.migration.arrival import Arrival
from qemu_ring.migration.channel import Channel, Connection, forget_fd
from qemu_ring.migration.downtime import Downtime, GuestDowntime
from qemu_ring.migration.errors import (
    Aftermath,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
    PostcopyPausedError,
)
from qemu_ring.migration.plan import CprTransfer, MigrationPlan
from qemu_ring.migration.result import MigrationResult, Totals
from qemu_ring.migration.setup import set_up
from qemu_ring.migration.side import Side
from qemu_ring.migration.timeline import Iteration, Sample
from qemu_ring.migration.watch import Watch
from qemu_ring.qmp import CommandError, DisconnectedError, MigrationStatus, QmpError, commands
from qemu_ring.verify import Block, compare

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Migration"]

_CANCEL_SECONDS = 30.0
_PAUSE_SECONDS = 20.0


class Migration:
    """A migration of any kind between two QEMUs, or into a file; an async context manager.

    On entering, both sides are asked whether they can do it, and set up; then it begins::

        async with Migration(source, destination, MigrationPlan()) as migration:
            async for iteration in migration.iterations():
                print(iteration)
            result = await migration.complete()

    Leaving it before it is over cancels it, and the guest goes on at the source. After the
    switchover of a postcopy migration nothing can be cancelled: it is left as it is. On every
    ending the sides get their former settings back, and sockets and partial files are removed.

    Args:
        source: the guest.
        destination: its twin, waiting with `-incoming defer`; None for a File or Exec channel
            that only saves.
        plan: how.
        verify: memory of both sides to compare, byte for byte, before the guest goes on at the
            destination; empty to compare nothing.
        guest_downtime: watches the guest's own counter; entered and left with the migration.
        sample_seconds: how often QEMU is asked for figures between its events.
        on_sample: called with each of them.

    Raises:
        QemuUnsuitableError: a QEMU cannot do this, or not this mix; nothing was started.
        UsageError: the same for a value out of range, or a guest in the wrong state.
        MigrationError: a QEMU went away before it began.
    """

    _starts_destination = False

    def __init__(
        self,
        source: Machine,
        destination: Machine | None,
        plan: MigrationPlan | None = None,
        *,
        verify: Sequence[Block] = (),
        guest_downtime: GuestDowntime | None = None,
        sample_seconds: float = 0.1,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> None:
        self.plan = plan or MigrationPlan()
        self.source = source
        self.destination = destination
        self._verify = tuple(verify)
        self._guest_downtime = guest_downtime
        self._sample_seconds = sample_seconds
        self._on_sample = on_sample
        self._stack = AsyncExitStack()
        self._source_side = Side("source", source.monitor)
        self._connection: Connection | None = None
        self._watch: Watch
        self._arrival: Arrival | None = None

    async def __aenter__(self) -> Self:
        async with self._stack:
            try:
                await self._set_up()
                await self._begin()
            except CommandError as error:
                if error.command not in ("migrate", "migrate-incoming"):
                    raise
                which = "source" if error.command == "migrate" else "destination"
                raise QemuUnsuitableError(
                    f"the {which} refuses it: {error.description}",
                    hint="use another channel, or leave out what needs it",
                ) from error
            except DisconnectedError as error:
                raise await self._error(f"the migration did not begin: {error}") from error
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    # Progress

    @property
    def status(self) -> MigrationStatus:
        """The source's, as far as it has told."""
        return self._watch.status

    @property
    def latest(self) -> Sample | None:
        """QEMU's last figures."""
        return self._watch.recorder.latest

    async def iterations(self) -> AsyncIterator[Iteration]:
        """Give each pass over memory when it ends, those that have ended already first.

        It ends when there can be no further pass: at the end, before a switchover that waits
        for `complete`, and after the switchover of postcopy. It raises nothing for a migration
        that fails; `complete` does.
        """
        given, watch = 0, self._watch
        while True:
            await watch.until(
                partial(lambda count: watch.settled or watch.has_passes(count), given)
            )
            settled = watch.settled
            for iteration in watch.recorder.timeline.iterations[given:]:
                yield iteration
                given += 1
            if settled:
                return

    async def set_parameters(
        self, *, max_bandwidth: int | None = None, downtime_limit: float | None = None
    ) -> None:
        """Change the migration under way: bytes a second, and seconds of downtime.

        Raises:
            UsageError: QEMU refused a value.
        """
        parameters: dict[str, object] = {}
        if max_bandwidth is not None:
            parameters["max-bandwidth"] = max_bandwidth
        if downtime_limit is not None:
            parameters["downtime-limit"] = round(downtime_limit * 1000)
        await self._source_side.set_parameters(parameters)

    # Ending it

    async def complete(self, *, timeout: float = 3600.0) -> MigrationResult:
        """Wait until the destination has all; verify; let the guest go on there.

        A switchover that waits is let through first.

        Args:
            timeout: seconds.

        Raises:
            MigrationCancelledError: it was cancelled, or aborted by a rule.
            PostcopyPausedError: the channel broke after the switchover; `recover` it.
            MigrationError: it failed; `aftermath` tells which side runs.
            DeadlineError: it is not over; it goes on.
        """
        clock = deadline(timeout)
        try:
            async with clock:
                return await self._complete()
        except TimeoutError:
            if not clock.expired():
                raise
        raise DeadlineError(
            f"the migration did not complete within {timeout:g} s; it is {self.status}",
            hint="allow more bandwidth or downtime, throttle the guest, or use postcopy",
        )

    async def cancel(self, *, timeout: float = _CANCEL_SECONDS) -> Aftermath:
        """Give it up; the guest goes on at the source. Returns when that is so.

        Args:
            timeout: seconds.

        Raises:
            MigrationError: too late: it is over, or the guest has moved already.
            DeadlineError: QEMU did not end it in time.
        """
        if self._watch.over:
            raise await self._error(f"there is nothing to cancel, it is {self.status}")
        if self._watch.in_postcopy:
            raise await self._error("postcopy cannot be cancelled after the switchover")
        try:
            async with deadline(timeout):
                await self._watch.cancel()
                await self._watch.until(lambda: self._watch.over)
        except TimeoutError as error:
            raise DeadlineError(f"it was not cancelled within {timeout:g} s") from error
        except QmpError as error:
            raise await self._error(f"it cannot be cancelled: {error.message}") from error
        if not self._watch.cancelled:
            raise await self._error(f"too late to cancel, it is {self.status}")
        return await find_aftermath(self.source, self.destination)

    async def start_postcopy(self) -> None:
        """Switch over now, not only after the plan's passes."""
        await commands.migrate_start_postcopy(self.source.monitor)

    async def recover(self, channel: Channel | None = None, *, timeout: float = 60.0) -> None:
        """Go on with a postcopy migration that lost its channel; then `complete` it.

        Args:
            channel: the new way; None for another of the plan's kind.
            timeout: seconds until both sides go on.

        Raises:
            PostcopyPausedError: the new channel broke, too; it can be tried again.
            MigrationError: it is not paused, or a QEMU refused; it can be tried again.
            DeadlineError: the sides did not meet in time.
        """
        if self.status is not MigrationStatus.POSTCOPY_PAUSED or self._arrival is None:
            raise await self._error(f"there is nothing to recover, it is {self.status}")
        try:
            async with deadline(timeout):
                pauses = self._watch.pauses
                await self._arrival.pause()
                monitor = self._arrival.machine.monitor
                connection = (channel or self.plan.channel).connect(self.source.monitor, monitor)
                self._stack.callback(connection.close, completed=False)
                await commands.migrate_recover(monitor, await connection.listen())
                uri = await connection.reach()
                await commands.migrate(self.source.monitor, uri, resume=True)
                await self._watch.until(
                    lambda: (
                        self._watch.over
                        or self._watch.pauses > pauses
                        or self.status is MigrationStatus.POSTCOPY_ACTIVE
                    )
                )
                connection.established()
        except TimeoutError as error:
            raise DeadlineError(
                f"it did not recover within {timeout:g} s, it is {self.status}",
                hint="QEMU before 8.2 does not notice that a channel breaks in the recovery",
            ) from error
        except QmpError as error:
            raise await self._error(f"it cannot be recovered: {error.message}") from error
        if self.status is MigrationStatus.POSTCOPY_PAUSED:
            raise await self._paused()

    # What these are made of

    async def _set_up(self) -> None:
        if isinstance(self.plan.kind, CprTransfer) != self._starts_destination:
            raise UsageError("CprTransfer is a kind for CprTransferMigration, and its only one")
        side = None
        if self.destination is not None:
            if self.destination.monitor is self.source.monitor:
                raise UsageError("source and destination are the same QEMU")
            side = Side("destination", self.destination.monitor)
        elif self._starts_destination:
            pass
        elif self.plan.channel.bidirectional:
            raise UsageError("without a destination it can only be saved to a file or a command")
        elif self._verify:
            raise UsageError("there is no destination whose memory could be compared")
        await set_up(self._stack, self.plan, self._source_side, side)

    async def _begin(self) -> None:
        peer = None if self.destination is None else self.destination.monitor
        connection = self._connection = self.plan.channel.connect(self.source.monitor, peer)
        self._stack.callback(self._close_connection, connection)
        await self._start_watch()
        if self.destination is not None:
            self._arrival = self._stack.enter_context(Arrival(self.destination))
            await self._arrival.expect(
                await connection.listen(),
                paused=self.plan.leave_paused or bool(self._verify),
            )
        uri = await connection.reach()
        if self._guest_downtime is not None:
            await self._stack.enter_async_context(self._guest_downtime)
        self._stack.push_async_callback(self._give_up)
        try:
            await commands.migrate(self.source.monitor, uri)
        except CommandError:
            if uri.startswith("fd:"):
                await forget_fd(self.source.monitor)
            raise

    async def _give_up(self) -> None:
        """Leave no migration going that nobody looks after; asked of QEMU, not of its events.

        When cancelled, `migrate` may have been carried out though its answer was not awaited.
        """
        with suppress(QemuRingError):
            info = await commands.query_migrate(self.source.monitor)
            if info.is_active and not self._watch.in_postcopy:
                await self.cancel()

    async def _start_watch(self) -> None:
        self._watch = Watch(
            self.source.monitor, self.plan, self._sample_seconds, self._on_sample, self._connected
        )
        await self._stack.enter_async_context(self._watch)

    def _connected(self) -> None:
        if self._connection is not None:
            self._connection.established()

    def _close_connection(self, connection: Connection) -> None:
        connection.close(completed=self.status is MigrationStatus.COMPLETED)

    async def _complete(self) -> MigrationResult:
        watch = self._watch
        await watch.until(lambda: watch.over or (watch.settled and not watch.in_postcopy_running))
        if self.status is MigrationStatus.PRE_SWITCHOVER:
            try:
                await commands.migrate_continue(
                    self.source.monitor, MigrationStatus.PRE_SWITCHOVER, timeout=_PAUSE_SECONDS
                )
            except QmpError as error:
                raise await self._error(f"it did not switch over: {error}") from error
            await watch.until(lambda: watch.over or (watch.settled and not watch.is_pre_switchover))
        if watch.failure is not None:
            raise await self._error(f"the source is lost: {watch.failure}") from watch.failure
        if self.status is MigrationStatus.COMPLETED:
            return await self._conclude()
        if self.status is MigrationStatus.POSTCOPY_PAUSED:
            raise await self._paused()
        if watch.cancelled:
            aftermath = await find_aftermath(self.source, self.destination)
            if watch.abort_reason:
                raise MigrationAbortedError(
                    f"the migration was aborted: {watch.abort_reason}", aftermath=aftermath
                )
            raise MigrationCancelledError("the migration was cancelled", aftermath=aftermath)
        with suppress(QmpError):
            await watch.refresh()  # QEMU may have noted the reason after it told of the failure
        reason = watch.info.error_desc or "QEMU gives no reason"
        raise await self._error(f"the migration {self.status}: {reason}")

    async def _conclude(self) -> MigrationResult:
        """The source calls it completed: see that the destination does, and let it go on."""
        watch, arrival, comparison = self._watch, self._arrival, None
        if arrival is not None:
            try:
                await arrival.complete()
            except QemuRingError as error:
                raise await self._error(f"the destination failed: {error}") from error
            arrived = arrival.arrived_at or time.monotonic()
            comparison = await compare(self._verify) if self._verify else None
            if comparison is not None and not self.plan.leave_paused and watch.was_running:
                try:
                    await arrival.resume()
                except QemuRingError as error:
                    raise await self._error(f"the destination failed: {error}") from error
        else:
            arrived = watch.ended_at
        with suppress(QmpError):  # the guest has moved: its former QEMU may go
            await watch.refresh()
        return MigrationResult(
            status=self.status,
            kind=self.plan.kind_name,
            channel=self.plan.channel.words,
            seconds=max(arrived, watch.ended_at) - watch.started_at,
            switched_to_postcopy=watch.switched_to_postcopy,
            downtime=await self._downtime(),
            totals=Totals.of(watch.info),
            timeline=watch.recorder.timeline,
            comparison=comparison,
            aftermath=await find_aftermath(self.source, self.destination),
        )

    async def _downtime(self) -> Downtime:
        stopped, arrival, reported = self._watch.stopped_at, self._arrival, self._watch.info
        seconds = switchover = guest = None
        if stopped is not None and arrival is not None:
            if arrival.resumed_at is not None:
                seconds = arrival.resumed_at - stopped
            ready = arrival.ready_at
            switchover = None if ready is None else ready - stopped
        if self._guest_downtime is not None and seconds is not None:
            guest = await self._guest_downtime.wait()
        qemu = None if reported.downtime_ms is None else reported.downtime_ms / 1000
        return Downtime(seconds, switchover, guest, qemu)

    async def _paused(self) -> PostcopyPausedError:
        aftermath = await find_aftermath(self.source, self.destination)
        hint = "recover it on another: the source holds memory that the guest needs"
        return PostcopyPausedError(
            "postcopy lost its channel",
            hint=hint if aftermath.recoverable else "the destination ended with it",
            aftermath=aftermath,
        )

    async def _error(self, message: str) -> MigrationError:
        return MigrationError(
            message, aftermath=await find_aftermath(self.source, self.destination)
        )
