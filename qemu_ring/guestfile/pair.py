"""A guest and its twin, started at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from qemu_ring.guestfile.schema import GuestDescription
from qemu_ring.guestfile.start import RunningGuest, start_guest
from qemu_ring.tasks import settled

__all__ = ["start_guests"]


@asynccontextmanager
async def start_guests(
    guest: GuestDescription, binary: Path | None = None
) -> AsyncIterator[tuple[RunningGuest, RunningGuest]]:
    """Start a guest, and one that waits for its migration; both are stopped on leaving.

    If one does not start, the other is stopped, and the first error is raised.

    Args:
        guest: what to start.
        binary: the QEMU; None for the one that `find_qemu` finds.

    Raises:
        QemuRingError: as `start_guest`.
    """
    source_guest = start_guest(guest, binary, name="source")
    twin = start_guest(guest, binary, name="destination", incoming="defer", paused=True)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        starts = [
            asyncio.create_task(first.enter_async_context(source_guest), name="start source"),
            asyncio.create_task(second.enter_async_context(twin), name="start destination"),
        ]
        try:
            source, destination = await asyncio.gather(*starts)
        finally:  # neither stack is left while a guest may still come onto it
            for start in starts:
                start.cancel()
            await settled(starts)
        yield source, destination
