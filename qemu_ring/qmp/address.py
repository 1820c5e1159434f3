"""Where a monitor is: a unix socket's name, a TCP host and port, or a connected socket."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

__all__ = ["Address", "described", "parse_address", "unix_name", "wrong_address"]

Address = str | Path | tuple[str, int] | socket.socket
"""A unix socket's path, or @NAME of one without a file; TCP host and port; a connected socket."""

_LONGEST_PATH: Final = 107
"""Bytes that Linux takes of a unix socket's path."""


def parse_address(text: str) -> Address:
    """Understand what a user names a monitor by: a path, @NAME, or HOST:PORT.

    Nothing is refused here: `Monitor.connect` does that.
    """
    host, colon, port = text.rpartition(":")
    if colon and host and port.isdecimal() and "/" not in text and not _is_abstract(text):
        return host.strip("[]"), int(port)
    return text


def unix_name(address: str | Path) -> str:
    """What to connect a unix socket to: an abstract name begins with a null byte."""
    text = str(address)
    return f"\0{text[1:]}" if _is_abstract(text) else text


def _is_abstract(text: str) -> bool:
    """Whether it names a socket without a file; a file of such a name is ./@NAME."""
    return text.startswith(("@", "\0"))


def described(address: Address) -> str:
    """The address in words, as a user would write it."""
    match address:
        case socket.socket():
            return "a given socket"
        case (host, port):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = str(address)
    return text.replace("\0", "@") or "''"


def wrong_address(address: Address) -> tuple[str, str] | None:
    """Why no monitor can be there, and what to do; None where one can."""
    match address:
        case socket.socket():
            return None
        case (_, port):
            if 0 < port < 1 << 16:
                return None
            return "no such port", "ports are 1 to 65535"
    if not str(address):
        return "an empty path", "name the monitor's socket, or HOST:PORT"
    if _is_abstract(str(address)):
        if 1 < len(os.fsencode(address)) <= _LONGEST_PATH + 1:
            return None
        return f"an abstract name has 1 to {_LONGEST_PATH} bytes", "use another name"
    if len(os.fsencode(address)) > _LONGEST_PATH:
        return f"too long: a socket's path has at most {_LONGEST_PATH} bytes", "use a shorter path"
    try:
        mode = os.stat(address).st_mode  # noqa: PTH116 - a str as well as a Path
    except OSError:
        return None  # connecting tells why
    if stat.S_ISSOCK(mode):
        return None
    return "not a socket", "name the one that QEMU was given with -qmp unix:PATH"
