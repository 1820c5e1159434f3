"""A vhost-user back end of a network device: it receives packets, all the time.

It writes them into the guest's memory behind QEMU's back, and while a migration asks for it, it
logs the pages that it wrote. Without the log, memory at the destination would be stale.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType

PAGE = 4096
_VERSION_1, _LOG_ALL, _PROTOCOL_FEATURES = 32, 26, 30
_MQ, _LOG_SHMFD, _REPLY_ACK = 0, 1, 3
_SECONDS_APART, _SECONDS_APART_LOGGED = 0.1, 0.005
_HEADER = struct.Struct("<III")
_REGION = struct.Struct("<QQQQ")
_NO_FD = 1 << 8
_NEEDS_REPLY = 1 << 3

GET_FEATURES, SET_FEATURES, SET_MEM_TABLE, SET_LOG_BASE = 1, 2, 5, 6
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_ENABLE = 12, 13, 14, 18
GET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 17
_OF_A_RING = (*range(SET_VRING_NUM, SET_VRING_ERR + 1), SET_VRING_ENABLE)


class Logging(Enum):
    """What a back end says of its log, and does."""

    LOGS = "logs"
    CANNOT = "cannot log"
    """QEMU then does not migrate."""
    FORGETS = "says that it logs, and does not"


@dataclass
class _Ring:
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


@dataclass
class BackEnd:
    """Serves one QEMU, that connects to `path`, in a thread of its own.

    Args:
        path: of the socket.
        logging: whether it can log.
        received: packets that it put into the guest's memory.
        logged: pages that it logged.
        failed: what ended it, if not QEMU.
    """

    path: Path
    logging: Logging = Logging.LOGS
    received: int = 0
    logged: int = 0
    failed: BaseException | None = None
    _rings: dict[int, _Ring] = field(default_factory=lambda: {0: _Ring(), 1: _Ring()})
    _regions: list[_Region] = field(default_factory=list)
    _log: mmap.mmap | None = None
    _features: int = 0

    def __enter__(self) -> BackEnd:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
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
        self.path.unlink(missing_ok=True)
        if self.failed is not None:
            raise AssertionError("the vhost-user back end ended") from self.failed

    def _serve(self) -> None:
        try:
            ready, _, _ = select.select([self._listening.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            connection, _ = self._listening.accept()
            with connection:
                fds = [connection.fileno(), self._stop]
                while True:
                    ready, _, _ = select.select(fds, [], [], self._pause)
                    if self._stop in ready or (ready and not self._message(connection)):
                        return
                    if not ready:
                        self._receive()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever leaves the context
            self.failed = error
        finally:
            for region in self._regions:
                region.memory.close()
            if self._log is not None:
                self._log.close()

    @property
    def _pause(self) -> float:
        """Seconds between packets: the guest's buffers are to last until it is migrated."""
        return _SECONDS_APART_LOGGED if self._is_logging else _SECONDS_APART

    @property
    def _is_logging(self) -> bool:
        return self._log is not None and bool(self._features & 1 << _LOG_ALL)

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
        if request == GET_FEATURES:
            log = 1 << _LOG_ALL if self.logging is not Logging.CANNOT else 0
            return struct.pack("<Q", 1 << _VERSION_1 | 1 << _PROTOCOL_FEATURES | log)
        if request == SET_FEATURES:
            (self._features,) = struct.unpack("<Q", payload)
        elif request == GET_PROTOCOL_FEATURES:
            log = 1 << _LOG_SHMFD if self.logging is not Logging.CANNOT else 0
            return struct.pack("<Q", 1 << _MQ | 1 << _REPLY_ACK | log)
        elif request == GET_QUEUE_NUM:
            return struct.pack("<Q", 1)
        elif request == SET_MEM_TABLE:
            self._map(payload, fds)
        elif request == SET_LOG_BASE:
            size, offset = struct.unpack("<QQ", payload)
            if self._log is not None:
                self._log.close()
            self._log = mmap.mmap(fds[0], size, offset=offset)
            return payload
        elif request in _OF_A_RING:
            return self._handle_ring(request, payload)
        return None

    def _handle_ring(self, request: int, payload: bytes) -> bytes | None:
        if request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            (number,) = struct.unpack("<Q", payload)
            if request == SET_VRING_KICK:
                self._rings[number & ~_NO_FD].started = True
            return None
        if request == SET_VRING_ADDR:
            index, _, table, used, available, log = struct.unpack("<IIQQQQ", payload)
            ring = self._rings[index]
            ring.table, ring.used, ring.available = table, used, available
            ring.used_page = log // PAGE
            return None
        index, number = struct.unpack("<II", payload)
        ring = self._rings[index]
        if request == SET_VRING_NUM:
            ring.size = number
        elif request == SET_VRING_BASE:
            ring.next = number
        elif request == SET_VRING_ENABLE:
            ring.enabled = bool(number)
        elif request == GET_VRING_BASE:
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

    def _at(self, address: int, *, guest: bool = False) -> tuple[mmap.mmap, int]:
        """Where an address of QEMU's, or of the guest's, is mapped here."""
        for region in self._regions:
            start = region.guest if guest else region.qemu
            if start <= address < start + region.size:
                return region.memory, address - start + region.offset
        raise AssertionError(f"{address:#x} is in no region")

    def _receive(self) -> None:
        """Put a packet into the guest's next buffer, if there is one."""
        ring = self._rings[0]
        if not (ring.started and ring.enabled and ring.table and self._regions):
            return
        memory, at = self._at(ring.available)
        (available,) = struct.unpack_from("<H", memory, at + 2)
        if available == ring.next & 0xFFFF:
            return
        (head,) = struct.unpack_from("<H", memory, at + 4 + 2 * (ring.next % ring.size))
        memory, at = self._at(ring.table + 16 * head)
        address, length, _, _ = struct.unpack_from("<QIHH", memory, at)
        self.received += 1
        packet = bytes(10) + b"\1\0" + struct.pack("<Q", self.received) * ((length - 12) // 8)
        memory, at = self._at(address, guest=True)
        memory[at : at + len(packet)] = packet
        for page in range(address // PAGE, (address + length - 1) // PAGE + 1):
            self._mark(page)
        memory, at = self._at(ring.used)
        (used,) = struct.unpack_from("<H", memory, at + 2)
        struct.pack_into("<II", memory, at + 4 + 8 * (used % ring.size), head, len(packet))
        struct.pack_into("<H", memory, at + 2, (used + 1) & 0xFFFF)
        self._mark(ring.used_page)
        ring.next += 1

    def _mark(self, page: int) -> None:
        if self.logging is Logging.FORGETS:
            return
        if self._log is not None and self._is_logging:
            self._log[page // 8] |= 1 << page % 8
            self.logged += 1
