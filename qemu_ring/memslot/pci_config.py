"""PCI configuration space written from outside the guest, on any QEMU.

The human monitor's `o` command writes to the configuration ports 0xcf8 and 0xcfc, which `pc` and
`q35` both have. It is what a vCPU would do, and so it comes between the two writes of a vCPU that
does the same: only guests that stand still, or that keep away from these ports, may be written to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from qemu_ring.errors import QemuRingError
from qemu_ring.qmp import Monitor, PciBus, PciDevice, commands

__all__ = [
    "ConfigWrite",
    "PciAddress",
    "PciPath",
    "map_bars_once",
    "write_config",
    "write_ports",
]

_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC
_COMMAND = 0x04
_MEMORY_ENABLE = 0x2
_BAR0 = 0x10
_BUS_NUMBERS = 0x18
"""Of a bridge: the buses before and behind it, and the last one behind that."""


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
class ConfigWrite:
    """One write to a register in a device's configuration space.

    Args:
        device: where it sits.
        offset: the register's, bytes.
        value: what to write.
        size: 2 or 4 bytes.
    """

    device: PciAddress
    offset: int
    value: int
    size: int = 4

    @classmethod
    def memory_enable(cls, device: PciAddress, *, on: bool) -> ConfigWrite:
        """Map a device's memory BARs, or unmap them; nothing else stays enabled."""
        return cls(device, _COMMAND, _MEMORY_ENABLE if on else 0, size=2)

    @classmethod
    def bar(cls, device: PciAddress, bar: int, address: int) -> tuple[ConfigWrite, ConfigWrite]:
        """Set the address of a 64-bit BAR."""
        low, high = address & 0xFFFFFFFF, address >> 32
        offset = _BAR0 + 4 * bar
        return cls(device, offset, low), cls(device, offset + 4, high)


@dataclass(frozen=True, slots=True)
class PciPath:
    """Where a PCI device sits, in a way that does not depend on how buses are numbered.

    Args:
        root: its root bus's number, which QEMU gives.
        places: device and function of each bridge on the way to it, then its own.
    """

    root: int
    places: tuple[tuple[int, int], ...]


async def write_config(monitor: Monitor, writes: Sequence[ConfigWrite]) -> None:
    """Write to configuration space, in this order, without waiting in between.

    Raises:
        QmpError: the monitor failed.
        QemuRingError: QEMU did not take a write.
    """
    lines = []
    for one in writes:
        lines.append(f"o/w {_CONFIG_ADDRESS:#x} {one.device.register(one.offset & ~3):#x}")
        unit = {2: "h", 4: "w"}[one.size]
        lines.append(f"o/{unit} {_CONFIG_DATA + (one.offset & 3):#x} {one.value:#x}")
    await write_ports(monitor, lines)


async def write_ports(monitor: Monitor, lines: Sequence[str]) -> None:
    """Write to ports, in this order, without waiting in between.

    Args:
        monitor: the guest's.
        lines: the human monitor's, such as "o/w 0xcf8 0x80002004".

    Raises:
        QmpError: the monitor failed.
        QemuRingError: QEMU did not take a write.
    """
    # Sent in order without waiting for each answer; QEMU runs them in that order.
    pending = [commands.human(monitor, line) for line in lines]
    for said in await asyncio.gather(*pending, return_exceptions=True):
        if isinstance(said, BaseException):
            raise said
        if said:
            raise QemuRingError(f"the monitor refused a port write: {said.strip()}")


async def map_bars_once(monitor: Monitor, path: PciPath, size: int, address: int) -> None:
    """Map a device's memory BARs of one size at an address, and unmap them again.

    The guest's vCPUs must not run, nor have run. A device that is not there is left alone, and so
    is one without such a BAR.

    Args:
        monitor: the guest's.
        path: where the device is.
        size: of the BAR, bytes.
        address: where, in its bus's address space, bytes; a multiple of the size.

    Raises:
        QmpError: the monitor failed.
        QemuRingError: QEMU did not take a write.
    """
    *bridges, place = path.places
    buses = await commands.query_pci(monitor)
    free = (number for number in count(1) if number not in {bus.bus for bus in buses})
    numbers = [path.root, *islice(free, len(bridges))]
    numbering = [
        ConfigWrite(
            PciAddress(*bridge, bus=before), _BUS_NUMBERS, before | behind << 8 | numbers[-1] << 16
        )
        for bridge, before, behind in zip(bridges, numbers, numbers[1:], strict=False)
    ]
    device = PciAddress(*place, bus=numbers[-1])
    if numbering:
        await write_config(monitor, numbering)
        buses = await commands.query_pci(monitor)
    for bar in _memory_bars(buses, device, size):
        await write_config(
            monitor,
            [
                *ConfigWrite.bar(device, bar.number, address)[: 2 if bar.is_64_bit else 1],
                ConfigWrite.memory_enable(device, on=True),
                ConfigWrite.memory_enable(device, on=False),
            ],
        )
    await write_config(monitor, [replace(one, value=0) for one in reversed(numbering)])


@dataclass(frozen=True, slots=True)
class _Bar:
    number: int
    is_64_bit: bool


def _memory_bars(buses: Sequence[PciBus], device: PciAddress, size: int) -> list[_Bar]:
    found = next(
        (
            one
            for bus in buses
            for one in _flat(bus.devices)
            if (one.bus, one.slot, one.function) == (device.bus, device.device, device.function)
        ),
        None,
    )
    return [
        _Bar(region.bar, bool(region.mem_type_64))
        for region in (found.regions if found else ())
        if region.type == "memory" and region.size == size
    ]


def _flat(devices: Sequence[PciDevice]) -> list[PciDevice]:
    """Devices, and those behind them."""
    found = list(devices)
    for one in devices:
        if one.pci_bridge is not None:
            found += _flat(one.pci_bridge.devices)
    return found
