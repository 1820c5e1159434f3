"""What can be wrong with an experiment, and with what is kept of one."""

from __future__ import annotations

from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.guestfile import GuestFileError

__all__ = ["ExperimentFileError", "StoreError", "TooFewRunsError"]


class ExperimentFileError(GuestFileError):
    """An experiment that cannot be right; its `problems` are one line each."""


class StoreError(UsageError):
    """A directory of results that cannot be read, or not be written by this run."""


class TooFewRunsError(QemuRingError):
    """A comparison that could not have found any difference."""
