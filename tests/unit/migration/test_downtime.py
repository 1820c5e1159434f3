"""The guest's downtime, as its own counter tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from qemu_ring.migration import GuestDowntime
from tests.waiting import DEADLINE


def told(values: list[int]) -> Callable[[], int]:
    """Give one after the other; the last for good."""
    left = iter(values)
    last = 0

    def read() -> int:
        nonlocal last
        last = next(left, last)
        return last

    return read


async def measured(source: Callable[[], int], destination: Callable[[], int]) -> float:
    async with GuestDowntime(source, destination) as downtime:
        seconds = await downtime.wait(timeout=DEADLINE)
    assert seconds is not None
    return seconds


async def test_from_the_last_count_to_the_first_beyond() -> None:
    began = time.monotonic()
    seconds = await measured(told([1, 2, 3]), told([0] * 30 + [4]))
    assert 0.02 < seconds < time.monotonic() - began


@pytest.fixture
def held_up() -> Callable[[], int]:
    """A read during which the host does something else, and the guest moves meanwhile."""
    reads = 0

    def read() -> int:
        nonlocal reads
        reads += 1
        if reads == 2:
            time.sleep(0.05)
        return 0 if reads < 2 else 9

    return read


async def test_held_up_while_the_guest_moves(held_up: Callable[[], int]) -> None:
    """The source's counter rose, and the destination's, since it looked last: not 0 seconds."""
    seconds = await measured(told([1, 5]), held_up)
    assert seconds >= 0.05


async def test_what_a_reader_raises_is_raised() -> None:
    def fail() -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        async with GuestDowntime(fail, fail) as downtime:
            await downtime.wait(timeout=DEADLINE)


async def test_cancelled_while_it_is_left() -> None:
    """The cancellation is its caller's, not swallowed with the watch's own."""

    async def watch() -> None:
        async with GuestDowntime(lambda: 0, lambda: 0):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

    with pytest.raises(asyncio.CancelledError):
        await watch()
