"""Memslots: taking them away and putting them back while a guest runs."""

from qemu_ring.memslot.pci import PciAddress, PciSlots, SlotDevice

__all__ = ["PciAddress", "PciSlots", "SlotDevice"]
