"""What QEMU makes of a KVM that does less than it was asked for: it loses no page."""

from __future__ import annotations

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import QemuRingError
from qemu_ring.memslot import (
    DirtyRings,
    FlushPolicy,
    PciSlots,
    query_flush,
    query_memslots,
    query_rings,
    set_flush_policy,
)
from qemu_ring.prove import ProveOptions, prove
from qemu_ring.qmp import Monitor
from tests.kvm.patched.guest import running
from tests.kvm.patched.shim import ShimmedQemu
from tests.kvm.patched.wait import log_dirty_pages, wait_rings
from tests.waiting import until

pytestmark = pytest.mark.ring

SLOT_SIZE = 32 << 20
PAGES = SLOT_SIZE // 4096
FAST = 200_000.0  # pages a second


def reaped(rings: DirtyRings) -> list[int]:
    return [ring.reaped for ring in rings.rings]


async def removed(monitor: Monitor, slots: PciSlots) -> int:
    """Remove the slot; returns how many of its pages were harvested."""
    before = await query_flush(monitor)
    await slots.remove("slot")
    after = await query_flush(monitor)
    was, now = before.of(before.effective), after.of(after.effective)
    assert now.removals - was.removals == 1
    return now.pages_harvested - was.pages_harvested


async def test_rings_recover_when_resetting_them_works_again(shimmed_qemu: ShimmedQemu) -> None:
    """All are full by then, so no vCPU adds an entry that would make QEMU try again."""
    guest = running(shimmed_qemu.path, slot_size=SLOT_SIZE, pages_per_second=FAST)
    async with guest as (machine, slots):
        monitor = machine.monitor
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(monitor)
        await wait_rings(
            monitor, "nothing is dirtied", lambda now: all(n > 4096 for n in reaped(now))
        )
        shimmed_qemu.begin("fail-reset")
        full = (await wait_rings(monitor, "no failure", lambda now: now.untrusted)).rings
        await wait_rings(
            monitor,
            "the rings do not get full",
            lambda now: all(r.full > was.full for r, was in zip(now.rings, full, strict=True)),
        )
        shimmed_qemu.end("fail-reset")
        broken = await query_rings(monitor)
        await wait_rings(
            monitor,
            "the vCPUs do not go on",
            lambda now: all(
                n > was + 2 * 4096 for n, was in zip(reaped(now), reaped(broken), strict=True)
            ),
        )
        assert not (await query_rings(monitor)).untrusted
        assert await removed(monitor, slots) > 0
        assert not (await query_rings(monitor)).untrusted
        assert "KVM_RESET_DIRTY_RINGS returned -22" in machine.text("output") + machine.text("log")


@pytest.mark.parametrize(
    "policy",
    [
        FlushPolicy.BEST_EFFORT,
        FlushPolicy.QUIESCE,
        FlushPolicy.READ_ONLY,
        FlushPolicy.TOMBSTONE,
    ],
)
async def test_slot_removed_while_resetting_fails_is_all_dirty(
    shimmed_qemu: ShimmedQemu, policy: FlushPolicy
) -> None:
    guest = running(shimmed_qemu.path, slot_size=SLOT_SIZE, pages_per_second=1000.0)
    async with guest as (machine, slots):
        await set_flush_policy(machine.monitor, policy)
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(machine.monitor)
        shimmed_qemu.begin("fail-reset")
        await wait_rings(machine.monitor, "no failure", lambda now: now.untrusted)
        assert await removed(machine.monitor, slots) == PAGES


async def test_slots_are_all_dirty_once_when_resetting_works_again(
    shimmed_qemu: ShimmedQemu,
) -> None:
    """Their pages were writable, and what was written meanwhile nobody knows.

    The next to reap takes them: the reaper, which publishes them at once, or a removal, which tells
    how many they are.
    """
    guest = running(shimmed_qemu.path, slot_size=SLOT_SIZE, pages_per_second=1000.0)
    async with guest as (machine, slots):
        monitor = machine.monitor
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(monitor)

        async def at_a_removal() -> bool:
            shimmed_qemu.begin("fail-reset")
            await wait_rings(monitor, "no failure", lambda now: now.untrusted)
            shimmed_qemu.end("fail-reset")
            found = await removed(monitor, slots)
            await slots.add("slot", 1 << 30)
            return found == PAGES

        await until(at_a_removal, "no removal finds all pages dirty")
        assert not (await query_rings(monitor)).untrusted
        assert await removed(monitor, slots) < PAGES


@pytest.mark.parametrize("trouble", ["partial-reset", "flaky-reset"])
@pytest.mark.parametrize("policy", [FlushPolicy.QUIESCE, FlushPolicy.TOMBSTONE])
async def test_no_page_is_lost(
    shimmed_qemu: ShimmedQemu, trouble: str, policy: FlushPolicy
) -> None:
    shimmed_qemu.begin(trouble)
    result = await prove(shimmed_qemu.path, ProveOptions(policy=policy, seconds=3))
    assert result.stale_pages == 0
    assert result.removals > 0
    assert result.pages_written > 0


@pytest.mark.parametrize("policy", [FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY])
async def test_slot_whose_bitmap_cannot_be_read_is_all_dirty(
    shimmed_qemu: ShimmedQemu, policy: FlushPolicy
) -> None:
    guest = running(shimmed_qemu.path, ring=False, slot_size=SLOT_SIZE, pages_per_second=1000.0)
    async with guest as (machine, slots):
        await set_flush_policy(machine.monitor, policy)
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(machine.monitor, ring=False)
        shimmed_qemu.begin("fail-log")
        with pytest.raises(QemuRingError, match="KVM_GET_DIRTY_LOG failed with -5"):
            await slots.remove("slot")  # QEMU says so to the monitor, and does it
        info = await query_flush(machine.monitor)
        stats = info.of(policy)
        assert (stats.removals, stats.pages_harvested) == (1, PAGES)


@pytest.mark.parametrize("policy", [FlushPolicy.AUTO, FlushPolicy.READ_ONLY])
async def test_ring_that_a_bitmap_backs(shimmed_qemu: ShimmedQemu, policy: FlushPolicy) -> None:
    """What the ring had is not forgotten when the bitmap is read."""
    shimmed_qemu.begin("ring-with-bitmap")
    options = ProveOptions(tracking=Tracking.parse("ring:4096"), policy=policy, seconds=4)
    result = await prove(shimmed_qemu.path, options)
    assert result.stale_pages == 0
    assert result.pages_written > 0
    assert result.flush is not None
    assert result.flush.effective is (FlushPolicy.QUIESCE if policy is FlushPolicy.AUTO else policy)
    stats = result.flush.of(result.flush.effective)
    assert 0 <= stats.pages_late <= stats.pages_harvested
    assert stats.pages_harvested > 0


async def test_slot_that_cannot_be_made_read_only_is_removed(shimmed_qemu: ShimmedQemu) -> None:
    """KVM has deleted it by then: what was dirty is harvested, and QEMU goes on."""
    guest = running(shimmed_qemu.path, slot_size=SLOT_SIZE, pages_per_second=1000.0)
    async with guest as (machine, slots):
        monitor = machine.monitor
        await set_flush_policy(monitor, FlushPolicy.READ_ONLY)
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(monitor)
        for _ in range(3):
            # more than one harvest by the way would leave
            await wait_rings(monitor, "nothing is dirtied", lambda now: now.rings[0].fill > 0)
            shimmed_qemu.begin("fail-readonly")
            with pytest.raises(QemuRingError, match="Cannot allocate memory"):
                await slots.remove("slot")  # QEMU says so to the monitor, and does it
            shimmed_qemu.end("fail-readonly")
            assert "slot" not in [slot.ram_block for slot in await query_memslots(monitor)]
            await slots.add("slot", 1 << 30)
        stats = (await query_flush(monitor)).of(FlushPolicy.READ_ONLY)
        assert stats.removals == 3
        assert stats.pages_harvested > 0
