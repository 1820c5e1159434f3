"""A small guest that writes, and the twin it is to be migrated to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.guest import WorkloadControl, image_bytes
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration import GuestAt, firmware_writes
from tests.kvm.migration.conftest import MIB, REGION, workload
from tests.kvm.migration.faults.fault import Fault

__all__ = ["STILL_SECONDS", "Sides", "start_sides"]

STILL_SECONDS = 0.1  # in which a guest that does not run has written nothing


@dataclass
class Sides:
    """A guest that writes, and its twin; none if it goes to a file."""

    source: Machine
    destination: Machine | None
    memory: UnnamedFile
    destination_memory: UnnamedFile

    def counter(self, side: GuestAt) -> Callable[[], int]:
        memory = self.memory if side is GuestAt.SOURCE else self.destination_memory
        return firmware_writes(memory.fd, 1)

    async def stands_still(self, side: GuestAt, seconds: float) -> bool:
        """Whether the guest there comes to write no more within so many seconds."""
        deadline = time.monotonic() + seconds
        while await self.rises(side, STILL_SECONDS):
            if time.monotonic() > deadline:
                return False
        return True

    async def rises(self, side: GuestAt, seconds: float) -> bool:
        """Whether the guest writes there within so many seconds."""
        read = self.counter(side)
        start, deadline = read(), time.monotonic() + seconds
        while read() == start:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True


@asynccontextmanager
async def start_sides(fault: Fault, binary: Path, folder: Path) -> AsyncIterator[Sides]:
    region, rate = REGION, None  # more than can be sent
    if fault.phase.switches_over:
        rate = 4000.0
    elif fault.phase.is_postcopy:  # so much that it takes a while
        region, rate = replace(REGION, size=96 * MIB), 50_000.0
    size = region.address + region.size
    tsc_hz, load = probe_kvm().tsc_khz * 1000, workload(1, rate, region)
    accelerator = Tracking().accelerator(await probe_qemu(binary))
    # A file that may not grow is refused by an error only to those that ignore the signal.
    guarded = folder / "qemu"
    guarded.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec '{binary}' \"$@\"\n")
    guarded.chmod(0o700)
    async with AsyncExitStack() as stack:
        memory = [stack.enter_context(UnnamedFile(name, size)) for name in ("ram", "ram-2")]
        ours = MachineDescription(
            accelerator=accelerator,
            memory=MemoryBackend("ram", memory[0]),
            firmware=image_bytes(),
            fw_cfg=load.fw_cfg(tsc_hz),
        )
        theirs = replace(
            ours, memory=MemoryBackend("ram", memory[1]), incoming="defer", paused=True
        )
        source = await stack.enter_async_context(await Machine.start(guarded, ours, name="source"))
        destination = None
        if fault.channel != "file":
            destination = await stack.enter_async_context(
                await Machine.start(binary, theirs, name="destination")
            )
        with WorkloadControl(memory[0].fd, load, tsc_hz) as control:
            await control.wait_writing()
        yield Sides(source, destination, *memory)
