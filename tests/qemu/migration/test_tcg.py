"""Migration where there is no KVM: the engine needs a monitor on each side, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import Accelerator, Machine, MachineDescription, MemoryBackend, UnnamedFile
from qemu_ring.migration import DirtyLimit, GuestAt, Migration, MigrationPlan, Tcp
from qemu_ring.verify import Block

pytestmark = pytest.mark.qemu

MIB = 1 << 20
RAM = 16 * MIB
REGION = Region("ram", 8 * MIB, 8 * MIB)
TSC_HZ = 1_000_000_000


@asynccontextmanager
async def pair(binary: Path) -> AsyncIterator[tuple[Machine, Machine, list[Block]]]:
    span = Workload((REGION,), (Stream(),)).span("ram")
    workload = Workload((REGION,), (Stream(Pattern.LOOP, span, pages_per_second=1000),))
    async with AsyncExitStack() as stack:
        memory = [stack.enter_context(UnnamedFile(name, RAM)) for name in ("ram", "twin")]
        description = MachineDescription(
            accelerator=Accelerator("tcg"),
            memory=MemoryBackend("ram", memory[0]),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(TSC_HZ),
        )
        twin = replace(description, memory=MemoryBackend("ram", memory[1]), incoming="defer")
        machines = [
            await stack.enter_async_context(await Machine.start(binary, one, name=name))
            for one, name in ((description, "source"), (twin, "destination"))
        ]
        control = stack.enter_context(WorkloadControl(memory[0].fd, workload, TSC_HZ))
        await control.wait_writing()
        yield machines[0], machines[1], [Block("ram", memory[0].fd, memory[1].fd, RAM)]


async def test_precopy(qemu_path: Path) -> None:
    async with pair(qemu_path) as (source, destination, blocks):
        plan = MigrationPlan(channel=Tcp())
        async with Migration(source, destination, plan, verify=blocks) as migration:
            result = await migration.complete(timeout=60)
    assert result.comparison is not None
    assert result.comparison.equal
    assert result.outcome.guest_at is GuestAt.DESTINATION
    assert result.downtime.seconds is not None


async def test_dirty_limit_needs_the_ring(qemu_path: Path) -> None:
    async with pair(qemu_path) as (source, destination, _):
        plan = MigrationPlan(throttle=DirtyLimit())
        with pytest.raises(QemuUnsuitableError, match="dirty-limit"):
            async with Migration(source, destination, plan):
                pass
