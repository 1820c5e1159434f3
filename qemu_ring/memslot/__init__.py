"""Memslots: taking them away and putting them back while a guest runs, and looking at them."""

from qemu_ring.memslot.introspection import (
    DirtyRing,
    DirtyRings,
    Memslot,
    query_memslots,
    query_rings,
)
from qemu_ring.memslot.pci import PciAddress, PciSlots, SlotDevice
from qemu_ring.memslot.policy import (
    FlushInfo,
    FlushPolicy,
    FlushStatistics,
    query_flush,
    set_flush_policy,
)

__all__ = [
    "DirtyRing",
    "DirtyRings",
    "FlushInfo",
    "FlushPolicy",
    "FlushStatistics",
    "Memslot",
    "PciAddress",
    "PciSlots",
    "SlotDevice",
    "query_flush",
    "query_memslots",
    "query_rings",
    "set_flush_policy",
]
