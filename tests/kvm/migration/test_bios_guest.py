"""A guest with a BIOS, which asks KVM for a clock: that is no lost memory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.machine import Accelerator, Machine, MachineDescription, MemoryBackend, UnnamedFile
from qemu_ring.migration import Migration, MigrationPlan
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, compare
from qemu_ring.verify._kvmclock import _CLOCK, KVMCLOCK, _is_clock
from tests.waiting import until

pytestmark = pytest.mark.kvm

SIZE = 64 << 20
BIOS_DATA = range(0xE0000, 0xF0000, 4)


def has_clock(fd: int) -> bool:
    """Code and tables look like clocks, too, but not like ones that have just been asked for."""
    data = os.pread(fd, len(BIOS_DATA) * 4, BIOS_DATA.start)
    last = len(data) - _CLOCK.size
    found = (_CLOCK.unpack_from(data, at) for at in range(0, last, 4))
    return any(_is_clock(clock) and clock[0] < 100 for clock in found)


async def test_clock_that_kvm_renewed_is_told_apart(qemu_path: Path) -> None:
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(UnnamedFile(name, SIZE)) for name in ("a", "b"))
        guest = MachineDescription(
            accelerator=Accelerator("kvm"), memory=MemoryBackend("ram", ours), firmware=None
        )
        twin = replace(guest, memory=MemoryBackend("ram", theirs), incoming="defer", paused=True)
        async with (
            await Machine.start(qemu_path, guest, name="source") as source,
            await Machine.start(qemu_path, twin, name="destination") as destination,
        ):
            await until(lambda: has_clock(ours.fd), "the BIOS has asked for a clock")
            await commands.stop(source.monitor)
            plan = MigrationPlan(leave_paused=True)
            async with Migration(source, destination, plan) as migration:
                await migration.complete(timeout=60)
            comparison = await compare([Block("ram", ours.fd, theirs.fd, SIZE)])
    assert comparison.equal
    assert [page.reason for page in comparison.excused] == [KVMCLOCK]
