"""Postcopy: the guest moves first, and its memory follows, on a second channel if need be."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.guest import read_tokens
from qemu_ring.migration import (
    Channel,
    Fd,
    GuestAt,
    Migration,
    MigrationError,
    MigrationPlan,
    MigrationResult,
    Postcopy,
    PostcopyPausedError,
    Tcp,
    Unix,
)
from qemu_ring.migration.channels.channel import Connection
from qemu_ring.qmp import MigrationStatus, Monitor, commands
from tests.kvm.migration.refusals import may_be_refused
from tests.waiting import DEADLINE, until

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("binary")]

MIB = 1 << 20
COUNT = (1 << 56) - 1


def plan(channel: Channel, kind: Postcopy, **more: object) -> MigrationPlan:
    """Too slow to complete by precopy."""
    limits = {"max_bandwidth": 40 * MIB, "downtime_limit": 0.001}
    return MigrationPlan(kind=kind, channel=channel, **{**limits, **more})  # type: ignore[arg-type]


async def complete(migration: Migration) -> MigrationResult:
    async with migration:
        async for _ in migration.iterations():
            pass
        return await migration.complete(timeout=60)


@pytest.mark.parametrize("channel", [Unix(), Tcp(), Fd()], ids=["unix", "tcp", "fd"])
async def test_all_memory_follows(start_pair: StartPair, binary: Path, channel: Channel) -> None:
    async with start_pair(binary, pages_per_second=None) as pair:
        result = await complete(
            Migration(pair.source, pair.destination, plan(channel, Postcopy()), verify=pair.blocks)
        )
        assert result.switched_to_postcopy
        assert result.comparison is not None
        assert result.comparison.equal
        await pair.wait_writing_at_destination()


@pytest.mark.parametrize("preempt", [False, True], ids=["plain", "preempt"])
@may_be_refused
async def test_guest_writes_while_its_memory_follows(
    start_pair: StartPair, binary: Path, preempt: bool
) -> None:
    """No page at the destination is older than the source's."""
    kind = Postcopy(preempt=preempt, max_bandwidth=8 * MIB)
    async with start_pair(binary, vcpus=2, pages_per_second=None) as pair:
        migration = Migration(
            pair.source,
            pair.destination,
            plan(Unix(), kind, max_bandwidth=20 * MIB),
            guest_downtime=pair.guest_downtime(),
        )
        result = await complete(migration)
        assert result.switched_to_postcopy
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert result.totals.postcopy_requests > 0
        assert result.downtime.seconds is not None
        assert result.downtime.seconds < result.seconds
        assert result.downtime.guest_seconds is not None
        await commands.stop(pair.destination.monitor)
        assert stale(pair) == 0
        assert pair.writes_at_destination() > pair.control.statistics().writes


def stale(pair: Pair) -> int:
    """Pages of the guest's loop that hold an older token at the destination than at the source."""
    sides = [read_tokens(one.fd, one.size) for one in (pair.memory, pair.destination_memory)]
    tokens = zip(*(side[pair.first_page :] for side in sides), strict=True)
    return sum(source & COUNT > destination & COUNT for source, destination in tokens)


async def test_cancel_comes_too_late(start_pair: StartPair, binary: Path) -> None:
    slow = plan(Unix(), Postcopy(max_bandwidth=MIB), max_bandwidth=MIB)
    async with start_pair(binary, pages_per_second=None) as pair:
        await has_written_all(pair)
        async with Migration(pair.source, pair.destination, slow, verify=pair.blocks) as migration:
            await switch_early(pair, migration)
            assert migration.status is MigrationStatus.POSTCOPY_ACTIVE
            with pytest.raises(MigrationError, match="cannot be cancelled after the switchover"):
                await migration.cancel()
            with pytest.raises(MigrationError, match="nothing to recover, it is postcopy-active"):
                await migration.recover()
            await migration.set_parameters(postcopy_bandwidth=0)
            result = await migration.complete(timeout=DEADLINE)
        assert result.comparison is not None
        assert result.comparison.equal


# A channel that breaks


@dataclass(eq=False)
class Wire(Channel):
    """A unix channel through a relay of ours, which can be cut."""

    folder: Path
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    server: asyncio.AbstractServer | None = None

    words = "wire"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        return WireConnection(self, source, destination)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_unix_connection(self.folder / "destination")
        for pair in ((reader, outer), (inner, writer)):
            self.tasks.add(asyncio.create_task(copy(*pair)))

    async def cut(self) -> None:
        if self.server is not None:
            self.server.close()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


class WireConnection(Connection):
    def __init__(self, wire: Wire, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self.wire = wire

    async def listen(self) -> str:
        return f"unix:{self.wire.folder / 'destination'}"

    async def reach(self) -> str:
        path = self.wire.folder / "source"
        self.wire.server = await asyncio.start_unix_server(self.wire.relay, path)
        return f"unix:{path}"


async def wait_taken_over(pair: Pair) -> None:
    """Only a destination that has the devices can be recovered."""

    async def has_taken_over() -> bool:
        info = await commands.query_migrate(pair.destination.monitor)
        return info.status is MigrationStatus.POSTCOPY_ACTIVE

    await until(has_taken_over, "the destination has taken over")


async def has_written_all(pair: Pair) -> None:
    """No page that there is to send is zero."""
    await pair.control.wait(
        lambda now: now.vcpus[0].passes > 0, timeout=DEADLINE, what="the guest has not been round"
    )


async def switch_early(pair: Pair, migration: Migration) -> None:
    """Nearly all memory is still to come, which lasts longer than a busy host takes for the rest.

    After a pass that would be what the guest has written meanwhile: little, where it got no time.
    """
    await migration.start_postcopy()
    async for _ in migration.iterations():
        pass
    await wait_taken_over(pair)


@pytest.mark.parametrize("again", [Unix(), Tcp()], ids=["unix", "tcp"])
@pytest.mark.parametrize("preempt", [False, True], ids=["plain", "preempt"])
async def test_recovery_after_the_channel_broke(
    start_pair: StartPair, binary: Path, again: Channel, preempt: bool
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="wire-"))
    wire = Wire(folder)
    slow = plan(wire, Postcopy(max_bandwidth=MIB, preempt=preempt), max_bandwidth=MIB)
    try:
        async with start_pair(binary, pages_per_second=None) as pair:
            await has_written_all(pair)
            async with Migration(
                pair.source, pair.destination, slow, verify=pair.blocks
            ) as migration:
                await switch_early(pair, migration)
                await wire.cut()
                with pytest.raises(PostcopyPausedError) as caught:
                    await migration.complete(timeout=DEADLINE)
                assert caught.value.outcome is not None
                assert caught.value.outcome.recoverable
                with pytest.raises(MigrationError, match="cannot be cancelled"):
                    await migration.cancel()
                await migration.set_parameters(postcopy_bandwidth=0)
                await migration.recover(again)
                result = await migration.complete(timeout=DEADLINE)
            assert result.comparison is not None
            assert result.comparison.equal
            await pair.wait_writing_at_destination()
    finally:
        await wire.cut()
        shutil.rmtree(folder)


async def test_leaving_a_paused_postcopy_leaves_both_sides_alone(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    wire = Wire(tmp_path)
    slow = plan(wire, Postcopy(max_bandwidth=MIB), max_bandwidth=MIB)
    async with start_pair(binary, pages_per_second=None) as pair:
        await has_written_all(pair)
        with pytest.raises(PostcopyPausedError):
            async with Migration(
                pair.source, pair.destination, slow, verify=pair.blocks
            ) as migration:
                await switch_early(pair, migration)
                await wire.cut()
                await migration.complete(timeout=DEADLINE)
        for machine in (pair.source, pair.destination):
            assert machine.returncode is None
        info = await commands.query_migrate(pair.source.monitor)
        assert info.status is MigrationStatus.POSTCOPY_PAUSED


async def wait_switched(monitor: Monitor) -> None:
    async def has_switched() -> bool:
        return (await commands.query_migrate(monitor)).status is not MigrationStatus.ACTIVE

    await until(has_switched, "it has switched over")


@pytest.mark.parametrize("asked", ["cancel", "leave"])
@pytest.mark.parametrize(
    "ms", [0, 2, 8, None, *(pytest.param(ms, marks=pytest.mark.full) for ms in (1, 4, 16))]
)
async def test_given_up_when_it_is_about_to_switch_over(
    start_pair: StartPair,
    binary: Path,
    monkeypatch: pytest.MonkeyPatch,
    ms: float | None,
    asked: str,
) -> None:
    """Whether it has moved or not, the guest runs on; None: just when it has begun to."""
    real = commands.migrate_start_postcopy
    told = asyncio.Event()

    async def start(monitor: Monitor) -> None:
        await real(monitor)
        if ms is None:
            await wait_switched(monitor)
        told.set()
        if ms is None:  # whoever watches has heard nothing of it yet
            await asyncio.sleep(0.05)

    monkeypatch.setattr(commands, "migrate_start_postcopy", start)
    async with start_pair(binary, pages_per_second=None) as pair:
        async with Migration(pair.source, pair.destination, plan(Unix(), Postcopy())) as migration:
            await asyncio.wait_for(told.wait(), DEADLINE)
            await asyncio.sleep((ms or 0) / 1000)
            if asked == "cancel":
                with suppress(MigrationError):  # it came too late
                    await migration.cancel()

        async def is_over() -> bool:
            return not (await commands.query_migrate(pair.source.monitor)).is_active

        await until(is_over, "the migration is over")
        info = await commands.query_migrate(pair.source.monitor)
        if info.status is MigrationStatus.COMPLETED:
            await pair.wait_writing_at_destination()
        else:
            await pair.assert_source_goes_on()


async def test_waits_before_it_switches_over(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary, pages_per_second=None) as pair:
        one = plan(Unix(), Postcopy(), pause_before_switchover=True)
        async with Migration(pair.source, pair.destination, one, verify=pair.blocks) as migration:
            async for _ in migration.iterations():
                pass
            assert migration.status is MigrationStatus.PRE_SWITCHOVER
            result = await migration.complete(timeout=60)
        assert result.switched_to_postcopy
        assert result.comparison is not None
        assert result.comparison.equal
        await pair.wait_writing_at_destination()


async def test_cancelled_before_it_switches_over(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary, pages_per_second=None) as pair:
        one = plan(Unix(), Postcopy(), pause_before_switchover=True)
        async with Migration(pair.source, pair.destination, one) as migration:
            async for _ in migration.iterations():
                pass
            assert (await migration.cancel()).guest_at is GuestAt.SOURCE
        await pair.assert_source_goes_on()
