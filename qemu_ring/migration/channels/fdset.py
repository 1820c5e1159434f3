"""Files that QEMUs were passed open: each opens them though its user might not."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from qemu_ring.errors import UsageError
from qemu_ring.qmp import Monitor, QmpError, commands

__all__ = ["PassedFiles", "open_file", "remove_left_files"]

_OPAQUE = "qemu-ring-migration"


class PassedFiles:
    """Files that QEMUs have as /dev/fdset/N, until they are taken back."""

    def __init__(self) -> None:
        self._sets: list[tuple[Monitor, int]] = []

    async def pass_file(self, monitor: Monitor, path: Path, flags: int) -> str:
        """Pass a file, and tell the path that QEMU opens it by.

        Args:
            monitor: a unix socket.
            path: the file.
            flags: to open it with; QEMU opens it for the same access.

        Raises:
            UsageError: it cannot be opened.
            QmpError: as in `Monitor.add_fd`.
        """
        await remove_left_files(monitor)
        number = await self._add(monitor, path, flags, None)
        if await _knows_direct_io(monitor):
            # QEMU looks for one of the same mode. A file system without it has it refused there.
            with suppress(UsageError):
                await self._add(monitor, path, flags | os.O_DIRECT, number)
        return f"/dev/fdset/{number}"

    async def take_back(self) -> None:
        """Have them closed, unless QEMU has them open."""
        for monitor, number in self._sets:
            with suppress(QmpError):  # it is gone
                await commands.remove_fd(monitor, number)
        self._sets.clear()

    async def _add(self, monitor: Monitor, path: Path, flags: int, number: int | None) -> int:
        fd = open_file(path, flags)
        try:
            number = await monitor.add_fd(fd, opaque=_OPAQUE, fdset=number)
        finally:
            os.close(fd)
        if (monitor, number) not in self._sets:
            self._sets.append((monitor, number))
        return number


def open_file(path: Path, flags: int) -> int:
    """Open a file.

    Raises:
        UsageError: it cannot be.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {error.strerror}") from error


async def remove_left_files(monitor: Monitor) -> None:
    """Remove what a controller that was killed has left there; no other can be at work."""
    for one in await commands.query_fdsets(monitor):
        if any(entry.opaque == _OPAQUE for entry in one.fds):
            await commands.remove_fd(monitor, one.fdset_id)


async def _knows_direct_io(monitor: Monitor) -> bool:
    return "direct-io" in (await monitor.schema()).command_arguments("migrate-set-parameters")
