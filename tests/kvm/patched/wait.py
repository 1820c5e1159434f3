"""Waiting for what the rings of a guest tell."""

from __future__ import annotations

from collections.abc import Callable

from qemu_ring.memslot import DirtyRings, query_memslots, query_rings
from qemu_ring.qmp import Monitor
from qemu_ring.qmp.dirty import calc_dirty_rate
from tests.waiting import until


async def wait_rings(
    monitor: Monitor, what: str, condition: Callable[[DirtyRings], bool]
) -> DirtyRings:
    """Wait until the rings are so; `what` says what they are not, if that takes too long."""
    rings = await query_rings(monitor)

    async def are_so() -> bool:
        nonlocal rings
        rings = await query_rings(monitor)
        return condition(rings)

    await until(are_so, lambda: f"{what}: {rings}")
    return rings


async def log_dirty_pages(monitor: Monitor, *, ring: bool = True) -> None:
    """Have dirty pages logged for the rest of the test, and nothing else done about them."""
    await calc_dirty_rate(monitor, 60, mode="dirty-ring" if ring else "dirty-bitmap")

    async def logs() -> bool:
        return all(slot.log_dirty for slot in await query_memslots(monitor))

    await until(logs, "dirty pages are logged")
