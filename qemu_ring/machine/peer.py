"""Which process is at the other end of a unix socket, and which QEMU it is."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qemu_ring.machine.binary import sha256_of

__all__ = [
    "RunningBinary",
    "credentials",
    "listens",
    "sees",
    "serving_binary",
    "serving_process",
    "serving_user",
]

_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group
_CONNECTED = b"03"  # SS_CONNECTED
_ACCEPTS = b"00010000"  # __SO_ACCEPTCON


class _Socket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class _Client(_Socket, Protocol):
    @property
    def family(self) -> int: ...

    def getpeername(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class RunningBinary:
    """The binary of a process.

    Args:
        path: where it was started from; another file may be there by now.
        sha256: of the very one that runs, hex.
    """

    path: Path
    sha256: str


def credentials(peer: _Socket) -> tuple[int, int, int]:
    """Process, user and group at the other end: of a server, whoever was last to listen."""
    pid, uid, gid = _CREDENTIALS.unpack(
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid, gid


async def serving_binary(client: socket.socket) -> RunningBinary | None:
    """What program answers on a connected unix socket; None if that cannot be known.

    That is so on TCP, and for another user's process.
    """
    try:
        pid = serving_process(client)
        return None if pid is None else await asyncio.to_thread(_binary, pid)
    except OSError:
        return None


def _binary(pid: int) -> RunningBinary:
    program = Path(f"/proc/{pid}/exe")
    return RunningBinary(program.readlink(), sha256_of(program))


def serving_user(client: _Client) -> int | None:
    """The user whom the process at the other end of a unix socket runs as; None by TCP.

    One who only listened there before (a daemon that passed the socket on) does not count, as
    far as this process may know of the other.
    """
    if client.family != socket.AF_UNIX:
        return None
    process, user = serving_process(client), credentials(client)[1]
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, *ids = line.split()
            if name == "Uid:":  # real, effective, saved, and that for files
                return int(ids[3])
    return user


def sees(process: int, path: Path) -> bool | None:
    """Whether a path leads another process to the same file; None if that cannot be known."""
    try:
        return Path(f"/proc/{process}/root", *path.parts[1:]).samefile(path)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def serving_process(client: _Client) -> int | None:
    """The process that holds the other end of a connected unix socket; None if that is not known.

    Whoever listens need not be who answers: a socket may be inherited, and both may listen.
    """
    if client.family != socket.AF_UNIX:
        return None
    listener = credentials(client)[0]
    ends = _accepted(client.getpeername())
    holders = [pid for pid in (listener, *_children(listener)) if ends & _sockets(pid)]
    return holders[0] if len(holders) == 1 else None


def _accepted(name: str | bytes) -> set[str]:
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


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended, or is another user's
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(link.readlink()))
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
