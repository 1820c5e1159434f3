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

__all__ = ["PassedFds", "take_back_fds"]

_FD_NAME = "qemu-ring-migration"


class PassedFds:
    """Descriptors that QEMUs were given under a name of ours, and have not come to use yet.

    Args:
        instead: what can be used where a monitor takes none; "" for nothing.
    """

    uri = f"fd:{_FD_NAME}"

    def __init__(self, *, instead: str = "the channel tcp or unix") -> None:
        self._instead = instead
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
                hint=f"something forwards its monitor: use {self._instead or 'its own socket'}",
            ) from error
        except (CommandTimeoutError, DisconnectedError):
            raise
        except QmpError as error:
            raise self._refusal(monitor) from error
        return self.uri

    def require_taken(self, monitor: Monitor) -> None:
        """Check that this monitor takes descriptors, before one is made for it.

        Raises:
            UsageError: it takes none.
        """
        if not monitor.takes_fds:
            raise self._refusal(monitor)

    def _refusal(self, monitor: Monitor) -> UsageError:
        hint = "a monitor on a unix socket"
        return UsageError(
            f"{monitor.name} takes no file descriptor: its monitor is no unix socket",
            hint=f"use {self._instead}, or {hint}" if self._instead else f"use {hint}",
        )

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
