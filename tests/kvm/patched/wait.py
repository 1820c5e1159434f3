"""Waiting for what the rings of a guest tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from qemu_ring.errors import DeadlineError
from qemu_ring.memslot import DirtyRings, query_memslots, query_rings
from qemu_ring.qmp import Monitor, commands

_POLL_SECONDS = 0.01
_WAIT_SECONDS = 20.0


async def wait_rings(
    monitor: Monitor, what: str, condition: Callable[[DirtyRings], bool]
) -> DirtyRings:
    """Wait until the rings are so; `what` says what they are not, if that takes too long."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition(rings := await query_rings(monitor)):
        if time.monotonic() > deadline:
            raise DeadlineError(f"{what}: {rings}")
        await asyncio.sleep(_POLL_SECONDS)
    return rings


async def log_dirty_pages(monitor: Monitor, *, ring: bool = True) -> None:
    """Have dirty pages logged for the rest of the test, and nothing else done about them."""
    await commands.calc_dirty_rate(monitor, 60, mode="dirty-ring" if ring else "dirty-bitmap")
    deadline = time.monotonic() + _WAIT_SECONDS
    while not all(slot.log_dirty for slot in await query_memslots(monitor)):
        if time.monotonic() > deadline:
            raise DeadlineError("no dirty pages are logged")
        await asyncio.sleep(_POLL_SECONDS)
