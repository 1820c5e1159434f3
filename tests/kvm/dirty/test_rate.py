"""Tracking and dirty rate of a KVM guest, against the guest's own count of its writes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from qemu_ring._compat import timeout
from qemu_ring.dirty import (
    RateMode,
    RateOptions,
    Tracking,
    TrackingMode,
    dirty_rates,
    measure_dirty_rate,
    query_tracking,
)
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.guest import Stream
from qemu_ring.machine import Accelerator
from qemu_ring.memslot import query_memslots
from qemu_ring.qmp.dirty import query_dirty_rate
from tests.qemu.dirty.conftest import MIB
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.qemu.dirty.conftest import StartWriter, Writer

pytestmark = pytest.mark.ring

BITMAP = Accelerator("kvm")
RATES = [3000, 6000]
"""Pages/s; in a second fewer than a vCPU has, so that each write is of another page."""


def ring(entries: int = 4096) -> Accelerator:
    return Accelerator("kvm", {"dirty-ring-size": entries})


async def logs_dirty_pages(guest: Writer) -> bool | None:
    """Whether a memslot logs dirty pages; None if this QEMU does not tell."""
    if not (await guest.monitor.schema()).has_command("x-query-memslots"):
        return None
    return any(slot.log_dirty for slot in await query_memslots(guest.monitor))


@pytest.mark.parametrize("text", ["bitmap", "ring:1024", "ring:4096", "ring:65536"])
async def test_tracking_in_use(start_writer: StartWriter, text: str) -> None:
    """Also of an unpatched QEMU, which does not tell, while the guest runs on."""
    chosen = Tracking.parse(text)
    accelerator = ring(chosen.ring_entries) if chosen.ring_entries else BITMAP
    async with start_writer(accelerator, [1000, 1000]) as guest:
        found = await query_tracking(guest.monitor)
        assert (await query_dirty_rate(guest.monitor)).status == "unstarted"
        assert not await logs_dirty_pages(guest)
    assert str(found) == text
    assert found.accelerator == "kvm"
    assert Tracking.parse(str(found)) == chosen
    assert found.mode is (TrackingMode.RING if chosen.is_ring else TrackingMode.BITMAP)


async def test_ring_of_each_vcpu(start_writer: StartWriter) -> None:
    async with start_writer(ring(), RATES) as guest:
        rate, written = await guest.during(measure_dirty_rate(guest.monitor))
        assert not await logs_dirty_pages(guest)
    assert rate.mode is RateMode.DIRTY_RING
    assert [one.vcpu for one in rate.vcpus] == [0, 1]
    for one in rate.vcpus:
        told = one.bytes_per_second
        assert written.allows(told, rate.seconds, [one.vcpu]), (rate, written.mean)
    assert rate.bytes_per_second == sum(one.bytes_per_second for one in rate.vcpus)
    assert 1 <= rate.seconds < DEADLINE


async def test_bitmap(start_writer: StartWriter) -> None:
    async with start_writer(BITMAP, RATES) as guest:
        rate, written = await guest.during(measure_dirty_rate(guest.monitor))
        assert not await logs_dirty_pages(guest)
    assert (rate.mode, rate.vcpus) == (RateMode.DIRTY_BITMAP, ())
    assert written.allows(rate.bytes_per_second, rate.seconds, [0, 1]), (rate, written.mean)


@pytest.mark.parametrize("accelerator", [BITMAP, ring()], ids=["bitmap", "ring"])
async def test_page_sampling(start_writer: StartWriter, accelerator: Accelerator) -> None:
    options = RateOptions(mode=RateMode.PAGE_SAMPLING, sample_pages=16384)
    async with start_writer(accelerator, RATES) as guest:
        rate, written = await guest.during(measure_dirty_rate(guest.monitor, options))
    assert (rate.mode, rate.vcpus) == (RateMode.PAGE_SAMPLING, ())
    assert written.allows(rate.bytes_per_second, rate.seconds, [0, 1]), (rate, written.mean)


@pytest.mark.parametrize(
    ("accelerator", "mode", "other"),
    [
        (BITMAP, RateMode.DIRTY_RING, "is bitmap; measure by dirty-bitmap"),
        (ring(), RateMode.DIRTY_BITMAP, "is ring:4096; measure by dirty-ring"),
    ],
    ids=["bitmap", "ring"],
)
async def test_mode_that_the_tracking_has_not(
    start_writer: StartWriter, accelerator: Accelerator, mode: RateMode, other: str
) -> None:
    async with start_writer(accelerator, [0]) as guest:
        with pytest.raises(QemuUnsuitableError, match=other):
            await measure_dirty_rate(guest.monitor, RateOptions(mode=mode))
        assert (await query_dirty_rate(guest.monitor)).status == "unstarted"


async def test_stream_follows_the_guest(start_writer: StartWriter) -> None:
    """vCPU 0 rests after the first measurement in which both wrote; a busy host may let none."""
    async with start_writer(ring(), RATES) as guest, timeout(2 * DEADLINE):
        rests = False
        async for rate in dirty_rates(guest.monitor):
            first, second = (one.bytes_per_second for one in rate.vcpus)
            if rests and first == 0 and second > MIB:
                break
            if not rests and min(first, second) > MIB:
                await guest.control.set_streams((Stream(), guest.streams[1]))
                rests = True
        assert rests


@pytest.mark.parametrize("accelerator", [BITMAP, ring()], ids=["bitmap", "ring"])
async def test_cancelled(start_writer: StartWriter, accelerator: Accelerator) -> None:
    """QEMU ends its dirty log by itself."""
    async with start_writer(accelerator, RATES) as guest:
        task = asyncio.create_task(measure_dirty_rate(guest.monitor))
        await guest.until("measuring")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await guest.until("measured")
        assert not await logs_dirty_pages(guest)
        rate, written = await guest.during(measure_dirty_rate(guest.monitor))
    assert written.allows(rate.bytes_per_second, rate.seconds, [0, 1]), (rate, written.mean)
