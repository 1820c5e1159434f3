"""A guest that writes into a memslot that can be removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import Accelerator, Machine, MachineDescription, MemoryBackend, UnnamedFile
from qemu_ring.memslot import PciAddress, PciSlots, SlotDevice

MIB = 1 << 20


@asynccontextmanager
async def running(
    qemu: Path,
    *extra: str,
    ring: bool = True,
    destination: bool = False,
    slot_size: int = MIB,
    pages_per_second: float | None = None,
    apart: bool = False,
    trace: tuple[str, ...] = (),
    entries: int = 4096,
) -> AsyncIterator[tuple[Machine, PciSlots]]:
    """A guest with one removable slot, into which both its vCPUs write.

    Each goes through all of it, or through a half of its own if `apart`.
    """
    regions = (Region("slot", 1 << 30, slot_size),)
    span = Workload(regions, (Stream(),)).span("slot")
    parts = span.split(2) if apart else (span, span)
    streams = (Stream(Pattern.LOOP, part, pages_per_second=pages_per_second) for part in parts)
    workload = Workload(regions, tuple(streams))
    with UnnamedFile("ram", 4 * MIB) as ram, UnnamedFile("slot", slot_size) as slot:
        device = SlotDevice(MemoryBackend("slot", slot), PciAddress(4))
        description = MachineDescription(
            accelerator=Accelerator("kvm", {"dirty-ring-size": entries} if ring else {}),
            memory=MemoryBackend("ram", ram),
            vcpus=2,
            backends=(device.backend,),
            devices=(device.device(),),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(1_000_000_000),
            incoming="defer" if destination else None,
            paused=destination,
            trace=trace,
            extra=extra,
        )
        async with await Machine.start(qemu, description) as machine:
            with WorkloadControl(ram.fd, workload, 1_000_000_000) as control:
                if not destination:
                    await control.wait_writing()
                yield machine, PciSlots(machine.monitor, [device])
