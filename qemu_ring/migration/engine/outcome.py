"""How both sides are found when a migration has ended."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from qemu_ring.machine import Life, Machine
from qemu_ring.migration.errors import GuestAt, MigrationOutcome
from qemu_ring.qmp import CommandTimeoutError, MigrationStatus, QmpError, StatusInfo, commands

__all__ = ["find_outcome", "is_in_postcopy", "stays_when_it_fails"]

_SETTLE_SECONDS = 5.0
_NOTICE_SECONDS = 2.0
_LATE_SECONDS = 0.3
_POLL_SECONDS = 0.005
_COMPLETED, _FAILED = MigrationStatus.COMPLETED, MigrationStatus.FAILED
_IN_BETWEEN = "finish-migrate"
"""The source's run state from its stop until QEMU has decided whether it goes on."""
_SILENT = MigrationStatus("unknown")
"""Of a QEMU that does not answer, because it or its host hangs."""
_SILENT_STATUS = StatusInfo(status="unknown", running=False)


def is_in_postcopy(status: MigrationStatus | None) -> bool:
    """Whether memory of this side is needed by the other, or is still to come."""
    return status is not None and status.startswith("postcopy-")


async def find_outcome(source: Machine, destination: Machine | None) -> MigrationOutcome:
    """Ask both sides; one that is gone, or does not answer, is no error.

    A monitor that is lost is tried again. A side is gone if that is known; else it is unknown.
    """
    sends, receives = await _migration(source), await _migration(destination)
    if destination is not None and not (sends is not None and sends.is_active):
        receives = await _settled(destination, receives)
    at_source = await _status(source, sends)
    at_destination = None if destination is None else await _status(destination, receives)
    runs_here = at_source is not None and at_source.running
    runs_there = at_destination is not None and at_destination.running
    # One that gives up ends a moment later; until then it calls its guest running.
    needs_source = is_in_postcopy(receives) or (receives is _FAILED and runs_there)
    has_source = runs_here or is_in_postcopy(sends) or sends in (_COMPLETED, _SILENT)
    lost = needs_source and not has_source
    where = GuestAt.NOWHERE
    if runs_here:
        where = GuestAt.BOTH if runs_there and not needs_source else GuestAt.SOURCE
    elif runs_there and not lost:
        where = GuestAt.DESTINATION
    elif _SILENT_STATUS in (at_source, at_destination) and not lost:
        where = GuestAt.UNKNOWN
    return MigrationOutcome(
        source=at_source.status if at_source else None,
        destination=at_destination.status if at_destination else None,
        guest_at=where,
        recoverable=is_in_postcopy(sends) and (is_in_postcopy(receives) or receives is _SILENT),
        lost=lost,
        has_destination=destination is not None,
    )


async def stays_when_it_fails(machine: Machine) -> bool:
    """Whether a destination outlives its failure: one of ours can, as it ends with us anyway.

    It can meanwhile tell what went wrong.
    """
    if not machine.owned:
        return False
    try:
        schema = await machine.monitor.schema()
    except QmpError:
        return False
    return "exit-on-error" in schema.command_arguments("migrate-incoming")


async def _status(machine: Machine, migration: MigrationStatus | None) -> StatusInfo | None:
    """Ask a side, when it has settled; not one that did not answer just now."""
    if migration is None:
        return None
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while migration is not _SILENT:
            status = await commands.query_status(machine.monitor)
            if status.status != _IN_BETWEEN or time.monotonic() > deadline:
                return status
            if not (await commands.query_migrate(machine.monitor)).is_final:
                return status
            await asyncio.sleep(_POLL_SECONDS)
    except CommandTimeoutError:
        pass
    except QmpError:
        if await _is_gone(machine):
            return None
    return _SILENT_STATUS


async def _migration(machine: Machine | None) -> MigrationStatus | None:
    """What this side says of its migration; None if it is gone."""
    if machine is None:
        return None
    for _ in range(2):
        with suppress(QmpError):
            info = await commands.query_migrate(machine.monitor)
            return info.status or MigrationStatus.NONE
        if machine.monitor.connected or not await machine.regain():
            break
    return None if await _is_gone(machine) else _SILENT


async def _is_gone(machine: Machine) -> bool:
    """Whether it is known to have ended; of one that does not answer it is not."""
    return not await machine.regain() and machine.life is Life.ENDED


async def _settled(machine: Machine, status: MigrationStatus | None) -> MigrationStatus | None:
    """Wait until a destination that nobody sends to any more has noticed, and maybe ended."""
    patience = {
        MigrationStatus.NONE: _LATE_SECONDS,  # it may have been connected, and not know it yet
        MigrationStatus.SETUP: _LATE_SECONDS,
        MigrationStatus.ACTIVE: _NOTICE_SECONDS,
        MigrationStatus.FAILED: 0.0 if await stays_when_it_fails(machine) else _NOTICE_SECONDS,
    }
    changed = time.monotonic()
    while time.monotonic() < changed + (0 if status is None else patience.get(status, 0)):
        await asyncio.sleep(_POLL_SECONDS)
        before, status = status, await _migration(machine)
        if status is not before:
            changed = time.monotonic()
    return status
