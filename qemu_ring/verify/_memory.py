"""Bytes of a file at an address, and memcmp on addresses.

The C library is called directly because Python's own mmap neither tells the address of a read-only
mapping nor compares two without holding the GIL.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Buffer", "mapped", "same"]

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_memcmp = _libc.memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


def same(left: int, right: int, length: int) -> bool:
    """Whether `length` bytes at the two addresses are equal. Releases the GIL."""
    return bool(_memcmp(left, right, length) == 0)


@contextmanager
def mapped(fd: int, offset: int, length: int) -> Iterator[int]:
    """Map `length` bytes of the file from `offset`, shared and read-only; gives the address.

    The file must not become shorter meanwhile: touching what is past its end raises SIGBUS, which
    ends the process.

    Raises:
        OSError: the kernel refuses the mapping.
    """
    address = _mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address is None or address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        yield address
    finally:
        _munmap(address, length)


class Buffer:
    """Memory to read a file's bytes into, for what a mapping cannot do without side effects.

    Args:
        size: bytes it can hold.
    """

    def __init__(self, size: int) -> None:
        self._array = (ctypes.c_ubyte * size)()
        self._view = memoryview(self._array).cast("B")
        self.address = ctypes.addressof(self._array)

    def fill(self, fd: int, offset: int, length: int) -> None:
        """Read exactly `length` bytes of the file from `offset`; a hole reads as zeros.

        Raises:
            EOFError: the file ends before.
            OSError: the file cannot be read.
        """
        done = 0
        while done < length:
            count = os.preadv(fd, [self._view[done:length]], offset + done)
            if count == 0:
                raise EOFError(offset + done)
            done += count
