"""A guest that hangs because KVM has overrun its ring is not said to dirty nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path

import pytest

from qemu_ring._compat import timeout
from qemu_ring.dirty import RateMode, RateOptions, StallWatch, measure_dirty_rate
from qemu_ring.guest import RING0_FIRST, RING0_PAGES, image_bytes
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_qemu,
)
from qemu_ring.machine.full_ring import goes_on_with_full_ring
from qemu_ring.migration import Migration, MigrationPlan
from qemu_ring.qmp import commands
from tests.command import COMMAND

pytestmark = pytest.mark.ring

RAM = RING0_FIRST + RING0_PAGES * 4096
BY_RING = RateOptions(mode=RateMode.DIRTY_RING)


def description(ram: UnnamedFile, *, waits: bool = False) -> MachineDescription:
    return MachineDescription(
        accelerator=Accelerator("kvm", {"dirty-ring-size": 1024}),
        memory=MemoryBackend("ram", ram),
        firmware=image_bytes("ring0"),
        incoming="defer" if waits else None,
        paused=waits,
    )


async def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60
    )


async def test_it_is_told(any_qemu: Path, tmp_path: Path) -> None:
    """Where the guest goes on, nothing is."""
    goes_on = await goes_on_with_full_ring(await probe_qemu(any_qemu))
    assert goes_on is not None
    expected = () if goes_on else (0,)
    path = str(tmp_path / "qmp")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    with UnnamedFile("ram", RAM) as ram, UnnamedFile("ram", RAM) as twin:
        async with (
            await Machine.start(any_qemu, description(ram), monitors=[listening]) as machine,
            await Machine.start(any_qemu, description(twin, waits=True)) as destination,
        ):
            listening.close()
            await measure_dirty_rate(machine.monitor, BY_RING)
            rate = await measure_dirty_rate(machine.monitor, BY_RING)
            assert rate.stalled == expected
            if not goes_on:
                assert rate.bytes_per_second == 0

            said = await ask("dirty-rate", path, "--json")
            assert said.returncode == len(expected), said.stderr
            assert json.loads(said.stdout)["stalled"] == list(expected)
            assert ("vCPU 0 does not run" in said.stderr) is (not goes_on)
            seen = await ask("top", path, "--once", "--json")
            assert json.loads(seen.stdout)["guests"][0]["stalled"] == list(expected)
            seen = await ask("top", path, "--once")
            assert ("vCPU 0 does not run" in seen.stdout) is (not goes_on)
            plan = MigrationPlan(max_bandwidth=4 << 20, downtime_limit=0.1)
            async with timeout(120), Migration(machine, destination, plan) as migration:
                if goes_on:  # it dirties more than is sent
                    async for _ in migration.iterations():
                        break
                    await commands.stop(machine.monitor)
                result = await migration.complete()
            assert result.stalled == expected


async def test_idle_guest_is_not_stalled(any_qemu: Path) -> None:
    """One that waits for its migration: nothing runs, and nothing is wrong."""
    with UnnamedFile("ram", RAM) as ram:
        async with await Machine.start(any_qemu, description(ram, waits=True)) as machine:
            watch = StallWatch()
            for _ in range(3):
                assert await watch.poll(machine.monitor) == ()
