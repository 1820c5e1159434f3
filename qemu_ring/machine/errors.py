"""What can go wrong with a QEMU process."""

from __future__ import annotations

from qemu_ring.errors import QemuRingError

__all__ = ["MachineDiedError", "MachineError"]


class MachineError(QemuRingError):
    """A QEMU could not be started, or did not do what it must."""


class MachineDiedError(MachineError):
    """A QEMU ended that should have gone on; the message holds its last log lines."""
