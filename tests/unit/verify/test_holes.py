"""Comparing costs no memory: holes stay holes, and little is mapped at a time."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.verify import Block, compare_blocks
from qemu_ring.verify._pieces import MAP_BYTES, READ_BYTES, How, plan

if TYPE_CHECKING:
    from tests.unit.verify.conftest import MakeMemory

PAGE = 4096
MIB = 1 << 20
CONTENTS = {"hole": None, "zeros": b"\0", "data": b"x"}


def blocks_allocated(*fds: int) -> list[int]:
    return [os.fstat(fd).st_blocks for fd in fds]


@pytest.mark.parametrize("pages", [1, 3 * READ_BYTES // PAGE])
@pytest.mark.parametrize(("left", "right"), list(itertools.product(CONTENTS, repeat=2)))
def test_hole_against_hole_zeros_and_data(
    make_memory: MakeMemory, left: str, right: str, pages: int
) -> None:
    size = pages * PAGE

    def memory(kind: str) -> int:
        byte = CONTENTS[kind]
        return make_memory(size, {0: byte * size} if byte else {})

    source, destination = memory(left), memory(right)
    before = blocks_allocated(source, destination)
    result = compare_blocks([Block("ram", source, destination, size)])
    assert result.equal is ((left == "data") == (right == "data"))
    assert result.pages_stale_total == (0 if result.equal else pages)
    assert result.bytes_read == (0 if left == right == "hole" else size)
    assert blocks_allocated(source, destination) == before


@pytest.mark.parametrize("seed", range(5))
def test_sparse_memory_stays_sparse(make_memory: MakeMemory, seed: int) -> None:
    rng = random.Random(seed)
    size = 64 * MIB

    def memory() -> int:
        offsets = [rng.randrange(size // PAGE) * PAGE for _ in range(100)]
        long_run = rng.randrange(size // 2)
        return make_memory(size, {**dict.fromkeys(offsets, b"x"), long_run: b"y" * 3 * MIB})

    source, destination = memory(), memory()
    before = blocks_allocated(source, destination)
    compare_blocks([Block("ram", source, destination, size)])
    assert blocks_allocated(source, destination) == before


def test_huge_memory_that_was_never_touched(make_memory: MakeMemory) -> None:
    size = 1 << 40
    source, destination = make_memory(size), make_memory(size)
    os.pwrite(destination, b"x", size - PAGE)
    result = compare_blocks([Block("ram", source, destination, size)])
    assert [page.page for page in result.stale] == [size // PAGE - 1]
    assert result.bytes_total == size
    assert result.bytes_read <= READ_BYTES


@pytest.mark.parametrize("seed", range(10))
def test_plan_covers_everything_and_maps_no_hole(make_memory: MakeMemory, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 6 * READ_BYTES // PAGE) * PAGE

    def memory() -> int:
        data = {}
        offset = 0
        while offset < size:
            run = min(size - offset, rng.choice([PAGE, 64 * PAGE, 2 * READ_BYTES]))
            if rng.random() < 0.6:
                data[offset] = b"x" * run
            offset += run
        return make_memory(size, data)

    fds = memory(), memory()
    end = 0
    for how, offset, length in plan(*fds, size, PAGE):
        assert offset == end
        assert length > 0
        assert length % PAGE == 0
        if how is How.MAP:
            assert length <= MAP_BYTES
            assert all(is_all_data(fd, offset, length) for fd in fds)
        elif how is How.READ:
            assert length <= READ_BYTES
        else:
            assert all(is_all_hole(fd, offset, length) for fd in fds)
        end = offset + length
    assert end == size


def is_all_data(fd: int, offset: int, length: int) -> bool:
    return os.lseek(fd, offset, os.SEEK_HOLE) >= offset + length


def is_all_hole(fd: int, offset: int, length: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError:  # no data up to the end
        return True


@pytest.fixture
def two_cpus() -> Iterator[None]:
    """Let this process use two CPUs at most: a comparison takes one thread for each."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:2])
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("two_cpus")
def test_resident_memory_is_bounded(make_memory: MakeMemory) -> None:
    size = 128 * MIB
    data = dict.fromkeys(range(0, size, MIB), b"x" * MIB)
    source, destination = make_memory(size, data), make_memory(size, data)

    def resident_bytes(which: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) * 1024

    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    assert compare_blocks([Block("ram", source, destination, size)]).equal
    grown = resident_bytes("VmHWM") - before
    assert grown < 80 * MIB  # of 256
