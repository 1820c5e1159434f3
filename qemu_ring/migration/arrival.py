"""The destination's part: told to listen, watched until it has all, let go on."""

from __future__ import annotations

from types import TracebackType

from qemu_ring.machine import Machine
from qemu_ring.migration.aftermath import stays_when_it_fails
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import Event, MigrationStatus, commands

__all__ = ["Arrival"]

_EVENT_SECONDS = 60.0


class Arrival:
    """A destination that waits for its guest; a context manager, within which no event is missed.

    Attributes:
        machine: the destination.
        resumed_at: when the guest ran, host monotonic clock; None if it does not.
        switched_at: when postcopy's destination took over, though paused.
        arrived_at: when all memory was there.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.resumed_at: float | None = None
        self.switched_at: float | None = None
        self.arrived_at: float | None = None
        self._events = machine.monitor.events("MIGRATION", "RESUME")
        self._status = MigrationStatus.NONE

    def __enter__(self) -> Arrival:
        self._events.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._events.__exit__(kind, error, traceback)

    @property
    def ready_at(self) -> float | None:
        """When the guest ran, or could have run: its memory may be compared before it does."""
        if self.switched_at is not None:
            return self.switched_at
        times = [at for at in (self.resumed_at, self.arrived_at) if at is not None]
        return min(times, default=None)

    async def expect(self, uri: str, *, paused: bool) -> None:
        """Listen on the URI.

        Args:
            uri: where.
            paused: whether to leave the guest paused when it has arrived; a guest that was
                paused at the source stays so in any case.
        """
        monitor = self.machine.monitor
        # While it waits, these only decide what becomes of the guest later.
        await (commands.stop(monitor) if paused else commands.cont(monitor))
        stays = await stays_when_it_fails(self.machine)
        await commands.migrate_incoming(monitor, uri, exit_on_error=not stays)

    async def complete(self, *, timeout: float) -> None:
        """Wait until it has all; may be called again.

        Raises:
            MigrationError: it failed.
            QmpError: it is gone.
            DeadlineError: it did not complete in time.
        """
        wanted = {MigrationStatus.COMPLETED, MigrationStatus.FAILED}
        while self._status not in wanted:
            event = await self._events.wait(timeout=timeout, what="end of the migration")
            self._note(event)
        if self._status is MigrationStatus.FAILED:
            info = await commands.query_migrate(self.machine.monitor)
            raise MigrationError(info.error_desc or "QEMU gives no reason")

    async def resume(self, *, timeout: float = _EVENT_SECONDS) -> None:
        """Let the guest run, after it has arrived paused; no error if it runs."""
        await commands.cont(self.machine.monitor)
        while self.resumed_at is None:
            self._note(await self._events.wait(timeout=timeout, what="RESUME of the destination"))

    def _note(self, event: Event) -> None:
        if event.name == "RESUME":
            self.resumed_at = self.resumed_at or event.arrived
            return
        self._status = MigrationStatus(event.data.get("status"))
        if self._status is MigrationStatus.POSTCOPY_ACTIVE:
            self.switched_at = self.switched_at or event.arrived
        elif self._status is MigrationStatus.COMPLETED:
            self.arrived_at = event.arrived
