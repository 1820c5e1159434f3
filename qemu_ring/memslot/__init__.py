"""Memslots: taking them away and putting them back while a guest runs, and looking at them."""

from qemu_ring.memslot.introspection import (
    DirtyRing,
    DirtyRings,
    Memslot,
    query_memslots,
    query_rings,
)
from qemu_ring.memslot.pci import PciSlots, SlotDevice
from qemu_ring.memslot.pci_config import PciAddress
from qemu_ring.memslot.policy import (
    FlushInfo,
    FlushPolicy,
    FlushStatistics,
    query_flush,
    set_flush_policy,
)
from qemu_ring.memslot.shape import Shape, layouts
from qemu_ring.memslot.testdev import Layout, MemslotTestdev, Window, memslot_testdev

__all__ = [
    "DirtyRing",
    "DirtyRings",
    "FlushInfo",
    "FlushPolicy",
    "FlushStatistics",
    "Layout",
    "Memslot",
    "MemslotTestdev",
    "PciAddress",
    "PciSlots",
    "Shape",
    "SlotDevice",
    "Window",
    "layouts",
    "memslot_testdev",
    "query_flush",
    "query_memslots",
    "query_rings",
    "set_flush_policy",
]
