"""One precopy migration that is held open, and completed when its caller says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from qemu_ring.machine import Machine
from qemu_ring.migration.channels.channel import Fd
from qemu_ring.migration.engine.destination import Receiver
from qemu_ring.migration.engine.outcome import stays_when_it_fails
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.errors import EndedEarlyError, MigrationError
from qemu_ring.qmp import Event, MigrationInfo, MigrationStatus, QmpError, commands
from qemu_ring.tasks import UninterruptibleStack

__all__ = ["HeldPrecopy", "Pace"]

_CANCEL_SECONDS = 30.0
_POLL_SECONDS = 0.005
_UNLIMITED = 1 << 40
_FINAL = {status.value for status in MigrationStatus if status.is_final}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a held precopy sends, in bytes per second.

    Args:
        first_pass: until all memory was sent once. It must take longer than the 100 ms
            after which QEMU first measures its bandwidth: until then its threshold is 0,
            and a pass that ends is taken for the last, without another harvest.
        held: from then on; what the guest dirties must exceed it, or nothing holds
            the migration open.
    """

    first_pass: int = 200 << 20
    held: int = 1 << 20


class HeldPrecopy:
    """A precopy migration between two machines of this host.

    The channel is a socket pair: there is no path and no port that could be left
    behind or be taken. Use it as an async context manager, then `hold`, then `finish`::

        async with HeldPrecopy(source, destination) as migration:
            await migration.hold()
            ...  # the first pass is over, and the migration goes on
            await migration.finish()

    Left before it is finished, it is cancelled, and the guest goes on at the source. Both
    sides get their former settings back in any case.

    Args:
        source: a running guest.
        destination: its twin, started with `incoming="defer"`.
        pace: bandwidths.
    """

    def __init__(self, source: Machine, destination: Machine, pace: Pace | None = None) -> None:
        self._source = source.monitor
        self._destination = destination.monitor
        self._arrives_at = destination
        self._pace = pace or Pace()
        self._sides = (
            Side("the source", source.monitor),
            Side("the destination", destination.monitor),
        )
        self._stopped = False
        self._stack = UninterruptibleStack()

    async def __aenter__(self) -> HeldPrecopy:
        self._passes = self._stack.enter_context(self._source.events("MIGRATION", "MIGRATION_PASS"))
        self._receiver = self._stack.enter_context(Receiver(self._arrives_at))
        for side in self._sides:
            self._stack.push_async_callback(side.restore)
        self._stack.push_async_callback(self._give_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def hold(self, *, timeout: float | None = None) -> None:
        """Start, wait until the first pass is over, and from then on send slowly.

        Args:
            timeout: seconds for the first pass; None to wait as long as it takes.

        Raises:
            EndedEarlyError: it completed, because the guest dirtied too little.
            MigrationError: it failed, at either side; with the destination's reason.
            DeadlineError: the first pass did not end in time.
        """
        for side in self._sides:
            await side.set_capabilities({"events": True})
        # A limit of 0 would complete at once: QEMU then skips the exact count.
        await self._sides[0].set_parameters(
            {"max-bandwidth": self._pace.first_pass, "downtime-limit": 1}
        )
        connection = Fd().connect(self._source, self._destination)
        self._stack.callback(connection.close, completed=False)
        self._stack.push_async_callback(connection.abandon)
        stays = await stays_when_it_fails(self._arrives_at)
        uri = await connection.listen()
        await commands.migrate_incoming(self._destination, uri, exit_on_error=not stays)
        await commands.migrate(self._source, await connection.reach())
        connection.established()
        await self._wait(lambda event: event.data.get("pass", 0) >= 2, timeout)
        await commands.set_parameters(self._source, max_bandwidth=self._pace.held)
        if not (await commands.query_status(self._source)).running:
            await self._wait(_completed, timeout)
            raise await self._over(timeout)

    async def progress(self) -> MigrationInfo:
        """Tell how the migration fares, in QEMU's own figures.

        Raises:
            MigrationError: it is over, though nobody called `finish`.
        """
        info = await commands.query_migrate(self._source)
        if info.is_final:
            raise await self._over(None)
        return info

    async def finish(self, *, timeout: float | None = None) -> MigrationInfo:
        """Stop the guest, send what is left, and return when both sides have it all.

        The source is in state postmigrate then; the destination is paused, if it was
        started so.

        Args:
            timeout: seconds; None to wait as long as it takes.

        Raises:
            MigrationError: it failed, at either side, or had ended already.
            DeadlineError: it did not complete in time.
        """
        self._stopped = (await commands.query_status(self._source)).running
        await commands.stop(self._source)
        await self.progress()
        # The downtime limit stays low: the guest is stopped, so nothing is gained by a
        # harvest before all is sent that was known to be dirty.
        await commands.set_parameters(self._source, max_bandwidth=_UNLIMITED)
        await self._wait(_completed, timeout)
        await self._complete_destination(timeout)
        return await commands.query_migrate(self._source)

    async def _give_up(self) -> None:
        """Leave no migration going, and no guest stopped that has not moved."""
        until = time.monotonic() + _CANCEL_SECONDS
        with suppress(QmpError):  # one that is gone needs nothing
            info = await commands.query_migrate(self._source)
            if info.is_active:
                self._arrives_at.may_end()
                await commands.migrate_cancel(self._source)
            while info.is_active and time.monotonic() < until:
                await asyncio.sleep(_POLL_SECONDS)
                info = await commands.query_migrate(self._source)
            if self._stopped and info.status is not MigrationStatus.COMPLETED:
                await commands.cont(self._source)

    async def _wait(self, wanted: Callable[[Event], bool], timeout: float | None) -> None:
        """Wait for an event of the source, or its premature end."""
        event = await self._passes.wait(
            lambda event: wanted(event) or event.data.get("status") in _FINAL,
            timeout=timeout,
            what="progress of the migration",
        )
        if not wanted(event):
            raise await self._over(timeout)

    async def _over(self, timeout: float | None) -> MigrationError:
        """Make the error that tells why it is over, by what both sides say.

        Where the destination fails, the source may have completed, or be cut off in its last
        writes: it is the same failure, and the destination knows the reason.
        """
        info = await commands.query_migrate(self._source)
        if info.status is MigrationStatus.COMPLETED:
            await self._complete_destination(timeout)
            return EndedEarlyError(
                "the migration completed while it should be held open: the guest dirtied too little"
            )
        reason = info.error_desc or "the source's QEMU gives no reason"
        if info.status is MigrationStatus.FAILED:
            reason += await self._receiver.reason()
        return MigrationError(f"the migration is {info.status}: {reason}")

    async def _complete_destination(self, timeout: float | None) -> None:
        """See that the destination has it all, when the source has sent it."""
        try:
            await self._receiver.complete(timeout=timeout)
        except MigrationError as error:
            raise MigrationError(await self._receiver.failure(error)) from error


def _completed(event: Event) -> bool:
    return event.data.get("status") == MigrationStatus.COMPLETED
