"""Tracking of a guest's dirty memory."""

from qemu_ring.dirty.tracking import Tracking

__all__ = ["Tracking"]
