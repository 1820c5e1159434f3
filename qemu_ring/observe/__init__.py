"""Running guests, seen from outside: sampled again and again, without disturbing them."""

from qemu_ring.observe.poll import GuestPoller
from qemu_ring.observe.snapshot import (
    DirtyRateSnapshot,
    FlushSnapshot,
    GuestSnapshot,
    GuestState,
    MigrationSnapshot,
    Presence,
    RingSnapshot,
    RingsSnapshot,
    SlotsSnapshot,
)

__all__ = [
    "DirtyRateSnapshot",
    "FlushSnapshot",
    "GuestPoller",
    "GuestSnapshot",
    "GuestState",
    "MigrationSnapshot",
    "Presence",
    "RingSnapshot",
    "RingsSnapshot",
    "SlotsSnapshot",
]
