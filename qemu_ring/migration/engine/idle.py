"""Waiting until what a migration set going has come to rest, by asking QEMU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

from qemu_ring.errors import DeadlineError
from qemu_ring.machine import Machine
from qemu_ring.qmp import MigrationStatus, Monitor, commands

__all__ = ["SETTLE_SECONDS", "go_on_at_source", "has_ended", "past_migration", "settled"]

T = TypeVar("T")
SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.002


async def settled(monitor: Monitor) -> MigrationStatus | None:
    """Wait until a migration is over; returns how it ended, None if there was none."""

    async def status() -> MigrationStatus | None:
        info = await commands.query_migrate(monitor)
        return info.status

    what = f"{monitor.name}: a migration does not end"
    return await _poll(status, lambda status: status is None or status.is_final, what)


async def past_migration(monitor: Monitor) -> str:
    """Wait until QEMU has done all that a migration's end brings; returns the run state."""

    async def state() -> str:
        return (await commands.query_status(monitor)).status

    what = f"{monitor.name}: it stays in state finish-migrate"
    return await _poll(state, lambda state: state != "finish-migrate", what)


async def go_on_at_source(monitor: Monitor) -> None:
    """Let a guest run again at the source of a migration that is over.

    QEMU tells that it has completed a moment before it takes `cont`.

    Raises:
        QmpError: QEMU refuses it, or is gone.
        DeadlineError: it stays in state finish-migrate.
    """
    await past_migration(monitor)
    await commands.cont(monitor)


async def _poll(
    ask: Callable[[], Coroutine[object, object, T]], enough: Callable[[T], bool], what: str
) -> T:
    """Ask until the answer will do.

    Raises:
        DeadlineError: it never did.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        answer = await ask()
        if enough(answer):
            return answer
        if time.monotonic() > end:
            raise DeadlineError(what)
        await asyncio.sleep(_POLL_SECONDS)


async def has_ended(machine: Machine) -> bool:
    """Whether a QEMU that does not answer has ended; its monitor goes a moment before it."""
    if machine.monitor.connected:
        return False
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(machine.wait(), SETTLE_SECONDS)
    return machine.returncode is not None
