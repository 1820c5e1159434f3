"""What is equal, what is stale, and what is refused; against a naive comparison."""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import ExitStatus, QemuRingError
from qemu_ring.verify import Block, Comparison, StalePage, VerifyError, compare, compare_blocks
from qemu_ring.verify._pieces import MAP_BYTES, READ_BYTES
from tests.unit.verify.conftest import fd_of

if TYPE_CHECKING:
    from tests.unit.verify.conftest import MakeMemory

PAGE = 4096


def naive(block: Block, page_size: int = PAGE) -> tuple[StalePage, ...]:
    stale = []
    for page in range(block.size // page_size):
        source, destination = (
            os.pread(fd, page_size, page * page_size)
            for fd in (fd_of(block.source), fd_of(block.destination))
        )
        if source != destination:
            digests = (hashlib.sha256(content).hexdigest() for content in (source, destination))
            stale.append(StalePage(block.name, page, *digests))
    return tuple(stale)


def random_pair(rng: random.Random, make_memory: MakeMemory, name: str) -> Block:
    """Two memories of runs of equal data, zeros against a hole, and holes; with some bytes off."""
    pages = rng.randrange(1, 4 * READ_BYTES // PAGE)
    source: dict[int, bytes] = {}
    destination: dict[int, bytes] = {}
    page = 0
    while page < pages:
        # Short and long runs alike, some beyond what is mapped instead of read.
        run = min(pages - page, int(2 ** rng.uniform(0, 10)))
        kind = rng.choice(["hole", "data", "zeros", "source only", "destination only"])
        content = rng.randbytes(run * PAGE) if kind == "data" else bytes(run * PAGE)
        if kind not in ("hole", "destination only"):
            source[page * PAGE] = content
        if kind not in ("hole", "source only"):
            destination[page * PAGE] = content
        page += run
    size = pages * PAGE
    block = Block(name, make_memory(size, source), make_memory(size, destination), size)
    for _ in range(rng.choice([0, 1, 20])):
        offset = rng.randrange(size)
        fd = rng.choice([fd_of(block.source), fd_of(block.destination)])
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1 << rng.randrange(8)]), offset)
    return block


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_a_naive_comparison(make_memory: MakeMemory, seed: int) -> None:
    rng = random.Random(seed)
    blocks = [random_pair(rng, make_memory, f"ram{i}") for i in range(rng.randrange(1, 4))]
    expected = tuple(page for block in blocks for page in naive(block))
    result = compare_blocks(blocks)
    assert result.stale == expected
    assert result.pages_stale_total == len(expected)
    assert result.bytes_total == sum(block.size for block in blocks)
    assert 0 <= result.bytes_read <= result.bytes_total
    assert result.equal is (not expected)


def test_random_pairs_are_sometimes_equal_and_sometimes_not(make_memory: MakeMemory) -> None:
    rng = random.Random(1)
    pairs = [random_pair(rng, make_memory, "ram") for _ in range(10)]
    assert {bool(naive(pair)) for pair in pairs} == {True, False}


def test_all_stale_pages_are_counted_by_place(make_memory: MakeMemory) -> None:
    pages, few = 1000, 3
    stale = dict.fromkeys((0, 7, 8, 999), b"x")
    blocks = [
        Block(name, make_memory(size * PAGE, {}), make_memory(size * PAGE, data), size * PAGE)
        for name, size, data in (
            ("ram", pages, {page * PAGE: byte for page, byte in stale.items()}),
            ("equal", pages, {}),
            ("small", few, {2 * PAGE: b"x"}),
        )
    ]
    result = compare_blocks(blocks, max_listed=1)
    assert len(result.stale) == 1
    assert result.places.keys() == {"ram", "small"}
    ram = result.places["ram"]
    assert len(ram) == 125, "of 8 pages each"
    assert {place: count for place, count in enumerate(ram) if count} == {0: 2, 1: 1, 124: 1}
    assert result.places["small"] == (0, 0, 1)
    assert Comparison.combine([result]).places == result.places


def test_first_and_last_byte_of_all_pieces(make_memory: MakeMemory) -> None:
    size = 2 * MAP_BYTES + READ_BYTES // 2
    content = random.Random(0).randbytes(READ_BYTES // 2)
    data = dict.fromkeys(range(0, size, len(content)), content)
    block = Block("ram", make_memory(size, data), make_memory(size, data), size)
    assert compare_blocks([block]) == Comparison(size, size, 0, ())
    edges = [
        0,
        PAGE - 1,
        PAGE,
        MAP_BYTES - 1,
        MAP_BYTES,
        2 * MAP_BYTES - 1,
        2 * MAP_BYTES,
        size - 1,
    ]
    for offset in edges:
        right = os.pread(fd_of(block.destination), 1, offset)
        os.pwrite(fd_of(block.destination), bytes([right[0] ^ 0x80]), offset)
        result = compare_blocks([block])
        assert result.stale == naive(block)
        assert [page.page for page in result.stale] == [offset // PAGE]
        os.pwrite(fd_of(block.destination), right, offset)


@pytest.mark.parametrize("page_size", [512, 4096, 65536, READ_BYTES])
def test_page_size(make_memory: MakeMemory, page_size: int) -> None:
    size = 4 * READ_BYTES
    data = {0: b"a" * (READ_BYTES + 5 * PAGE)}  # its end is in the midst of a larger page
    source, destination = make_memory(size, data), make_memory(size, data)
    for offset in (0, READ_BYTES + 4 * PAGE, 3 * READ_BYTES + 66000, size - 1):
        os.pwrite(destination, b"b", offset)
    block = Block("ram", source, destination, size)
    result = compare_blocks([block], page_size=page_size)
    assert result.stale == naive(block, page_size)


def test_size_that_is_no_multiple_of_the_hosts_pages(make_memory: MakeMemory) -> None:
    size = 2 * READ_BYTES + 512
    block = Block("ram", make_memory(size), make_memory(size, {size - 1: b"x"}), size)
    result = compare_blocks([block], page_size=512)
    assert [page.page for page in result.stale] == [size // 512 - 1]
    assert result.bytes_total == size


def test_only_the_blocks_size_is_compared(make_memory: MakeMemory) -> None:
    source = make_memory(3 * PAGE, {0: b"a" * 3 * PAGE})
    destination = make_memory(3 * PAGE, {0: b"a" * 2 * PAGE + b"b" * PAGE})
    assert compare_blocks([Block("ram", source, destination, 2 * PAGE)]).equal
    assert not compare_blocks([Block("ram", source, destination, 3 * PAGE)]).equal


@pytest.mark.parametrize("max_listed", [0, 1, 700])
def test_all_are_counted_and_the_first_listed(make_memory: MakeMemory, max_listed: int) -> None:
    size = 4 * READ_BYTES
    blocks = [
        Block(name, make_memory(size, {0: b"a" * size}), make_memory(size), size)
        for name in ("second", "first")  # listed in the order given, not by name
    ]
    result = compare_blocks(blocks, max_listed=max_listed)
    assert result.pages_stale_total == 2 * size // PAGE
    assert result.stale == tuple(page for block in blocks for page in naive(block))[:max_listed]
    assert not result.equal


def test_list_is_the_same_each_time(make_memory: MakeMemory) -> None:
    size = 8 * READ_BYTES
    block = Block("ram", make_memory(size, {0: b"a" * size}), make_memory(size), size)
    pages = {tuple(page.page for page in compare_blocks([block]).stale) for _ in range(10)}
    assert pages == {tuple(range(1000))}


def test_progress_reaches_the_total(make_memory: MakeMemory) -> None:
    size = 4 * READ_BYTES
    data = {0: b"a" * READ_BYTES, 3 * READ_BYTES: b"b" * PAGE}
    block = Block("ram", make_memory(size, data), make_memory(size, data), size)
    seen: list[int] = []
    compare_blocks([block, block], progress=seen.append)
    assert seen == sorted(set(seen))
    assert len(seen) > 2
    assert seen[-1] == 2 * size


async def test_compare_in_a_thread(make_memory: MakeMemory) -> None:
    source, destination = make_memory(2 * PAGE), make_memory(2 * PAGE, {PAGE: b"x"})
    block = Block("ram", source, destination, 2 * PAGE)
    seen: list[int] = []
    assert await compare([block], progress=seen.append) == compare_blocks([block])
    assert seen[-1] == 2 * PAGE
    assert (await compare([block], max_listed=0)).stale == ()
    assert (await compare([block], page_size=512)).stale[0].page == PAGE // 512


def test_combine() -> None:
    page = StalePage("a", 1, "0" * 64, "1" * 64)
    equal = Comparison(8192, 4096, 0, ())
    stale = Comparison(4096, 4096, 3, (page,))
    assert Comparison.combine([equal, stale, stale]) == Comparison(16384, 12288, 6, (page, page))
    assert Comparison.combine([equal, equal]).equal
    assert not Comparison.combine([equal, stale]).equal
    assert not Comparison.combine([]).equal  # nothing compared is no proof


def refusal(block: Block, **options: int) -> str:
    with pytest.raises(VerifyError) as caught:
        compare_blocks([block], **options)  # type: ignore[arg-type]
    assert isinstance(caught.value, QemuRingError)
    assert caught.value.exit_status is ExitStatus.FAILED
    assert "\n" not in str(caught.value)
    return caught.value.message


def test_no_blocks() -> None:
    with pytest.raises(VerifyError, match="no blocks"):
        compare_blocks([])


@pytest.mark.parametrize("size", [0, -PAGE, PAGE - 1, PAGE + 1])
def test_size_must_be_whole_pages(make_memory: MakeMemory, size: int) -> None:
    source, destination = make_memory(2 * PAGE), make_memory(2 * PAGE)
    assert "not a multiple" in refusal(Block("ram", source, destination, size))


@pytest.mark.parametrize("page_size", [0, -4096, 3, 4097, 2 * READ_BYTES])
def test_page_size_must_be_a_power_of_two(make_memory: MakeMemory, page_size: int) -> None:
    block = Block("ram", make_memory(PAGE), make_memory(PAGE), PAGE)
    assert "power of two" in refusal(block, page_size=page_size)


def test_files_of_unequal_size(make_memory: MakeMemory) -> None:
    message = refusal(Block("ram", make_memory(PAGE), make_memory(2 * PAGE), PAGE))
    assert message == "block ram: the source's file has 4096 bytes, the destination's 8192"


def test_files_smaller_than_the_block(make_memory: MakeMemory) -> None:
    message = refusal(Block("ram", make_memory(PAGE), make_memory(PAGE), 2 * PAGE))
    assert message == "block ram: size is 8192 bytes, its files have 4096"


def test_the_same_file_twice(make_memory: MakeMemory) -> None:
    fd = make_memory(PAGE)
    again = os.dup(fd)
    assert "same file" in refusal(Block("ram", fd, again, PAGE))
    os.close(again)


def test_closed_descriptor(make_memory: MakeMemory) -> None:
    source = make_memory(PAGE)
    closed = os.dup(source)
    os.close(closed)
    assert "Bad file descriptor" in refusal(Block("ram", source, closed, PAGE))


def test_not_a_file(make_memory: MakeMemory) -> None:
    pipe = os.pipe()
    assert "not a file" in refusal(Block("ram", make_memory(PAGE), pipe[0], PAGE))
    for fd in pipe:
        os.close(fd)


@pytest.mark.parametrize("size", [PAGE, 2 * READ_BYTES])  # read, mapped
def test_descriptor_that_may_not_be_read(make_memory: MakeMemory, size: int) -> None:
    fds = [make_memory(size, {0: b"a" * size}) for _ in range(2)]
    write_only = os.open(f"/proc/self/fd/{fds[1]}", os.O_WRONLY)
    assert "cannot be read" in refusal(Block("ram", fds[0], write_only, size))
    os.close(write_only)


def test_one_bad_block_among_good_ones(make_memory: MakeMemory) -> None:
    good = Block("good", make_memory(PAGE), make_memory(PAGE), PAGE)
    bad = Block("bad", make_memory(PAGE), make_memory(2 * PAGE), PAGE)
    with pytest.raises(VerifyError, match="block bad"):
        compare_blocks([good, bad, good])
