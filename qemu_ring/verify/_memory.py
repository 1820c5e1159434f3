"""Bytes of a file or of a process at an address, and memcmp on addresses.

The C library is called directly because Python's own mmap neither tells the address of a read-only
mapping nor compares two without holding the GIL.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu_ring.verify.errors import VerifyError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Buffer", "Memory", "ProcessMemory", "mapped", "same"]

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


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t
_process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.POINTER(_Span),
    ctypes.c_ulong,
    ctypes.POINTER(_Span),
    ctypes.c_ulong,
    ctypes.c_ulong,
]
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


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of another process of this host.

    A hole that is read stays one if it is private, and is filled if it is a shared file's.

    Args:
        process: its id.
        address: in that process.
    """

    process: int
    address: int

    def require_readable(self, size: int) -> None:
        """Check that its first and its last byte can be read.

        Raises:
            VerifyError: they cannot.
        """
        buffer = (ctypes.c_ubyte * 1)()
        for offset in (0, size - 1):
            try:
                self.read(ctypes.addressof(buffer), offset, 1)
            except OSError as error:
                raise VerifyError(error.strerror or str(error)) from error

    def read(self, address: int, offset: int, length: int) -> None:
        """Copy exactly `length` bytes, from `offset` on, to an address of our own.

        Raises:
            OSError: they cannot be read.
        """
        done = 0
        while done < length:
            ours = _Span(address + done, length - done)
            theirs = _Span(self.address + offset + done, length - done)
            count = _process_vm_readv(
                self.process, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0
            )
            if count <= 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            done += count


Memory = int | ProcessMemory
"""A readable descriptor of a file, or what a process has mapped."""


class Buffer:
    """Memory to read bytes into, for what a mapping cannot do without side effects.

    Args:
        size: bytes it can hold.
    """

    def __init__(self, size: int) -> None:
        self._array = (ctypes.c_ubyte * size)()
        self._view = memoryview(self._array).cast("B")
        self.address = ctypes.addressof(self._array)

    def fill(self, memory: Memory, offset: int, length: int) -> None:
        """Read exactly `length` bytes from `offset`; a hole reads as zeros.

        Raises:
            EOFError: the file ends before.
            OSError: it cannot be read.
        """
        if isinstance(memory, ProcessMemory):
            memory.read(self.address, offset, length)
            return
        done = 0
        while done < length:
            count = os.preadv(memory, [self._view[done:length]], offset + done)
            if count == 0:
                raise EOFError(offset + done)
            done += count
