"""Dirty limits, seen by the guest that is limited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from qemu_ring._compat import timeout
from qemu_ring.dirty import (
    cancel_dirty_limit,
    measure_dirty_rate,
    query_dirty_limits,
    set_dirty_limit,
)
from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Accelerator
from qemu_ring.memslot import query_memslots
from tests.qemu.dirty.conftest import MIB
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.qemu.dirty.conftest import StartWriter, Writer

pytestmark = pytest.mark.ring

RING = Accelerator("kvm", {"dirty-ring-size": 1024})
LIMIT = 8 * MIB


async def rates_within(guest: Writer, wanted: str) -> list[float]:
    """What the vCPUs wrote in some second, as soon as it is as wanted."""
    written: list[float] = []

    def holds() -> bool:
        first, second = written
        return {
            "both are limited": max(written) < 5 * LIMIT,
            "only the first is limited": first < 5 * LIMIT and second > 4 * first,
            "neither is limited": min(written) > 10 * LIMIT,
        }[wanted]

    async with timeout(2 * DEADLINE):  # beside other work a vCPU may not get to write for a while
        while True:
            _, second = await guest.during(asyncio.sleep(1))
            written = second.mean
            if holds():
                return written


async def test_limit_slows_vcpus_and_its_end_frees_them(start_writer: StartWriter) -> None:
    async with start_writer(RING, [None, None]) as guest:
        monitor = guest.monitor
        async with timeout(2 * DEADLINE):
            free = 0
            while free < 5 * LIMIT:
                measured = await measure_dirty_rate(monitor)  # with what the log itself costs
                free = min(one.bytes_per_second for one in measured.vcpus)

        limits = await set_dirty_limit(monitor, LIMIT)
        assert [(one.vcpu, one.limit) for one in limits] == [(0, LIMIT), (1, LIMIT)]
        slow = await rates_within(guest, "both are limited")
        assert max(slow) < free
        assert all(one.rate > 0 for one in await query_dirty_limits(monitor))

        limits = await cancel_dirty_limit(monitor, vcpu=1)
        assert [one.vcpu for one in limits] == [0]
        await rates_within(guest, "only the first is limited")

        assert await cancel_dirty_limit(monitor) == ()
        await rates_within(guest, "neither is limited")
        if (await monitor.schema()).has_command("x-query-memslots"):
            assert not any(slot.log_dirty for slot in await query_memslots(monitor))


async def test_one_vcpu(start_writer: StartWriter) -> None:
    async with start_writer(RING, [None, None]) as guest:
        (limit,) = await set_dirty_limit(guest.monitor, LIMIT, vcpu=0)
        assert (limit.vcpu, limit.limit) == (0, LIMIT)
        await rates_within(guest, "only the first is limited")
        with pytest.raises(UsageError, match="no vCPU 2; it has vCPU 0, 1"):
            await set_dirty_limit(guest.monitor, LIMIT, vcpu=2)


async def test_ring_that_never_fills_limits_nothing(start_writer: StartWriter) -> None:
    """QEMU makes a vCPU wait only when its ring is full."""
    large = Accelerator("kvm", {"dirty-ring-size": 65536})
    async with start_writer(large, [None, None]) as guest:
        await set_dirty_limit(guest.monitor, LIMIT)
        for _ in range(3):
            await guest.during(asyncio.sleep(1))
        await rates_within(guest, "neither is limited")


async def test_set_again_and_again(start_writer: StartWriter) -> None:
    async with start_writer(RING, [None, None]) as guest:
        for mib in (100, 50, 25):
            limits = await set_dirty_limit(guest.monitor, mib * MIB)
            assert {one.limit for one in limits} == {mib * MIB}
            assert await cancel_dirty_limit(guest.monitor) == ()
            assert await cancel_dirty_limit(guest.monitor) == ()
        assert await query_dirty_limits(guest.monitor) == ()


async def test_bitmap_has_no_limits(start_writer: StartWriter) -> None:
    async with start_writer(Accelerator("kvm"), [0]) as guest:
        with pytest.raises(QemuUnsuitableError, match=r"is bitmap; .*dirty-ring-size"):
            await set_dirty_limit(guest.monitor, LIMIT)
        assert await query_dirty_limits(guest.monitor) == ()
