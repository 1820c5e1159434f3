"""Which parts of two memories to compare, and how.

Reading a hole of a tmpfs file or memfd through a mapping allocates a page for it, so a guest that
was never filled would be by comparing it. Holes are therefore asked for first.
"""

from __future__ import annotations

import errno
import mmap
import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from qemu_ring.verify._memory import ProcessMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qemu_ring.verify._memory import Memory

__all__ = ["MAP_BYTES", "READ_BYTES", "How", "Piece", "plan"]

MAP_BYTES = 16 << 20
"""Most that is mapped of a file at once: it bounds resident memory and the time to cancel."""

READ_BYTES = 1 << 20
"""Most that is read of a file at once: two of these still fit a CPU's second-level cache."""


class How(Enum):
    """How to compare a piece."""

    SKIP = "skip"
    """A hole in both files: equal without reading."""
    MAP = "map"
    """Data in both files: compare in place."""
    READ = "read"
    """Holes and data mixed, or a file that must not be mapped: read into buffers."""


class Piece(NamedTuple):
    """`length` bytes from `offset` of both files."""

    how: How
    offset: int
    length: int


class _Extents:
    """Runs of data and holes of one file, asked for at ascending offsets."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._end = 0
        self._is_data = False
        status = os.fstat(fd)
        if status.st_blocks * 512 >= status.st_size:
            # Nothing left out. To search that for holes is a tenth of the whole comparison.
            self._end, self._is_data = size, True

    def at(self, offset: int) -> tuple[bool, int]:
        """Whether there is data at `offset`, and where the run that it is part of ends."""
        # Remembered, because the kernel walks to a run's end each time that it is asked for it.
        if offset >= self._end:
            data = self._seek(offset, os.SEEK_DATA)
            self._is_data = data == offset
            self._end = self._seek(offset, os.SEEK_HOLE) if self._is_data else data
        return self._is_data, self._end

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return min(os.lseek(self._fd, offset, whence), self._size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return self._size
            if error.errno == errno.EINVAL:  # a file system that knows no holes
                return offset if whence == os.SEEK_DATA else self._size
            raise


def plan(one: Memory, other: Memory, size: int, page_size: int) -> Iterator[Piece]:
    """Cut the first `size` bytes of two memories into pieces, in ascending order and without gaps.

    Moves the file offsets. Every piece begins and ends on a multiple of `page_size`, which must be
    a power of two no larger than READ_BYTES.

    Raises:
        OSError: a file cannot be asked for its holes.
    """
    if isinstance(one, ProcessMemory) or isinstance(other, ProcessMemory):
        for offset in range(0, size, READ_BYTES):
            yield Piece(How.READ, offset, min(READ_BYTES, size - offset))
        return
    source_fd, destination_fd = one, other
    source, destination = _Extents(source_fd, size), _Extents(destination_fd, size)
    align = max(page_size, mmap.PAGESIZE)
    # hugetlbfs reports holes as data, and takes only mappings aligned to its own page size.
    mappable = all(os.fstatvfs(fd).f_bsize <= mmap.PAGESIZE for fd in (source_fd, destination_fd))
    offset = 0
    while offset < size:
        source_data, source_end = source.at(offset)
        destination_data, destination_end = destination.at(offset)
        run = min(source_end, destination_end) // align * align - offset
        if run > 0 and not source_data and not destination_data:
            piece = Piece(How.SKIP, offset, run)
        elif run >= READ_BYTES and source_data and destination_data and mappable:
            piece = Piece(How.MAP, offset, min(run, MAP_BYTES))
        else:
            # Not cut at the run's end: small runs would cost more calls than bytes.
            piece = Piece(How.READ, offset, min(READ_BYTES, size - offset))
        yield piece
        offset += piece.length
