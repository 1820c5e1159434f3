"""Looking at running guests again and again, without disturbing them.

Only queries are sent, and the one command of `query_tracking` that cannot do anything; besides
them, if it is asked for, the start of QEMU's dirty rate measurement by page sampling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from qemu_ring._compat import TaskGroup
from qemu_ring.dirty import RunningTracking, StallWatch, TrackingMode, query_tracking
from qemu_ring.memslot import DirtyRings, FlushInfo, query_flush, query_memslots, query_rings
from qemu_ring.observe.snapshot import (
    DirtyRateSnapshot,
    FlushSnapshot,
    GuestSnapshot,
    GuestState,
    MigrationSnapshot,
    Presence,
    RingsSnapshot,
    SlotsSnapshot,
)
from qemu_ring.qmp import (
    Address,
    CommandError,
    ConnectError,
    DisconnectedError,
    Monitor,
    QmpError,
    QmpModel,
    commands,
)
from qemu_ring.qmp.dirty import DirtyRateInfo, TimeUnit, calc_dirty_rate

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GuestPoller"]

T = TypeVar("T")

_PATCHED: Final = ("x-query-memslot-flush", "x-query-dirty-rings", "x-query-memslots")
_GREETING_SECONDS: Final = 10.0
"""After which it is told that another client may hold the monitor; it is tried again."""
_LONGEST_MEASUREMENT: Final = 60
"""That QEMU takes, in seconds."""


class GuestPoller:
    """Several guests that are polled together; an async context manager.

    A guest that goes away is found again when it is back at its address. QEMU serves one
    client per monitor, and this holds each guest's from the first poll to the context's end.

    Args:
        addresses: of the guests' monitors, by the names that messages call them.
        measure_seconds: have QEMU measure the dirty rate again and again, by page sampling
            for about so long; None to only tell what others measured.
    """

    def __init__(
        self, addresses: Mapping[str, Address], *, measure_seconds: float | None = None
    ) -> None:
        self._guests = [_PolledGuest(name, at, measure_seconds) for name, at in addresses.items()]
        self._polls: dict[_PolledGuest, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()
        self._group: TaskGroup

    async def __aenter__(self) -> Self:
        for guest in self._guests:
            self._stack.push_async_callback(guest.close)
        self._group = await self._stack.enter_async_context(TaskGroup())
        self._stack.callback(self._cancel_polls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    async def poll(self, patience: float) -> tuple[GuestSnapshot, ...]:
        """Poll all guests; waits at most `patience` seconds for those that do not answer.

        What cannot be seen is told in the result, and no error.
        """
        begun = []
        for guest in self._guests:
            if guest not in self._polls or self._polls[guest].done():
                begun.append(self._group.create_task(guest.poll()))
                self._polls[guest] = begun[-1]
        if begun:  # and one that keeps its answer since an earlier poll is not waited for
            await asyncio.wait(begun, timeout=patience)
        return tuple(
            guest.snapshot(pending=not self._polls[guest].done()) for guest in self._guests
        )

    def _cancel_polls(self) -> None:
        for task in self._polls.values():
            task.cancel()


@dataclass(frozen=True, slots=True)
class _Timed(Generic[T]):
    """An answer, and when it came."""

    value: T
    at: float


@dataclass(frozen=True, slots=True)
class _About:
    """What does not change as long as a QEMU runs."""

    name: str
    tracking: RunningTracking
    patched: bool


class _Name(QmpModel):
    """query-name."""

    name: str = ""


class _RateInfo(DirtyRateInfo):
    """query-dirty-rate, with the measurement's beginning by the monotonic clock of QEMU's host."""

    start_time: int


class _PolledGuest:
    """One guest, whatever becomes of it."""

    def __init__(self, name: str, address: Address, measure_seconds: float | None) -> None:
        self._name = name
        self._address = address
        self._measure_seconds = measure_seconds
        self._monitor: Monitor | None = None
        self._presence = Presence.SILENT
        self._problem = "it has not answered yet"
        self._seen: GuestState | None = None
        self._seen_at = time.monotonic()
        self._peak = 0.0
        self._forget()

    def _forget(self) -> None:
        """Begin anew: it may be another QEMU."""
        self._about: _About | None = None
        self._flush: _Timed[FlushInfo] | None = None
        self._rings: _Timed[DirtyRings] | None = None
        self._stalls = StallWatch()
        self._rate: _RateInfo | None = None
        self._measured_here = False
        self._rate_refused = ""

    async def close(self) -> None:
        """Disconnect."""
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None

    def snapshot(self, *, pending: bool) -> GuestSnapshot:
        """Tell what is known; `pending` if a poll still waits for an answer."""
        presence, problem = self._presence, self._problem
        if pending and presence is Presence.SEEN:
            presence, problem = Presence.SILENT, "it does not answer"
        return GuestSnapshot(
            socket=self._name,
            presence=presence,
            state=self._seen,
            seconds_since=time.monotonic() - self._seen_at,
            problem=problem,
            peak_reaped_per_second=self._peak,
        )

    async def poll(self) -> None:
        """Ask QEMU, after connecting to it where that is needed."""
        try:
            try:
                self._seen = await self._see()
            except DisconnectedError:  # a guest that was toggled is back at once
                self._seen = await self._see()
        except QmpError as error:
            # A connection that is not answered has no cause: another client may have QEMU's ear.
            lost = isinstance(error, ConnectError | DisconnectedError) and error.__cause__
            self._presence = Presence.GONE if lost else Presence.SILENT
            message = (error.message if lost else str(error)).removeprefix(f"{self._name}: ")
            self._problem = message.replace(f" on {self._name}: ", ": ", 1)
        else:
            self._presence, self._problem = Presence.SEEN, ""
            self._seen_at = time.monotonic()

    async def _see(self) -> GuestState:
        monitor = await self._connected()
        if self._about is None:
            self._about = await _about(monitor)
        about = self._about
        status = await commands.query_status(monitor)
        has_kvm = about.tracking.mode is not TrackingMode.SOFTWARE
        told = about.patched and has_kvm
        return GuestState(
            name=about.name,
            version=monitor.version,
            package=monitor.package,
            patched=about.patched,
            run_state=status.status,
            running=status.running,
            tracking=about.tracking,
            flush=await self._see_flush(monitor) if told else None,
            rings=await self._see_rings(monitor) if told else None,
            slots=SlotsSnapshot.of(await query_memslots(monitor)) if told else (),
            dirty_rate=await self._see_rate(monitor),
            rate_refused=self._rate_refused,
            migration=MigrationSnapshot.of(await commands.query_migrate(monitor)),
            stalled=await self._stalls.poll(monitor),
        )

    async def _connected(self) -> Monitor:
        if self._monitor is None or not self._monitor.connected:
            await self.close()
            self._forget()
            self._monitor = await Monitor.connect(
                self._address, name=self._name, timeout=_GREETING_SECONDS
            )
        return self._monitor

    async def _see_flush(self, monitor: Monitor) -> FlushSnapshot:
        now = _Timed(await query_flush(monitor), time.monotonic())
        before, self._flush = self._flush, now
        if before is None:
            return FlushSnapshot.of(now.value, None, 0.0)
        return FlushSnapshot.of(now.value, before.value, now.at - before.at)

    async def _see_rings(self, monitor: Monitor) -> RingsSnapshot | None:
        now = _Timed(await query_rings(monitor), time.monotonic())
        if not now.value.size:
            return None
        before, self._rings = self._rings, now
        if before is None:
            return RingsSnapshot.of(now.value, None, 0.0)
        snapshot = RingsSnapshot.of(now.value, before.value, now.at - before.at)
        self._peak = max([self._peak, *(ring.reaped_per_second or 0.0 for ring in snapshot.vcpus)])
        return snapshot

    async def _see_rate(self, monitor: Monitor) -> DirtyRateSnapshot | None:
        """Tell the last dirty rate, and have it measured again if that was asked for."""
        schema = await monitor.schema()
        if not schema.has_command("query-dirty-rate"):
            return None
        in_ms = "calc-time-unit" in schema.command_arguments("calc-dirty-rate")
        unit: TimeUnit | None = "millisecond" if in_ms else None
        info = await _rate_info(monitor, unit)
        measuring = info.status == "measuring"
        if info.status == "measured" and (self._measure_seconds is None or self._measured_here):
            self._rate = info
        if self._measure_seconds is not None and not measuring:
            seconds = min(self._measure_seconds, _LONGEST_MEASUREMENT)
            length = max(50, int(seconds * 1000)) if unit else max(1, int(seconds))
            try:
                await calc_dirty_rate(monitor, length, unit=unit)
            except CommandError as error:
                self._rate_refused = error.description
            else:
                self._rate_refused = ""
                measuring = self._measured_here = True
                info = await _rate_info(monitor, unit)
        # QEMU tells nothing of the last one while the next one is under way.
        if self._rate is not None:
            return self._dated(self._rate, measuring=measuring)
        if not measuring:
            return None
        return DirtyRateSnapshot.of(info, None, measuring=True)

    def _dated(self, info: _RateInfo, *, measuring: bool) -> DirtyRateSnapshot:
        snapshot = DirtyRateSnapshot.of(info, None, measuring=measuring)
        if not isinstance(self._address, str | Path):
            return snapshot  # by TCP, QEMU may run on a host whose clock is another
        ago = time.monotonic() - info.start_time - snapshot.seconds
        return DirtyRateSnapshot.of(info, ago, measuring=measuring)


async def _rate_info(monitor: Monitor, unit: TimeUnit | None) -> _RateInfo:
    arguments = None if unit is None else {"calc-time-unit": unit}
    return await monitor.call("query-dirty-rate", _RateInfo, arguments)


async def _about(monitor: Monitor) -> _About:
    schema = await monitor.schema()
    return _About(
        name=(await monitor.call("query-name", _Name)).name,
        tracking=await query_tracking(monitor),
        patched=all(schema.has_command(command) for command in _PATCHED),
    )
