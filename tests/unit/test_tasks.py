"""What has to be done whole is."""

from __future__ import annotations

import asyncio

import pytest

from qemu_ring.tasks import UninterruptibleStack, stopped, to_the_end


async def test_work_goes_on_through_cancellations() -> None:
    done = []

    async def work() -> str:
        for step in range(5):
            await asyncio.sleep(0)
            done.append(step)
        return "whole"

    assert await to_the_end(work()) == "whole"
    done.clear()
    task = asyncio.create_task(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == list(range(5))


async def test_what_it_raises_is_raised_or_kept_as_the_cause() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_the_end(fail())
    causes = []

    async def use() -> None:
        try:
            await to_the_end(fail())
        except asyncio.CancelledError as error:
            causes.append(error.__cause__)
            raise

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(causes[0], ValueError)


async def test_stack_is_unwound_to_its_end() -> None:
    done = []

    async def callback(name: str) -> None:
        await asyncio.sleep(0)
        done.append(name)

    async def use() -> None:
        async with UninterruptibleStack() as stack:
            for name in "abc":
                stack.push_async_callback(callback, name)

    task = asyncio.create_task(use())
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["c", "b", "a"]


async def test_stopped_task_tells_what_it_raised() -> None:
    async def fail() -> None:
        raise ValueError("no")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="no"):
        await stopped(task)
    await stopped(asyncio.create_task(asyncio.sleep(100)))
