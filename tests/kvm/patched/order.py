"""A guest for which the order of publish and reset matters, and what it loses with a QEMU.

usage: python -m tests.kvm.patched.order [--repeats N] [--delay] QEMU ...

A page is lost if it is published, sent, and written after that but before it is protected, and
never again. So a vCPU writes the same few pages in turn, and they are sent in turn, in passes that
find all of them dirty again. Then the guest is stopped: what was written without an entry just
before that is not made up for. With --delay the kernel protects pages 0.2 s after their entries
were collected, in each QEMU alike; that is two of the guest's turns.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.guest import (
    Pattern,
    Region,
    Span,
    Stream,
    Workload,
    WorkloadControl,
    image_bytes,
)
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration import Migration, MigrationPlan
from qemu_ring.qmp import commands
from qemu_ring.verify import Block
from tests.kvm.patched.shim import ShimmedQemu
from tests.waiting import DEADLINE

__all__ = ["Loss", "loss"]

MIB = 1 << 20
REGION = Region("memory", 8 * MIB, 8 * MIB)
RAM = REGION.address + REGION.size
RATE = 20_000.0
"""Pages a second: ten turns."""
BANDWIDTH = 10_000_000
"""Bytes a second: a pass takes nearly a second."""
PASSES = 4


@dataclass(frozen=True)
class Loss:
    """What became of it.

    Args:
        stale: pages that differ at the destination.
        absorbed: pages; None of a QEMU that does not tell.
        written: pages, repeats counted.
    """

    stale: int
    absorbed: int | None
    written: int


async def loss(qemu: Path) -> Loss:
    """Migrate that guest once, by ring."""
    span = Span(0, REGION.pages)
    load = Workload((REGION,), (Stream(Pattern.LOOP, span, pages_per_second=RATE),))
    tsc_hz = probe_kvm().tsc_khz * 1000
    accelerator = Tracking(65536).accelerator(await probe_qemu(qemu))  # no vCPU reaps on its own
    async with AsyncExitStack() as stack:
        ours, theirs = (stack.enter_context(UnnamedFile(name, RAM)) for name in ("ours", "theirs"))
        description = MachineDescription(
            accelerator=accelerator,
            memory=MemoryBackend("ram", ours),
            firmware=image_bytes(),
            fw_cfg=load.fw_cfg(tsc_hz),
        )
        twin = replace(
            description, memory=MemoryBackend("ram", theirs), incoming="defer", paused=True
        )
        source = await stack.enter_async_context(await Machine.start(qemu, description))
        destination = await stack.enter_async_context(await Machine.start(qemu, twin))
        control = stack.enter_context(WorkloadControl(ours.fd, load, tsc_hz))
        await control.wait_writing(timeout=DEADLINE)
        plan = MigrationPlan(max_bandwidth=BANDWIDTH, downtime_limit=0.001)
        blocks = [Block("ram", ours.fd, theirs.fd, RAM)]
        async with Migration(source, destination, plan, verify=blocks) as migration:
            async for iteration in migration.iterations():
                if iteration.number >= PASSES:
                    break
            # In the middle of a pass: what is sent now is sent for the last time.
            written = control.statistics().writes
            await control.wait(
                lambda now: now.writes > written + REGION.pages // 2,
                timeout=DEADLINE,
                what="the guest does not write",
            )
            await commands.stop(source.monitor)
            result = await migration.complete(timeout=DEADLINE)
        assert result.comparison is not None
        written = control.statistics().writes
        return Loss(result.comparison.pages_stale_total, result.totals.pages_absorbed, written)


def _shimmed(qemus: list[Path], folder: Path, *told: str) -> list[Path]:
    found = []
    for number, qemu in enumerate(qemus):
        place = folder / str(number)
        place.mkdir()
        found.append(ShimmedQemu.make(qemu, place, *told).path)
    return found


def main() -> None:
    """Each QEMU in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("qemu", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--delay", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as folder:
        qemus = _shimmed(asked.qemu, Path(folder), *(["late-reset"] if asked.delay else []))
        print("| run |", " | ".join(f"{qemu}: stale (absorbed)" for qemu in asked.qemu), "|")
        print("|---|" + "---|" * len(qemus))
        for run in range(asked.repeats):
            found = [asyncio.run(loss(qemu)) for qemu in qemus]
            words = [f"{one.stale} ({one.absorbed})" for one in found]
            print(f"| {run + 1} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    main()
