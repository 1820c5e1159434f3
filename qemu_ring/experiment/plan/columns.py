"""Columns of the table of runs, with their types: what an axis of one's own cannot be called."""

from __future__ import annotations

from typing import Final

from qemu_ring.experiment.plan.parameters import PARAMETERS

__all__ = ["KEY", "MEASURED", "RESERVED", "SOURCE", "Columns"]

Columns = dict[str, type[str] | type[int] | type[float] | type[bool]]

KEY: Final[Columns] = {"cell": str, "repeat": int}
MEASURED: Final[Columns] = {
    "name": str,
    "warm_up": bool,
    "seed": int,
    "status": str,
    "error": str,
    "started": float,
    "wall_seconds": float,
    "seconds": float,
    "downtime_seconds": float,
    "qemu_downtime_seconds": float,
    "guest_downtime_seconds": float,
    "setup_seconds": float,
    "bytes": int,
    "pages_absorbed": int,
    "resent_per_write": float,
    "iterations": int,
    "slots_removed": int,
    "pages_written": int,
    "stale_pages": int,
}
SOURCE: Final[Columns] = {
    "qemu_version": str,
    "qemu_sha256": str,
    "kernel": str,
    "worker": str,
}
RESERVED: Final = frozenset({*KEY, *MEASURED, *SOURCE, *PARAMETERS})
