"""File descriptors that QEMUs were given through their monitors."""

from __future__ import annotations

from contextlib import suppress

from qemu_ring.errors import UsageError
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    DisconnectedError,
    Monitor,
    QmpError,
)

__all__ = ["GivenFds", "take_back_fds"]

_FD_NAME = "qemu-ring-migration"


class GivenFds:
    """Descriptors that QEMUs were given under a name of ours, and have not come to use yet."""

    uri = f"fd:{_FD_NAME}"

    def __init__(self) -> None:
        self._to: list[Monitor] = []

    async def give(self, monitor: Monitor | None, fd: int) -> str:
        """Give it, and tell the URI that it is known by.

        Raises:
            UsageError: this monitor takes none.
        """
        assert monitor is not None  # a plan without one takes no channel that goes both ways
        self._to.append(monitor)
        try:
            await monitor.send_fd(_FD_NAME, fd)
        except CommandError as error:
            raise UsageError(
                f"{monitor.name} has got no file descriptor: {error.description}",
                hint="something forwards its monitor: use the channel tcp or unix",
            ) from error
        except (CommandTimeoutError, DisconnectedError):
            raise
        except QmpError as error:
            raise UsageError(
                f"{monitor.name} takes no file descriptor: its monitor is no unix socket",
                hint="use the channel tcp or unix, or a monitor on a unix socket",
            ) from error
        return self.uri

    def forget(self) -> None:
        """They are in use."""
        self._to.clear()

    async def take_back(self) -> None:
        """Have those that are not in use closed."""
        for monitor in self._to:
            with suppress(QmpError):  # it is gone
                await take_back_fds(monitor)
        self._to.clear()


async def take_back_fds(monitor: Monitor) -> None:
    """Have a QEMU close what it was given, whoever gave it, unless it has taken it.

    Raises:
        QmpError: it is gone.
    """
    with suppress(CommandError):
        await monitor.execute("closefd", {"fdname": _FD_NAME})
