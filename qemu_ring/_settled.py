"""Waiting for tasks that must not be left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["settled"]


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
