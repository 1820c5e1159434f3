"""Unix sockets and who has them, as the kernel tells of it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["accepted", "children", "credentials", "listens", "sockets_of"]

_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group
_CONNECTED = b"03"  # SS_CONNECTED
_ACCEPTS = b"00010000"  # __SO_ACCEPTCON


class _Socket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def credentials(peer: _Socket) -> tuple[int, int, int]:
    """Process, user and group at the other end: of a server, whoever was last to listen."""
    pid, uid, gid = _CREDENTIALS.unpack(
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid, gid


def accepted(name: str | bytes) -> set[str]:
    """The connections that were accepted on a socket with this name, as /proc/PID/fd shows them."""
    connected = (fields for fields in _named(name) if fields[5] == _CONNECTED)
    return {f"socket:[{fields[6].decode()}]" for fields in connected}


def listens(name: str | bytes) -> bool:
    """Whether a unix socket of this name takes connections; it is not tried."""
    return any(fields[3] == _ACCEPTS for fields in _named(name))


def _named(name: str | bytes) -> Iterator[list[bytes]]:
    """The lines of /proc/net/unix with this name, taken apart: flags, state, inode are 3, 5, 6."""
    wanted = os.fsencode(name).replace(b"\0", b"@")  # of an abstract one; the kernel does so
    for line in Path("/proc/net/unix").read_bytes().split(b"\n"):
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == wanted:
            yield fields


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process has open, as /proc/PID/fd shows them."""
    found = set()
    with suppress(OSError):  # it has ended, or is another user's
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(link.readlink()))
    return found


def children(pid: int) -> list[int]:
    """The processes that it started and that run, as far as that may be seen."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
