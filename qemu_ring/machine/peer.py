"""Which process is at the other end of a unix socket, and which QEMU it is."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qemu_ring.machine.binary import sha256_of
from qemu_ring.machine.sockets import accepted, children, credentials, sockets_of

__all__ = ["RunningBinary", "sees", "serving_binary", "serving_process", "serving_user"]


class _Client(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...

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
        for line in Path(f"/proc/{process}/status").read_text(errors="replace").splitlines():
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
    ends = accepted(client.getpeername())
    holders = [pid for pid in (listener, *children(listener)) if ends & sockets_of(pid)]
    return holders[0] if len(holders) == 1 else None
