"""The ways in which a memslot can go away and come back, as layouts of the test device."""

from __future__ import annotations

from enum import Enum

from qemu_ring.memslot.testdev import Layout, Window

__all__ = ["Shape", "layouts"]


class Shape(Enum):
    """How memslots are removed and added again.

    All but PCI need a patched QEMU's device `memslot-testdev`. In SPLIT, PUNCH, RESIZE and
    READ_ONLY what is removed and what is added overlap in one transaction, so that the
    guest can write all the time.
    """

    PCI = "pci"
    """PCI devices' memory-enable: off, off, on, on, a transaction each."""
    SEVERAL = "several"
    """Two memslots off in one transaction, on in another."""
    SPLIT = "split"
    """One memslot becomes two, side by side, and one again."""
    PUNCH = "punch"
    """A hole in the middle, and filled again."""
    RESIZE = "resize"
    """The upper half goes away and comes back."""
    MOVE = "move"
    """To another guest-physical address, and back."""
    SWAP_IDS = "swap-ids"
    """Off and on in such an order that each memslot gets the other one's id."""
    READ_ONLY = "read-only"
    """Read-only, and writable again."""


def layouts(shape: Shape, slot: Window, helper: Window, elsewhere: int) -> tuple[Layout, ...]:
    """One cycle of a shape, from `slot` and `helper` mapped to the same again.

    Args:
        shape: which; not PCI.
        slot: the memslot in question.
        helper: another one.
        elsewhere: guest-physical address to which `slot` can be moved, bytes.
    """
    whole = Layout((slot, helper))
    half, quarter = slot.size // 2, slot.size // 4
    lower, upper = slot.part(0, half), slot.part(half, slot.size - half)
    if shape is Shape.SEVERAL:
        return Layout(), whole
    if shape is Shape.SPLIT:
        return Layout((lower, upper, helper)), whole
    if shape is Shape.PUNCH:
        above = slot.part(half + quarter, slot.size - half - quarter)
        return Layout((slot.part(0, half), above, helper)), whole
    if shape is Shape.RESIZE:
        return Layout((lower, helper)), whole
    if shape is Shape.MOVE:
        return Layout((slot.at(elsewhere), helper)), whole
    if shape is Shape.SWAP_IDS:
        # An added memslot gets the lowest id that is free.
        return (
            *(Layout((helper,)), Layout(), Layout((helper,)), whole),
            *(Layout((helper,)), Layout(), Layout((slot,)), whole),
        )
    if shape is Shape.READ_ONLY:
        return Layout((slot, helper), frozenset({slot.backend})), whole
    raise ValueError(f"the test device does not do {shape.value}")
