"""Compare the memory of two stopped guests, byte for byte.

Both guests must be stopped: a page that is written meanwhile may count as equal or as stale.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import stat
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from qemu_ring.verify._kvmclock import KVMCLOCK, is_newer_clock
from qemu_ring.verify._memory import Buffer, Memory, ProcessMemory, mapped, same
from qemu_ring.verify._pieces import READ_BYTES, How, Piece, plan
from qemu_ring.verify.errors import ComparisonCancelledError, VerifyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Block", "Comparison", "ExcusedPage", "StalePage", "compare", "compare_blocks"]

_PLACES = 128
_MAX_THREADS = 4
"""A few cores saturate the memory bus; more only raise resident memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """One RAM block as both guests have it.

    Args:
        name: the block's name, as it is to stand in the result.
        source: readable descriptor of the file behind the source's block, or its place in the
            QEMU's memory.
        destination: the same of the destination.
        size: bytes to compare, from the start of each.
    """

    name: str
    source: Memory
    destination: Memory
    size: int


@dataclass(frozen=True, slots=True)
class StalePage:
    """A page that differs: `page` is its index within the block, the digests are SHA-256 in hex."""

    block: str
    page: int
    source_digest: str
    destination_digest: str

    def __str__(self) -> str:
        """For people, with the digests' beginnings."""
        return (
            f"{self.block} page {self.page}: source {self.source_digest[:12]}, "
            f"destination {self.destination_digest[:12]}"
        )


@dataclass(frozen=True, slots=True)
class ExcusedPage:
    """A page that differs, but not for a lost dirty bit: `page` is its index within the block."""

    block: str
    page: int
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Args:
        bytes_total: size of the blocks, each counted once.
        bytes_read: how much of that was read on both sides; the rest is a hole in both files.
        pages_stale_total: number of pages that differ, always exact.
        stale: the first of those pages, by block and then page, no more than were asked for.
        excused: pages that differ only in what the destination's KVM has written itself, with a
            newer date than at the source; they are not among the stale ones.
        places: how many of all pages that differ are in each of 128 equal parts (fewer of a block
            of fewer pages), of the blocks that have any.
    """

    bytes_total: int
    bytes_read: int
    pages_stale_total: int
    stale: tuple[StalePage, ...]
    excused: tuple[ExcusedPage, ...] = ()
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether something was compared and no byte differs, but for what is excused."""
        return self.bytes_total > 0 and self.pages_stale_total == 0

    @classmethod
    def combine(cls, parts: Iterable[Comparison]) -> Comparison:
        """Several comparisons as one; of none, one that is not `equal`."""
        parts = tuple(parts)
        return cls(
            bytes_total=sum(part.bytes_total for part in parts),
            bytes_read=sum(part.bytes_read for part in parts),
            pages_stale_total=sum(part.pages_stale_total for part in parts),
            stale=tuple(page for part in parts for page in part.stale),
            excused=tuple(page for part in parts for page in part.excused),
            places={name: found for part in parts for name, found in part.places.items()},
        )


class _Found(NamedTuple):
    """A stale page, ordered by where it is."""

    block: int
    page: int
    source_digest: str
    destination_digest: str


@dataclass(slots=True)
class _Tally:
    """What one thread has found."""

    found: list[_Found] = field(default_factory=list)
    excused: list[tuple[int, int]] = field(default_factory=list)
    places: Counter[tuple[int, int]] = field(default_factory=Counter)
    bytes_read: int = 0
    stale: int = 0


class _Run:
    """One comparison, worked on by several threads that each take the next piece."""

    def __init__(
        self,
        blocks: Sequence[Block],
        page_size: int,
        max_listed: int,
        cancelled: threading.Event,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._blocks = blocks
        self._page_size = page_size
        self._max_listed = max_listed
        self._cancelled = cancelled
        self._progress = progress
        self._failed = threading.Event()
        self._lock = threading.Lock()  # guards _pieces, _done and calls of _progress
        self._pieces = self._plan()
        self._done = 0

    def compare(self) -> Comparison:
        total = sum(block.size for block in self._blocks)
        threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)), -(-total // READ_BYTES))
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            try:
                work = [pool.submit(self._work) for _ in range(threads)]
                tallies = [future.result() for future in as_completed(work)]
            except BaseException:
                self._failed.set()
                raise
        # Threads take pieces in ascending order, so the first max_listed of all threads are among
        # the first max_listed of each.
        found = sorted(page for tally in tallies for page in tally.found)[: self._max_listed]
        return Comparison(
            bytes_total=total,
            bytes_read=sum(tally.bytes_read for tally in tallies),
            pages_stale_total=sum(tally.stale for tally in tallies),
            stale=tuple(
                StalePage(self._blocks[index].name, page, source, destination)
                for index, page, source, destination in found
            ),
            excused=tuple(
                ExcusedPage(self._blocks[index].name, page, KVMCLOCK)
                for index, page in sorted(one for tally in tallies for one in tally.excused)
            ),
            places=self._places(sum((tally.places for tally in tallies), Counter())),
        )

    def _places(self, found: Counter[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
        """By block and part; the blocks in their order."""
        places = {}
        for index in sorted({index for index, _ in found}):
            pages = self._blocks[index].size // self._page_size
            parts = -(-pages // self._pages_a_place(index))
            places[self._blocks[index].name] = tuple(found[index, part] for part in range(parts))
        return places

    def _pages_a_place(self, index: int) -> int:
        return -(-self._blocks[index].size // self._page_size // _PLACES) or 1

    def _plan(self) -> Iterator[tuple[int, Piece]]:
        for index, block in enumerate(self._blocks):
            with _reading(block):
                for piece in plan(block.source, block.destination, block.size, self._page_size):
                    yield index, piece

    def _work(self) -> _Tally:
        tally = _Tally()
        left, right = Buffer(READ_BYTES), Buffer(READ_BYTES)
        while not self._failed.is_set() and (taken := self._take()):
            if self._cancelled.is_set():
                raise ComparisonCancelledError("the comparison was cancelled")
            index, piece = taken
            block, where = self._blocks[index], (piece.offset, piece.length)
            with _reading(block):
                if piece.how is How.MAP:
                    assert isinstance(block.source, int)
                    assert isinstance(block.destination, int)
                    with (
                        mapped(block.source, *where) as source,
                        mapped(block.destination, *where) as destination,
                    ):
                        self._check(index, piece, source, destination, tally)
                elif piece.how is How.READ:
                    left.fill(block.source, *where)
                    right.fill(block.destination, *where)
                    self._check(index, piece, left.address, right.address, tally)
            self._finish(piece)
        return tally

    def _take(self) -> tuple[int, Piece] | None:
        with self._lock:
            return next(self._pieces, None)

    def _finish(self, piece: Piece) -> None:
        with self._lock:
            self._done += piece.length
            if self._progress is not None:
                self._progress(self._done)

    def _check(
        self, index: int, piece: Piece, source: int, destination: int, tally: _Tally
    ) -> None:
        """Compare the piece's bytes, which are at two addresses, and note the pages that differ."""
        tally.bytes_read += piece.length
        if same(source, destination, piece.length):
            return
        before = tally.stale + len(tally.excused)
        for start in range(0, piece.length, self._page_size):
            # Copies, so that the digests are of what was compared. string_at keeps the GIL, which
            # is faster here than for the threads to pass it on at every page.
            pages = [
                ctypes.string_at(address + start, self._page_size)
                for address in (source, destination)
            ]
            if pages[0] == pages[1]:
                continue
            page = (piece.offset + start) // self._page_size
            if is_newer_clock(*pages):
                tally.excused.append((index, page))
                continue
            tally.stale += 1
            tally.places[index, page // self._pages_a_place(index)] += 1
            if len(tally.found) < self._max_listed:
                digests = (hashlib.sha256(content).hexdigest() for content in pages)
                tally.found.append(_Found(index, page, *digests))
        if tally.stale + len(tally.excused) == before:
            raise VerifyError(
                f"memory of block {self._blocks[index].name} changed while it was compared",
                hint="stop both guests first",
            )


def compare_blocks(
    blocks: Iterable[Block],
    *,
    page_size: int = 4096,
    max_listed: int = 1000,
    cancelled: threading.Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare all blocks; blocks the calling thread, and works in a few more.

    Holes that both files have are not read, and no hole is filled by comparing it. At most 32 MiB
    a thread are mapped at a time. The descriptors' file offsets are moved. The files must not be
    truncated meanwhile: that ends the process with SIGBUS.

    Args:
        blocks: what to compare, with descriptors that stay open until this returns.
        page_size: bytes a page, a power of two.
        max_listed: how many stale pages to list; all are counted.
        cancelled: when set, from any thread, the comparison ends within some milliseconds.
        progress: called with the bytes compared so far, from the working threads, one at a time.

    Raises:
        VerifyError: nothing to compare, a size that does not fit, or a file that cannot be read.
        ComparisonCancelledError: `cancelled` was set before the end.
    """
    blocks = tuple(blocks)
    if not blocks:
        raise VerifyError("there are no blocks to compare")
    if page_size <= 0 or page_size & (page_size - 1) or page_size > READ_BYTES:
        raise VerifyError(f"page size {page_size} is not a power of two up to {READ_BYTES}")
    for block in blocks:
        _check_block(block, page_size)
    run = _Run(blocks, page_size, max_listed, cancelled or threading.Event(), progress)
    comparison = run.compare()
    # Again, because what a truncated file no longer has looks like a hole.
    for block in blocks:
        _check_block(block, page_size)
    return comparison


async def compare(
    blocks: Iterable[Block],
    *,
    page_size: int = 4096,
    max_listed: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """`compare_blocks` without blocking the event loop; `progress` is called from other threads.

    When cancelled, the threads are told to stop and are awaited, so that the descriptors can be
    closed afterwards. That takes milliseconds, unless a disk does not answer.

    Raises:
        VerifyError: see `compare_blocks`.
    """
    cancelled = threading.Event()
    call = partial(
        compare_blocks,
        blocks,
        page_size=page_size,
        max_listed=max_listed,
        cancelled=cancelled,
        progress=progress,
    )
    # An executor of its own: in the loop's, the call could wait behind others, also to be stopped.
    with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
        work = asyncio.get_running_loop().run_in_executor(pool, call)
        try:
            await asyncio.wait([work])
        finally:
            # A further cancellation must not cut this short.
            cancelled.set()
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            work.exception()  # marks it as retrieved
        return work.result()


def _check_block(block: Block, page_size: int) -> None:
    if block.size <= 0 or block.size % page_size:
        raise VerifyError(
            f"block {block.name}: size {block.size} is not a multiple of the page size {page_size}"
        )
    if block.source == block.destination:
        raise VerifyError(f"block {block.name}: source and destination are the same memory")
    with _reading(block):
        files = [
            os.fstat(memory)
            for memory in (block.source, block.destination)
            if not isinstance(memory, ProcessMemory)
        ]
    if not all(stat.S_ISREG(file.st_mode) for file in files):
        raise VerifyError(f"block {block.name}: its memory is not a file on both sides")
    if len(files) == 2 and os.path.samestat(*files):
        raise VerifyError(
            f"block {block.name}: source and destination are the same file",
            hint="give each guest a memory backend of its own",
        )
    sizes = [file.st_size for file in files]
    if len(set(sizes)) > 1:
        raise VerifyError(
            f"block {block.name}: the source's file has {sizes[0]} bytes, "
            f"the destination's {sizes[1]}"
        )
    if sizes and sizes[0] < block.size:
        raise VerifyError(
            f"block {block.name}: size is {block.size} bytes, its files have {sizes[0]}"
        )


@contextmanager
def _reading(block: Block) -> Iterator[None]:
    """Turn what the operating system refuses into a VerifyError."""
    try:
        yield
    except EOFError as error:
        raise VerifyError(f"block {block.name}: a file became shorter meanwhile") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise VerifyError(f"block {block.name}: its memory cannot be read: {reason}") from error
