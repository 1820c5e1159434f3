"""The tokens that the workload leaves in guest pages, read from the backing file."""

from __future__ import annotations

import mmap

from qemu_ring.guest.layout import PAGE_SIZE

__all__ = ["pages_changed", "read_tokens"]


def read_tokens(fd: int, size: int) -> list[int]:
    """The first 8 bytes of each page of a file, which is where the workload writes.

    Args:
        fd: a guest memory file.
        size: bytes of it to read, whole pages.
    """
    with (
        mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory,
        memoryview(memory) as view,
        view.cast("Q") as words,
        words[:: PAGE_SIZE // words.itemsize] as firsts,
    ):
        return firsts.tolist()


def pages_changed(before: list[int], after: list[int]) -> int:
    """How many pages hold another token than before."""
    return sum(map(int.__ne__, before, after))
