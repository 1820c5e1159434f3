"""KVM memslots removed and added on any QEMU, through PCI memory-enable.

A RAM-backed PCI BAR is one memslot. It is there while the device's COMMAND register
has memory-enable set. The register is written from outside the guest (`pci_config`). Each
write is one transaction of QEMU's memory core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qemu_ring.errors import QemuRingError
from qemu_ring.machine import Device, MemoryBackend
from qemu_ring.memslot.pci_config import ConfigWrite, PciAddress, write_config
from qemu_ring.qmp import Monitor, commands

__all__ = ["PciSlots", "SlotDevice"]

_BAR = 2


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

    def moved(self, monitor: Monitor) -> PciSlots:
        """The same slots of the same guest, after it was migrated to another QEMU."""
        slots = PciSlots(monitor, self._devices.values())
        slots._address.update(self._address)
        return slots

    def address(self, name: str) -> int | None:
        """Guest-physical address of a slot that is there; None for one that is not."""
        return self._address.get(name)

    async def add(self, name: str, address: int) -> None:
        """Map a slot at a guest-physical address (bytes, a multiple of the slot's size).

        Raises:
            QmpError: the monitor failed.
            QemuRingError: QEMU did not take the write.
        """
        device = self._devices[name].pci
        await write_config(
            self._monitor,
            [*ConfigWrite.bar(device, _BAR, address), self._enable(name, on=True)],
        )
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
        await write_config(self._monitor, [self._enable(name, on=False) for name in names])
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
        off = [self._enable(name, on=False) for name in names]
        on = [self._enable(name, on=True) for name in names]
        if pause_seconds > 0:
            await write_config(self._monitor, off)
            await asyncio.sleep(pause_seconds)
            await write_config(self._monitor, on)
        else:
            await write_config(self._monitor, off + on)
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
                    return next(region.address for region in device.regions if region.bar == _BAR)
        raise QemuRingError(f"QEMU has no device of slot {name}")

    def _enable(self, name: str, *, on: bool) -> ConfigWrite:
        return ConfigWrite.memory_enable(self._devices[name].pci, on=on)
