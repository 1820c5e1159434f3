"""A vhost-user network device for machines: it receives packets, all the time.

While a migration asks for it, it logs the pages that it wrote. Without the log, memory at the
destination would be stale.
"""

from __future__ import annotations

import mmap
import struct
from enum import Enum
from pathlib import Path

from qemu_ring.machine.vhost_user import PAGE, BackEnd

__all__ = ["Logging", "Receiver"]

_SECONDS_APART, _SECONDS_APART_LOGGED = 0.1, 0.005


class Logging(Enum):
    """What a back end says of its log, and does."""

    LOGS = "logs"
    CANNOT = "cannot log"
    """QEMU then does not migrate."""
    FORGETS = "says that it logs, and does not"


class Receiver(BackEnd):
    """Puts a packet into each buffer that the guest has to spare.

    Args:
        path: of the socket.
        logging: whether it can log.
    """

    def __init__(self, path: Path, logging: Logging = Logging.LOGS) -> None:
        super().__init__(path, can_log=logging is not Logging.CANNOT)
        self._logging = logging
        self.received = 0
        """Packets that it put into the guest's memory."""

    @property
    def pause(self) -> float:
        """Seconds between packets: the guest's buffers are to last until it is migrated."""
        return _SECONDS_APART_LOGGED if self.is_logging else _SECONDS_APART

    def turn(self) -> None:
        """Put a packet into the guest's next buffer, if there is one."""
        ring = self.rings[0]
        if not self.is_running:
            return
        memory, at = self._mapped(ring.available)
        (available,) = struct.unpack_from("<H", memory, at + 2)
        if available == ring.next & 0xFFFF:
            return
        (head,) = struct.unpack_from("<H", memory, at + 4 + 2 * (ring.next % ring.size))
        memory, at = self._mapped(ring.table + 16 * head)
        address, length, _, _ = struct.unpack_from("<QIHH", memory, at)
        self.received += 1
        packet = bytes(10) + b"\1\0" + struct.pack("<Q", self.received) * ((length - 12) // 8)
        memory, at = self._mapped(address, guest=True)
        memory[at : at + len(packet)] = packet
        for page in range(address // PAGE, (address + length - 1) // PAGE + 1):
            self.mark(page)
        memory, at = self._mapped(ring.used)
        (used,) = struct.unpack_from("<H", memory, at + 2)
        struct.pack_into("<II", memory, at + 4 + 8 * (used % ring.size), head, len(packet))
        struct.pack_into("<H", memory, at + 2, (used + 1) & 0xFFFF)
        self.mark(ring.used_page)
        ring.next += 1

    def mark(self, page: int) -> None:
        if self._logging is not Logging.FORGETS:
            super().mark(page)

    def _mapped(self, address: int, *, guest: bool = False) -> tuple[mmap.mmap, int]:
        found = self.at(address, guest=guest)
        assert found is not None, f"{address:#x} is in no region"
        return found
