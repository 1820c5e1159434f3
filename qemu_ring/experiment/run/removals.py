"""Memslots removed and added again while a guest is migrated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from qemu_ring._compat import timeout as deadline
from qemu_ring.experiment.plan.schema import RemovalsPart
from qemu_ring.memslot import PciSlots, Shape

__all__ = ["Removals"]


class Removals:
    """Slots that go and come back, again and again, from a pass over memory on.

    Args:
        part: how.
        slots: the guest's.
        names: of those to remove, in order.
    """

    def __init__(self, part: RemovalsPart, slots: PciSlots, names: Sequence[str]) -> None:
        self._part = part
        self._slots = slots
        self._names = tuple(part.slots or names)
        self._over = asyncio.Event()
        self._begin = asyncio.Event()
        self._done: list[float] = []

    def records(self, started: float, seconds: float = math.inf) -> list[dict[str, object]]:
        """Each cycle: when it began, since the migration's start; shape; count of slots.

        Args:
            started: when the migration did, host monotonic clock.
            seconds: that it took; a cycle that began later is left out.
        """
        return [
            {
                "at_seconds": round(at - started, 6),
                "shape": Shape.PCI.value,
                "count": len(self._names),
            }
            for at in self._done
            if at - started <= seconds
        ]

    def passed(self, passes: int) -> None:
        """Tell how many passes over memory are over."""
        if passes >= self._part.after_passes:
            self._begin.set()

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """Remove slots until the context is left.

        Raises:
            QemuRingError: a slot could not be removed or added.
        """
        self.passed(0)
        task = asyncio.create_task(self._go(), name="removals")
        try:
            yield
        except BaseException:
            task.cancel()
            await asyncio.wait({task})
            raise
        self._over.set()
        self._begin.set()
        await task

    async def _go(self) -> None:
        await self._begin.wait()
        while not self._over.is_set():
            at = time.monotonic()
            await self._slots.cycle(self._names, pause_seconds=self._part.away_seconds)
            self._done.append(at)
            with suppress(TimeoutError):
                async with deadline(self._part.every_seconds):
                    await self._over.wait()
