"""How long the guest stood still: told by both QEMUs' events, and by the guest itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from qemu_ring.guest import layout
from qemu_ring.machine import Machine
from qemu_ring.qmp import Event
from qemu_ring.tasks import stopped

if TYPE_CHECKING:
    from qemu_ring.guestfile import RunningGuest

__all__ = ["Downtime", "GuestDowntime", "Moment", "firmware_writes"]


@dataclass(frozen=True, slots=True)
class Downtime:
    """The guest's standstill, as seen from different places. In seconds; None if not known.

    Args:
        seconds: from the source's STOP event to the destination's RESUME, by the times that the
            QEMUs give them. Verification is part of it. None if the guest was left paused,
            or was so from the start, or one of the events was missed.
        switchover_seconds: from STOP until the destination resumed, or could have; without
            verification.
        guest_seconds: longest time in which the guest's own counter stood still.
        qemu_seconds: the source's figure, which knows nothing of the destination.
        uncertainty_seconds: by how much the first two may be wrong, either way; 0 where both
            QEMUs are known to run on this host. Elsewhere their clocks differ, and are compared
            by commands and the events that these caused. None if nothing tells.
    """

    seconds: float | None = None
    switchover_seconds: float | None = None
    guest_seconds: float | None = None
    qemu_seconds: float | None = None
    uncertainty_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happened.

    Args:
        event: that told of it.
        machine: that sent it.
    """

    event: Event
    machine: Machine

    def until(self, later: Moment) -> tuple[float, float]:
        """Seconds from this moment to a later one, never negative, and how wrong that may be.

        The latter is infinite where nothing tells.
        """
        if self.machine.is_local and later.machine.is_local:
            return max(later.event.seconds - self.event.seconds, 0.0), 0.0
        seconds = later._here() - self._here()
        clocks = (self.machine.monitor.clock, later.machine.monitor.clock)
        unsure = max(clock.most - clock.least for clock in clocks)
        return max(seconds, 0.0), max(unsure, -seconds)

    def _here(self) -> float:
        """When it was by this host's clock, or somewhat later."""
        return self.event.seconds + self.machine.monitor.clock.most


class GuestDowntime:
    """Watches a counter that the guest increases, in the memory of both sides.

    An async context manager: from its start it looks, and `seconds` tells the time from the
    last increase at the source to the first one beyond at the destination.

    Args:
        source: reads the counter from the source's memory.
        destination: the same of the destination's. It must not touch what it reads through a
            mapping: that would fill pages in which postcopy still has to place.
        interval: seconds between looks, the resolution.
    """

    def __init__(
        self, source: Callable[[], int], destination: Callable[[], int], interval: float = 0.001
    ) -> None:
        self._source = source
        self._destination = destination
        self._interval = interval
        self._task: asyncio.Task[None] | None = None
        self.seconds: float | None = None

    @classmethod
    def of(cls, source: RunningGuest, destination: RunningGuest) -> GuestDowntime | None:
        """Watch what the workload firmware of a described guest writes; None for another guest."""
        if source.control is None:
            return None
        vcpus = source.description.vcpus
        return cls(
            firmware_writes(source.files["ram"].fd, vcpus),
            firmware_writes(destination.files["ram"].fd, vcpus),
        )

    async def __aenter__(self) -> GuestDowntime:
        self._task = asyncio.create_task(self._look(), name="guest downtime")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            await stopped(self._task)

    async def wait(self, *, timeout: float = 5.0) -> float | None:
        """Wait until the guest counts at the destination.

        Args:
            timeout: seconds; a guest that has stopped counting is no error.

        Returns:
            seconds, or None if it did not count in that time.
        """
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)
        return self.seconds

    async def _look(self) -> None:
        count, changed = self._source(), time.monotonic()
        looked = changed
        while True:
            await asyncio.sleep(self._interval)
            # In this order: if this is held up in between, the guest may move meanwhile.
            arrived, counts = self._destination(), self._source()
            before, looked = looked, time.monotonic()
            if arrived > counts:
                # Held up for all of the standstill, it knows only when it looked before.
                self.seconds = looked - (changed if counts == count else before)
                return
            if counts != count:
                count, changed = counts, looked


def firmware_writes(fd: int, vcpus: int) -> Callable[[], int]:
    """Make a reader of the workload firmware's write counters, all vCPUs together.

    Args:
        fd: the file that backs guest-physical address 0; read, never mapped.
        vcpus: how many the workload has.
    """
    size = layout.VCPU_STATISTICS.size

    def read() -> int:
        return sum(
            layout.VCPU_STATISTICS.unpack(
                os.pread(fd, size, layout.STATISTICS + index * layout.PAGE_SIZE)
            )[1]
            for index in range(vcpus)
        )

    return read
