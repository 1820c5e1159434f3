"""A vhost-user back end: another process' part of a device, here a thread's.

It writes into the guest's memory behind QEMU's back, and while a migration asks for it, it logs
the pages that it wrote. What it writes, and when, is its subclass' to say.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from qemu_ring.errors import QemuRingError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PAGE", "BackEnd", "Ring"]

PAGE: Final = 4096
_VERSION_1, _LOG_ALL, _PROTOCOL_FEATURES = 32, 26, 30
_MQ, _LOG_SHMFD, _REPLY_ACK = 0, 1, 3
_HEADER = struct.Struct("<III")
_REGION = struct.Struct("<QQQQ")
_NO_FD = 1 << 8
_NEEDS_REPLY = 1 << 3

_GET_FEATURES, _SET_FEATURES, _SET_MEM_TABLE, _SET_LOG_BASE = 1, 2, 5, 6
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE, _GET_VRING_BASE = 8, 9, 10, 11
_SET_VRING_KICK, _SET_VRING_CALL, _SET_VRING_ERR, _SET_VRING_ENABLE = 12, 13, 14, 18
_GET_PROTOCOL_FEATURES, _GET_QUEUE_NUM = 15, 17
_OF_A_RING = (*range(_SET_VRING_NUM, _SET_VRING_ERR + 1), _SET_VRING_ENABLE)


@dataclass
class Ring:
    """A virtqueue, by addresses in QEMU; `used_page` is the guest's number of that page."""

    size: int = 0
    table: int = 0
    used: int = 0
    available: int = 0
    used_page: int = 0
    next: int = 0
    started: bool = False
    enabled: bool = False


@dataclass
class _Region:
    guest: int
    size: int
    qemu: int
    memory: mmap.mmap
    offset: int


class BackEnd:
    """Serves one QEMU, that connects to it, in a thread of its own.

    Used as a context. A subclass says in `turn` what the device does.

    Args:
        path: of the socket; None for one without a file, which ends with its owner.
        can_log: whether it says that it can log; QEMU does not migrate otherwise.
    """

    def __init__(self, path: Path | None = None, *, can_log: bool = True) -> None:
        self._path = path
        self._can_log = can_log
        self.logged = 0
        """Pages that it logged."""
        self.failed: BaseException | None = None
        """What ended it, if not QEMU."""
        self.rings = {0: Ring(), 1: Ring()}
        """Of the device, by number."""
        self._regions: list[_Region] = []
        self._log: mmap.mmap | None = None
        self._features = 0

    def __enter__(self) -> Self:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind("" if self._path is None else str(self._path))
        self._listening.listen(1)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve, name="vhost-user back end")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(timeout=30)
        os.close(self._stop)
        self._listening.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self.failed is not None and error is None:
            raise QemuRingError("the vhost-user back end ended") from self.failed

    @property
    def chardev(self) -> dict[str, str]:
        """Properties of the `-chardev socket` by which QEMU comes to it."""
        name = self._listening.getsockname()
        if isinstance(name, str):
            return {"path": name}
        return {"path": name[1:].decode(), "abstract": "on"}

    def turn(self) -> None:
        """Do what the device does; called every `pause` seconds, or later."""

    @property
    def pause(self) -> float | None:
        """Seconds between turns; None for no turn before the next message."""
        return None

    @property
    def is_logging(self) -> bool:
        """Whether QEMU asks for the pages that are written."""
        return self._log is not None and bool(self._features & 1 << _LOG_ALL)

    @property
    def is_running(self) -> bool:
        """Whether the guest's driver has started its first queue, and no one has stopped it."""
        ring = self.rings[0]
        return bool(ring.started and ring.enabled and ring.table and self._regions)

    def _serve(self) -> None:
        try:
            ready, _, _ = select.select([self._listening.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            connection, _ = self._listening.accept()
            with connection:
                fds = [connection.fileno(), self._stop]
                last_turn = time.monotonic()
                while True:
                    pause = self.pause
                    ready, _, _ = select.select(fds, [], [], pause)
                    if self._stop in ready or (ready and not self._message(connection)):
                        return
                    if pause is not None and time.monotonic() - last_turn >= pause:
                        self.turn()
                        last_turn = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever leaves the context
            self.failed = error
        finally:
            for region in self._regions:
                region.memory.close()
            if self._log is not None:
                self._log.close()

    def _message(self, connection: socket.socket) -> bool:
        """Take one message of QEMU's; tell whether there was one."""
        fds = array.array("i")
        with suppress(ConnectionResetError):
            head, more, _, _ = connection.recvmsg(_HEADER.size, socket.CMSG_SPACE(8 * fds.itemsize))
            for level, kind, content in more:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            try:
                if len(head) < _HEADER.size:
                    return False
                request, flags, size = _HEADER.unpack(head)
                payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
                answer = self._handle(request, payload, list(fds))
            finally:
                for fd in fds:
                    os.close(fd)
            if answer is None and flags & _NEEDS_REPLY:
                answer = struct.pack("<Q", 0)
            if answer is not None:
                connection.sendall(_HEADER.pack(request, 1 | 4, len(answer)) + answer)
            return True
        return False

    def _handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request == _GET_FEATURES:
            log = 1 << _LOG_ALL if self._can_log else 0
            return struct.pack("<Q", 1 << _VERSION_1 | 1 << _PROTOCOL_FEATURES | log)
        if request == _SET_FEATURES:
            (self._features,) = struct.unpack("<Q", payload)
        elif request == _GET_PROTOCOL_FEATURES:
            log = 1 << _LOG_SHMFD if self._can_log else 0
            return struct.pack("<Q", 1 << _MQ | 1 << _REPLY_ACK | log)
        elif request == _GET_QUEUE_NUM:
            return struct.pack("<Q", 1)
        elif request == _SET_MEM_TABLE:
            self._map(payload, fds)
        elif request == _SET_LOG_BASE:
            size, offset = struct.unpack("<QQ", payload)
            if self._log is not None:
                self._log.close()
            self._log = mmap.mmap(fds[0], size, offset=offset)
            return payload
        elif request in _OF_A_RING:
            return self._handle_ring(request, payload)
        return None

    def _handle_ring(self, request: int, payload: bytes) -> bytes | None:
        if request in (_SET_VRING_KICK, _SET_VRING_CALL, _SET_VRING_ERR):
            (number,) = struct.unpack("<Q", payload)
            if request == _SET_VRING_KICK:
                self.rings[number & ~_NO_FD].started = True
            return None
        if request == _SET_VRING_ADDR:
            index, _, table, used, available, log = struct.unpack("<IIQQQQ", payload)
            ring = self.rings[index]
            ring.table, ring.used, ring.available = table, used, available
            ring.used_page = log // PAGE
            return None
        index, number = struct.unpack("<II", payload)
        ring = self.rings[index]
        if request == _SET_VRING_NUM:
            ring.size = number
        elif request == _SET_VRING_BASE:
            ring.next = number
        elif request == _SET_VRING_ENABLE:
            ring.enabled = bool(number)
        elif request == _GET_VRING_BASE:
            ring.started = False
            return struct.pack("<II", index, ring.next)
        return None

    def _map(self, payload: bytes, fds: list[int]) -> None:
        for region in self._regions:
            region.memory.close()
        self._regions = []
        (count, _) = struct.unpack_from("<II", payload)
        for number in range(count):
            guest, size, qemu, offset = _REGION.unpack_from(payload, 8 + number * _REGION.size)
            memory = mmap.mmap(fds[number], 0)
            self._regions.append(_Region(guest, size, qemu, memory, offset))

    def at(self, address: int, *, guest: bool = False) -> tuple[mmap.mmap, int] | None:
        """Where an address of QEMU's, or of the guest's, is mapped here; None if it is not."""
        for region in self._regions:
            start = region.guest if guest else region.qemu
            if start <= address < start + region.size:
                return region.memory, address - start + region.offset
        return None

    def mark(self, page: int) -> None:
        """Log that a guest-physical page was written, if that is asked for."""
        if self._log is not None and self.is_logging and page // 8 < len(self._log):
            self._log[page // 8] |= 1 << page % 8
            self.logged += 1
