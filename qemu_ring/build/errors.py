"""What can go wrong in a build."""

from __future__ import annotations

from qemu_ring.errors import QemuRingError

__all__ = ["BuildError"]


class BuildError(QemuRingError):
    """A step of a build failed or took too long; the message holds its last error lines."""
