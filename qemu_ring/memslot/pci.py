"""KVM memslots removed and added on any QEMU, through PCI memory-enable.

A RAM-backed PCI BAR is one memslot. It is there while the device's COMMAND register
has memory-enable set. The register is written from outside the guest: through the
human monitor's `o` command to the configuration ports 0xcf8 and 0xcfc, which `pc` and
`q35` both have. Each write is one transaction of QEMU's memory core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qemu_ring.errors import QemuRingError
from qemu_ring.machine import Device, MemoryBackend
from qemu_ring.qmp import Monitor, commands

__all__ = ["PciAddress", "PciSlots", "SlotDevice"]

_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC
_COMMAND = 0x04
_MEMORY_ENABLE = 0x2
_BAR2 = 0x18


@dataclass(frozen=True, slots=True)
class PciAddress:
    """Where a PCI device sits."""

    device: int
    function: int = 0
    bus: int = 0

    def register(self, offset: int) -> int:
        """What the configuration address port takes for one register of the device."""
        return 1 << 31 | self.bus << 16 | self.device << 11 | self.function << 8 | offset


@dataclass(frozen=True, slots=True)
class SlotDevice:
    """An `ivshmem-plain` device whose BAR2 is a memslot that can be taken away.

    Args:
        backend: the memory behind it.
        pci: where the device is to sit; the slot must be free on bus 0.
    """

    backend: MemoryBackend
    pci: PciAddress

    @property
    def name(self) -> str:
        """The backend's id."""
        return self.backend.id

    def device(self) -> Device:
        """The device to put in the machine's description."""
        # master=on: without it QEMU refuses to migrate the device.
        address = f"{self.pci.device:#x}.{self.pci.function:#x}"
        return Device("ivshmem-plain", {"memdev": self.backend.id, "master": True, "addr": address})


class PciSlots:
    """Removes and adds the memslots of some devices of one guest.

    Args:
        monitor: the guest's.
        devices: the devices, as the guest was started with them.
    """

    def __init__(self, monitor: Monitor, devices: Iterable[SlotDevice]) -> None:
        self._monitor = monitor
        self._devices = {device.name: device for device in devices}
        self._address: dict[str, int] = {}
        self.removals = 0
        """Slots removed so far."""

    def address(self, name: str) -> int | None:
        """Guest-physical address of a slot that is there; None for one that is not."""
        return self._address.get(name)

    async def add(self, name: str, address: int) -> None:
        """Map a slot at a guest-physical address (bytes, a multiple of the slot's size).

        Raises:
            QmpError: the monitor failed.
            QemuRingError: QEMU did not take the write.
        """
        await self._write([*self._program(name, address), *self._enable(name, on=True)])
        found = await self._bar(name)
        if found != address:
            raise QemuRingError(
                f"slot {name} did not appear at {address:#x}, but at {found:#x}",
                hint="the address must be a multiple of the slot's size",
            )
        self._address[name] = address

    async def remove(self, *names: str) -> None:
        """Remove slots, in this order.

        Raises:
            QmpError: the monitor failed.
            QemuRingError: QEMU did not take the write.
            ValueError: a slot that is not there.
        """
        self._require(names)
        await self._write([line for name in names for line in self._enable(name, on=False)])
        for name in names:
            self._address.pop(name)
            self.removals += 1

    async def cycle(self, names: Sequence[str], *, pause_seconds: float = 0.0) -> None:
        """Remove slots in this order, then add them again in this order, where they were.

        All of it is sent at once, so that QEMU is the only one to wait for. For a
        slot but the last of `names`, QEMU reaps the ring between removal and addition.

        Args:
            names: the slots.
            pause_seconds: time to leave the guest between removals and additions.

        Raises:
            QmpError: the monitor failed.
            QemuRingError: QEMU did not take the write.
            ValueError: a slot that is not there.
        """
        self._require(names)
        off = [line for name in names for line in self._enable(name, on=False)]
        on = [line for name in names for line in self._enable(name, on=True)]
        if pause_seconds > 0:
            await self._write(off)
            await asyncio.sleep(pause_seconds)
            await self._write(on)
        else:
            await self._write(off + on)
        self.removals += len(names)

    async def move(self, name: str, address: int) -> None:
        """Remove a slot, and add it again at another guest-physical address."""
        await self.remove(name)
        await self.add(name, address)

    def _require(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._address:
                raise ValueError(f"slot {name} is not there")

    async def _bar(self, name: str) -> int:
        """Where QEMU has the slot now, by its own account."""
        pci = self._devices[name].pci
        for bus in await commands.query_pci(self._monitor):
            for device in bus.devices:
                if (device.bus, device.slot, device.function) == (
                    pci.bus,
                    pci.device,
                    pci.function,
                ):
                    return next(region.address for region in device.regions if region.bar == 2)
        raise QemuRingError(f"QEMU has no device of slot {name}")

    def _enable(self, name: str, *, on: bool) -> list[str]:
        register = self._devices[name].pci.register(_COMMAND)
        value = _MEMORY_ENABLE if on else 0
        return [f"o/w {_CONFIG_ADDRESS:#x} {register:#x}", f"o/h {_CONFIG_DATA:#x} {value:#x}"]

    def _program(self, name: str, address: int) -> list[str]:
        lines = []
        for half in (0, 1):
            register = self._devices[name].pci.register(_BAR2 + 4 * half)
            value = address >> 32 * half & 0xFFFFFFFF
            lines.append(f"o/w {_CONFIG_ADDRESS:#x} {register:#x}")
            lines.append(f"o/w {_CONFIG_DATA:#x} {value:#x}")
        return lines

    async def _write(self, lines: Sequence[str]) -> None:
        # Sent in order without waiting for each answer; QEMU runs them in that order.
        pending = [commands.human(self._monitor, line) for line in lines]
        for said in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(said, BaseException):
                raise said
            if said:
                raise QemuRingError(f"the monitor refused a port write: {said.strip()}")
