"""The dirty rings' reaper follows what the rings get, and does not wake up for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.machine import Machine
from qemu_ring.memslot import query_rings
from qemu_ring.qmp import commands
from tests.kvm.patched.guest import MIB, running
from tests.waiting import until

pytestmark = [pytest.mark.ring, pytest.mark.busy_guest]

SLOT_SIZE = 16 * MIB
RATE = 1000.0
"""Pages a second of each vCPU: 4096 entries last for four seconds."""
NAMED = ("-name", "debug-threads=on")


def wakeups(machine: Machine) -> int:
    """How often the thread has begun to wait since it was started."""
    for task in Path(f"/proc/{machine.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "kvm-reaper":
            lines = (task / "status").read_text().splitlines()
            found = dict(line.split(":", 1) for line in lines)
            return int(found["voluntary_ctxt_switches"])
    pytest.fail("QEMU has no thread kvm-reaper")


async def reaped(machine: Machine) -> int:
    return sum(ring.reaped for ring in (await query_rings(machine.monitor)).rings)


async def quiet(machine: Machine, progress: Path) -> None:
    """It sleeps while QEMU uses half a second of CPU time, most of it for the guest."""

    def used() -> int:
        fields = progress.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime, stime: ticks of 10 ms

    async def once() -> bool:
        before, start = wakeups(machine), used()
        await until(lambda: used() - start >= 50, "the guest gets no CPU")
        return wakeups(machine) == before

    await until(once, "the reaper wakes up though nothing is to be reaped")


async def test_wakes_up_only_while_dirty_pages_are_tracked(patched_qemu: Path) -> None:
    guest = running(patched_qemu, *NAMED, slot_size=SLOT_SIZE, pages_per_second=RATE)
    async with guest as (machine, slots):
        monitor, progress = machine.monitor, Path(f"/proc/{machine.pid}/stat")
        await slots.add("slot", 1 << 30)
        await quiet(machine, progress)
        await commands.set_parameters(monitor, max_bandwidth=64 << 10)  # it never ends
        await commands.migrate(monitor, "exec:cat > /dev/null")
        before, had = wakeups(machine), await reaped(machine)

        async def follows() -> bool:
            """Rings are not full yet, and there is but the first sync."""
            return wakeups(machine) >= before + 20 and await reaped(machine) > had

        await until(follows, "the reaper does not follow")
        assert not any(ring.full for ring in (await query_rings(monitor)).rings)
        await commands.stop(monitor)
        await quiet_while_stopped(machine)
        await commands.cont(monitor)
        again = wakeups(machine)
        await until(lambda: wakeups(machine) > again + 5, "the reaper does not go on")
        await commands.migrate_cancel(monitor)
        await quiet(machine, progress)


async def quiet_while_stopped(machine: Machine) -> None:
    async def once() -> bool:
        before = wakeups(machine)
        for _ in range(200):  # whatever time it takes to ask 200 times
            await commands.query_status(machine.monitor)
        return wakeups(machine) == before

    await until(once, "the reaper wakes up though the guest is stopped")
