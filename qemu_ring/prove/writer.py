"""A device that writes into the guest's slots: the back end of a vhost-user network device.

It does not receive packets. It writes where it is told to, as a network card would with buffers
of a driver, and logs what it wrote in the vhost log. No vCPU is involved, so no flush policy is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from qemu_ring.machine import Device
from qemu_ring.machine.vhost_user import PAGE, BackEnd
from qemu_ring.memslot.pci_config import ConfigWrite, PciAddress, write_config, write_ports
from qemu_ring.qmp import Monitor

__all__ = ["WriterBackEnd", "start_writer", "writer_arguments", "writer_device"]

_ADDRESS: Final = PciAddress(8)
_NETDEV: Final = "writer"
_PORTS: Final = 0xC000
"""Where the device's registers are put; nothing else is there on pc or q35."""
_QUEUES: Final = (0x200000, 0x210000)
"""Guest memory for its queues, which stay empty; the firmware keeps nothing there."""
_TURN_SECONDS: Final = 0.0005
_IDLE_SECONDS: Final = 0.01
"""Between looks at whether it is to write."""
_MOST_AT_ONCE: Final = 64
"""Pages that one turn writes at most, so that QEMU need not wait long for an answer."""


@dataclass(slots=True)
class _Walk:
    address: int
    pages: int
    pages_per_second: float
    next: int
    last_turn: float


class WriterBackEnd(BackEnd):
    """Walks over guest memory and writes each page once, where it is mapped; logs each."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        """Pages written since its start."""
        self._walk: _Walk | None = None

    def walk(self, address: int, size: int, pages_per_second: float) -> None:
        """Begin at a guest-physical address; what was begun before is given up.

        While the memory is away, or the guest is stopped, it waits where it is.

        Args:
            address, size: bytes, whole pages.
            pages_per_second: how fast, at most.
        """
        self._walk = _Walk(address, size // PAGE, pages_per_second, 0, time.monotonic())

    @property
    def is_walking(self) -> bool:
        """Whether there are pages left to write."""
        return self._walk is not None

    @property
    def pause(self) -> float | None:
        """Seconds between turns."""
        return _TURN_SECONDS if self._walk is not None else _IDLE_SECONDS

    def turn(self) -> None:
        """Write the pages that are due."""
        walk = self._walk
        if walk is None:
            return
        now = time.monotonic()
        due = int((now - walk.last_turn) * walk.pages_per_second)
        if not due:
            return
        walk.last_turn = now
        for _ in range(min(due, _MOST_AT_ONCE)):
            page = walk.address // PAGE + walk.next
            found = self.at(page * PAGE, guest=True) if self.is_running else None
            if found is None:
                return
            memory, offset = found
            self.writes += 1
            memory[offset : offset + 8] = self.writes.to_bytes(8, "little")
            self.mark(page)
            walk.next += 1
            if walk.next == walk.pages:
                self._walk = None
                return


def writer_arguments(back_end: BackEnd) -> tuple[str, ...]:
    """QEMU's arguments for what the device is connected to; the back end must serve already."""
    properties = ",".join(f"{key}={value}" for key, value in back_end.chardev.items())
    return (
        *("-chardev", f"socket,id={_NETDEV},{properties}"),
        *("-netdev", f"vhost-user,id={_NETDEV},chardev={_NETDEV}"),
    )


def writer_device() -> Device:
    """The device; its registers are in ports, which the monitor can write."""
    return Device(
        "virtio-net-pci",
        {
            "netdev": _NETDEV,
            "addr": f"{_ADDRESS.device:#x}.{_ADDRESS.function:#x}",
            "disable-legacy": "off",
            "disable-modern": True,
            "romfile": "",  # not all QEMUs have its image
        },
    )


async def start_writer(monitor: Monitor) -> None:
    """Do what a driver does to start the device: registers of virtio before 1.0.

    Raises:
        QmpError: the monitor failed.
        QemuRingError: QEMU did not take the writes.
    """
    base = ConfigWrite(_ADDRESS, 0x10, _PORTS)
    enabled = ConfigWrite(_ADDRESS, 0x04, 0x5, size=2)  # ports, and it may write to memory
    await write_config(monitor, [base, enabled])
    lines = [
        *(f"o/b {_PORTS + 18:#x} {status:#x}" for status in (0, 1, 3)),
        f"o/w {_PORTS + 4:#x} 0",  # no features
    ]
    for number, address in enumerate(_QUEUES):
        lines += [f"o/h {_PORTS + 14:#x} {number}", f"o/w {_PORTS + 8:#x} {address // PAGE:#x}"]
    await write_ports(monitor, [*lines, f"o/b {_PORTS + 18:#x} 7"])
