"""The destination's part: told to listen, watched until it has all, let go on."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.machine import LastWords, Machine, last_lines
from qemu_ring.migration.downtime import Moment
from qemu_ring.migration.engine.idle import settled
from qemu_ring.migration.engine.outcome import stays_when_it_fails
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import (
    CommandTimeoutError,
    DisconnectedError,
    Event,
    MigrationInfo,
    MigrationStatus,
    Monitor,
    QmpError,
    commands,
)

__all__ = ["Receiver"]

_EVENT_SECONDS = 60.0
_POLL_SECONDS = 0.002
_EVENTS = ("MIGRATION", "RESUME")
_WAITING = "inmigrate"


class Receiver:
    """A destination that waits for its guest; a context manager, within which no event is missed.

    Attributes:
        machine: the destination.
        runs_by_itself: whether QEMU lets the guest run when it has arrived, with nobody's help.
        resumed_at: when the guest ran; None if it does not, or that was missed.
        switched_at: when postcopy's destination took over, though paused; or None.
        arrived_at: when all memory was there; or None.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.runs_by_itself = False
        self.resumed_at: Moment | None = None
        self.switched_at: Moment | None = None
        self.arrived_at: Moment | None = None
        self._events = machine.monitor.events(*_EVENTS)
        self._status = MigrationStatus.NONE

    def __enter__(self) -> Receiver:
        self._events.__enter__()
        self._words = LastWords(self.machine.monitor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._words.close()
        self._events.__exit__(kind, error, traceback)

    @property
    def ready_at(self) -> Moment | None:
        """When the guest ran, or could have run: its memory may be compared before it does."""
        if self.switched_at is not None:
            return self.switched_at
        times = [at for at in (self.resumed_at, self.arrived_at) if at is not None]
        return min(times, key=lambda at: at.event.seconds, default=None)

    async def expect(self, uri: str, *, paused: bool, has_source: bool = True) -> None:
        """Listen on the URI.

        Args:
            uri: where.
            paused: whether to leave the guest paused when it has arrived; a guest that was
                paused at the source stays so in any case. A guest that is not to be paused
                either runs by itself, as the attribute then says, or is left as this QEMU was
                started, to be let go by `resume`.
            has_source: whether the guest's former QEMU may still use its disks.
        """
        monitor = self.machine.monitor
        if paused:
            await commands.stop(monitor)
        elif not has_source or await _waits_with_cont(monitor):
            await commands.cont(monitor)
            self.runs_by_itself = True
        stays = await stays_when_it_fails(self.machine)
        await commands.migrate_incoming(monitor, uri, exit_on_error=not stays)

    async def complete(self, *, timeout: float | None = None) -> None:
        """Wait until it has all; may be called again.

        Args:
            timeout: seconds; None to wait as long as it takes.

        Raises:
            MigrationError: it failed.
            QmpError: it is gone.
            DeadlineError: it did not complete in time.
        """
        wanted = {MigrationStatus.COMPLETED, MigrationStatus.FAILED}
        while self._status not in wanted:
            try:
                event = await self._events.wait(timeout=timeout, what="end of the migration")
            except DisconnectedError:
                if not await self._regained():
                    raise
            else:
                self._note(event)
        if self._status is MigrationStatus.FAILED:
            info = await commands.query_migrate(self.machine.monitor)
            raise self._failed(info)

    async def reason(self) -> str:
        """Why it failed, as far as it tells, to follow what the source says; "" if it does not."""
        monitor, said = self.machine.monitor, ""
        with suppress(QmpError, DeadlineError):
            status = await settled(monitor)
            if status is MigrationStatus.FAILED:
                said = (await commands.query_migrate(monitor)).error_desc or ""
        said = self._all_of(said)
        return f"; the destination: {said}" if said else ""

    async def failure(self, error: QemuRingError) -> str:
        """Say that it failed, by an error that may begin with its name, and with its last words."""
        said = str(error).removeprefix(f"{self.machine.name}: ")
        words = "" if self.machine.monitor.connected else self._last_words()
        return f"the destination failed: {said}{f'; it wrote: {words}' if words else ''}"

    def _failed(self, info: MigrationInfo) -> MigrationError:
        return MigrationError(self._all_of(info.error_desc or "") or "QEMU gives no reason")

    def _all_of(self, said: str) -> str:
        """What it said over QMP, often no more than "Invalid argument", and what it wrote."""
        words = self._last_words()
        return words if said in words else "; ".join(one for one in (said, words) if one)

    def _last_words(self) -> str:
        return last_lines(self.machine.text("output")) if self.machine.owned else str(self._words)

    async def resume(self, *, timeout: float = _EVENT_SECONDS) -> None:
        """Let the guest run as soon as it can; no error if it runs.

        Not before: what `cont` does to a QEMU that waits depends on its version.

        Args:
            timeout: seconds until it has what it needs to run.

        Raises:
            MigrationError: it has failed.
            DeadlineError: it could not run in time.
            QmpError: it is gone, or refused.
        """
        monitor, until = self.machine.monitor, time.monotonic() + timeout
        while True:
            try:
                status = await commands.query_status(monitor)
                if status.status != _WAITING:
                    break
                info = await commands.query_migrate(monitor)
                if info.status is MigrationStatus.FAILED:
                    raise self._failed(info)
            except CommandTimeoutError:  # its main loop waits for a page
                pass
            except DisconnectedError:
                if not await self.machine.regain():
                    raise
            if time.monotonic() > until:
                raise DeadlineError(f"{self.machine.name} could not run within {timeout:g} s")
            await asyncio.sleep(_POLL_SECONDS)
        if not status.running:
            await commands.cont(monitor)

    async def resumed(self, *, timeout: float = _EVENT_SECONDS) -> None:
        """Wait until it has told that the guest runs.

        Raises:
            DeadlineError: it did not in time.
            QmpError: it is gone.
        """
        while self.resumed_at is None:
            try:
                event = await self._events.wait(timeout=timeout, what="RESUME of the destination")
            except DisconnectedError:
                if not await self._regained():
                    raise
                if (await commands.query_status(self.machine.monitor)).running:
                    return  # when it did is not known
            else:
                self._note(event)

    async def _regained(self) -> bool:
        """Go on by a new connection, if there can be one. What came meanwhile is missed."""
        if not await self.machine.regain():
            return False
        monitor = self.machine.monitor
        self._events.__exit__(None, None, None)
        self._events = monitor.events(*_EVENTS)
        self._events.__enter__()
        self._status = (await commands.query_migrate(monitor)).status or self._status
        return True

    def _note(self, event: Event) -> None:
        if event.name == "RESUME":
            self.resumed_at = self.resumed_at or Moment(event, self.machine)
            return
        self._status = MigrationStatus(event.data.get("status"))
        if self._status is MigrationStatus.POSTCOPY_ACTIVE:
            self.switched_at = self.switched_at or Moment(event, self.machine)
        elif self._status is MigrationStatus.COMPLETED:
            self.arrived_at = Moment(event, self.machine)


async def _waits_with_cont(monitor: Monitor) -> bool:
    """Whether `cont` to a QEMU that waits only decides what becomes of its guest later.

    QEMU before 10.0 takes the disks at once: it fails where the source has them locked, and where
    nothing locks them it keeps what it reads of them now, while the source goes on to write.
    """
    if (await monitor.schema()).has_command("blockdev-set-active"):  # came with the other meaning
        return True
    return not await commands.query_named_block_nodes(monitor)
