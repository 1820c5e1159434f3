"""One live migration, driven from its first probe to its last cleanup."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.blocks import opened_blocks, require_comparable
from qemu_ring.migration.channels.channel import Channel, Connection
from qemu_ring.migration.comparison import Difference
from qemu_ring.migration.downtime import GuestDowntime
from qemu_ring.migration.engine.completion import Completion
from qemu_ring.migration.engine.convergence import Convergence
from qemu_ring.migration.engine.destination import Receiver
from qemu_ring.migration.engine.idle import go_on_at_source
from qemu_ring.migration.engine.live import LiveSettings
from qemu_ring.migration.engine.locked_memory import require_lockable
from qemu_ring.migration.engine.outcome import find_outcome, is_in_postcopy
from qemu_ring.migration.engine.recovery import lost_channel, reconnect
from qemu_ring.migration.engine.setup import set_up
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.engine.source import SourceWatch
from qemu_ring.migration.engine.steering import Steering
from qemu_ring.migration.engine.throttling import find_throttle
from qemu_ring.migration.errors import MigrationCancelledError, MigrationError, MigrationOutcome
from qemu_ring.migration.goal import GoalDecision, GoalOutcome
from qemu_ring.migration.plan import CprTransfer, MigrationPlan
from qemu_ring.migration.result import MigrationResult
from qemu_ring.migration.timeline import Iteration, Sample
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    DisconnectedError,
    MigrationStatus,
    QmpError,
    commands,
)
from qemu_ring.tasks import UninterruptibleStack
from qemu_ring.verify import Block

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Migration", "Successor"]

_CANCEL_SECONDS = 30.0
_UNHEARD_SECONDS = 0.1


class Successor(Protocol):
    """A destination that is not there before the migration begins: it is started by it."""

    async def start(
        self, stack: AsyncExitStack, source: Machine, begin: Callable[[], object]
    ) -> Machine:
        """Have it started, and the migration to it begin.

        Args:
            stack: closes what was made for it.
            source: the guest's.
            begin: to be called just before the source is told to migrate.

        Raises:
            QemuRingError: it did not start; nothing is left of it.
        """

    async def receiver(
        self, stack: AsyncExitStack, destination: Machine, plan: MigrationPlan
    ) -> Receiver:
        """Set it up, and tell it to listen."""

    async def closed_if_unused(self, source: Machine, destination: Machine) -> Machine | None:
        """Close it if the guest has not moved to it; returns it if it has."""


class Migration:
    """A migration of any kind between two QEMUs, or into a file; an async context manager.

    On entering, both sides are asked whether they can do it, and set up; then it begins::

        async with Migration(source, destination, MigrationPlan()) as migration:
            async for iteration in migration.iterations():
                print(iteration)
            result = await migration.complete()

    Leaving it before it is over cancels it, and the guest goes on at the source. After the
    switchover of a postcopy migration nothing can be cancelled: it goes on, or can be recovered
    (`recover_postcopy`), with the settings that it has. On every other ending the sides get
    their former settings back. Sockets and partial files are removed. All of that is done
    whole, though the caller be cancelled meanwhile.

    Args:
        source: the guest.
        destination: its twin, waiting with `-incoming defer`; None for a File, Command or Exec
            channel that only saves.
        plan: how.
        verify: True to compare both sides' memory, byte for byte, before the guest goes on: at
            the destination, or as the plan says if a page is stale; both QEMUs have to be on
            this host. If that is broken off, it goes on at the destination. Or the memory
            blocks to compare, where the caller has them open.
        guest_downtime: watches the guest's own counter; entered and left with the migration.
        sample_seconds: how often QEMU is asked for figures between its events.
        on_sample: called with each of them; what it raises, `complete` raises.
        on_decision: called with each decision that is made for the plan's goal; likewise.
        successor: what starts the destination, for a kind that needs that (`CprTransferMigration`).

    Attributes:
        differences: in which the destination is another machine than the source, though they
            may be meant.
        not_compared: RAM blocks that `verify` left out, because their place is not known.

    Raises:
        QemuUnsuitableError: a QEMU cannot do this, or not this mix; nothing was started.
        UsageError: the same for a value out of range, a guest in the wrong state, or a
            destination that cannot take it: another machine type, memory or device.
        MigrationError: a QEMU went away before it began.
    """

    def __init__(
        self,
        source: Machine,
        destination: Machine | None,
        plan: MigrationPlan | None = None,
        *,
        verify: Sequence[Block] | bool = False,
        guest_downtime: GuestDowntime | None = None,
        sample_seconds: float = 0.1,
        on_sample: Callable[[Sample], None] | None = None,
        on_decision: Callable[[GoalDecision], None] | None = None,
        successor: Successor | None = None,
    ) -> None:
        self.plan = plan or MigrationPlan()
        self.source = source
        self.destination = destination
        self._verify = verify
        self._blocks: tuple[Block, ...] = ()
        self.not_compared: tuple[str, ...] = ()
        self._guest_downtime = guest_downtime
        self._sample_seconds = sample_seconds
        self._on_sample = on_sample
        self._on_decision = on_decision
        self._successor = successor
        self._steering: Steering | None = None
        self._stack = UninterruptibleStack()
        self._source_side = Side("the source", source.monitor)
        self.differences: tuple[Difference, ...] = ()
        self._connection: Connection | None = None
        self._was_kept = False
        self._was_cut_off = False
        self._watch: SourceWatch
        self._completion: Completion
        self._live: LiveSettings
        self._receiver: Receiver | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException:
            await self._stack.__aexit__(*sys.exc_info())
            raise
        return self  # with nothing awaited since: a cancellation would find nobody to clean up

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

    @property
    def goal_outcome(self) -> GoalOutcome | None:
        """Why the plan's goal was not kept, after a migration that did not complete.

        None if the plan has no goal. That of one that completed is in its result.
        """
        return None if self._steering is None else self._steering.convergence.failed()

    @property
    def decisions(self) -> tuple[GoalDecision, ...]:
        """Those made for the plan's goal so far."""
        return () if self._steering is None else self._steering.convergence.decisions

    async def iterations(self) -> AsyncGenerator[Iteration, None]:
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
        self,
        *,
        max_bandwidth: int | None = None,
        downtime_limit: float | None = None,
        postcopy_bandwidth: int | None = None,
    ) -> None:
        """Change the migration under way: bytes a second, and seconds of downtime.

        Raises:
            UsageError: a value that no plan may have, or that QEMU refuses.
        """
        await self._live.set(
            max_bandwidth=max_bandwidth,
            downtime_limit=downtime_limit,
            postcopy_bandwidth=postcopy_bandwidth,
        )

    @property
    def live(self) -> LiveSettings:
        """To change the migration under way, pause it, or have it switch over; once it began."""
        return self._live

    # Completion it

    async def complete(self, *, timeout: float | None = None) -> MigrationResult:
        """Wait until the destination has all; verify; let the guest go on.

        A switchover that waits is let through first. After a DeadlineError, or a cancellation,
        it may be called again.

        Args:
            timeout: seconds; None to wait as long as it takes (`AbortRules` of the plan end it).

        Raises:
            MigrationCancelledError: it was cancelled, or aborted by a rule.
            PostcopyPausedError: the channel broke after the switchover; `recover` it.
            MigrationError: it failed; `outcome` tells which side runs.
            DeadlineError: it is not over; it goes on.
        """
        clock = deadline(timeout)
        try:
            async with clock:
                return await self._complete()
        except MigrationCancelledError:
            self._release_destination()
            raise
        except TimeoutError:
            if not clock.expired():
                raise
        hint = "allow more bandwidth or downtime, throttle the guest, or use postcopy"
        if self._watch.is_silent:
            hint = "the source does not answer: see whether it is stopped, or its host too busy"
        elif self.status is MigrationStatus.COMPLETED and self._is_unsaved:
            hint = f"allow more time: {self.plan.channel.words} has not ended"
        elif self.status is MigrationStatus.COMPLETED:
            hint = "allow more time: the destination has not got all, or memory is being compared"
        raise DeadlineError(
            f"the migration did not complete within {timeout:g} s; it is {self.status}", hint=hint
        )

    async def cancel(self, *, timeout: float = _CANCEL_SECONDS) -> MigrationOutcome:
        """Give it up; the guest goes on at the source. Returns when that is so.

        Args:
            timeout: seconds.

        Raises:
            MigrationError: too late: it is over, or the guest has moved already.
            DeadlineError: QEMU did not end it in time.
        """
        clock = deadline(timeout)
        try:
            async with clock:
                await self._cancel()
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineError(f"it was not cancelled within {timeout:g} s") from error
        except CommandTimeoutError:
            raise
        except QmpError as error:
            raise await self._error(f"it cannot be cancelled: {error.message}") from error
        outcome = await find_outcome(self.source, self.destination)
        if self._watch.was_running and outcome.is_stopped_at_source:
            # QEMU before 10.0 leaves it so if postcopy waited before its switchover.
            with suppress(QmpError, DeadlineError):
                await go_on_at_source(self.source.monitor)
            outcome = await find_outcome(self.source, self.destination)
        return outcome

    async def start_postcopy(self) -> None:
        """Switch over now, not only after the plan's passes."""
        await self._watch.start_postcopy()

    async def recover(
        self, channel: Channel | None = None, *, timeout: float | None = None
    ) -> None:
        """Go on with a postcopy migration that lost its channel; then `complete` it.

        Args:
            channel: the new way; None for another of the plan's kind.
            timeout: seconds until both sides go on; None to wait as long as it takes. QEMU
                before 8.2 does not notice that a channel breaks in the recovery.

        Raises:
            PostcopyPausedError: the new channel broke, too; it can be tried again.
            MigrationError: it is not paused, or a QEMU refused; it can be tried again.
            UsageError: the plan does not go with this channel.
            DeadlineError: the sides did not meet in time.
        """
        if not self._watch.is_paused or self._receiver is None:
            raise await self._error(f"there is nothing to recover, it is {self.status}")
        watch, destination = self._watch, self._receiver.machine
        plan = self.plan if channel is None else replace(self.plan, channel=channel)
        connection = plan.channel.connect(self.source.monitor, destination.monitor)
        self._stack.callback(connection.close, completed=False)
        self._stack.push_async_callback(connection.abandon)
        try:
            async with deadline(timeout):
                pauses = watch.pauses
                await reconnect(self.source, destination, connection)
                await watch.until(
                    lambda: (
                        watch.over
                        or watch.pauses > pauses
                        or watch.status is MigrationStatus.POSTCOPY_ACTIVE
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
        if watch.is_paused:
            raise await lost_channel(self.source, self.destination)

    # What these are made of

    async def _enter(self) -> None:
        try:
            await self._set_up()
            await self._begin()
        except CommandError as error:
            if error.command not in ("migrate", "migrate-incoming"):
                raise
            which = "source" if error.command == "migrate" else "destination"
            hint = "use another channel, or leave out what needs it"
            used_up = which == "source" or "already" in error.description
            if used_up and self.destination is not None:
                hint = f"start the destination anew, it waits only once; then {hint}"
            raise QemuUnsuitableError(
                f"the {which} refuses it: {error.description}", hint=hint
            ) from error
        except DisconnectedError as error:
            raise await self._error(f"the migration did not begin: {error}") from error

    async def _set_up(self) -> None:
        if isinstance(self.plan.kind, CprTransfer) != (self._successor is not None):
            raise UsageError("CprTransfer is a kind for CprTransferMigration, and its only one")
        side = None
        if self.destination is not None:
            if self.destination.monitor is self.source.monitor:
                raise UsageError("source and destination are the same QEMU")
            side = Side("the destination", self.destination.monitor)
        elif self._successor is not None:
            pass
        elif self.plan.channel.bidirectional:
            raise UsageError("without a destination it can only be saved to a file or a command")
        elif self._verify:
            raise UsageError("there is no destination whose memory could be compared")
        for machine in (self.source, self.destination):
            if machine is not None:
                await machine.identify()
        await self._source_side.require_idle()  # before its memory is looked for
        multifd = self.plan.multifd
        if multifd is not None and multifd.zero_copy and self.source.is_local:
            await require_lockable(self.source.monitor, multifd.channels)
        await self._open_memory()
        source, plan = self._source_side, self.plan
        throttle = await find_throttle(plan, source.monitor)
        # One that stays paused in any case does not go back: its disks can be the destination's.
        runs = (await commands.query_status(source.monitor)).running
        held = bool(self._blocks) and runs and not plan.leave_paused
        self.differences = await set_up(
            self._stack, plan, source, side, held=held, throttle=throttle
        )
        if plan.goal is not None:
            self._steering = Steering(Convergence(plan.goal, throttle), source, self._on_decision)

    async def _open_memory(self) -> None:
        """Have what is to be compared open, for as long as the migration is."""
        if isinstance(self._verify, bool):
            if not self._verify or self.destination is None:
                return
            opened = opened_blocks(self.source, self.destination)
            found = await self._stack.enter_async_context(opened)
            self._blocks, self.not_compared = tuple(found.blocks), found.left_out
        else:
            require_comparable(self._verify)
            self._blocks = tuple(self._verify)

    async def _begin(self) -> None:
        if self._successor is not None:
            await self._hand_over(self._successor)
            return
        peer = None if self.destination is None else self.destination.monitor
        connection = self._connection = self.plan.channel.connect(self.source.monitor, peer)
        self._stack.callback(self._close_connection, connection)
        self._stack.push_async_callback(self._keep_unsaved_guest)
        self._stack.push_async_callback(connection.abandon)
        await self._start_watch()
        if self.destination is not None:
            self._receiver = self._stack.enter_context(Receiver(self.destination))
            self._completion.receiver = self._receiver
            await self._receiver.expect(
                await connection.listen(), paused=self.plan.leave_paused or self._completion.is_held
            )
            self._stack.push_async_callback(self._completion.let_go)
            await self._stack.enter_async_context(self._completion.following())
        uri = await connection.reach()
        if self._guest_downtime is not None:
            await self._stack.enter_async_context(self._guest_downtime)
        self._stack.push_async_callback(self._give_up)
        await commands.migrate(self.source.monitor, uri)

    async def _hand_over(self, successor: Successor) -> None:
        await self._start_watch()

        async def close_unused() -> None:
            if self.destination is not None and not self._watch.completed:
                self.destination = await successor.closed_if_unused(self.source, self.destination)

        self._stack.push_async_callback(close_unused)
        begin = partial(self._stack.push_async_callback, self._give_up)
        self.destination = await successor.start(self._stack, self.source, begin)
        self._receiver = await successor.receiver(self._stack, self.destination, self.plan)

    async def _start_watch(self) -> None:
        self._watch = SourceWatch(
            self.source,
            self.plan,
            self._sample_seconds,
            self._on_sample,
            self._connected,
            self._steering,
            self._cut_off,
        )
        convergence = None if self._steering is None else self._steering.convergence
        self._live = LiveSettings(self._source_side, self._watch, convergence)
        self._completion = Completion(
            self.source, self._watch, self.plan, self._blocks, self._guest_downtime
        )
        await self._stack.enter_async_context(self._watch)

    async def _give_up(self) -> None:
        """Leave no migration going that nobody looks after; asked of QEMU, not of its events.

        When cancelled, `migrate` may have been carried out though its answer was not awaited.
        """
        with suppress(QemuRingError):
            try:
                status = await self._watch.find_status()
            except CommandTimeoutError:
                # One that hangs takes it when it goes on; after postcopy's switchover it must not.
                if self.plan.postcopy is None:
                    self._release_destination()
                    self._cut_off()
                    await commands.migrate_cancel(self.source.monitor, timeout=_UNHEARD_SECONDS)
                return
            if status.is_active and not is_in_postcopy(status):
                await self.cancel()

    async def _cancel(self) -> None:
        status = await self._watch.find_status()
        if status is MigrationStatus.COMPLETED and self._is_unsaved:
            self._cut_off()
            await self._keep_unsaved_guest()
            return
        if is_in_postcopy(status):
            raise await self._error("postcopy cannot be cancelled after the switchover")
        if not status.is_active:
            raise await self._error(f"there is nothing to cancel, it is {status}")
        self._release_destination()
        status = await self._watch.end()
        if status is MigrationStatus.COMPLETED and self._is_unsaved:
            await self._keep_unsaved_guest()
        elif status is MigrationStatus.COMPLETED:
            raise await self._error(f"too late to cancel, it is {status}")

    def _cut_off(self) -> None:
        self._was_cut_off = True
        if self._connection is not None:
            self._connection.cut_off()

    def _release_destination(self) -> None:
        if self.destination is not None:
            self.destination.may_end()

    def _connected(self) -> None:
        if self._connection is not None:
            self._connection.established()

    def _close_connection(self, connection: Connection) -> None:
        connection.close(completed=self.status is MigrationStatus.COMPLETED)

    async def _complete(self) -> MigrationResult:
        watch = self._watch
        await watch.until(lambda: watch.over or watch.is_paused or watch.is_pre_switchover)
        if watch.is_pre_switchover:
            try:
                await watch.let_through()
            except QmpError as error:
                raise await self._error(f"it did not switch over: {error}") from error
            await watch.until(lambda: watch.over or watch.is_paused)
        self._completion.receiver = self._receiver
        if watch.failure is not None or not watch.completed:
            raise await self._completion.why_not_completed(self._connection)
        await self._finish_connection()
        return await self._completion.conclude()

    @property
    def _is_unsaved(self) -> bool:
        return self._connection is not None and self._connection.is_lost

    async def _keep_unsaved_guest(self) -> None:
        """Let a guest go on that QEMU has sent, but that came to be saved nowhere."""
        if self._was_kept or not self._is_unsaved or not self._watch.was_running:
            return
        if self.status is MigrationStatus.COMPLETED:
            self._was_kept = True
            with suppress(QmpError, DeadlineError):  # it is gone, or stays as it is
                await go_on_at_source(self.source.monitor)

    async def _finish_connection(self) -> None:
        try:
            if self._connection is not None:
                await self._connection.finish()
        except MigrationError as error:
            await self._keep_unsaved_guest()
            if self._was_cut_off:
                words = "the migration was cancelled"
                raise await self._error(words, MigrationCancelledError) from error
            outcome = await find_outcome(self.source, self.destination)
            raise MigrationError(error.message, hint=error.hint, outcome=outcome) from error

    async def _error(
        self, message: str, kind: type[MigrationError] = MigrationError
    ) -> MigrationError:
        return kind(message, outcome=await find_outcome(self.source, self.destination))
