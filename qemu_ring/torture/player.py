"""A program played: a guest taken through its steps, and looked at after each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from qemu_ring._compat import timeout as deadline
from qemu_ring.dirty import RateOptions, measure_dirty_rate
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError
from qemu_ring.guest import Pattern, Span, Stream, VcpuState
from qemu_ring.memslot import FlushPolicy, Layout, layouts, query_flush, set_flush_policy
from qemu_ring.migration import Exec, Migration, MigrationError, MigrationPlan
from qemu_ring.prove.stage import ELSEWHERE, SLOT_ADDRESS, WINDOWS
from qemu_ring.qmp import CommandError, Listener, MigrationStatus, commands
from qemu_ring.tasks import UninterruptibleStack, stopped, to_the_end
from qemu_ring.torture.finding import FindingKind, FoundError, TortureFinding, kind_of
from qemu_ring.torture.guest import GuestQemu, Setup
from qemu_ring.torture.steps import (
    Abort,
    Begin,
    Cancel,
    Complete,
    Cycle,
    GuestToggle,
    Kill,
    Limit,
    MeasureRate,
    Migrate,
    Move,
    Pause,
    Plug,
    Policy,
    Put,
    Reset,
    Reshape,
    Step,
    Take,
    Write,
)

__all__ = ["Player", "TortureTotals"]

_MIB: Final = 1 << 20
_WAIT_SECONDS: Final = 60.0
"""For what takes a moment, but on a busy host."""
_MOVE_SECONDS: Final = 300.0
"""For what takes a second or two."""
_CONVERGE_SECONDS: Final = 3.0
"""For a whole migration as it was planned; from then on it may take any bandwidth and downtime."""
_FIRST_PASS: Final = 200 * _MIB
"""Bytes a second: the first pass has to take longer than the 100 ms after which QEMU first measures
its bandwidth; until then it takes any pass for the last."""
_HELD: Final = _MIB
"""Bytes a second that hold a migration open while the guest writes more."""
_UNLIMITED: Final = 1 << 40
_LEAST_DOWNTIME: Final = 0.001
_MOST_DOWNTIME: Final = 300.0
_ELSEWHERE: Final = {"slot": 3 << 29, "helper": 5 << 29}
"""Where else PCI devices' memory can be."""
_BATCH: Final = 32
"""Transactions in one command of the test device."""
_NOTICE_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.002
_HOT_PAGES: Final = 16
_WAITS: Final = ("paused", "finish-migrate")
"""Run states of a guest that waits to be switched over."""
_COMMAND_REGISTER: Final = 0x04
_PATTERNS: Final = {pattern.word: pattern for pattern in Pattern}


@dataclass(slots=True)
class TortureTotals:
    """All that was done.

    Args:
        steps: by name; those that could not be done any more are under "void".
        removals: memslots removed.
        migrations: that completed, and whose memory was compared, by kind.
        cancels: migrations that were ended before, and after which one completed.
        pages_late: that QEMU says best-effort would have lost.
        entries_dropped: dirty ring entries whose memslot was gone, as QEMU counts them; those that
            a migration which has ended left behind are lost to nobody.
        refused: migrations that this QEMU does not do, by what it says.
    """

    steps: Counter[str] = field(default_factory=Counter)
    removals: int = 0
    migrations: Counter[str] = field(default_factory=Counter)
    cancels: int = 0
    pages_late: int = 0
    entries_dropped: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Moving:
    """A migration that is held open."""

    migration: Migration
    destination: GuestQemu
    entered: AsyncExitStack
    is_killed: bool = False

    async def leave(self) -> None:
        """End it, if it is not over; the destination stays."""
        await self.entered.aclose()


class Player:
    """Plays one program; a new one is needed for the next.

    Args:
        setup: what QEMUs to start.
        totals: to add to.
        tick: called after each step.

    Attributes:
        place: the QEMU that has the guest.
    """

    def __init__(
        self, setup: Setup, totals: TortureTotals, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._setup = setup
        self._totals = totals
        self._tick = tick
        self.place: GuestQemu
        self._moving: _Moving | None = None
        self._policy: FlushPolicy | None = None
        self._aborted = 0
        self._writes: tuple[int, ...] = ()

    async def play(self, steps: Sequence[Step]) -> TortureFinding | None:
        """Play the steps in order; returns what was found, or None.

        Raises:
            QemuRingError: what is no fault of the QEMU's.
        """
        index = 0
        async with UninterruptibleStack() as stack:
            self.place = await self._setup.start()
            stack.push_async_callback(self._close)
            try:
                await self.place.boot()
                for index, step in enumerate(steps):  # noqa: B007 - it is told when it fails
                    self._totals.steps[step.do] += 1
                    before = self.place
                    removals = before.removals
                    try:
                        await self._take(step)
                    finally:
                        self._totals.removals += before.removals - removals
                    await self._look()
                    self._tick()
                await self._count_flush()
            except QemuRingError as error:
                found = await self._found(error)
                if found is None:
                    raise
                return found.at(index)
        return None

    async def _close(self) -> None:
        moving, self._moving = self._moving, None
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.place.close)
            if moving is not None:
                stack.push_async_callback(moving.destination.close)
                stack.push_async_callback(moving.leave)

    async def _found(self, error: QemuRingError) -> FoundError | None:
        """What an error says of our QEMUs; None if nothing."""
        if isinstance(error, FoundError):
            return error
        machines = [self.place.machine]
        if self._moving is not None and not self._moving.is_killed:
            machines.append(self._moving.destination.machine)
        for machine in machines:
            with suppress(asyncio.TimeoutError):  # the other side may have noticed first
                await asyncio.wait_for(machine.monitor.wait_disconnected(), _NOTICE_SECONDS)
            if machine.monitor.connected or not await machine.has_ended():
                continue
            # Before QEMU 9.1 a destination ends by itself when its migration fails.
            if machine is self.place.machine or (machine.returncode or 0) < 0:
                return FoundError(FindingKind.CRASH, (await machine.explain(error)).message)
        kind = kind_of(error)
        return None if kind is None else FoundError(kind, str(error))

    # What there is to see after each step

    async def _look(self) -> None:
        """See that the guest runs where it should, and that each vCPU writes that has to."""
        place = self.place
        status = await commands.query_status(place.machine.monitor)
        if not status.running:
            if self._moving is not None and status.status in _WAITS:
                return
            raise FoundError(FindingKind.CRASH, f"the guest does not run, it is {status.status}")
        statistics = place.control.statistics()
        now = tuple(vcpu.writes for vcpu in statistics.vcpus)
        if any(after < before for before, after in zip(self._writes, now, strict=False)):
            raise FoundError(FindingKind.STALE, "a vCPU's count of its writes went back")
        self._writes = now
        streams = place.control.workload.streams
        for number, (stream, vcpu) in enumerate(zip(streams, statistics.vcpus, strict=True)):
            if stream.pattern.writes and vcpu.state is VcpuState.RUNNING:
                await self._goes_on(number, vcpu.writes)

    async def _goes_on(self, number: int, writes: int) -> None:
        """Wait until a vCPU has written more, or has no more to write."""
        until = time.monotonic() + _WAIT_SECONDS
        place = self.place
        while True:
            vcpu = place.control.statistics().vcpus[number]
            if vcpu.writes != writes or vcpu.state is not VcpuState.RUNNING:
                return
            if not await place.is_running():  # it came to be switched over meanwhile
                return
            if time.monotonic() > until:
                raise FoundError(
                    FindingKind.HANG, f"vCPU {number} wrote nothing for {_WAIT_SECONDS:g} s"
                )
            await asyncio.sleep(_POLL_SECONDS)

    # The steps

    async def _take(self, step: Step) -> None:
        place = self.place
        monitor = place.machine.monitor
        match step:
            case Write():
                await self._write(step)
            case Take() | Put() | Cycle() | Move():
                await self._touch(step)
            case Reshape():
                await self._reshape(step)
            case GuestToggle():
                await self._guest_toggle(step)
            case Policy(policy=policy):
                self._policy = policy
                await set_flush_policy(monitor, policy)
            case MeasureRate():
                await self._measure()
            case Plug():
                await place.plug()
            case Reset():
                await self._reset()
            case Pause():
                await self._pause()
            case Begin():
                await self._begin(step)
            case Limit():
                await self._limit(step)
            case Complete():
                await self._complete(step)
            case Cancel():
                await self._cancel()
            case Kill():
                await self._kill()
            case Migrate():
                await self._migrate(step)
            case Abort():
                await self._abort(step)

    async def _is_up(self) -> bool:
        """Whether the vCPUs run; if not, the step that needs them is void."""
        if await self.place.is_running():
            return True
        self._void()
        return False

    def _void(self) -> None:
        self._totals.steps["void"] += 1

    async def _while_up(self, work: Callable[[], Coroutine[object, object, None]]) -> bool:
        """Do what needs vCPUs that run; returns False where they do not.

        A migration that stops them meanwhile is cancelled, and it is done again: what the host has
        written into the guest's memory by then is not sent, because no vCPU has acknowledged it.
        """
        monitor = self.place.machine.monitor
        with monitor.events("STOP") as events:
            if not await self._is_up():
                return False
            task = asyncio.create_task(work(), name="step")
            stop = asyncio.create_task(_next(events), name="the guest's stop")
            try:
                await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    task.result()
                    return True
            finally:
                await stopped(stop)
                await stopped(task)
        if self._moving is None:
            raise FoundError(FindingKind.CRASH, "the guest was stopped, and nobody asked for it")
        self._void()
        await self._cancel()
        await work()
        return True

    async def _write(self, step: Write) -> None:
        control, vcpus = self.place.control, len(self._setup.plan.idle)
        span = control.workload.span(step.block)
        if step.quarter is not None:
            span = span.split(4)[step.quarter]
        parts = span.split(vcpus)
        rate = None if step.pages_per_second is None else step.pages_per_second / vcpus
        streams = [
            Stream(
                _PATTERNS[step.pattern],
                part,
                pages_per_second=rate,
                seed=number + 1,
                hot=Span(part.first, _HOT_PAGES),
            )
            for number, part in enumerate(parts)
        ]
        await self._while_up(lambda: control.set_streams(streams, timeout=_WAIT_SECONDS))

    async def _touch(self, step: Take | Put | Cycle | Move) -> None:
        """Have PCI devices' memory go or come, where it is as the steps before were to leave it."""
        slots, place = self.place.slots, self.place
        names = step.slots if isinstance(step, Cycle) else (step.slot,)
        toggles = place.control.workload.streams[0].pattern is Pattern.PCI_TOGGLE
        is_as_expected = all(
            (slots.address(name) is None) is isinstance(step, Put) for name in names
        )
        if toggles or not is_as_expected:
            self._void()
            return
        match step:
            case Take(slot=slot):
                await slots.remove(slot)
            case Put(slot=slot):
                await slots.add(slot, SLOT_ADDRESS[slot])
            case Cycle():
                for _ in range(step.times):
                    await slots.cycle(step.slots, pause_seconds=step.pause_ms / 1000)
                    if self._is_walk_over():
                        return
            case Move(slot=slot):
                for _ in range(step.times):
                    await slots.move(slot, _ELSEWHERE[slot])
                    await slots.move(slot, SLOT_ADDRESS[slot])

    def _is_walk_over(self) -> bool:
        """Whether the vCPUs have written all that they were to, so that nothing can be lost."""
        states = {vcpu.state for vcpu in self.place.control.statistics().vcpus}
        return VcpuState.DONE in states and VcpuState.RUNNING not in states

    async def _pause(self) -> None:
        monitor = self.place.machine.monitor
        if not await self._is_up():
            return
        await commands.stop(monitor)
        try:
            await commands.cont(monitor)
        except CommandError:  # its migration came to wait for the switchover meanwhile
            if self._moving is None:
                raise

    async def _guest_toggle(self, step: GuestToggle) -> None:
        place = self.place
        registers = [
            device.pci.register(_COMMAND_REGISTER)
            for device in self._setup.plan.devices(place.memory)
        ]
        toggle = Stream(
            Pattern.PCI_TOGGLE, pci_commands=tuple(registers), rest_seconds=step.rest_us / 1e6
        )
        streams = [toggle, *place.control.workload.streams[1:]]
        await self._while_up(lambda: place.control.set_streams(streams, timeout=_WAIT_SECONDS))

    async def _reshape(self, step: Reshape) -> None:
        device = self.place.device
        cycle = layouts(step.shape, *WINDOWS, ELSEWHERE)
        await device.map(Layout(WINDOWS))
        left = step.times
        while left and not (left < step.times and self._is_walk_over()):
            repeat = min(left, max(1, _BATCH // len(cycle)))
            await device.map(*cycle, repeat=repeat, pause_seconds=step.pause_us / 1e6)
            left -= repeat
        if step.stay:
            await device.map(*cycle[: step.stay])

    async def _measure(self) -> None:
        monitor = self.place.machine.monitor
        in_ms = "calc-time-unit" in (await monitor.schema()).command_arguments("calc-dirty-rate")
        try:
            await measure_dirty_rate(monitor, RateOptions(seconds=0.05 if in_ms else 1.0))
        except QemuUnsuitableError:
            self._void()

    async def _reset(self) -> None:
        place = self.place
        monitor = place.machine.monitor

        async def work() -> None:
            before = place.control.statistics().vcpus
            with monitor.events("RESET") as events:
                await monitor.execute("system_reset")
                await events.wait(timeout=_WAIT_SECONDS)
            await place.control.wait(
                lambda now: all(
                    new.start_tsc not in (0, old.start_tsc)
                    for new, old in zip(now.vcpus, before, strict=True)
                ),
                timeout=_WAIT_SECONDS,
                what="the firmware did not start anew",
            )
            await place.began_anew()

        if await self._while_up(work):
            self._writes = ()

    # Migrations

    async def _begin(self, step: Begin) -> None:
        if step.quiet:
            await self._rewrite_ballast()
        plan = replace(
            step.plan.plan(held=True), max_bandwidth=_FIRST_PASS, downtime_limit=_LEAST_DOWNTIME
        )
        moving = await self._enter(plan)
        if moving is None:
            return
        self._moving = moving
        migration = moving.migration
        clock = deadline(_MOVE_SECONDS)
        try:
            async with clock, aclosing(migration.iterations()) as passes:
                async for _ in passes:
                    break
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineError(f"no first pass within {_MOVE_SECONDS:g} s") from error
        if migration.status.is_final:
            await migration.complete(timeout=_MOVE_SECONDS)
            raise FoundError(FindingKind.FAILED, "it completed though it was to wait")
        await migration.set_parameters(max_bandwidth=_HELD)

    async def _rewrite_ballast(self) -> None:
        control, plan = self.place.control, self._setup.plan
        await control.set_streams(plan.ballast, timeout=_WAIT_SECONDS)
        await control.wait_through(
            timeout=_WAIT_SECONDS, what="the guest did not get through its memory in time"
        )

    async def _enter(self, plan: MigrationPlan) -> _Moving | None:
        """Begin a migration to a QEMU that is started for it; None if this QEMU does not do it."""
        place = self.place
        destination = await self._setup.start(plugged=place.plugged, waiting=True)
        entered = AsyncExitStack()
        try:
            migration = Migration(
                place.machine, destination.machine, plan, verify=place.blocks(destination)
            )
            await entered.enter_async_context(migration)
        except QemuUnsuitableError as error:
            await destination.close()
            self._totals.refused[error.message] += 1
            self._void()
            return None
        except BaseException:
            await to_the_end(destination.close())
            raise
        return _Moving(migration, destination, entered)

    async def _limit(self, step: Limit) -> None:
        if self._moving is None:
            self._void()
            return
        await self._moving.migration.set_parameters(
            max_bandwidth=step.max_bandwidth * _MIB, downtime_limit=step.downtime_ms / 1000
        )

    async def _complete(self, step: Complete) -> None:
        moving = self._moving
        if moving is None:
            self._void()
            return
        migration = moving.migration
        if migration.plan.postcopy is not None:
            with suppress(CommandError):  # it waits to be switched over by itself
                await migration.start_postcopy()
        elif step.stopped:
            await commands.stop(self.place.machine.monitor)
            await migration.set_parameters(max_bandwidth=_UNLIMITED)
        else:
            await migration.set_parameters(max_bandwidth=_UNLIMITED, downtime_limit=_MOST_DOWNTIME)
        await self._arrive(moving)

    async def _migrate(self, step: Migrate) -> None:
        moving = await self._enter(step.plan.plan())
        if moving is None:
            return
        self._moving = moving
        await self._arrive(moving, as_planned=_CONVERGE_SECONDS)

    async def _arrive(self, moving: _Moving, *, as_planned: float = _MOVE_SECONDS) -> None:
        """Complete it, see that all memory is there, and have the guest go on there.

        Args:
            moving: the migration.
            as_planned: seconds after which it may take any bandwidth and downtime: the guest may
                write more than can be sent.
        """
        migration = moving.migration
        try:
            result = await migration.complete(timeout=as_planned)
        except DeadlineError:
            if as_planned == _MOVE_SECONDS:
                raise
            await migration.set_parameters(max_bandwidth=_UNLIMITED, downtime_limit=_MOST_DOWNTIME)
            result = await migration.complete(timeout=_MOVE_SECONDS)
        assert result.comparison is not None
        if not result.comparison.equal:
            raise FoundError.stale(result.comparison)
        kind = "postcopy" if result.switched_to_postcopy else "precopy"
        self._totals.migrations[kind] += 1
        self._totals.cancels += self._aborted
        self._aborted = 0
        await self._count_flush()
        await moving.leave()
        former, self.place, self._moving = self.place, moving.destination, None
        self.place.plugged = former.plugged
        self.place.arrive(former)
        await to_the_end(former.close())
        await self._let_run()
        if self._policy is not None:
            await set_flush_policy(self.place.machine.monitor, self._policy)

    async def _let_run(self) -> None:
        """Have a guest run that was stopped when its migration began or ended."""
        if not await self.place.is_running():
            await commands.cont(self.place.machine.monitor)

    async def _cancel(self) -> None:
        if self._moving is None:
            self._void()
            return
        await self._moving.migration.cancel(timeout=_MOVE_SECONDS)
        await self._stay()

    async def _kill(self) -> None:
        if self._moving is None:
            self._void()
            return
        await self._fail(self._moving)
        await self._stay()

    async def _fail(self, moving: _Moving) -> None:
        machine = moving.destination.machine
        machine.may_end()
        moving.is_killed = True
        machine.kill()
        with suppress(MigrationError):
            await moving.migration.complete(timeout=_MOVE_SECONDS)
            raise FoundError(FindingKind.FAILED, "it completed though its destination was killed")

    async def _stay(self) -> None:
        """See that the guest goes on here, after a migration that did not complete."""
        moving, self._moving = self._moving, None
        assert moving is not None
        await moving.leave()
        await to_the_end(moving.destination.close())
        self._aborted += 1
        await self._let_run()

    async def _abort(self, step: Abort) -> None:
        limit = (step.max_bandwidth or 0) * _MIB
        if step.by in ("cancel", "kill"):
            plan = MigrationPlan(max_bandwidth=limit, pause_before_switchover=True)
            self._moving = await self._enter(plan)
            if self._moving is None:
                return
            await _wait(self._moving.migration, step.after_ms / 1000)
            await (self._cancel() if step.by == "cancel" else self._kill())
            return
        reader = "cat" if step.by == "cancel-sink" else f"head -c {step.after_kib << 10}"
        plan = MigrationPlan(
            channel=Exec(f"{reader} >/dev/null"), max_bandwidth=limit, pause_before_switchover=True
        )
        async with Migration(self.place.machine, None, plan) as migration:
            await _wait(migration, step.after_ms / 1000)
            with suppress(MigrationError):  # it has failed
                await migration.cancel(timeout=_MOVE_SECONDS)
            if migration.status is MigrationStatus.COMPLETED:
                raise FoundError(FindingKind.FAILED, "it completed though it was to wait")
        self._aborted += 1
        await self._let_run()

    async def _count_flush(self) -> None:
        """Add what a patched QEMU has counted, before it ends."""
        with suppress(QemuUnsuitableError):
            info = await query_flush(self.place.machine.monitor)
            self._totals.pages_late += sum(one.pages_late for one in info.stats)
            self._totals.entries_dropped += info.entries_dropped


async def _next(events: Listener) -> None:
    await anext(events)


async def _wait(migration: Migration, seconds: float) -> None:
    """Let a migration go on for so long, if it does not end before."""
    until = time.monotonic() + seconds
    while not migration.status.is_final:
        left = until - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(left, _POLL_SECONDS))
