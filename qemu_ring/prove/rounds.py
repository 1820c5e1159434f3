"""One round: a migration held open while slots go away, completed, and compared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from qemu_ring.errors import DeadlineError
from qemu_ring.guest import (
    VcpuState,
    WorkloadControl,
    WorkloadStatistics,
    pages_changed,
    read_tokens,
)
from qemu_ring.machine import Machine
from qemu_ring.machine.vhost_user import BackEnd
from qemu_ring.memslot import MemslotTestdev, PciSlots, Shape
from qemu_ring.migration import HeldPrecopy
from qemu_ring.prove.driver import Driver, PciDriver, WindowDriver
from qemu_ring.prove.result import RoundKind
from qemu_ring.prove.stage import SLOT, SLOT_ADDRESS, Memory, Plan
from qemu_ring.prove.writer import WriterBackEnd, start_writer
from qemu_ring.qmp import MigrationInfo, commands
from qemu_ring.verify import Comparison, compare

__all__ = ["Outcome", "SourceGuest", "start_source"]

_WALK_SECONDS = 5.0
_WAIT_SECONDS = 60.0  # for what takes a second, but on a busy host
_MOVE_SECONDS = 300.0
"""For what takes a second or two, of a small guest of ours."""
"""A round's walk is cut off after this; what is pending holds a migration open for longer."""
_POLL_SECONDS = 0.002
_IDLE_REMOVALS = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round did and found."""

    kind: RoundKind
    shape: Shape | None
    removals: int
    pages_written: int
    writes: int
    pages_sent_again: int
    seconds: float
    comparison: Comparison


@dataclass(slots=True)
class SourceGuest:
    """The guest under test, running, its slots mapped.

    Args:
        back_end: who writes into the slots; None if the vCPUs do.
        first_write_seconds: from its start until every vCPU had written.
    """

    binary: Path
    plan: Plan
    memory: Memory
    machine: Machine
    control: WorkloadControl
    slots: PciSlots
    device: MemslotTestdev
    back_end: WriterBackEnd | None
    first_write_seconds: float
    memory_directory: Path | None
    log_directory: Path | None

    async def baseline(self) -> Outcome:
        """No write into the slots, no removal: what a migration sends in any case."""
        return await self._round("baseline", self._rest)

    async def re_add(self) -> Outcome:
        """As `baseline`, but SLOT is removed and added once: what that makes QEMU send."""
        return await self._round("re-add", self._re_add_once)

    async def idle_removals(
        self, shape: Shape, limit: int | None, tick: Callable[[int], None]
    ) -> Outcome:
        """Removals, while nothing is written into the slots."""
        driver = self._driver(shape)
        limit = min(limit or _IDLE_REMOVALS, _IDLE_REMOVALS)

        async def work(migration: HeldPrecopy) -> None:
            await self._rest(migration)
            await self._remove(driver, limit, lambda: True, tick)

        return await self._round("idle-removals", work, driver)

    async def walk(self) -> Outcome:
        """The guest walks over SLOT, and nothing is removed."""

        async def work(_: HeldPrecopy) -> None:
            await self._begin_walk(SLOT)
            await self.control.wait(
                lambda statistics: not self._is_walking(statistics),
                timeout=_WAIT_SECONDS,
                what="the guest did not get through its memory in time",
            )

        return await self._round("walk", work)

    async def removals(
        self, shape: Shape, limit: int | None, tick: Callable[[int], None]
    ) -> Outcome:
        """The guest walks over a slot while that and another one are removed again and again.

        Args:
            shape: how they are removed.
            limit: most slots to remove; None for as many as the walk lasts.
            tick: called after each cycle, with the removals of this round.
        """
        driver = self._driver(shape)

        async def work(_: HeldPrecopy) -> None:
            await self._begin_walk(driver.block)
            walking = lambda: self._is_walking(self.control.statistics())  # noqa: E731
            await self._remove(driver, limit, walking, tick)

        return await self._round("removals", work, driver)

    async def _begin_walk(self, block: str) -> None:
        if self.back_end is None:
            await self.control.set_streams(self.plan.walks[block])
            return
        await self.control.set_streams(self.plan.idle)
        self.back_end.walk(*self.plan.spans[block], self.plan.pages_per_second)

    def _is_walking(self, statistics: WorkloadStatistics) -> bool:
        if self.back_end is None:
            return any(vcpu.state is VcpuState.RUNNING for vcpu in statistics.vcpus)
        return self.back_end.is_walking

    def _driver(self, shape: Shape) -> Driver:
        return PciDriver(self.slots) if shape is Shape.PCI else WindowDriver(self.device, shape)

    async def _remove(
        self,
        driver: Driver,
        limit: int | None,
        wanted: Callable[[], bool],
        tick: Callable[[int], None],
    ) -> None:
        start, first = time.monotonic(), driver.removals
        while wanted() and time.monotonic() - start < _WALK_SECONDS:
            left = None if limit is None else limit - (driver.removals - first)
            if left is not None and left <= 0:
                return
            await driver.cycle(left)
            tick(driver.removals - first)

    async def _rest(self, migration: HeldPrecopy) -> None:
        """Rewrite all of the ballast, so that the same is left to send each time; then idle.

        By bitmap, QEMU clears KVM's log of a block when it sends the block's first page, and
        does not see what was written between harvest and that. So let it send one first.
        """
        first_pass = _sent(await migration.progress())
        deadline = time.monotonic() + _WAIT_SECONDS
        while _sent(await migration.progress()) == first_pass:
            if time.monotonic() > deadline:
                raise DeadlineError("the migration sends nothing while it is held open")
            await asyncio.sleep(_POLL_SECONDS)
        await self._rewrite_ballast()
        await self.control.set_streams(self.plan.idle)

    async def _rewrite_ballast(self) -> None:
        """Wait until each vCPU, at its ballast, was through all of it."""
        await self.control.wait_through(
            timeout=_WAIT_SECONDS, what="the guest did not get through its ballast in time"
        )

    async def _re_add_once(self, migration: HeldPrecopy) -> None:
        await self._rest(migration)
        await self.slots.cycle([SLOT])

    async def _round(
        self,
        kind: RoundKind,
        work: Callable[[HeldPrecopy], Awaitable[None]],
        driver: Driver | None = None,
    ) -> Outcome:
        monitor = self.machine.monitor
        started = time.monotonic()
        block = driver.block if driver else SLOT
        if driver:
            await driver.prepare()
        removals = self.slots.removals + self.device.removals
        with ExitStack() as stack:
            memory = stack.enter_context(Memory(self.plan.sizes, self.memory_directory))
            back_end = stack.enter_context(BackEnd()) if self.back_end else None
            twin = Machine.start(
                self.binary,
                self.plan.describe(memory, destination=True, back_end=back_end),
                name="destination",
                log_directory=self.log_directory,
            )
            async with (
                await twin as destination,
                HeldPrecopy(self.machine, destination) as migration,
            ):
                await commands.cont(monitor)
                await self.control.set_streams(self.plan.ballast)
                await self._rewrite_ballast()
                await migration.hold(timeout=_MOVE_SECONDS)
                first_pass = _pages(await migration.progress())
                before, writes = self._tokens(block), self._writes(block)
                try:
                    await work(migration)
                except DeadlineError:
                    await migration.progress()  # a guest that has moved on writes nothing
                    raise
                info = await migration.finish(timeout=_MOVE_SECONDS)
                comparison = await compare(self.memory.blocks(memory))
        return Outcome(
            kind=kind,
            shape=driver.shape if driver else None,
            removals=self.slots.removals + self.device.removals - removals,
            pages_written=pages_changed(before, self._tokens(block)),
            writes=self._writes(block) - writes,
            pages_sent_again=_pages(info) - first_pass,
            seconds=time.monotonic() - started,
            comparison=comparison,
        )

    def _tokens(self, block: str) -> list[int]:
        file = self.memory.files[block]
        return read_tokens(file.fd, file.size)

    def _writes(self, block: str) -> int:
        if self.back_end is not None:
            return self.back_end.writes
        return self.control.statistics().writes_to(block)


def _sent(info: MigrationInfo) -> int:
    """Pages sent so far."""
    assert info.ram is not None  # after setup there always is
    return info.ram.normal + info.ram.duplicate


def _pages(info: MigrationInfo) -> int:
    """Pages sent so far, and those that are known to be left to send."""
    assert info.ram is not None
    return _sent(info) + info.ram.remaining // info.ram.page_size


@asynccontextmanager
async def start_source(
    binary: Path,
    plan: Plan,
    *,
    device_writes: bool = False,
    memory_directory: Path | None,
    log_directory: Path | None,
) -> AsyncIterator[SourceGuest]:
    """Start the guest under test, and wait until it writes.

    Args:
        binary: the QEMU to test.
        plan: what guests to start.
        device_writes: whether a device is to write into the slots, and not the vCPUs.
        memory_directory: where their memory lives; None for memory without a name.
        log_directory: where to keep the QEMUs' logs when they end; None for nowhere.
    """
    async with AsyncExitStack() as stack:
        memory = stack.enter_context(Memory(plan.sizes, memory_directory))
        back_end = stack.enter_context(WriterBackEnd()) if device_writes else None
        started = time.monotonic()
        machine = await stack.enter_async_context(
            await Machine.start(
                binary,
                plan.describe(memory, destination=False, back_end=back_end),
                name="source",
                log_directory=log_directory,
            )
        )
        control = stack.enter_context(
            WorkloadControl(memory.files["ram"].fd, plan.workload, plan.tsc_hz)
        )
        await control.wait_writing()
        first_write_seconds = time.monotonic() - started
        slots = PciSlots(machine.monitor, plan.devices(memory))
        for name, address in SLOT_ADDRESS.items():
            await slots.add(name, address)
        if back_end is not None:
            await start_writer(machine.monitor)
        yield SourceGuest(
            binary=binary,
            plan=plan,
            memory=memory,
            machine=machine,
            control=control,
            slots=slots,
            device=MemslotTestdev(machine.monitor),
            back_end=back_end,
            first_write_seconds=first_write_seconds,
            memory_directory=memory_directory,
            log_directory=log_directory,
        )
