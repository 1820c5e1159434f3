"""A comparison that is stopped, or disturbed, gives no answer and leaves no thread behind."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.verify import (
    Block,
    ComparisonCancelledError,
    VerifyError,
    compare,
    compare_blocks,
)
from qemu_ring.verify._pieces import MAP_BYTES, READ_BYTES
from tests.unit.verify.conftest import fd_of

if TYPE_CHECKING:
    from tests.unit.verify.conftest import MakeMemory

PAGE = 4096
DEADLINE = 20.0  # seconds


def pieces(make_memory: MakeMemory, count: int) -> Block:
    """A block that takes `count` readings, because each second page is a hole on one side."""
    size = count * READ_BYTES
    data = dict.fromkeys(range(0, size, READ_BYTES), b"x")
    return Block("ram", make_memory(size, data), make_memory(size, {0: b"x" * size}), size)


def working_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("verify")]


class Gate:
    """Progress callback that holds the comparison until told to go on."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, done: int) -> None:
        self.calls.append(done)
        self.reached.set()
        assert self.go_on.wait(DEADLINE)


def test_cancelled_from_the_start(make_memory: MakeMemory) -> None:
    cancelled = threading.Event()
    cancelled.set()
    calls: list[int] = []
    with pytest.raises(ComparisonCancelledError):
        compare_blocks([pieces(make_memory, 4)], cancelled=cancelled, progress=calls.append)
    assert calls == []
    assert working_threads() == []


def test_cancelled_halfway(make_memory: MakeMemory) -> None:
    cancelled = threading.Event()
    calls: list[int] = []

    def progress(done: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            cancelled.set()

    block = pieces(make_memory, 40)
    with pytest.raises(ComparisonCancelledError):
        compare_blocks([block], cancelled=cancelled, progress=progress)
    # Each of up to four threads may finish the piece that it was at.
    assert 3 <= len(calls) <= 3 + 4
    assert working_threads() == []


def test_cancelled_after_the_end_changes_nothing(make_memory: MakeMemory) -> None:
    cancelled = threading.Event()
    block = pieces(make_memory, 1)

    def progress(done: int) -> None:
        if done == block.size:
            cancelled.set()

    assert not compare_blocks([block], cancelled=cancelled, progress=progress).equal


async def test_task_cancelled(make_memory: MakeMemory) -> None:
    gate = Gate()
    block = pieces(make_memory, 40)
    task = asyncio.create_task(compare([block], progress=gate))
    assert await asyncio.to_thread(gate.reached.wait, DEADLINE)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done  # a thread still uses the descriptors
    task.cancel()  # nor does impatience help
    gate.go_on.set()
    done, _ = await asyncio.wait([task], timeout=DEADLINE)
    assert done
    assert task.cancelled()
    assert working_threads() == []
    assert gate.calls[-1] < block.size


async def test_loop_runs_on_meanwhile(make_memory: MakeMemory) -> None:
    gate = Gate()
    task = asyncio.create_task(compare([pieces(make_memory, 4)], progress=gate))
    assert await asyncio.to_thread(gate.reached.wait, DEADLINE)
    gate.go_on.set()
    assert not (await asyncio.wait_for(task, DEADLINE)).equal


async def test_error_reaches_the_task(make_memory: MakeMemory) -> None:
    block = Block("ram", make_memory(PAGE), make_memory(2 * PAGE), PAGE)
    with pytest.raises(VerifyError, match="block ram"):
        await compare([block])
    assert working_threads() == []


def test_callback_that_fails_ends_the_comparison(make_memory: MakeMemory) -> None:
    calls: list[int] = []

    def progress(done: int) -> None:
        calls.append(done)
        if len(calls) == 1:
            raise ZeroDivisionError
        threading.Event().wait(0.02)  # leaves the others time to hear of it

    with pytest.raises(ZeroDivisionError):
        compare_blocks([pieces(make_memory, 100)], progress=progress)
    assert len(calls) < 50
    assert working_threads() == []


def test_nothing_stays_mapped(make_memory: MakeMemory) -> None:
    def mappings() -> int:
        maps = Path("/proc/self/maps").read_text()
        return sum("memory" in line for line in maps.splitlines())

    size = 2 * READ_BYTES
    data = {0: b"x" * size}
    block = Block("ram", make_memory(size, data), make_memory(size, data), size)
    before = mappings()
    with pytest.raises(ZeroDivisionError):
        compare_blocks([block], progress=lambda _: print(1 // 0))
    compare_blocks([block])
    assert mappings() == before


def test_truncated_to_where_holes_were(make_memory: MakeMemory) -> None:
    size = 16 * READ_BYTES
    block = Block("ram", make_memory(size), make_memory(size), size)

    def truncate(_: int) -> None:
        for fd in (fd_of(block.source), fd_of(block.destination)):
            os.ftruncate(fd, PAGE)

    with pytest.raises(VerifyError, match=f"size is {size} bytes, its files have {PAGE}"):
        compare_blocks([block], progress=truncate)


def test_truncated_while_being_read(make_memory: MakeMemory) -> None:
    block = pieces(make_memory, 16)
    with pytest.raises(VerifyError, match="became shorter"):
        compare_blocks([block], progress=lambda _: os.ftruncate(fd_of(block.destination), PAGE))


def test_written_meanwhile_is_noticed(make_memory: MakeMemory) -> None:
    """A page that differed a moment ago, and no longer: neither equal nor stale."""
    size = MAP_BYTES  # so much that the writer gets its turn, be there only one CPU
    data = {0: b"x" * size}
    block = Block("ram", make_memory(size, data), make_memory(size, data), size)
    stop = threading.Event()

    def write() -> None:
        with mmap.mmap(fd_of(block.destination), size) as memory:
            while not stop.is_set():
                memory[size - 1] ^= 1

    def compare_until_noticed() -> None:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            compare_blocks([block])

    writer = threading.Thread(target=write)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    writer.start()
    try:
        with pytest.raises(VerifyError, match="changed while it was compared") as caught:
            compare_until_noticed()
        assert "stop both guests" in caught.value.hint
    finally:
        stop.set()
        writer.join(DEADLINE)
        sys.setswitchinterval(interval)
