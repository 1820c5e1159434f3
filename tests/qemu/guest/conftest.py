"""A guest that runs the workload firmware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.guest import Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
)
from qemu_ring.memslot import SlotDevice

RAM = 64 << 20
TSC_HZ = 2_000_000_000


@dataclass
class Guest:
    machine: Machine
    control: WorkloadControl
    memory: UnnamedFile


StartGuest = Callable[..., AbstractAsyncContextManager[Guest]]


@pytest.fixture
def start_guest(qemu_path: Path) -> StartGuest:
    """Start a guest with a workload; by default under TCG."""

    @asynccontextmanager
    async def start(
        workload: Workload,
        *,
        accelerator: Accelerator = Accelerator("tcg"),  # noqa: B008 - immutable
        machine: str = "pc",
        tsc_hz: int = TSC_HZ,
        devices: Sequence[SlotDevice] = (),
        trace: tuple[str, ...] = (),
    ) -> AsyncIterator[Guest]:
        with UnnamedFile("ram", RAM) as memory:
            description = MachineDescription(
                accelerator=accelerator,
                machine=machine,
                memory=MemoryBackend("ram", memory),
                vcpus=len(workload.streams),
                firmware=image_bytes(),
                fw_cfg=workload.fw_cfg(tsc_hz),
                backends=tuple(device.backend for device in devices),
                devices=tuple(device.device() for device in devices),
                trace=trace,
            )
            async with await Machine.start(qemu_path, description) as running:
                with WorkloadControl(memory.fd, workload, tsc_hz) as control:
                    yield Guest(running, control, memory)

    return start
