"""How tests wait: for what is to be, until a deadline that only something broken reaches."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

__all__ = ["DEADLINE", "until", "wait_until"]

DEADLINE = 60.0  # seconds; beside much other work, too

_POLL_SECONDS = 0.002
_T = TypeVar("_T")
_What = str | Callable[[], object]


def wait_until(condition: Callable[[], _T], what: _What, *, seconds: float = DEADLINE) -> _T:
    """Wait until the condition holds, and return what it returned.

    `what` is to be; or a function that tells, when it is too late, how it is instead.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, _late(what, seconds)
        time.sleep(_POLL_SECONDS)
    return found


@overload
async def until(
    condition: Callable[[], Awaitable[_T]], what: _What, *, seconds: float = DEADLINE
) -> _T: ...
@overload
async def until(condition: Callable[[], _T], what: _What, *, seconds: float = DEADLINE) -> _T: ...
async def until(
    condition: Callable[[], object], what: _What, *, seconds: float = DEADLINE
) -> object:
    """Wait, without holding up the loop, as `wait_until` does; the condition may be a coroutine."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, _late(what, seconds)
        await asyncio.sleep(_POLL_SECONDS)


def _late(what: _What, seconds: float) -> str:
    said = what if isinstance(what, str) else str(what())
    return f"not within {seconds:g} s: {said}"
