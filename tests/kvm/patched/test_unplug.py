"""A vCPU that is unplugged leaves nothing in its ring, and one plugged in its place goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.machine import Machine, MemoryBackend
from qemu_ring.memslot import query_rings
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.qmp import Monitor, commands
from qemu_ring.verify import Block, compare
from tests.kvm.patched.guest import running
from tests.kvm.patched.shim import ShimmedQemu
from tests.kvm.patched.wait import log_dirty_pages, wait_rings
from tests.waiting import until

pytestmark = pytest.mark.ring

SLOT_SIZE = 32 << 20
PAGES_PER_SECOND = 3000.0  # so that a ring is not full within the second until it is reaped
PACE = Pace(first_pass=8 << 20)  # less than is written, so that a slow controller is in time
# Registers of the ACPI CPU hotplug device of the machine type "pc".
SELECT, CONTROL, EJECT = 0xAF00, 0xAF04, 0x08


async def unplug(monitor: Monitor, vcpu: int) -> None:
    """Do what a guest's operating system does when it is asked to give up a vCPU."""
    # The first write to SELECT leaves the device's legacy mode.
    for port, size, value in ((SELECT, "w", 0), (SELECT, "w", vcpu), (CONTROL, "b", EJECT)):
        assert not await commands.human(monitor, f"o/{size} {port:#x} {value:#x}")
    assert vcpu not in [cpu.cpu_index for cpu in await commands.query_cpus_fast(monitor)]


def memory(machine: Machine) -> list[MemoryBackend]:
    assert machine.description is not None
    return [machine.description.memory, *machine.description.backends]


def blocks(source: Machine, destination: Machine) -> list[Block]:
    pairs = zip(memory(source), memory(destination), strict=True)
    return [Block(a.id, a.file.fd, b.file.fd, a.file.size) for a, b in pairs]


async def stop_with_entries(monitor: Monitor) -> None:
    """Stop the guest when vCPU 1's ring holds some; a sync may come in between."""

    async def holds() -> bool:
        await commands.cont(monitor)
        await wait_rings(monitor, "vCPU 1 writes nothing", lambda now: now.rings[1].fill > 100)
        await commands.stop(monitor)
        return (await query_rings(monitor)).rings[1].fill > 100

    await until(holds, "the ring holds entries")


async def test_what_it_dirtied_is_sent(patched_qemu: Path) -> None:
    guest = running(patched_qemu, slot_size=SLOT_SIZE, pages_per_second=PAGES_PER_SECOND)
    twin = running(patched_qemu, slot_size=SLOT_SIZE, destination=True)
    async with guest as (source, slots), twin as (destination, _):
        await slots.add("slot", 1 << 30)
        # The reaper steps aside for a limit; this one is far above what the guest writes.
        await source.monitor.execute("set-vcpu-dirty-limit", {"dirty-rate": 100_000})
        async with HeldPrecopy(source, destination, PACE) as migration:
            await migration.hold()
            await stop_with_entries(source.monitor)
            await unplug(source.monitor, 1)
            assert [r.cpu_index for r in (await query_rings(source.monitor)).rings] == [0]
            await migration.finish()
        comparison = await compare(blocks(source, destination))
    assert comparison.pages_stale_total == 0


async def test_one_plugged_in_its_place_fills_its_ring(shimmed_qemu: ShimmedQemu) -> None:
    """KVM keeps the vCPU, and goes on in its ring where it was."""
    shimmed_qemu.begin("keep-cpuid")
    async with running(shimmed_qemu.path, slot_size=SLOT_SIZE) as (machine, slots):
        monitor = machine.monitor
        await slots.add("slot", 1 << 30)
        await log_dirty_pages(monitor)
        # Not a multiple of the ring's size, where KVM would happen to begin anew
        await wait_rings(
            monitor, "vCPU 1 writes nothing", lambda now: now.rings[1].reaped % 4096 > 500
        )
        await unplug(monitor, 1)
        arguments = {"id": "again", "socket-id": 1, "core-id": 0, "thread-id": 0}
        await monitor.execute("device_add", {"driver": "qemu64-x86_64-cpu", **arguments})
        await monitor.execute("system_reset")  # the firmware starts its vCPUs anew
        await slots.add("slot", 1 << 30)
        rings = await wait_rings(
            monitor,
            "the new vCPU's entries are not found",
            lambda now: len(now.rings) == 2 and now.rings[1].reaped > 3 * 4096,
        )
        assert not rings.untrusted
