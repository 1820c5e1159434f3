"""The guest under test and the twins it is migrated to: same shape, memory of their own."""

from __future__ import annotations

from collections.abc import Mapping
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
from qemu_ring.machine.vhost_user import BackEnd
from qemu_ring.memslot import PciAddress, SlotDevice, Window, memslot_testdev
from qemu_ring.prove.writer import writer_arguments, writer_device
from qemu_ring.verify import Block

__all__ = ["ELSEWHERE", "HELPER", "SLOT", "SLOT_ADDRESS", "WINDOW", "WINDOWS", "Memory", "Plan"]

_MIB: Final = 1 << 20
SLOT: Final = "slot"
"""The memslot that the guest writes into, and that is removed."""
HELPER: Final = "helper"
"""A second one, removed next, so that the ring is reaped while SLOT is away."""
_SIZES: Final = {"ram": 48 * _MIB, SLOT: 32 * _MIB, HELPER: 2 * _MIB}
SLOT_ADDRESS: Final = {SLOT: 1 << 30, HELPER: 2 << 30}
WINDOW: Final = "window"
"""What SLOT is, for the test device of a patched QEMU."""
WINDOWS: Final = (
    Window(8 << 30, WINDOW, 0, _SIZES[SLOT]),
    Window(9 << 30, "window-helper", 0, _SIZES[HELPER]),
)
ELSEWHERE: Final = 10 << 30
"""Where else WINDOW can be mapped."""
_BALLAST: Final = Region("ballast", 16 * _MIB, 32 * _MIB)
_OVERHEAD: Final = 64 * _MIB
"""A QEMU's own memory, about."""


class Memory(ExitStack):
    """The memory files of one guest, by block; closed on leaving the context.

    Args:
        sizes: of the blocks, bytes.
        directory: where they live; None for memory without a name.
    """

    def __init__(self, sizes: Mapping[str, int], directory: Path | None) -> None:
        super().__init__()
        with ExitStack() as guard:
            self.files = {
                name: guard.enter_context(UnnamedFile(name, size, directory=directory))
                for name, size in sizes.items()
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
        windows: whether the guests have a test device, which maps WINDOWS.
    """

    slot_bytes: Final = _SIZES[SLOT]

    def __init__(
        self,
        *,
        vcpus: int,
        machine: str,
        accelerator: Accelerator,
        tsc_hz: int,
        pages_per_second: float = 100_000.0,
        windows: bool = False,
    ) -> None:
        self._machine = machine
        self._accelerator = accelerator
        self.tsc_hz = tsc_hz
        self.sizes = dict(_SIZES)
        """Of the blocks of a guest's memory, bytes."""
        regions = [_BALLAST, Region(SLOT, SLOT_ADDRESS[SLOT], _SIZES[SLOT])]
        if windows:
            self.sizes.update((window.backend, window.size) for window in WINDOWS)
            regions.append(Region(WINDOW, WINDOWS[0].address, WINDOWS[0].size))
        self.memory_bytes = 2 * sum(self.sizes.values())
        """Guest memory of a source and its destination."""
        self.guests_bytes = self.memory_bytes + 2 * _OVERHEAD
        """Memory that the two need in all."""
        idle = (Stream(),) * vcpus
        spans = Workload(tuple(regions), idle)
        self.idle: tuple[Stream, ...] = idle
        self.ballast = tuple(
            Stream(Pattern.LOOP, part) for part in spans.span(_BALLAST.name).split(vcpus)
        )
        """Keeps the first pass from converging, and leaves enough to send to hold it open."""
        self.pages_per_second = pages_per_second
        self.spans = {region.name: (region.address, region.size) for region in regions[1:]}
        """Guest-physical address and size of SLOT, and of WINDOW, bytes."""
        self.walks = {
            region.name: tuple(
                Stream(Pattern.ONCE, part, pages_per_second=pages_per_second / vcpus)
                for part in spans.span(region.name).split(vcpus)
            )
            for region in regions[1:]
        }
        """Writes each page of SLOT, or of WINDOW, once: it was clean, so a lost bit shows."""
        self.workload = Workload(tuple(regions), self.ballast)

    def devices(self, memory: Memory) -> list[SlotDevice]:
        """The devices whose slots can be removed."""
        return [
            SlotDevice(MemoryBackend(name, memory.files[name]), PciAddress(4 + index))
            for index, name in enumerate(SLOT_ADDRESS)
        ]

    def describe(
        self, memory: Memory, *, destination: bool, back_end: BackEnd | None = None
    ) -> MachineDescription:
        """A guest over this memory, with a device that `back_end` serves if there is one."""
        devices = self.devices(memory)
        windows = [
            MemoryBackend(window.backend, memory.files[window.backend])
            for window in WINDOWS
            if window.backend in memory.files
        ]
        return MachineDescription(
            machine=self._machine,
            accelerator=self._accelerator,
            memory=MemoryBackend("ram", memory.files["ram"]),
            vcpus=len(self.idle),
            backends=(*(device.backend for device in devices), *windows),
            devices=(
                *(device.device() for device in devices),
                *([memslot_testdev(windows)] if windows else []),
                *([writer_device()] if back_end else []),
            ),
            firmware=image_bytes(),
            fw_cfg=self.workload.fw_cfg(self.tsc_hz),
            incoming="defer" if destination else None,
            paused=destination,
            extra=writer_arguments(back_end) if back_end else (),
        )
