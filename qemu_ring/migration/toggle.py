"""A running guest moved to a QEMU with another way of tracking, without copying its memory.

KVM fixes the way of tracking (bitmap, or a ring and its size) when a VM is created. So the guest
is moved: its twin, another QEMU process with another accelerator option, is started over the very
memory files of the original, and a migration with `x-ignore-shared` carries over the rest, the
devices' state. Until the twin runs the guest, the original can go on.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from qemu_ring.errors import DeadlineError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Accelerator, Machine, MachineDescription
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import Event, Listener, MigrationStatus, Monitor, QmpError, commands

__all__ = ["Toggled", "toggle"]

T = TypeVar("T")
_FD_NAME = "qemu-ring-toggle"
_IGNORE_SHARED = "x-ignore-shared"
_UNLIMITED = 1 << 40
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_DOWNTIME_LIMIT_MS = 2000
"""The guest is not to be kept waiting for a better moment: there is next to nothing to send."""


@dataclass(frozen=True, slots=True)
class Toggled:
    """A guest that was moved.

    Args:
        machine: the twin, which has the guest now; whoever had the original closes it.
        downtime_seconds: from the original's STOP event to the twin's RESUME event, by the
            times that both QEMUs gave them; None if the guest was paused, or its move was
            not watched to the end, because of a cancellation that came too late.
        seconds: all of it, from before the twin's start until the original had ended.
    """

    machine: Machine
    downtime_seconds: float | None
    seconds: float


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

    A guest that ran goes on running, one that was paused stays so. On any failure, and
    when cancelled, the guest goes on where it was, and nothing of the twin is left. A
    cancellation that comes when the twin has the guest already is too late: it returns.

    Args:
        original: started here, with shared memory backends only.
        binary: the QEMU for the twin.
        accelerator: KVM with the tracking wanted; see `Tracking.accelerator`.
        monitors: listening sockets on which the twin shall have further QMP monitors.
        log_directory: where the twin's logs are kept.
        timeout: seconds for all of it.

    Raises:
        UsageError: the guest was not started here, or has memory that is not shared.
        QemuUnsuitableError: one of the QEMUs has no `x-ignore-shared`.
        MigrationError: it failed; the guest goes on where it was.
        QemuRingError: the twin did not start; the guest goes on where it was.
    """
    description = _twin(original, accelerator)
    started = time.monotonic()
    running = (await commands.query_status(original.monitor)).running
    twin = await Machine.start(
        binary,
        description,
        name=original.name,
        monitors=monitors,
        log_directory=log_directory,
        timeout=timeout,
    )
    try:
        downtime = await asyncio.wait_for(_move(original, twin, running=running), timeout)
    except BaseException as error:
        if not await _to_the_end(_has_moved(original.monitor, twin.monitor)):
            # The twin has to be gone before the original may touch the memory that they share.
            await _to_the_end(_undo(original, twin, ran=running))
            if isinstance(error, asyncio.TimeoutError):
                raise DeadlineError(
                    f"{original.name} was not moved within {timeout:g} s; it goes on where it was"
                ) from error
            raise
        downtime = None
    await _to_the_end(original.close())
    return Toggled(twin, downtime, time.monotonic() - started)


def _twin(original: Machine, accelerator: Accelerator) -> MachineDescription:
    """The twin's description.

    Raises:
        UsageError: the guest cannot be moved like this.
    """
    description = original.description
    if description is None:
        raise UsageError(
            f"{original.name} was not started here, so its twin cannot be",
            hint="start the guest with Machine.start or qemu-ring run",
        )
    for backend in (description.memory, *description.backends):
        if not backend.share:
            raise UsageError(
                f"memory {backend.id} of {original.name} is not shared: it would have to be copied",
                hint="give it a shared memory backend, or migrate the guest",
            )
    # The run state comes with the guest: paused=True would stop one that ran.
    return replace(description, accelerator=accelerator, incoming="defer", paused=False)


async def _move(original: Machine, twin: Machine, *, running: bool) -> float | None:
    """Migrate all but the memory; returns the downtime in seconds."""
    source, destination = original.monitor, twin.monitor
    for monitor in (source, destination):
        await _prepare(monitor)
    await commands.set_parameters(
        source, max_bandwidth=_UNLIMITED, downtime_limit=_DOWNTIME_LIMIT_MS
    )
    with (
        source.events("MIGRATION", "STOP") as left,
        destination.events("MIGRATION", "RESUME") as arrived,
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await source.send_fd(_FD_NAME, ours.fileno())
            await destination.send_fd(_FD_NAME, theirs.fileno())
        await commands.migrate_incoming(destination, f"fd:{_FD_NAME}")
        await commands.migrate(source, f"fd:{_FD_NAME}")
        if not running:
            await _until(left, source, "MIGRATION")
            await _until(arrived, destination, "MIGRATION")
            return None
        stopped = await _until(left, source, "STOP")
        await _until(left, source, "MIGRATION")
        resumed = await _until(arrived, destination, "RESUME")
        return resumed.seconds - stopped.seconds


async def _prepare(monitor: Monitor) -> None:
    """Set the capabilities.

    Raises:
        QemuUnsuitableError: it has not got them.
    """
    if _IGNORE_SHARED not in await commands.query_capabilities(monitor):
        version = ".".join(map(str, monitor.version))
        raise QemuUnsuitableError(
            f"QEMU {version} cannot leave shared memory out of a migration",
            hint="use QEMU 4.0 or newer",
        )
    await commands.set_capabilities(monitor, {"events": True, _IGNORE_SHARED: True})


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
        raise MigrationError(
            f"the guest was not moved: {info.error_desc or info.status}; it goes on where it was"
        )
    return event


async def _to_the_end(what: Coroutine[object, object, T]) -> T:
    """Do something whole, even if cancelled meanwhile."""
    task = asyncio.ensure_future(what)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


async def _has_moved(source: Monitor, destination: Monitor) -> bool:
    """Stop the migration if it can be stopped; tell if the guest is at the twin for good."""
    with suppress(QmpError):  # an original that has died cannot have the guest
        await commands.migrate_cancel(source)
        if await _settle(source) != MigrationStatus.COMPLETED:
            return False
    with suppress(QmpError, DeadlineError):
        return await _settle(destination) == MigrationStatus.COMPLETED
    return False


async def _undo(original: Machine, twin: Machine, *, ran: bool) -> None:
    """End the twin, and let the original run if it ran."""
    await twin.close()
    monitor = original.monitor
    with suppress(QmpError):  # an original that has died is told of by its owner
        await commands.set_capabilities(monitor, {_IGNORE_SHARED: False})
        if ran and not (await commands.query_status(monitor)).running:
            await commands.cont(monitor)


async def _settle(monitor: Monitor) -> MigrationStatus | None:
    """Wait until a migration is over; returns how it ended, None if there was none."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        info = await commands.query_migrate(monitor)
        if info.status is None or info.is_final:
            return info.status
        if time.monotonic() > deadline:
            raise DeadlineError(f"{monitor.name}: a cancelled migration does not end")
        await asyncio.sleep(_POLL_SECONDS)
