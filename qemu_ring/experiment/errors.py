"""What can be wrong with an experiment, and with what is kept of one."""

from __future__ import annotations

from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.guestfile import GuestFileError

__all__ = ["ExperimentFileError", "NothingInCommonError", "StoreError", "UndecidedError"]


class ExperimentFileError(GuestFileError):
    """An experiment that cannot be right; its `problems` are one line each."""


class StoreError(UsageError):
    """A directory of results that cannot be read, or not be written by this run."""


class NothingInCommonError(UsageError):
    """Results to be compared that have no cell in common."""


class UndecidedError(QemuRingError):
    """A comparison that cannot clear B: too few runs, or something was not compared."""
