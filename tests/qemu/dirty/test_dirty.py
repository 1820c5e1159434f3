"""Tracking and dirty rate of a TCG guest, which has neither bitmap nor ring of KVM's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import (
    RateMode,
    RateOptions,
    RunningTracking,
    TrackingMode,
    cancel_dirty_limit,
    dirty_rates,
    measure_dirty_rate,
    query_dirty_limits,
    query_tracking,
    set_dirty_limit,
)
from qemu_ring.errors import QemuRingError, QemuUnsuitableError
from qemu_ring.machine import Accelerator, Machine
from qemu_ring.qmp import commands
from qemu_ring.qmp.dirty import query_dirty_rate
from tests.qemu.dirty.conftest import MIB
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.qemu.dirty.conftest import StartWriter

pytestmark = pytest.mark.qemu

TCG = Accelerator("tcg")
SAMPLING = RateOptions(mode=RateMode.PAGE_SAMPLING, sample_pages=16384)
RATE = 5000
"""Pages/s; in a second fewer than there are, so that each write is of another page."""


async def test_tcg_is_told(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [0]) as guest:
        tracking = await query_tracking(guest.monitor)
    assert tracking == RunningTracking("tcg", TrackingMode.SOFTWARE)


async def test_sampled_rate_is_the_guest_s(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [RATE, RATE]) as guest:
        rate, written = await guest.during(measure_dirty_rate(guest.monitor, SAMPLING))
    assert rate.mode is RateMode.PAGE_SAMPLING
    assert rate.vcpus == ()
    assert 1 <= rate.seconds < DEADLINE
    assert written.allows(rate.bytes_per_second, rate.seconds, [0, 1]), (rate, written.mean)


async def test_guest_that_writes_nothing(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [0]) as guest:
        rate = await measure_dirty_rate(guest.monitor)
    assert (rate.mode, rate.bytes_per_second) == (RateMode.PAGE_SAMPLING, 0)


async def test_time_in_fractions_of_a_second(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [RATE]) as guest:
        options = RateOptions(seconds=0.25, mode=RateMode.PAGE_SAMPLING, sample_pages=16384)
        schema = await guest.monitor.schema()
        if "calc-time-unit" in schema.command_arguments("calc-dirty-rate"):
            rate, written = await guest.during(measure_dirty_rate(guest.monitor, options))
            assert 0.25 <= rate.seconds < DEADLINE
            assert written.allows(rate.bytes_per_second, rate.seconds, [0]), (rate, written.mean)
        else:
            with pytest.raises(QemuUnsuitableError, match="for whole seconds only"):
                await measure_dirty_rate(guest.monitor, options)


@pytest.mark.parametrize("mode", [RateMode.DIRTY_BITMAP, RateMode.DIRTY_RING])
async def test_kvm_s_modes_are_refused(start_writer: StartWriter, mode: RateMode) -> None:
    """Asked for them under TCG, QEMU 7.2 crashes, and 10.0 measures 0."""
    async with start_writer(TCG, [RATE]) as guest:
        with pytest.raises(QemuUnsuitableError, match=f"by {mode.value} takes KVM"):
            await measure_dirty_rate(guest.monitor, RateOptions(mode=mode))
        assert (await commands.query_status(guest.monitor)).running
        assert (await query_dirty_rate(guest.monitor)).status == "unstarted"


async def test_stream(start_writer: StartWriter) -> None:
    rates = []
    async with start_writer(TCG, [RATE]) as guest:
        async for rate in dirty_rates(guest.monitor, SAMPLING):
            rates.append(rate.bytes_per_second)
            if len(rates) == 2:
                break
    assert min(rates) > 0


async def test_two_clients(start_writer: StartWriter) -> None:
    async with (
        start_writer(TCG, [RATE]) as guest,
        await Machine.attach(guest.socket) as second,
    ):
        long = replace(SAMPLING, seconds=10)  # so that the second one cannot come too late
        first = asyncio.create_task(measure_dirty_rate(guest.monitor, long))
        await guest.until("measuring")
        with pytest.raises(QemuRingError, match="measured already, by page-sampling for 10 s"):
            await measure_dirty_rate(second.monitor, SAMPLING)
        assert (await first).bytes_per_second > 0


async def test_cancelled(start_writer: StartWriter) -> None:
    """QEMU measures on to the end, and then all is as if nothing had been."""
    async with start_writer(TCG, [RATE]) as guest:
        task = asyncio.create_task(measure_dirty_rate(guest.monitor, SAMPLING))
        await guest.until("measuring")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(QemuRingError, match="or a run that was cut off"):
            await measure_dirty_rate(guest.monitor, SAMPLING)
        await guest.until("measured")
        assert (await measure_dirty_rate(guest.monitor, SAMPLING)).bytes_per_second > 0


async def test_qemu_is_stopped_while_it_measures(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [RATE]) as guest:
        task = asyncio.create_task(measure_dirty_rate(guest.monitor, SAMPLING))
        await guest.until("measuring")
        task.cancel()
        await asyncio.wait({task})


async def test_limits_take_the_ring(start_writer: StartWriter) -> None:
    async with start_writer(TCG, [0]) as guest:
        with pytest.raises(QemuUnsuitableError, match="this guest's tracking is tcg"):
            await set_dirty_limit(guest.monitor, 50 * MIB)
        assert await cancel_dirty_limit(guest.monitor) == ()
        assert await query_dirty_limits(guest.monitor) == ()
