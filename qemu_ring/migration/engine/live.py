"""What can be changed of a migration under way, at its source."""

from __future__ import annotations

import time

from qemu_ring.errors import UsageError
from qemu_ring.migration.engine.convergence import Convergence
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.engine.source import SourceWatch
from qemu_ring.migration.values import milliseconds, require_bandwidth, require_downtime
from qemu_ring.qmp import commands

__all__ = ["LiveSettings"]

_TRICKLE = 10
"""Bytes a second: the least that QEMU takes for a limit.

QEMU 7.2 then sends a page each 0.1 s; later ones a buffer of 128 KiB.
"""
_ANY_DOWNTIME_MS = 2_000_000
"""The most that QEMU takes."""


class LiveSettings:
    """Bandwidths, the downtime limit, and a pause, of one migration.

    Args:
        source: the side that is set.
        watch: follows the migration.
        convergence: keeps to the plan's goal; None if it has none.
    """

    def __init__(
        self,
        source: Side,
        watch: SourceWatch,
        convergence: Convergence | None = None,
    ) -> None:
        self._source = source
        self._watch = watch
        self._convergence = convergence
        self._paused: dict[str, object] | None = None  # what it goes on with
        self._paused_at = 0.0

    @property
    def paused(self) -> bool:
        """Whether next to nothing is sent, because it was asked for."""
        return self._paused is not None

    async def set(
        self,
        *,
        max_bandwidth: int | None = None,
        downtime_limit: float | None = None,
        postcopy_bandwidth: int | None = None,
    ) -> None:
        """Change it: bytes a second, and seconds. What is None stays.

        A plan's goal gets the downtime for its own.

        Raises:
            UsageError: it would be another value for QEMU, or QEMU refused it.
        """
        parameters: dict[str, object] = {}
        if max_bandwidth is not None:
            require_bandwidth("max_bandwidth", max_bandwidth)
            parameters["max-bandwidth"] = max_bandwidth
        if postcopy_bandwidth is not None:
            require_bandwidth("postcopy_bandwidth", postcopy_bandwidth)
            parameters["max-postcopy-bandwidth"] = postcopy_bandwidth
        if downtime_limit is not None:
            require_downtime("downtime_limit", downtime_limit)
            if self._convergence is not None:
                self._convergence.allow(downtime_limit)
            parameters["downtime-limit"] = milliseconds(downtime_limit)
        if self._paused is not None:
            self._paused |= parameters
        else:
            await self._source.set_parameters(parameters)

    async def switch_over(self) -> None:
        """Have the guest stopped, and sent what is left, however long it takes.

        Raises:
            UsageError: it is too late for that, or too early.
        """
        watch = self._watch
        if watch.is_pre_switchover:
            await watch.let_through()
            return
        if watch.settled:
            raise UsageError(f"it cannot be made to switch over, it is {watch.status}")
        if self._convergence is not None:
            self._convergence.end()
        await self.resume()
        await self._source.set_parameters({"downtime-limit": _ANY_DOWNTIME_MS})

    async def pause(self) -> None:
        """Send next to nothing until it is resumed; the guest runs on. No rule counts meanwhile.

        QEMU has no pause in precopy. It is given the least bandwidth there is, which since QEMU 8
        is 1.3 MiB a second, and the least downtime: a guest that writes less may still arrive.
        After the switchover of postcopy its channel is given up, and it has to be recovered.

        Raises:
            UsageError: it is over, or about to be, or paused already.
        """
        watch = self._watch
        if watch.in_postcopy and not watch.is_paused:
            await commands.migrate_pause(self._source.monitor)
            return
        if watch.settled or self.paused:
            raise UsageError(
                "it is paused already" if self.paused else f"it cannot pause, it is {watch.status}"
            )
        now = await commands.query_parameters(self._source.monitor)
        names = ("max-bandwidth", "downtime-limit")
        self._paused = {name: now[name] for name in names}
        self._paused_at = time.monotonic()
        watch.suspended = True
        await self._source.set_parameters({"max-bandwidth": _TRICKLE, "downtime-limit": 1})

    async def resume(self) -> None:
        """Go on as before the pause, or as it was set meanwhile; nothing if it is not paused."""
        if self._paused is None:
            return
        await self._source.set_parameters(self._paused)
        self._paused = None
        self._watch.resumed(time.monotonic() - self._paused_at)
