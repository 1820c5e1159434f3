"""Driving one live migration."""

from qemu_ring.migration.precopy import EndedEarlyError, HeldPrecopy, MigrationError, Pace

__all__ = ["EndedEarlyError", "HeldPrecopy", "MigrationError", "Pace"]
