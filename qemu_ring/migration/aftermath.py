"""How both sides are found when a migration has ended."""

from __future__ import annotations

import asyncio
import time

from qemu_ring.machine import Machine
from qemu_ring.migration.errors import Aftermath, GuestAt
from qemu_ring.qmp import MigrationStatus, QmpError, StatusInfo, commands

__all__ = ["find_aftermath", "stays_when_it_fails"]

_SETTLE_SECONDS = 5.0
_NOTICE_SECONDS = 2.0
_LATE_SECONDS = 0.3
_POLL_SECONDS = 0.005
_COMPLETED, _FAILED = MigrationStatus.COMPLETED, MigrationStatus.FAILED
_IN_BETWEEN = "finish-migrate"
"""The source's run state from its stop until QEMU has decided whether it goes on."""


async def find_aftermath(source: Machine, destination: Machine | None) -> Aftermath:
    """Ask both sides; one that is gone is no error."""
    sends, receives = await _migration(source), await _migration(destination)
    if destination is not None and not (sends is not None and sends.is_active):
        receives = await _settled(destination, receives)
    at_source = await _status(source)
    at_destination = None if destination is None else await _status(destination)
    runs_there = at_destination is not None and at_destination.running
    # One that gives up ends a moment later; until then it calls its guest running.
    needs_source = _is_in_postcopy(receives) or (receives is _FAILED and runs_there)
    lost = needs_source and not _is_in_postcopy(sends) and sends is not _COMPLETED
    where = GuestAt.NOWHERE
    if at_source is not None and at_source.running:
        where, lost = GuestAt.SOURCE, False
    elif runs_there and not lost:
        where = GuestAt.DESTINATION
    return Aftermath(
        source=at_source.status if at_source else None,
        destination=at_destination.status if at_destination else None,
        guest_at=where,
        recoverable=_is_in_postcopy(sends) and _is_in_postcopy(receives),
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


async def _status(machine: Machine) -> StatusInfo | None:
    """Ask a side, when it has settled."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while True:
            status = await commands.query_status(machine.monitor)
            if status.status != _IN_BETWEEN or time.monotonic() > deadline:
                return status
            if not (await commands.query_migrate(machine.monitor)).is_final:
                return status
            await asyncio.sleep(_POLL_SECONDS)
    except QmpError:
        return None


async def _migration(machine: Machine | None) -> MigrationStatus | None:
    """What this side says of its migration; None if it is gone."""
    if machine is None:
        return None
    try:
        return (await commands.query_migrate(machine.monitor)).status or MigrationStatus.NONE
    except QmpError:
        return None


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


def _is_in_postcopy(status: MigrationStatus | None) -> bool:
    """Whether memory of this side is needed by the other, or is still to come."""
    return status is not None and status.startswith("postcopy-")
