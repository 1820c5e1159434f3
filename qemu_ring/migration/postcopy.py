"""Going on with a postcopy migration that has lost its channel, or its controller."""

from __future__ import annotations

import asyncio
import time

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.aftermath import find_aftermath, is_in_postcopy
from qemu_ring.migration.channel import Channel, Connection, Unix
from qemu_ring.migration.errors import Aftermath, MigrationError, PostcopyPausedError
from qemu_ring.migration.shield import to_the_end
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    MigrationStatus,
    QmpError,
    commands,
)

__all__ = ["lost_channel", "reconnect", "recover_postcopy"]

_PAUSE_SECONDS = 20.0
_NOTICE_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.02
_CONNECT_SECONDS = 5.0
_SILENT = MigrationStatus("unknown")
"""Of a QEMU that does not answer."""
_COMPLETED, _PAUSED = MigrationStatus.COMPLETED, MigrationStatus.POSTCOPY_PAUSED


async def recover_postcopy(
    source: Machine,
    destination: Machine,
    channel: Channel | None = None,
    *,
    timeout: float = 3600.0,
) -> Aftermath:
    """Go on with a postcopy migration whose controller is gone, and see it to its end.

    One that is paused is given a new channel. One that goes on is only waited for. Neither
    side's settings are changed: what they were before that controller came is not known.

    Args:
        source: which has memory that the guest needs; attached to.
        destination: where the guest is.
        channel: the new way; None for a unix socket of our own.
        timeout: seconds until both sides have completed it.

    Returns:
        how both sides were found then. A guest that was to be left paused, or to be verified,
        is paused.

    Raises:
        PostcopyPausedError: the new channel broke, too; it can be tried again.
        MigrationError: it is no postcopy migration that has switched over, or a QEMU refused.
        DeadlineError: it is not over; it goes on.
    """
    clock = deadline(timeout)
    try:
        async with clock:
            await _recover(source, destination, channel or Unix())
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise DeadlineError(f"the migration did not complete within {timeout:g} s") from error
    return await find_aftermath(source, destination)


async def reconnect(source: Machine, destination: Machine, connection: Connection) -> None:
    """Have both sides go on by another connection; returns when they were told to.

    Raises:
        QmpError: one refused.
        DeadlineError: the destination did not pause in time.
    """
    await _pause(destination)
    await commands.migrate_recover(destination.monitor, await connection.listen())
    await commands.migrate(source.monitor, await connection.reach(), resume=True)


async def lost_channel(source: Machine, destination: Machine | None) -> PostcopyPausedError:
    """Make the error that tells of a channel that broke, and whether it can be recovered."""
    aftermath = await find_aftermath(source, destination)
    hint = "recover it on another: the source holds memory that the guest needs"
    return PostcopyPausedError(
        "postcopy lost its channel",
        hint=hint if aftermath.recoverable else "the destination ended with it",
        aftermath=aftermath,
    )


async def _recover(source: Machine, destination: Machine, channel: Channel) -> None:
    sides = (source, destination)
    if not channel.bidirectional:
        raise UsageError(f"postcopy needs a channel that goes both ways, not {channel.words}")
    found = await _statuses(sides)
    known = [status for status in found if status is not _SILENT]
    if not all(status is _COMPLETED or is_in_postcopy(status) for status in known) or (
        not any(is_in_postcopy(status) for status in known)
    ):
        raise MigrationError(
            f"there is no postcopy to recover: the source's migration is {found[0]}, "
            f"the destination's {found[1]}",
            aftermath=await find_aftermath(source, destination),
        )
    connection = channel.connect(source.monitor, destination.monitor)
    try:
        if _PAUSED in found:
            await _pause(source)
            await reconnect(source, destination, connection)
            await _wait_reconnected(source)
            connection.established()
        await _wait_completed(sides)
    except QmpError as error:
        aftermath = await find_aftermath(source, destination)
        raise MigrationError(
            f"it cannot be recovered: {error.message}", aftermath=aftermath
        ) from error
    finally:
        await to_the_end(connection.abandon())
        connection.close(completed=False)


async def _wait_reconnected(source: Machine) -> None:
    """Until the source has taken the new channel, or has failed to."""
    until = time.monotonic() + _CONNECT_SECONDS
    while True:
        status = await _status(source)
        recovers = status.startswith("postcopy-recover")
        if not recovers and (status is not _PAUSED or time.monotonic() > until):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _wait_completed(sides: tuple[Machine, Machine]) -> None:
    while (found := await _statuses(sides)) != [_COMPLETED, _COMPLETED]:
        if _PAUSED in found:
            raise await lost_channel(*sides)
        if MigrationStatus.FAILED in found:
            aftermath = await find_aftermath(*sides)
            raise MigrationError("the migration failed", aftermath=aftermath)
        await asyncio.sleep(_POLL_SECONDS)


async def _statuses(sides: tuple[Machine, Machine]) -> list[MigrationStatus]:
    return [await _status(machine) for machine in sides]


async def _status(machine: Machine) -> MigrationStatus:
    try:
        info = await commands.query_migrate(machine.monitor, timeout=_ANSWER_SECONDS)
    except CommandTimeoutError:
        return _SILENT
    return info.status or MigrationStatus.NONE


async def _pause(machine: Machine) -> None:
    """See that postcopy is paused here too; a side notices a lost channel only by using it.

    Raises:
        QmpError: it refused.
        DeadlineError: it did not pause in time.
    """
    until = time.monotonic() + _PAUSE_SECONDS
    try:
        if await _status(machine) is not _PAUSED:
            await commands.migrate_pause(machine.monitor)
    except CommandError:  # its channel has broken, and it is about to notice
        until = time.monotonic() + _NOTICE_SECONDS
    while (status := await _status(machine)) not in (_PAUSED, _SILENT):
        if time.monotonic() > until:
            raise DeadlineError(f"{machine.name} did not pause its migration, it is {status}")
        await asyncio.sleep(_POLL_SECONDS)
    # A missing page may hold up the main loop of one that does not answer; what follows goes
    # out of band.
