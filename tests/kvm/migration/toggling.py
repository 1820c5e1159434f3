"""A guest under load whose tracking is toggled, and hooks into what toggles it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration.toggling.toggle import Toggled, toggle
from tests.waiting import DEADLINE

MIB = 1 << 20
RAM = 64 * MIB


@dataclass
class Guest:
    """A guest under load, wherever it is."""

    qemu: Path
    machine: Machine
    control: WorkloadControl
    ram: UnnamedFile
    stack: AsyncExitStack

    async def to(self, tracking: str, timeout: float = 30.0) -> Toggled:
        accelerator = Tracking.parse(tracking).accelerator(await probe_qemu(self.qemu))
        toggled = await toggle(self.machine, self.qemu, accelerator, timeout=timeout)
        self.machine = await self.stack.enter_async_context(toggled.machine)
        return toggled

    async def writes_on(self) -> None:
        """Wait until the guest has written more."""
        before = self.control.statistics().writes
        await self.control.wait(
            lambda now: now.writes > before + 1000,
            timeout=DEADLINE,
            what="the guest does not write",
        )


@asynccontextmanager
async def guest(
    qemu: Path, tracking: str = "bitmap", *, vcpus: int = 1, share: bool = True, **more: object
) -> AsyncIterator[Guest]:
    """A guest that writes all the time; `more` is for its description."""
    region = Region("heap", 16 * MIB, RAM - 16 * MIB)
    spans = Workload((region,), (Stream(),)).span("heap").split(vcpus)
    streams = tuple(Stream(Pattern.LOOP, span, pages_per_second=50_000) for span in spans)
    workload = Workload((region,), streams)
    tsc_hz = probe_kvm().tsc_khz * 1000
    async with AsyncExitStack() as stack:
        ram = stack.enter_context(UnnamedFile("ram", RAM))
        description = MachineDescription(
            accelerator=Tracking.parse(tracking).accelerator(await probe_qemu(qemu)),
            memory=MemoryBackend("ram", ram, share=share),
            vcpus=vcpus,
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(tsc_hz),
            **more,  # type: ignore[arg-type]
        )
        machine = await stack.enter_async_context(await Machine.start(qemu, description))
        control = stack.enter_context(WorkloadControl(ram.fd, workload, tsc_hz))
        if share and "incoming" not in more:
            await control.wait_writing()
        yield Guest(qemu, machine, control, ram, stack)


@contextmanager
def after_start(monkeypatch: pytest.MonkeyPatch, what: Callable[[Machine], None]) -> Iterator[None]:
    """Do something to each machine as soon as it was started."""
    real = Machine.start

    async def start(*arguments: object, **options: object) -> Machine:
        machine = await real(*arguments, **options)  # type: ignore[arg-type]
        what(machine)
        return machine

    with monkeypatch.context() as patch:
        patch.setattr(Machine, "start", start)
        yield


@contextmanager
def no_twin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is done here starts no machine."""
    with after_start(monkeypatch, lambda twin: pytest.fail("a twin was started")):
        yield
