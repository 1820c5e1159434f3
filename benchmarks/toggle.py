"""How long a guest stands still when its way of tracking is toggled, to and fro under load.

usage: python benchmarks/toggle.py [--repeats N] [--size GIB] [--vcpus N] [--qemu PATH]

The downtime is told in two ways: by the times of QEMU's STOP and RESUME events, and by the guest's
own counter of writes, which this host reads from the memory that both QEMUs share: the longest time
for which it stood still. The same watch over a guest that nobody moves is what to compare with.
At the end the guest is stopped, and toggled once more: all its memory has to be the same after it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from threading import Event, Thread

from qemu_ring.dirty import Tracking
from qemu_ring.guest import Pattern, Region, Span, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    find_qemu,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration import toggle
from qemu_ring.qmp import commands

MIB = 1 << 20
CYCLE = ("ring:4096", "bitmap")


@dataclass
class Watch:
    """The longest time for which the guest's counter stood still, seconds; context manager."""

    control: WorkloadControl
    stalled: float = 0.0
    went_back: int = 0
    over: Event = field(default_factory=Event)

    def __enter__(self) -> Watch:
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join()

    def _watch(self) -> None:
        last, since = self.control.statistics().writes, time.monotonic()
        while not self.over.wait(0.0002):
            now = self.control.statistics().writes
            if now != last:
                self.stalled = max(self.stalled, time.monotonic() - since)
                self.went_back += now < last
                last, since = now, time.monotonic()


async def settle(control: WorkloadControl) -> None:
    """Let the guest write for a while."""
    writes = control.statistics().writes
    await control.wait(lambda now: now.writes > writes + 20_000, timeout=30, what="no writes")


def digest(fd: int, size: int) -> tuple[str, int]:
    """Of a file's data, and where it is; and how many bytes it has."""
    whole, there, offset = hashlib.blake2b(), 0, 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            break
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), start + 16 * MIB)
        whole.update(start.to_bytes(8, "little"))
        whole.update(os.pread(fd, offset - start, start))
        there += offset - start
    return whole.hexdigest(), there


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--size", type=int, default=8, metavar="GIB")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--rate", type=float, default=50_000, help="pages a second in all")
    parser.add_argument("--qemu")
    arguments = parser.parse_args()
    qemu = await probe_qemu(find_qemu(arguments.qemu))
    tsc_hz = probe_kvm().tsc_khz * 1000
    size = arguments.size << 30
    # From 16 MiB up to where a PC's low memory ends.
    regions = [Region("low", 16 * MIB, min(size, 3 << 30) - 16 * MIB)]
    if size > 3 << 30:
        regions.append(Region("high", 4 << 30, size - (3 << 30)))
    spans = Span(0, sum(region.pages for region in regions)).split(arguments.vcpus)
    rate = arguments.rate / arguments.vcpus
    streams = tuple(Stream(Pattern.RANDOM, span, pages_per_second=rate) for span in spans)
    workload = Workload(tuple(regions), streams)
    downtimes, stalls, whole, went_back = [], [], [], 0
    async with AsyncExitStack() as stack:
        ram = stack.enter_context(UnnamedFile("ram", size))
        description = MachineDescription(
            accelerator=Tracking.parse("bitmap").accelerator(qemu),
            memory=MemoryBackend("ram", ram),
            machine="pc,max-ram-below-4g=3G",
            vcpus=arguments.vcpus,
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(tsc_hz),
        )
        machine = await stack.enter_async_context(await Machine.start(qemu.path, description))
        control = stack.enter_context(WorkloadControl(ram.fd, workload, tsc_hz))
        await control.wait_writing()
        with Watch(control) as still:
            await settle(control)
        for repeat in range(arguments.repeats):
            accelerator = Tracking.parse(CYCLE[repeat % 2]).accelerator(qemu)
            with Watch(control) as watch:
                toggled = await toggle(machine, qemu.path, accelerator)
                machine = await stack.enter_async_context(toggled.machine)
                await settle(control)
            assert toggled.downtime_seconds is not None
            downtimes.append(toggled.downtime_seconds * 1000)
            stalls.append(watch.stalled * 1000)
            whole.append(toggled.seconds * 1000)
            went_back += watch.went_back
        await commands.stop(machine.monitor)
        before, there = await asyncio.to_thread(digest, ram.fd, size)
        accelerator = Tracking.parse(CYCLE[arguments.repeats % 2]).accelerator(qemu)
        toggled = await toggle(machine, qemu.path, accelerator)
        await stack.enter_async_context(toggled.machine)
        after, _ = await asyncio.to_thread(digest, ram.fd, size)
    print(
        f"{arguments.repeats} toggles between {' and '.join(CYCLE)}, {arguments.size} GiB, "
        f"{arguments.vcpus} vCPUs, {arguments.rate:,.0f} random pages a second, "
        f"{os.cpu_count()} CPUs, QEMU {qemu.version}"
    )
    for name, values in (
        ("downtime by QEMU's events", downtimes),
        ("guest's counter stood still", stalls),
        ("whole toggle", whole),
    ):
        print(
            f"{name:28} median {statistics.median(values):7.1f} ms, "
            f"{min(values):.1f} to {max(values):.1f} ms"
        )
    print(f"{'same, nobody moves it':28} {still.stalled * 1000:14.1f} ms at most")
    print(f"the guest's counter went back {went_back} times")
    same = "the same" if before == after else "NOT the same"
    print(f"{there / (1 << 30):.2f} GiB of data, {same} after a toggle of the stopped guest")


if __name__ == "__main__":
    asyncio.run(main())
