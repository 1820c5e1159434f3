"""Unix sockets and who has them, as the kernel tells of it."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["accepted", "children", "credentials", "listens", "sockets_of", "tcp_socket"]

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


def tcp_socket(local: tuple[str, int], remote: tuple[str, int]) -> str | None:
    """The end of a TCP connection with these two addresses, as /proc/PID/fd shows it.

    Returns:
        None if it is not on this host.
    """
    ends = [_kernels(local), _kernels(remote)]
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # a kernel without IPv6
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if [_kernels(_parsed(field)) for field in fields[1:3]] == ends:
                    return f"socket:[{fields[9]}]"
    return None


def _kernels(address: tuple[str, int]) -> tuple[bytes, int]:
    """An address to compare: that of IPv4 is the same as IPv6's that stands for it."""
    found = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.packed, address[1]


def _parsed(field: str) -> tuple[str, int]:
    """Address and port in /proc/net/tcp: 32-bit words in this host's order, in hexadecimal."""
    words, _, port = field.partition(":")
    parts = [int(words[at : at + 8], 16) for at in range(0, len(words), 8)]
    packed = b"".join(part.to_bytes(4, sys.byteorder) for part in parts)
    return str(ipaddress.ip_address(packed)), int(port, 16)


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
