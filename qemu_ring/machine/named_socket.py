"""A listening socket with a path, which goes when its owner does, kill -9 included."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from qemu_ring.errors import UsageError

__all__ = ["named_socket"]

_LONGEST = 107  # bytes of a path that fit into struct sockaddr_un

# Waits for the end of its standard input, which is the owner's end, and removes the two names:
# the first, and the second if it is still the very socket (not one that came after it).
_WATCH = """trap '' HUP INT TERM
read -r id
cat > /dev/null
rm -f -- "$1"
test -n "$id" && test "$(stat -c %d:%i:%.9Y -- "$2" 2> /dev/null)" = "$id" && rm -f -- "$2"
"""


@asynccontextmanager
async def named_socket(path: Path) -> AsyncIterator[socket.socket]:
    """Listen on a unix socket at a path, for this user only; the name is gone afterwards.

    A small process outlives this one for a moment, and removes the name if this one cannot.
    A socket at that path on which nobody listens is replaced.

    Args:
        path: where; at most 107 bytes.

    Raises:
        UsageError: somebody listens there, there is another file, or the path cannot be used.
    """
    path = Path.cwd() / path
    if len(os.fsencode(path)) > _LONGEST:
        raise UsageError(f"{path} is too long for a socket's path: at most {_LONGEST} bytes")
    hidden = path.with_name(f".qemu-ring-{secrets.token_hex(8)}")
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        watcher, owner = _watch(hidden, path)
        try:
            with open(owner, "wb", buffering=0) as told:  # noqa: ASYNC230, PTH123 - a pipe
                told.write(_bind(listening, hidden).encode() + b"\n")
                _give_name(hidden, path)
                yield listening
        finally:
            await asyncio.shield(asyncio.to_thread(watcher.wait))


def _watch(hidden: Path, path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process that removes the names; returns the pipe whose end it waits for, too."""
    its_end, our_end = os.pipe()
    try:
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "qemu-ring-socket", str(hidden), str(path)],
            stdin=its_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is not for it
        )
    except BaseException:
        os.close(our_end)
        raise
    finally:
        os.close(its_end)
    return watcher, our_end


def _bind(listening: socket.socket, hidden: Path) -> str:
    """Listen under a name that nobody looks for; returns what tells the socket from any other."""
    try:
        directory = os.open(hidden.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{hidden.parent}: {error.strerror}") from error
    try:
        # By the directory's descriptor: with its name the path may be too long.
        listening.bind(f"/proc/self/fd/{directory}/{hidden.name}")
        hidden.chmod(0o600)  # whoever reaches the monitor can do what QEMU can do
        listening.listen()
    except OSError as error:
        raise UsageError(f"{hidden.parent} takes no socket: {error.strerror}") from error
    finally:
        os.close(directory)
    status = hidden.stat()
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return f"{status.st_dev}:{status.st_ino}:{seconds}.{nanoseconds:09}"


def _give_name(hidden: Path, path: Path) -> None:
    """Put the socket where it is looked for, but in nobody's place."""
    _clear(path)
    try:
        path.hardlink_to(hidden)
    except FileExistsError:
        raise _in_use(path) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    hidden.unlink()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on, if there is one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there already, and no socket", hint="name another path")
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:  # it does not answer at once, or is not for us to use
            pass
    raise _in_use(path)


def _in_use(path: Path) -> UsageError:
    return UsageError(f"{path} is in use by another program", hint="name another path")
