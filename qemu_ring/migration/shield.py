"""Work that is done whole, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TypeVar

from qemu_ring._settled import settled

__all__ = ["ShieldedStack", "stopped", "to_the_end"]

T = TypeVar("T")


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """Do something whole; a cancellation, or several, that came meanwhile is raised after that."""
    task = asyncio.ensure_future(work)
    try:
        await settled({task})
    except asyncio.CancelledError as cancelled:
        if not task.cancelled():
            cancelled.__cause__ = task.exception()  # and so it is not lost
        raise
    return task.result()


async def stopped(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; raises what it raised, but for its cancellation."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


class ShieldedStack(AsyncExitStack):
    """An AsyncExitStack that is unwound to its end, though its owner may be cancelled."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return bool(await to_the_end(super().__aexit__(kind, error, traceback)))
