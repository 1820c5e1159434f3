"""The guest under test and the twins it is migrated to: same shape, memory of their own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes
from qemu_ring.machine import (
    Accelerator,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
)
from qemu_ring.memslot import PciAddress, SlotDevice
from qemu_ring.verify import Block

__all__ = ["HELPER", "SLOT", "SLOT_ADDRESS", "Memory", "Plan"]

_MIB: Final = 1 << 20
SLOT: Final = "slot"
"""The memslot that the guest writes into, and that is removed."""
HELPER: Final = "helper"
"""A second one, removed next, so that the ring is reaped while SLOT is away."""
_SIZES: Final = {"ram": 48 * _MIB, SLOT: 32 * _MIB, HELPER: 2 * _MIB}
SLOT_ADDRESS: Final = {SLOT: 1 << 30, HELPER: 2 << 30}
_BALLAST: Final = Region("ballast", 16 * _MIB, 32 * _MIB)
_OVERHEAD: Final = 64 * _MIB
"""A QEMU's own memory, about."""


class Memory(ExitStack):
    """The memory files of one guest, by block; closed on leaving the context."""

    def __init__(self, directory: Path | None) -> None:
        super().__init__()
        with ExitStack() as guard:
            self.files = {
                name: guard.enter_context(UnnamedFile(name, size, directory=directory))
                for name, size in _SIZES.items()
            }
            self.push(guard.pop_all())

    def blocks(self, destination: Memory) -> list[Block]:
        """What to compare after this guest was migrated to the one with that memory."""
        return [
            Block(name, file.fd, destination.files[name].fd, file.size)
            for name, file in self.files.items()
        ]


class Plan:
    """The shape of the guests, and what their vCPUs write in each phase.

    Args:
        vcpus: how many.
        machine: machine type.
        accelerator: KVM with the tracking to test.
        tsc_hz: ticks per second of the guest's time stamp counter.
        pages_per_second: how fast all vCPUs together walk over the slot. The loss is this
            rate times the time between harvest and removal.
    """

    memory_bytes: Final = 2 * sum(_SIZES.values())
    """Guest memory of a source and its destination."""
    guests_bytes: Final = memory_bytes + 2 * _OVERHEAD
    """Memory that the two need in all."""
    slot_bytes: Final = _SIZES[SLOT]

    def __init__(
        self,
        *,
        vcpus: int,
        machine: str,
        accelerator: Accelerator,
        tsc_hz: int,
        pages_per_second: float = 100_000.0,
    ) -> None:
        self._machine = machine
        self._accelerator = accelerator
        self.tsc_hz = tsc_hz
        regions = (_BALLAST, Region(SLOT, SLOT_ADDRESS[SLOT], _SIZES[SLOT]))
        idle = (Stream(),) * vcpus
        spans = Workload(regions, idle)
        self.idle: tuple[Stream, ...] = idle
        self.ballast = tuple(
            Stream(Pattern.LOOP, part) for part in spans.span(_BALLAST.name).split(vcpus)
        )
        """Keeps the first pass from converging, and leaves enough to send to hold it open."""
        self.walk = tuple(
            Stream(Pattern.ONCE, part, pages_per_second=pages_per_second / vcpus)
            for part in spans.span(SLOT).split(vcpus)
        )
        """Writes each page of the slot once: every one of them was clean, so a lost bit shows."""
        self.workload = Workload(regions, self.ballast)

    def devices(self, memory: Memory) -> list[SlotDevice]:
        """The devices whose slots can be removed."""
        return [
            SlotDevice(MemoryBackend(name, memory.files[name]), PciAddress(4 + index))
            for index, name in enumerate(SLOT_ADDRESS)
        ]

    def describe(self, memory: Memory, *, destination: bool) -> MachineDescription:
        """A guest over this memory."""
        devices = self.devices(memory)
        return MachineDescription(
            machine=self._machine,
            accelerator=self._accelerator,
            memory=MemoryBackend("ram", memory.files["ram"]),
            vcpus=len(self.walk),
            backends=tuple(device.backend for device in devices),
            devices=tuple(device.device() for device in devices),
            firmware=image_bytes(),
            fw_cfg=self.workload.fw_cfg(self.tsc_hz),
            incoming="defer" if destination else None,
            paused=destination,
        )
