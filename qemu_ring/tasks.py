"""Tasks that must not be left alone, and work that is done whole in spite of cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["UninterruptibleStack", "settled", "stopped", "to_the_end"]

T = TypeVar("T")


async def settled(
    tasks: Collection[asyncio.Future[Any]], *, on_cancel: Callable[[], None] = lambda: None
) -> None:
    """Wait for the end of all, even through cancellations; the last is raised after that.

    Args:
        tasks: their results and errors are left to the caller.
        on_cancel: called at each cancellation.
    """
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        raise cancelled


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


class UninterruptibleStack(AsyncExitStack):
    """An AsyncExitStack that is unwound to its end, though its owner may be cancelled."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return bool(await to_the_end(super().__aexit__(kind, error, traceback)))
