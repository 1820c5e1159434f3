"""Memory compared before the guest goes on, and where it goes on, on a real QEMU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.migration import GuestAt, Migration, MigrationPlan, Postcopy, Unix
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, Comparison, StalePage, compare

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SLOW = {"max_bandwidth": 40 * MIB, "downtime_limit": 0.001}


async def test_comparison_is_no_part_of_the_switchover(
    start_pair: StartPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[float] = []

    async def timed(blocks: Sequence[Block]) -> Comparison:
        begin = time.monotonic()
        comparison = await compare(blocks)
        compared.append(time.monotonic() - begin)
        return comparison

    monkeypatch.setattr("qemu_ring.migration.engine.completion.compare", timed)
    async with start_pair() as pair:
        migration = Migration(pair.source, pair.destination, verify=pair.blocks)
        async with migration:
            downtime = (await migration.complete()).downtime
    assert downtime.seconds is not None
    assert downtime.switchover_seconds is not None
    assert 0 < downtime.switchover_seconds <= downtime.seconds - compared[0]


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stale page found."""

    async def find(blocks: Sequence[Block]) -> Comparison:
        assert (await compare(blocks)).equal
        return Comparison(1, 1, 1, (StalePage("ram", 0, "a", "b"),))

    monkeypatch.setattr("qemu_ring.migration.engine.completion.compare", find)


@pytest.mark.usefixtures("stale")
@pytest.mark.parametrize("kind", ["precopy", "postcopy"])
async def test_stale_guest_goes_on_at_the_source_with_its_disk(
    start_pair: StartPair, binary: Path, kind: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    blockdev = f"driver=file,node-name=disk,filename={disk}"
    extra = ("-blockdev", blockdev, "-device", "ide-hd,drive=disk")
    plan = MigrationPlan(channel=Unix())
    if kind == "postcopy":
        plan = MigrationPlan(kind=Postcopy(), **SLOW)  # type: ignore[arg-type]
    rate = None if kind == "postcopy" else 4000
    async with start_pair(binary, extra=extra, pages_per_second=rate) as pair:
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            result = await migration.complete(timeout=60)
        assert result.comparison is not None
        assert not result.comparison.equal
        assert result.outcome.destination == "paused"
        assert result.switched_to_postcopy == (kind == "postcopy")
        if kind == "postcopy" and pair.source.monitor.version < (10, 0, 0):
            # Its destination takes the disks as soon as it has the devices.
            assert result.outcome.guest_at is GuestAt.NOWHERE
            assert "lock" in result.problem
            return
        assert result.outcome.guest_at is GuestAt.SOURCE
        assert result.problem == ""
        await pair.assert_source_goes_on()


@pytest.mark.usefixtures("stale")
async def test_stale_guest_goes_on_at_the_destination_if_it_is_to(
    start_pair: StartPair, binary: Path
) -> None:
    plan = MigrationPlan(if_stale=GuestAt.DESTINATION)
    async with start_pair(binary) as pair:
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            result = await migration.complete(timeout=60)
        assert result.outcome.guest_at is GuestAt.DESTINATION
        await pair.wait_writing_at_destination()


@pytest.mark.parametrize("kind", ["precopy", "postcopy"])
async def test_cancelled_while_memory_is_compared(
    start_pair: StartPair, binary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    begun = asyncio.Event()

    async def forever(_: Sequence[Block]) -> Comparison:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("qemu_ring.migration.engine.completion.compare", forever)
    plan = MigrationPlan(channel=Unix())
    if kind == "postcopy":
        plan = MigrationPlan(kind=Postcopy(), **SLOW)  # type: ignore[arg-type]
    async with start_pair(binary) as pair:

        async def migrate() -> None:
            async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as one:
                await one.complete()

        task = asyncio.create_task(migrate())
        await asyncio.wait_for(begun.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pair.wait_writing_at_destination()


@pytest.mark.parametrize("verified", [True, False])
async def test_guest_that_is_paused_on_the_way_stays_so(
    start_pair: StartPair, binary: Path, verified: bool
) -> None:
    plan = MigrationPlan(max_bandwidth=20 * MIB, downtime_limit=0.001)
    async with start_pair(binary) as pair:
        blocks = pair.blocks if verified else []
        async with Migration(pair.source, pair.destination, plan, verify=blocks) as migration:
            await commands.stop(pair.source.monitor)
            await migration.set_parameters(max_bandwidth=1 << 40)
            result = await migration.complete(timeout=60)
        assert (result.outcome.source, result.outcome.destination) == ("postmigrate", "paused")
        assert result.downtime.seconds is None


async def test_paused_and_let_run_again_on_the_way(start_pair: StartPair, binary: Path) -> None:
    plan = MigrationPlan(max_bandwidth=20 * MIB, downtime_limit=0.001)
    async with start_pair(binary) as pair:
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            await commands.stop(pair.source.monitor)
            await commands.cont(pair.source.monitor)
            await migration.set_parameters(max_bandwidth=1 << 40, downtime_limit=1)
            result = await migration.complete(timeout=60)
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert result.downtime.seconds is not None
        await pair.wait_writing_at_destination()
