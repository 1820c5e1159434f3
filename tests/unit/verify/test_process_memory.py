"""Memory that is read out of a process."""

from __future__ import annotations

import ctypes
import os

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration.blocks import require_comparable
from qemu_ring.verify import Block, ProcessMemory, VerifyError, compare_blocks
from qemu_ring.verify._pieces import READ_BYTES

PAGE = 4096
SIZE = 3 * READ_BYTES + 5 * PAGE


@pytest.fixture
def copies() -> list[bytearray]:
    content = os.urandom(SIZE)
    return [bytearray(content), bytearray(content)]


def memory_of(copy: bytearray) -> ProcessMemory:
    """Where it is in this process, which can be read like any other."""
    address = ctypes.addressof((ctypes.c_ubyte * len(copy)).from_buffer(copy))
    return ProcessMemory(os.getpid(), address)


def test_two_processes(copies: list[bytearray]) -> None:
    block = Block("ram", memory_of(copies[0]), memory_of(copies[1]), SIZE)
    require_comparable([block])
    found = compare_blocks([block])
    assert found.equal
    assert found.bytes_read == SIZE
    for page in (0, 300, SIZE // PAGE - 1):
        copies[1][page * PAGE + 7] ^= 1
    assert [one.page for one in compare_blocks([block]).stale] == [0, 300, SIZE // PAGE - 1]


@pytest.mark.parametrize("swapped", [False, True])
def test_process_and_file(copies: list[bytearray], swapped: bool) -> None:
    fd = os.memfd_create("ram")
    try:
        os.write(fd, copies[0])
        other = memory_of(copies[1])
        block = Block("ram", other, fd, SIZE) if swapped else Block("ram", fd, other, SIZE)
        assert compare_blocks([block]).equal
        copies[1][PAGE] ^= 0x80
        assert [one.page for one in compare_blocks([block]).stale] == [1]
    finally:
        os.close(fd)


def test_memory_that_is_not_there(copies: list[bytearray]) -> None:
    block = Block("ram", memory_of(copies[0]), ProcessMemory(os.getpid(), PAGE), SIZE)
    with pytest.raises(UsageError, match="memory ram: that of the destination's process"):
        require_comparable([block])
    with pytest.raises(VerifyError, match="cannot be read: Bad address"):
        compare_blocks([block])


def test_same_memory(copies: list[bytearray]) -> None:
    block = Block("ram", memory_of(copies[0]), memory_of(copies[0]), SIZE)
    with pytest.raises(VerifyError, match="the same memory"):
        compare_blocks([block])
    with pytest.raises(UsageError, match="nothing can differ"):
        require_comparable([block])
