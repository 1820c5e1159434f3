"""Going on with a migration that has lost its controller, and with postcopy without its channel."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.channels.channel import Channel, Connection, Unix
from qemu_ring.migration.engine.outcome import find_outcome, is_in_postcopy
from qemu_ring.migration.engine.previous_settings import PreviousSettings
from qemu_ring.migration.errors import MigrationError, MigrationOutcome, PostcopyPausedError
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    MigrationStatus,
    QmpError,
    commands,
)
from qemu_ring.tasks import to_the_end

__all__ = ["lost_channel", "reconnect", "recover_postcopy"]

_PAUSE_SECONDS = 20.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.02
_CONNECT_SECONDS = 20.0
_SILENT = MigrationStatus("unknown")
"""Of a QEMU that does not answer."""
_COMPLETED, _PAUSED = MigrationStatus.COMPLETED, MigrationStatus.POSTCOPY_PAUSED


async def recover_postcopy(
    source: Machine,
    destination: Machine,
    channel: Channel | None = None,
    *,
    leave_paused: bool = False,
    timeout: float | None = None,
) -> MigrationOutcome:
    """Go on with a migration whose controller is gone, and see it to its end.

    One that goes on by itself is only waited for. Postcopy that is paused, or pauses meanwhile, is
    given a new channel, once.
    A guest that was held at the destination, to be verified, runs there as soon as it can. What
    the controller noted of both sides' former settings is put back when it is over.

    Args:
        source: the guest's, which may have memory that it needs; attached to.
        destination: where it is, or goes to.
        channel: the new way; None for a unix socket of our own.
        leave_paused: leave a guest paused that was held; so is one that was paused before.
        timeout: seconds until both sides have completed it; None to wait as long as it takes.

    Returns:
        how both sides were found then.

    Raises:
        UsageError: the controller lives.
        PostcopyPausedError: the new channel broke, too; it can be tried again.
        MigrationError: there is no migration without a controller, it failed, or a QEMU refused.
        DeadlineError: it is not over; it goes on.
    """
    clock = deadline(timeout)
    try:
        async with clock:
            await _recover(source, destination, channel or Unix(), leave_paused=leave_paused)
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise DeadlineError(f"the migration did not complete within {timeout:g} s") from error
    return await find_outcome(source, destination)


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
    outcome = await find_outcome(source, destination)
    hint = ""
    if outcome.recoverable:
        hint = "recover it on another: the source holds memory that the guest needs"
    elif outcome.destination is None:
        hint = "the destination ended with it"
    return PostcopyPausedError("postcopy lost its channel", hint=hint, outcome=outcome)


async def _recover(
    source: Machine, destination: Machine, channel: Channel, *, leave_paused: bool
) -> None:
    sides = (source, destination)
    if not channel.bidirectional:
        raise UsageError(f"postcopy needs a channel that goes both ways, not {channel.words}")
    found = await _statuses(sides)
    left = await _left(sides)
    await _require_recoverable(sides, found, was_ours=any(left))
    runs = not leave_paused and (left[0] is None or left[0].running)
    connection, reconnected = channel.connect(source.monitor, destination.monitor), False
    try:
        if found[0] is MigrationStatus.PRE_SWITCHOVER:
            await commands.migrate_continue(source.monitor, MigrationStatus.PRE_SWITCHOVER)
        # A side notices that its channel broke some time after it did: it may still call itself
        # active when it is asked first.
        while not await _completed(sides, runs=runs and any(left)):
            if reconnected or not await _may_go_on(sides):
                raise await lost_channel(*sides)
            reconnected = True
            await _pause(source)
            await reconnect(source, destination, connection)
            await _wait_reconnected(source)
            connection.established()
        for machine, former in zip(sides, left, strict=True):
            if former is not None:
                await to_the_end(former.put_back(machine.monitor))
    except QmpError as error:
        outcome = await find_outcome(source, destination)
        raise MigrationError(f"it cannot be recovered: {error.message}", outcome=outcome) from error
    finally:
        await to_the_end(connection.abandon())
        connection.close(completed=False)


async def _left(sides: tuple[Machine, Machine]) -> list[PreviousSettings | None]:
    """What the controller that is gone has noted; nothing of a side that does not answer.

    Raises:
        UsageError: it is not gone.
    """
    left: list[PreviousSettings | None] = []
    for machine, role in zip(sides, ("source", "destination"), strict=True):
        former = None
        with suppress(CommandTimeoutError):
            former = await PreviousSettings.left(machine.monitor)
        if former is not None:
            former.require_left(f"the {role}")
        left.append(former)
    return left


async def _require_recoverable(
    sides: tuple[Machine, Machine], found: list[MigrationStatus], *, was_ours: bool
) -> None:
    """Check that there is a migration that somebody has to see to its end.

    Precopy without a note is another controller's, or is over as it should be.

    Raises:
        MigrationError: there is none.
    """
    known = [status for status in found if status is not _SILENT]
    if any(is_in_postcopy(status) for status in known):
        if all(status is _COMPLETED or is_in_postcopy(status) for status in known):
            return
    elif was_ours and (found[0] is _COMPLETED or found[0].is_active):
        return
    raise MigrationError(
        f"there is no migration to recover: the source's is {found[0]}, "
        f"the destination's {found[1]}",
        outcome=await find_outcome(*sides),
    )


async def _may_go_on(sides: tuple[Machine, Machine]) -> bool:
    """Whether each side may still have, or take, what the other one needs."""
    return all(is_in_postcopy(one) or one is _SILENT for one in await _statuses(sides))


async def _wait_reconnected(source: Machine) -> None:
    """Until the source has taken the new channel, or has failed to.

    It goes on when the destination has told that it does: from then on a side that is paused has
    lost the new one.
    """
    until, begun = time.monotonic() + _CONNECT_SECONDS, False
    while True:
        status = await _status(source)
        begun = begun or status.startswith("postcopy-recover")
        waits = status is _SILENT or (status is _PAUSED and not begun)
        if not status.startswith("postcopy-recover") and not (waits and time.monotonic() < until):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _completed(sides: tuple[Machine, Machine], *, runs: bool) -> bool:
    """Wait until both sides call it completed, and let a guest run that is held meanwhile.

    Returns:
        False if postcopy is paused instead.
    """
    while True:
        found = await _statuses(sides)
        if _PAUSED in found:
            return False
        if runs and all(one is _COMPLETED or is_in_postcopy(one) for one in found):
            runs = not await _let_run(sides[1])
        if found == [_COMPLETED, _COMPLETED]:
            return True
        if MigrationStatus.FAILED in found or MigrationStatus.CANCELLED in found:
            outcome = await find_outcome(*sides)
            raise MigrationError("the migration failed", outcome=outcome)
        await asyncio.sleep(_POLL_SECONDS)


async def _let_run(destination: Machine) -> bool:
    """Let a guest run that is held; whether it runs. One that cannot run yet is not told to."""
    with suppress(CommandTimeoutError):  # its main loop waits for a page
        status = await commands.query_status(destination.monitor)
        if status.status == "paused":
            await commands.cont(destination.monitor)
            return True
        return status.running
    return False


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
    with suppress(CommandError):  # its channel has broken, and it is about to notice
        if await _status(machine) is not _PAUSED:
            await commands.migrate_pause(machine.monitor)
    until = time.monotonic() + _PAUSE_SECONDS
    while (status := await _status(machine)) not in (_PAUSED, _SILENT):
        if status.is_final or time.monotonic() > until:
            raise DeadlineError(f"{machine.name} did not pause its migration, it is {status}")
        await asyncio.sleep(_POLL_SECONDS)
    # A missing page may hold up the main loop of one that does not answer; what follows goes
    # out of band.
