"""A folder of ours in which two QEMUs meet, whoever they run as and whatever they see."""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from qemu_ring.errors import UsageError
from qemu_ring.machine import Leftovers, new_folder_name, sees, serving_process, serving_user
from qemu_ring.qmp import Monitor
from qemu_ring.tasks import to_the_end

__all__ = ["LONGEST_SOCKET_PATH", "SharedFolder"]

LONGEST_SOCKET_PATH = 107
"""Bytes that Linux takes of a unix socket's path."""
_OTHER_CHANNEL = "use the channel fd, or tcp"
_ROOT = 0
_PARENTS = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108 - for a folder of a random name, 0700
"""Where else: a QEMU may have a /tmp of its own, and TMPDIR be too long."""


class SharedFolder:
    """A folder that the destination can make a socket in, and the source can reach.

    Args:
        source: its monitor; None if there is none.
        destination: its monitor; None if there is none.
        name: the socket's.

    Attributes:
        socket: its path; None until `make`.
    """

    def __init__(self, source: Monitor | None, destination: Monitor | None, name: str) -> None:
        self.socket: Path | None = None
        self._sides = [("source", source), ("destination", destination)]
        self._name = name
        self._leftovers: Leftovers | None = None

    async def make(self) -> Path:
        """Make it, and tell the socket's path.

        Raises:
            UsageError: there is no such place.
        """
        self.socket = await to_the_end(asyncio.to_thread(self._make))
        return self.socket

    def remove(self) -> None:
        """Remove it now, with what is in it."""
        if self._leftovers is not None:
            self._leftovers.remove()

    def close(self) -> None:
        """Remove it; may be called again."""
        if self._leftovers is not None:
            self._leftovers.close()

    def _make(self) -> Path:
        owner = self._owner()
        why = "no folder can be made for a socket"
        for parent in dict.fromkeys([tempfile.gettempdir(), *_PARENTS]):
            folder = new_folder_name(Path(parent))
            if owner is not None and not _may_enter(owner, folder.parent):
                why = f"{parent} is closed to {_named(owner)}"
                continue
            if len(os.fsencode(folder / self._name)) > LONGEST_SOCKET_PATH:
                why = f"{parent} is too long for a socket's path"
                continue
            self._leftovers = Leftovers(folder=folder)
            try:
                folder.mkdir(0o700)
                if owner is not None:
                    os.chown(folder, owner, -1)
            except OSError as error:
                why = f"no folder can be made in {parent}: {error.strerror}"
            else:
                blind = [role for role, monitor in self._sides if not _sees(monitor, folder)]
                if not blind:
                    return folder / self._name
                why = f"{parent} is another folder for the {' and the '.join(blind)}"
            self._leftovers.close()
        raise UsageError(why, hint=f"{_OTHER_CHANNEL}, or unix:PATH with a path that both can use")

    def _owner(self) -> int | None:
        """The user to give it to; None for our own."""
        source, destination = [_user(monitor) for _, monitor in self._sides]
        if None not in (source, destination) and source not in (_ROOT, destination):
            raise UsageError(
                f"the source runs as {_named(source)}, who can use no socket of the "
                f"destination's user, {_named(destination)}",
                hint=_OTHER_CHANNEL,
            )
        if destination is None or destination == os.geteuid():
            return None
        if os.geteuid() != _ROOT:
            raise UsageError(
                f"the destination runs as {_named(destination)}, who can use no folder of "
                f"{_named(os.geteuid())}",
                hint=f"{_OTHER_CHANNEL}, or unix:PATH in a folder of the destination's user",
            )
        return destination


def _user(monitor: Monitor | None) -> int | None:
    """Whom its QEMU runs as; None if that is not known."""
    with suppress(OSError):
        if monitor is not None and monitor.transport is not None:
            return serving_user(monitor.transport)
    return None


def _sees(monitor: Monitor | None, folder: Path) -> bool:
    """Whether its QEMU sees the folder; where that cannot be known, it is taken to."""
    with suppress(OSError):
        if monitor is not None and monitor.transport is not None:
            process = serving_process(monitor.transport)
            return process is None or sees(process, folder) is not False
    return True


def _may_enter(user: int, folder: Path) -> bool:
    """Whether another user may go there; by a group's rights alone does not count."""
    for one in (folder, *folder.parents):
        status = one.stat()
        needed = stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def _named(user: int | None) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}" if user is not None else "an unknown user"
    except KeyError:
        return f"user {user}"
