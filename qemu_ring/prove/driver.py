"""What removes memslots in a round: PCI memory-enable on any QEMU, or the test device."""

from __future__ import annotations

from typing import Final, Protocol

from qemu_ring.memslot import Layout, MemslotTestdev, PciSlots, Shape, layouts
from qemu_ring.prove.stage import ELSEWHERE, HELPER, SLOT, WINDOW, WINDOWS

__all__ = ["Driver", "PciDriver", "WindowDriver"]

_BATCH: Final = 16
"""Transactions in one command of the test device: few enough to see soon that the walk is over."""
_PAUSE_SECONDS: Final = 200e-6
"""Left to the guest after each, because a vCPU that met no memory waits for QEMU's big lock."""


class Driver(Protocol):
    """Removes memslots and adds them again."""

    shape: Shape
    block: str
    """The block that the guest is to write into meanwhile."""

    @property
    def removals(self) -> int:
        """Slots removed so far."""

    async def prepare(self) -> None:
        """Map what is to be removed."""

    async def cycle(self, limit: int | None) -> None:
        """Remove slots, and add them again, so that all is as before.

        Args:
            limit: about the most slots to remove; None for as many as suit the driver.
        """


class PciDriver:
    """Removes SLOT, and HELPER next, so that the ring is reaped while SLOT is away."""

    shape = Shape.PCI
    block = SLOT

    def __init__(self, slots: PciSlots) -> None:
        self._slots = slots

    @property
    def removals(self) -> int:
        """Slots removed so far."""
        return self._slots.removals

    async def prepare(self) -> None:
        """They are mapped from the start."""

    async def cycle(self, limit: int | None) -> None:
        """Remove both, or SLOT alone."""
        await self._slots.cycle((SLOT, HELPER)[: 2 if limit is None else limit])


class WindowDriver:
    """Takes the test device through one shape."""

    block = WINDOW

    def __init__(self, device: MemslotTestdev, shape: Shape) -> None:
        self._device = device
        self.shape = shape
        self._cycle = layouts(shape, *WINDOWS, ELSEWHERE)

    @property
    def removals(self) -> int:
        """Slots removed so far, by all shapes."""
        return self._device.removals

    async def prepare(self) -> None:
        """Map both windows."""
        await self._device.map(Layout(WINDOWS))

    async def cycle(self, limit: int | None) -> None:
        """Go through the shape some times."""
        repeat = max(1, _BATCH // len(self._cycle))
        if limit is not None:
            repeat = min(repeat, max(1, limit // 2))
        await self._device.map(*self._cycle, repeat=repeat, pause_seconds=_PAUSE_SECONDS)
