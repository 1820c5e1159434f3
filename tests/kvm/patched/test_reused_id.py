"""A dirty ring entry may name a memslot whose id belongs to another one by now.

If that one does not log dirty pages it has no bitmap, and an unpatched QEMU crashes.
"""

from __future__ import annotations

import time

import pytest

from qemu_ring.memslot import (
    FlushPolicy,
    Memslot,
    PciSlots,
    query_flush,
    query_memslots,
    query_rings,
    set_flush_policy,
)
from qemu_ring.qmp import Listener, Monitor, commands
from tests.kvm.patched.guest import running
from tests.kvm.patched.shim import ShimmedQemu
from tests.waiting import DEADLINE, until

pytestmark = pytest.mark.ring

ADDRESS = 1 << 30
# Slow enough for pages to be clean when they are written, even right after a harvest.
SLOT_SIZE = 32 << 20
PAGES_PER_SECOND = 100_000.0


async def slot(monitor: Monitor) -> Memslot:
    (found,) = [one for one in await query_memslots(monitor) if one.address == ADDRESS]
    return found


async def wait_logging(monitor: Monitor) -> None:
    async def logs() -> bool:
        return (await slot(monitor)).log_dirty

    await until(logs, "dirty pages are logged")


async def wait_status(events: Listener, status: str) -> None:
    await events.wait(
        lambda event: event.data["status"] == status, timeout=DEADLINE, what=f"status {status}"
    )


async def wait_reaped(monitor: Monitor) -> None:
    """Wait until no ring holds an entry."""

    async def reaped() -> bool:
        return not any(ring.fill for ring in (await query_rings(monitor)).rings)

    await until(reaped, "the rings are reaped")


async def remove_and_reuse(monitor: Monitor, slots: PciSlots) -> int:
    """Leave entries of a removed memslot, give its id away, and have the ring reaped.

    Returns:
        how many entries named a memslot that was gone, or had no bitmap.
    """
    await slots.add("slot", ADDRESS)
    await commands.set_parameters(monitor, max_bandwidth=256 << 10)
    with monitor.events("MIGRATION") as events:
        await commands.migrate(monitor, "exec:cat > /dev/null")
        await wait_status(events, "active")  # QEMU reaps once more when logging begins
        await wait_logging(monitor)
        logged = await slot(monitor)
        before = (await query_flush(monitor)).entries_dropped
        await slots.remove("slot")
        await commands.migrate_cancel(monitor)
        await wait_status(events, "cancelled")
    await slots.add("slot", ADDRESS)
    again = await slot(monitor)
    assert (again.slot, again.log_dirty) == (logged.slot, False)
    await wait_reaped(monitor)
    dropped = (await query_flush(monitor)).entries_dropped - before
    await slots.remove("slot")
    return dropped


async def test_entry_for_a_memslot_that_is_gone_is_counted(shimmed_qemu: ShimmedQemu) -> None:
    """The guest has time to write between harvest and removal; then it must not be reaped first.

    Rings are reaped each 50 ms while QEMU migrates, and once more after that: it depends on the
    moment whether the id belongs to another memslot by then.
    """
    guest = running(
        shimmed_qemu.path,
        slot_size=SLOT_SIZE,
        pages_per_second=PAGES_PER_SECOND,
        entries=65536,
    )
    async with guest as (machine, slots):
        monitor = machine.monitor
        await commands.set_capabilities(monitor, {"events": True})
        await set_flush_policy(monitor, FlushPolicy.BEST_EFFORT)
        shimmed_qemu.begin("late-removal")
        end = time.monotonic() + DEADLINE
        while not await remove_and_reuse(monitor, slots):
            assert time.monotonic() < end, "no ring had an entry of the memslot that was gone"
        assert (await commands.query_status(monitor)).status == "running"
