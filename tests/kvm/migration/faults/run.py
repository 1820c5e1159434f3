"""One migration, up to its fault and on from there."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import ExitStack
from pathlib import Path

from qemu_ring.migration import (
    Channel,
    Fd,
    File,
    Migration,
    MigrationPlan,
    MigrationResult,
    Postcopy,
    PostcopyPausedError,
    Sample,
    Unix,
)
from qemu_ring.qmp import MigrationStatus, commands
from tests.kvm.migration.faults.channel import Strike, Struck
from tests.kvm.migration.faults.fault import Fault, Kind, Phase
from tests.kvm.migration.faults.sides import Sides

__all__ = ["TELL_SECONDS", "Run", "TooLateError"]

MIB = 1 << 20
TELL_SECONDS = 60.0  # from the fault until the migration is told to have failed
RECOVER_SECONDS = 30.0


def plan_for(fault: Fault, channel: Channel) -> MigrationPlan:
    if fault.phase.is_postcopy:
        return MigrationPlan(
            channel=channel,
            kind=Postcopy(max_bandwidth=8 * MIB),
            max_bandwidth=128 * MIB,
            downtime_limit=0.001,
        )
    if fault.phase.switches_over:
        return MigrationPlan(channel=channel, max_bandwidth=1 << 30, pause_before_switchover=True)
    return MigrationPlan(channel=channel, max_bandwidth=40 * MIB, downtime_limit=0.001)


class TooLateError(Exception):
    """The migration was over before the fault could strike."""


class Run:
    """One migration, up to its fault and on from there."""

    def __init__(self, fault: Fault, sides: Sides, folder: Path, strike: Strike | None) -> None:
        self.fault = fault
        self.sides = sides
        self._strike = strike or self._do
        setup = self.strike if fault.phase is Phase.SETUP else None
        inner: Channel = {"fd": Fd(), "unix": Unix(), "file": File(folder / "saved")}[fault.channel]
        is_cut = fault.kind is Kind.CUT or fault.phase.is_paused_first
        self.channels = [Struck(inner, setup, is_cut)]
        self.struck_at: float | None = None
        self.was_paused = False
        """Whether the fault broke postcopy's channel, and that was told."""
        self.was_late = False
        """Whether the destination had all before it was killed."""
        self._some_sent = asyncio.Event()

    async def strike(self) -> None:
        await self._strike()
        self.struck_at = time.monotonic()

    async def _do(self) -> None:
        kind, source, destination = self.fault.kind, self.sides.source, self.sides.destination
        if kind is Kind.SOURCE:
            source.kill()
        elif kind is Kind.DESTINATION:
            assert destination is not None
            destination.kill()
        elif kind is Kind.CUT:
            self.channels[-1].cut()
        elif kind is Kind.DISK:
            assert source.pid is not None
            resource.prlimit(source.pid, resource.RLIMIT_FSIZE, (4096, 4096))

    def close(self) -> None:
        for channel in self.channels:
            channel.close()

    async def migrate(self) -> MigrationResult:
        """Migrate, strike on the way, and raise what comes of it."""
        async with Migration(
            self.sides.source,
            self.sides.destination,
            plan_for(self.fault, self.channels[0]),
            sample_seconds=0.01,
            on_sample=self._note,
        ) as migration:
            try:
                return await self._go(migration)
            except PostcopyPausedError as error:
                told = error.outcome
                if self.fault.kind is not Kind.CUT or told is None or not told.recoverable:
                    raise
            # The guest has survived if it can be recovered.
            self.was_paused = True
            await self._hurry()
            return await self._connect_again(migration, Struck(Fd()))

    async def _go(self, migration: Migration) -> MigrationResult:
        phase = self.fault.phase
        if phase is Phase.SWITCHOVER:
            return await self._switch_over(migration)
        await self._reach(migration)
        if phase.is_paused_first:
            return await self._recover(migration)
        if phase is not Phase.SETUP:
            await self.strike()
        return await migration.complete(timeout=TELL_SECONDS)

    async def _hurry(self) -> None:
        """Nothing is to strike any more."""
        parameters = {"max-postcopy-bandwidth": 0}
        await self.sides.source.monitor.execute("migrate-set-parameters", parameters)

    def _note(self, sample: Sample) -> None:
        if sample.transferred > MIB:
            self._some_sent.set()

    async def _reach(self, migration: Migration) -> None:
        phase = self.fault.phase
        if phase is Phase.FIRST_PASS:
            await asyncio.wait_for(self._some_sent.wait(), TELL_SECONDS)
        elif phase not in (Phase.SETUP, Phase.BEGUN):
            wanted = {Phase.SECOND_PASS: 1, Phase.THIRD_PASS: 2}.get(phase)
            async for iteration in migration.iterations():
                if iteration.number == wanted:
                    break
        if phase.is_postcopy and phase is not Phase.POSTCOPY_BEGUN:
            await self._wait_taken_over()

    async def _wait_taken_over(self) -> None:
        assert self.sides.destination is not None
        deadline = time.monotonic() + TELL_SECONDS
        monitor = self.sides.destination.monitor
        status = None
        while status is not MigrationStatus.POSTCOPY_ACTIVE:
            status = (await commands.query_migrate(monitor)).status
            if status is MigrationStatus.COMPLETED:
                raise TooLateError
            assert time.monotonic() < deadline, "the destination does not take over"
            await asyncio.sleep(0.002)

    async def _switch_over(self, migration: Migration) -> MigrationResult:
        """Strike once the devices are being sent."""
        async for _ in migration.iterations():
            pass
        destination = self.sides.destination
        with ExitStack() as listening:
            events = listening.enter_context(self.sides.source.monitor.events("MIGRATION"))
            arrivals = None
            if self.fault.kind is Kind.DESTINATION and destination is not None:
                arrivals = listening.enter_context(destination.monitor.events("MIGRATION"))
            completing = asyncio.create_task(migration.complete(timeout=TELL_SECONDS))
            await events.wait(
                lambda event: event.data["status"] in ("device", "completed", "failed"),
                timeout=TELL_SECONDS,
                what="the switchover",
            )
            await self.strike()
            result = await completing
            if arrivals is not None:  # it is told completed: then the destination said so
                await arrivals.wait(
                    lambda event: event.data["status"] == "completed",
                    timeout=TELL_SECONDS,
                    what="the destination's end of the migration",
                )
                self.was_late = True
            return result

    async def _recover(self, migration: Migration) -> MigrationResult:
        """Break the channel first, and strike after that."""
        self.channels[-1].cut()
        try:
            return await migration.complete(timeout=TELL_SECONDS)
        except PostcopyPausedError:
            pass
        phase = self.fault.phase
        if phase is Phase.PAUSED:
            await self.strike()
        strike = self.strike if phase is Phase.RECOVERY else None
        again = Struck(Fd(), strike, self.fault.kind is Kind.CUT)
        return await self._connect_again(migration, again)

    async def _connect_again(self, migration: Migration, channel: Struck) -> MigrationResult:
        self.channels.append(channel)
        await migration.recover(channel, timeout=RECOVER_SECONDS)
        if self.fault.phase is Phase.RECOVERED and not self.was_paused:
            await self.strike()
        return await migration.complete(timeout=TELL_SECONDS)
