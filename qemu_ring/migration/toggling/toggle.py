"""A running guest moved to a QEMU with another way of tracking, without copying its memory.

KVM fixes the way of tracking (bitmap, or a ring and its size) when a VM is created. So the guest
is moved: its twin, another QEMU process with another accelerator option, is started over the very
memory files of the original, and a migration with `x-ignore-shared` carries over the rest, the
devices' state.

Both share the memory, so never may the original run again once the twin has run. Hence the twin is
started paused, and is told to let the guest run only when it has all, and QEMU calls the migration
completed on both sides: before that word any failure leaves the guest to the original, after it
none does.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Accelerator, Machine
from qemu_ring.migration.engine.idle import SETTLE_SECONDS, has_ended, past_migration, settled
from qemu_ring.migration.engine.previous_settings import set_capabilities, set_parameters
from qemu_ring.migration.engine.settings import MANAGED_CAPABILITIES
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.errors import MigrationError
from qemu_ring.migration.toggling.alike import require_alike, require_no_harm
from qemu_ring.migration.toggling.drives import activate
from qemu_ring.migration.toggling.plugged import with_plugged
from qemu_ring.migration.toggling.shared_memory import (
    FileId,
    addresses,
    moved_meanwhile,
    place_shared_memory,
    shared_files,
)
from qemu_ring.migration.toggling.twin import Carried, twin_description
from qemu_ring.qmp import (
    CommandError,
    DisconnectedError,
    Event,
    Listener,
    MigrationStatus,
    Monitor,
    commands,
)

__all__ = ["Toggled", "toggle"]

T = TypeVar("T")
_FD_NAME = "qemu-ring-toggle"
_IGNORE_SHARED = "x-ignore-shared"
_CAPABILITIES = dict.fromkeys(MANAGED_CAPABILITIES, False) | {
    "events": True,
    "return-path": True,  # the original hears of a twin that could not load what it was sent
    _IGNORE_SHARED: True,
}
_LATE_ACTIVATE = "late-block-activate"
"""The original has its disks until the guest runs. A twin that is paused needs them, too: QEMU
before 10.0 does not survive it if it shall hand on disks that it has not taken over."""
_PARAMETERS = {
    "mode": "normal",
    "max-bandwidth": 1 << 40,
    "avail-switchover-bandwidth": 0,
    "downtime-limit": 2000,
    "tls-creds": "",
}
"""What holds nothing up: there is next to nothing to send, and no better moment to wait for."""
_AT_REST = ("paused", "prelaunch")


@dataclass(frozen=True, slots=True)
class Toggled:
    """A guest that was moved.

    Args:
        machine: the twin, which has the guest now; whoever had the original closes it. It may
            have ended since, as any QEMU may.
        running: whether the guest runs; it was paused otherwise.
        downtime_seconds: from the original's STOP event to the twin's RESUME event, by the
            times that both QEMUs gave them; None if the guest was paused, or its move was
            not watched to the end, because of a cancellation that came too late.
        seconds: all of it, from before the twin's start until the original had ended.
        notes: what is not with the twin as it was with the original, a line each.
    """

    machine: Machine
    running: bool
    downtime_seconds: float | None
    seconds: float
    notes: tuple[str, ...] = ()


async def toggle(
    original: Machine,
    binary: Path,
    accelerator: Accelerator,
    *,
    monitors: Sequence[socket.socket] = (),
    log_directory: Path | None = None,
    timeout: float = 30.0,
) -> Toggled:
    """Move a guest to a QEMU with another accelerator option; the original is ended.

    A guest that ran goes on running, one that was paused stays so. Its migration parameters
    and capabilities and its vCPUs' dirty limits are the twin's afterwards. On any failure,
    and when cancelled, the guest goes on where it was, nothing of the twin is left, and what
    was set in the original is as before. A cancellation that comes when the twin has the guest
    already is too late: it returns.

    Args:
        original: started here, with shared memory backends only.
        binary: the QEMU for the twin.
        accelerator: KVM with the tracking wanted; see `twin_accelerator`.
        monitors: listening sockets on which the twin shall have further QMP monitors.
        log_directory: where the twin's logs are kept.
        timeout: seconds for all of it.

    Raises:
        UsageError: the guest was not started here, has memory that is not shared, or nothing
            that a twin could map; migrates already, or is in a state that is neither running nor
            paused; or was changed since its start in a way that its twin cannot follow.
        QemuUnsuitableError: one of the QEMUs has no `x-ignore-shared`, something in the original
            blocks migration, or a twin would destroy the guest's memory.
        MigrationError: it failed; the message tells whether the guest goes on.
        DeadlineError: it took too long; the message tells whether the guest goes on.
        QemuRingError: the twin did not start; the guest goes on where it was.
    """
    description = twin_description(original, accelerator)
    started = time.monotonic()
    await _is_ready(original)
    await _require_support(original.monitor)
    await require_no_harm(original)
    files = await shared_files(original)
    description = await with_plugged(description, original.monitor, original.name)
    twin = await Machine.start(
        binary,
        description,
        name=original.name,
        monitors=monitors,
        log_directory=log_directory,
        timeout=timeout,
    )
    move = _Move(original, twin, files)
    clock = deadline(max(timeout - (time.monotonic() - started), 0))
    try:
        async with clock:
            await move.run()
    except BaseException as error:
        if not await _whole(move.is_over_there()):
            why = await _whole(move.undo(error))
            if isinstance(error, TimeoutError) and clock.expired():
                raise DeadlineError(
                    f"{original.name} was not moved within {timeout:g} s; {why}"
                ) from error
            refused = isinstance(error, (UsageError, QemuUnsuitableError))
            if refused or not isinstance(error, QemuRingError):
                raise
            raise MigrationError(f"{original.name} was not moved: {why}") from error
    notes = await _whole(move.settle())
    return Toggled(twin, move.running, move.downtime, time.monotonic() - started, notes)


async def _whole(what: Coroutine[object, object, T]) -> T:
    """Do something whole; a cancellation meanwhile is dropped: it comes too late, or is raised."""
    task = asyncio.ensure_future(what)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


async def _is_ready(original: Machine) -> bool:
    """Check that a guest can be moved now; returns whether it runs.

    Raises:
        UsageError: it migrates, or is in another state than running and paused.
        QemuUnsuitableError: something in it blocks migration.
    """
    await Side(original.name, original.monitor).require_free()
    status = await commands.query_status(original.monitor)
    if not status.running and status.status not in _AT_REST:
        raise UsageError(
            f"{original.name} cannot be moved, it is in state {status.status}",
            hint="it has to run, or to be paused",
        )
    return status.running


async def _require_support(monitor: Monitor) -> None:
    """Check that a QEMU can leave shared memory out of a migration.

    Raises:
        QemuUnsuitableError: it cannot.
    """
    if _IGNORE_SHARED not in await commands.query_capabilities(monitor):
        version = ".".join(map(str, monitor.version))
        raise QemuUnsuitableError(
            f"QEMU {version} cannot leave shared memory out of a migration",
            hint="use QEMU 4.0 or newer",
        )


class _Move:
    """One attempt to move a guest.

    Attributes:
        begun: whether there may be a migration of ours.
        running: whether the guest ran, when last looked at before that.
        let_go: whether the twin may have been told to let it run.
        downtime: seconds; None if not known.
    """

    def __init__(self, original: Machine, twin: Machine, files: Mapping[str, FileId]) -> None:
        self._original, self._twin, self._files = original, twin, files
        self._carried: Carried | None = None
        self._placed: dict[str, int] = {}
        self.begun = self.let_go = self.running = False
        self.downtime: float | None = None
        self._resumed = twin.monitor.events("RESUME")
        self._resumed.__enter__()  # to the end of the twin's monitor

    async def run(self) -> None:
        """Migrate all but the memory, and let the guest run on."""
        source, destination = self._original.monitor, self._twin.monitor
        await _require_support(destination)
        await require_alike(self._original, self._twin, self._files)
        late = await _is_ready(self._original)
        await set_capabilities(destination, _CAPABILITIES | {_LATE_ACTIVATE: late})
        self._carried = await Carried.of(source)
        await set_capabilities(source, _CAPABILITIES)
        await set_parameters(source, _PARAMETERS)
        with (
            source.events("MIGRATION", "STOP") as left,
            destination.events("MIGRATION") as arrived,
        ):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                await source.send_fd(_FD_NAME, ours.fileno())
                await destination.send_fd(_FD_NAME, theirs.fileno())
            await commands.migrate_incoming(destination, f"fd:{_FD_NAME}")
            self._placed = await place_shared_memory(self._original, self._twin)
            self.running = await _is_ready(self._original)
            if late and not self.running:
                raise UsageError(
                    f"{self._original.name} was not moved: it was paused in that moment",
                    hint="try again",
                )
            await self._begin()
            stopped = await _until(left, source, "STOP") if self.running else None
            await _until(left, source, "MIGRATION")
            await _until(arrived, destination, "MIGRATION")
            if stopped is not None:
                await self._let_go()
                resumed = await self._resumed.wait()
                self.downtime = resumed.seconds - stopped.seconds

    async def is_over_there(self) -> bool:
        """Bring what has begun to an end, after a failure; tell if the guest is with the twin."""
        if not self.begun:
            return False
        if self.let_go:
            return await self._has_resumed()
        source = self._original.monitor
        try:
            await commands.migrate_cancel(source)
            if await settled(source) is not MigrationStatus.COMPLETED:
                return False
        except QemuRingError:
            # An original that has ended may have sent all before; of any other it is not known.
            if not await has_ended(self._original):
                return False
        try:
            if await settled(self._twin.monitor) is not MigrationStatus.COMPLETED:
                return False
            if self.running:
                await self._let_go()
        except CommandError:
            return False
        except QemuRingError:
            return await self._has_resumed()
        return True

    async def undo(self, error: BaseException) -> str:
        """End the twin, and let the original run if it ran; returns what happened, in words."""
        why = ""
        if isinstance(error, QemuRingError):
            why = f"{error.message}; "
            if not self._twin.monitor.connected:
                why = f"its twin: {(await self._twin.explain(error)).message}; "
            with suppress(QemuRingError):
                why = moved_meanwhile(self._placed, await addresses(self._original)) or why
        try:
            # It has to be gone before the original may touch the memory that they share.
            await self._twin.close()
        except Exception as problem:  # noqa: BLE001 - whatever it is, the guest has to go on
            why += f"the twin did not end as it should: {problem}; "
        where = await self._go_on()
        if self._carried is not None:
            await self._carried.give_back(self._original.monitor)
        if not self.begun:
            with suppress(QemuRingError):
                await self._original.monitor.execute("closefd", {"fdname": _FD_NAME})
        return why + where

    async def settle(self) -> tuple[str, ...]:
        """End the original, and give the twin what was set in it; returns what went amiss."""
        assert self._carried is not None
        notes = await self._carried.give(self._twin.monitor)
        if not self.running:
            notes += await activate(self._twin.monitor)
        try:
            await self._original.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the guest has moved
            notes += (f"the original did not end as it should: {error}",)
        return notes

    async def _begin(self) -> None:
        self.begun = True
        try:
            await commands.migrate(self._original.monitor, f"fd:{_FD_NAME}")
        except CommandError:  # somebody else's may be under way, which is not ours to cancel
            self.begun = False
            raise

    async def _let_go(self) -> None:
        if self._twin.returncode is not None:
            raise MigrationError("it ended when it had all")
        self.let_go = True
        try:
            await commands.cont(self._twin.monitor)
        except CommandError:
            self.let_go = False
            raise

    async def _has_resumed(self) -> bool:
        """Whether the twin, told to, let the guest run: QEMU tells of it just before it does.

        One that tells nothing is ended, so that it never will.
        """
        with suppress(DeadlineError):
            return await self._told_of_resuming()
        self._twin.kill()
        return await self._told_of_resuming()

    async def _told_of_resuming(self) -> bool:
        try:
            await self._resumed.wait(timeout=SETTLE_SECONDS)
        except DisconnectedError:
            return False
        return True

    async def _go_on(self) -> str:
        """Let the original run, if it was our migration that stopped it; tell how it is then."""
        monitor, state = self._original.monitor, None
        if self.begun and self.running:
            with suppress(QemuRingError):
                state = await past_migration(monitor)
            if state in (None, "postmigrate"):  # else QEMU has let it run, or another client acted
                with suppress(QemuRingError):
                    await commands.cont(monitor)
        try:
            status = await commands.query_status(monitor)
        except QemuRingError as error:
            return f"the original does not answer: {error.message}"
        if status.running or not self.running:
            return "the guest goes on where it was"
        return f"the guest stands still where it was, in state {status.status}"


async def _until(events: Listener, monitor: Monitor, name: str) -> Event:
    """Wait for an event; for MIGRATION, for the one that tells of its completion.

    Raises:
        MigrationError: the migration failed.
    """

    def over(event: Event) -> bool:
        return event.data.get("status") in {"failed", "cancelled"}

    def wanted(event: Event) -> bool:
        return event.name == name and (
            name != "MIGRATION" or event.data.get("status") == "completed"
        )

    event = await events.wait(
        lambda event: wanted(event) or over(event), timeout=60, what=f"event {name}"
    )
    if over(event):
        info = await commands.query_migrate(monitor)
        raise MigrationError(str(info.error_desc or f"the migration {info.status}"))
    return event
