"""A ring that KVM overruns, because it emulates ring 0: the guest goes on, and loses no page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.guest import RING0_FIRST, RING0_PAGES, image_bytes
from qemu_ring.machine import Accelerator, Machine, MachineDescription, MemoryBackend, UnnamedFile
from qemu_ring.machine.binary import probe_qemu
from qemu_ring.machine.full_ring import goes_on_with_full_ring
from qemu_ring.memslot import query_rings
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, compare
from tests.kvm.patched.wait import wait_rings

pytestmark = pytest.mark.ring

RAM = RING0_FIRST + RING0_PAGES * 4096
PACE = Pace(first_pass=32 << 20, held=4 << 20)


@asynccontextmanager
async def writing_in_ring_0(
    qemu: Path, entries: int, *, waits: bool = False
) -> AsyncIterator[tuple[Machine, UnnamedFile]]:
    with UnnamedFile("ram", RAM) as ram:
        description = MachineDescription(
            accelerator=Accelerator("kvm", {"dirty-ring-size": entries}),
            memory=MemoryBackend("ram", ram),
            firmware=image_bytes("ring0"),
            incoming="defer" if waits else None,
            paused=waits,
        )
        async with await Machine.start(qemu, description) as machine:
            yield machine, ram


async def overruns_here(qemu: Path) -> bool:
    """Whether this host's KVM overruns rings, by what becomes of a QEMU that is not patched."""
    return await goes_on_with_full_ring(await probe_qemu(qemu)) is False


async def test_guest_goes_on(patched_qemu: Path) -> None:
    assert await goes_on_with_full_ring(await probe_qemu(patched_qemu))


@pytest.mark.parametrize("entries", [1024, 4096])
async def test_no_page_is_lost(qemu_path: Path, patched_qemu: Path, entries: int) -> None:
    expected = await overruns_here(qemu_path)
    async with (
        writing_in_ring_0(patched_qemu, entries) as (source, ram),
        writing_in_ring_0(patched_qemu, entries, waits=True) as (destination, twin),
    ):
        async with HeldPrecopy(source, destination, PACE) as migration:
            await migration.hold()
            await wait_rings(
                source.monitor,
                "the ring is never full",
                lambda now: now.rings[0].full > 20 and now.rings[0].reaped > 20 * entries,
            )
            await commands.stop(source.monitor)
            rings = await query_rings(source.monitor)
            await migration.finish()
        comparison = await compare([Block("ram", ram.fd, twin.fd, RAM)])
    assert comparison.pages_stale_total == 0
    assert not rings.untrusted
    assert (rings.rings[0].overruns > 0) is expected
