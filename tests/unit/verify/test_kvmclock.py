"""Which differences are the guest's clock, renewed by KVM, and which are lost dirty bits."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from qemu_ring.verify import Block, ExcusedPage, compare_blocks
from qemu_ring.verify._kvmclock import KVMCLOCK, is_newer_clock

if TYPE_CHECKING:
    from tests.unit.verify.conftest import MakeMemory

PAGE = 4096


def clock(
    version: int, *, time: int = 10**9, multiplier: int = 0xC0000000, flags: int = 1
) -> bytes:
    fields = (version, 0, 2 * time, time, multiplier, -1, flags, 0)
    return struct.pack("<IIQQIbBH", *fields)


def page(*parts: tuple[int, bytes], seed: int = 1) -> bytes:
    """Random bytes, with these parts at their offsets."""
    content = bytearray(random.Random(seed).randbytes(PAGE))
    for offset, part in parts:
        content[offset : offset + len(part)] = part
    return bytes(content)


@pytest.mark.parametrize("offset", [0, 4, 0xC20, 1000, PAGE - 32])
def test_newer_clock(offset: int) -> None:
    old, new = page((offset, clock(4))), page((offset, clock(6, flags=0)))
    assert is_newer_clock(old, new)
    assert is_newer_clock(old, page((offset, clock(8, time=2 * 10**9, multiplier=1 << 31))))


def test_many_clocks_on_a_page() -> None:
    places = range(0, PAGE, 64)
    old = page(*((at, clock(2)) for at in places))
    new = page(*((at, clock(4 if at % 128 else 2)) for at in places))
    assert is_newer_clock(old, new)


@pytest.mark.parametrize(
    "destination",
    [
        page((64, clock(2))),  # an older copy, as a lost dirty bit leaves it
        page((64, clock(4, time=1))),  # the clock went backwards
        page((64, clock(7))),  # in the middle of an update
        page((64, clock(6, multiplier=(1 << 31) - 1))),
        page((64, clock(6, flags=8))),
        page((64, clock(6)), (2000, b"\xff\xff")),  # something else, too
        page((64, clock(6)), (62, b"\xff\xff")),
        page((64, clock(6)), (96, b"\xff\xff")),
        page((64, bytes(32))),
        page((64, clock(4 + (1 << 17)))),
        page((64, clock(4)), seed=2),
    ],
)
def test_what_is_stale(destination: bytes) -> None:
    assert not is_newer_clock(page((64, clock(4))), destination)


def test_tokens_of_the_workload_are_no_clocks() -> None:
    """A page of zeros that begins with a count: the even ones look like a version."""
    for vcpu in (0, 1):
        old, new = (struct.pack("<Q", (vcpu << 56) | count) + bytes(PAGE - 8) for count in (4, 6))
        assert not is_newer_clock(old, new)


def test_random_differences_are_stale() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        old = page((64, clock(4)))
        new = bytearray(page((64, clock(6))))
        at = rng.choice([rng.randrange(64), rng.randrange(96, PAGE)])
        new[at] ^= rng.randrange(1, 256)
        assert not is_newer_clock(old, bytes(new))


def test_excused_page_is_told_and_not_counted(make_memory: MakeMemory) -> None:
    source = make_memory(64 * PAGE, {PAGE: page((64, clock(4))), 9 * PAGE: b"new"})
    destination = make_memory(64 * PAGE, {PAGE: page((64, clock(6))), 9 * PAGE: b"old"})
    comparison = compare_blocks([Block("ram", source, destination, 64 * PAGE)])
    assert comparison.excused == (ExcusedPage("ram", 1, KVMCLOCK),)
    assert [one.page for one in comparison.stale] == [9]
    assert comparison.pages_stale_total == 1
    only = compare_blocks([Block("ram", source, destination, 8 * PAGE)])
    assert only.equal
