"""Files to compare: the memory of guests that never ran."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from qemu_ring.verify import Memory


class MakeMemory(Protocol):
    """Makes a file of a size, with data at some offsets and holes elsewhere."""

    def __call__(self, size: int, data: Mapping[int, bytes] | None = None) -> int: ...


@pytest.fixture(params=["memfd", "disk"])
def make_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeMemory]:
    opened: list[int] = []

    def make(size: int, data: Mapping[int, bytes] | None = None) -> int:
        if request.param == "memfd":
            fd = os.memfd_create("memory")
        else:
            fd = os.open(tmp_path / f"memory{len(opened)}", os.O_RDWR | os.O_CREAT)
        opened.append(fd)
        os.ftruncate(fd, size)
        for offset, content in (data or {}).items():
            assert os.pwrite(fd, content, offset) == len(content)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


def fd_of(memory: Memory) -> int:
    """The descriptor that it is."""
    assert isinstance(memory, int)
    return memory
