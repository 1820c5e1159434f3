"""vCPUs whose numbers have a gap: a QEMU that would end when asked about them is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring._compat import timeout
from qemu_ring.dirty import (
    RateMode,
    RateOptions,
    cancel_dirty_limit,
    measure_dirty_rate,
    query_dirty_limits,
    set_dirty_limit,
)
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.machine import Accelerator, Machine, MachineDescription, MemoryBackend, UnnamedFile
from qemu_ring.migration import DirtyLimit, Migration, MigrationPlan
from qemu_ring.qmp import commands
from qemu_ring.qmp.dirty import query_vcpu_dirty_limit
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

MIB = 1 << 20
BY_RING = RateOptions(mode=RateMode.DIRTY_RING)
MENDED = "sparse-cpu-index"


@asynccontextmanager
async def guest_with_gap(qemu: Path, *, waits: bool = False) -> AsyncIterator[Machine]:
    """One with the vCPUs 0 and 2, or its twin, which waits for a migration."""
    with UnnamedFile("ram", 16 * MIB) as ram:
        description = MachineDescription(
            accelerator=Accelerator("kvm", {"dirty-ring-size": 1024}),
            memory=MemoryBackend("ram", ram),
            incoming="defer" if waits else None,
            paused=True,
            # what comes later counts
            extra=("-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"),
        )
        async with await Machine.start(qemu, description) as machine:
            place = {"socket-id": 2, "core-id": 0, "thread-id": 0}
            await machine.monitor.execute(
                "device_add", {"driver": "qemu64-x86_64-cpu", "id": "plugged", **place}
            )
            vcpus = await commands.query_cpus_fast(machine.monitor)
            assert [cpu.cpu_index for cpu in vcpus] == [0, 2]
            yield machine


async def is_mended(machine: Machine) -> bool:
    return MENDED in (await machine.monitor.schema()).command_features("calc-dirty-rate")


async def test_rate(any_qemu: Path, request: pytest.FixtureRequest) -> None:
    async with guest_with_gap(any_qemu) as machine:
        mended = await is_mended(machine)
        assert mended is ("patched" in request.node.callspec.id)
        if mended:
            rate = await measure_dirty_rate(machine.monitor)
            assert rate.mode is RateMode.DIRTY_RING
            assert [one.vcpu for one in rate.vcpus] == [0, 2]
        else:
            with pytest.raises(QemuUnsuitableError, match="numbers 0, 2, and it takes numbers"):
                await measure_dirty_rate(machine.monitor, BY_RING)
            rate = await measure_dirty_rate(machine.monitor)
            assert rate.mode is RateMode.PAGE_SAMPLING
        assert len(await commands.query_cpus_fast(machine.monitor)) == 2


async def test_limit(any_qemu: Path) -> None:
    async with guest_with_gap(any_qemu) as machine:
        monitor = machine.monitor
        if not await is_mended(machine):
            with pytest.raises(QemuUnsuitableError, match="a dirty limit would end this QEMU"):
                await set_dirty_limit(monitor, 50 * MIB)
            assert await query_dirty_limits(monitor) == ()
            return
        limits = await set_dirty_limit(monitor, 50 * MIB)
        assert [one.vcpu for one in limits] == [0, 2]
        async with timeout(2 * DEADLINE):  # each round of its measurements takes a second
            for _ in range(2):
                await measure_dirty_rate(monitor, BY_RING)
        assert [one.cpu_index for one in await query_vcpu_dirty_limit(monitor)] == [0, 2]
        assert await cancel_dirty_limit(monitor) == ()


async def test_limit_lists_no_vcpu_that_is_not_there(any_qemu: Path) -> None:
    """Without a gap, but with places for vCPUs to come."""
    with UnnamedFile("ram", 16 * MIB) as ram:
        description = MachineDescription(
            accelerator=Accelerator("kvm", {"dirty-ring-size": 1024}),
            memory=MemoryBackend("ram", ram),
            paused=True,
            extra=("-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"),
        )
        async with await Machine.start(any_qemu, description) as machine:
            limits = await set_dirty_limit(machine.monitor, 50 * MIB)
            assert [one.vcpu for one in limits] == [0]
            assert await cancel_dirty_limit(machine.monitor) == ()


async def test_migration_that_throttles_by_it(any_qemu: Path) -> None:
    async with (
        guest_with_gap(any_qemu) as source,
        guest_with_gap(any_qemu, waits=True) as destination,
    ):
        plan = MigrationPlan(throttle=DirtyLimit())
        migration = Migration(source, destination, plan)
        if await is_mended(source):
            async with migration:
                result = await migration.complete()
            assert result.status.value == "completed"
        else:
            # QEMU 7.2 does not have it at all
            why = "throttling by dirty-limit would end|no capability dirty-limit"
            with pytest.raises(QemuUnsuitableError, match=why):
                async with migration:
                    pass
        assert len(await commands.query_cpus_fast(source.monitor)) == 2


async def test_vcpu_plugged_while_limits_are_in_force(patched_qemu: Path) -> None:
    """The measurement under way begins anew."""
    with UnnamedFile("ram", 16 * MIB) as ram:
        description = MachineDescription(
            accelerator=Accelerator("kvm", {"dirty-ring-size": 1024}),
            memory=MemoryBackend("ram", ram),
            paused=True,
            extra=("-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"),
        )
        async with await Machine.start(patched_qemu, description) as machine:
            monitor = machine.monitor
            await set_dirty_limit(monitor, 50 * MIB)
            measuring = asyncio.create_task(measure_dirty_rate(monitor, BY_RING))
            await asyncio.sleep(0)
            for socket in (3, 1):
                place = {"socket-id": socket, "core-id": 0, "thread-id": 0}
                device = {"driver": "qemu64-x86_64-cpu", "id": f"plugged{socket}", **place}
                await monitor.execute("device_add", device)
            async with timeout(2 * DEADLINE):
                assert (await measuring).vcpus
                rate = await measure_dirty_rate(monitor, BY_RING)
            assert sorted(one.vcpu for one in rate.vcpus) == [0, 1, 3]
            assert [one.vcpu for one in await query_dirty_limits(monitor)] == [0, 1, 3]
            assert await cancel_dirty_limit(monitor) == ()
