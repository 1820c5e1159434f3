"""The least that a plan takes is kept to by QEMU; what it refuses would be another thing there.

Each rule stands beside what QEMU does with the value all the same: if that changes, the test
says that the rule can go.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration import Migration, MigrationPlan, Sample
from qemu_ring.qmp import MigrationStatus, commands

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
PASSES = 4


async def test_bandwidth(start_pair: StartPair, binary: Path) -> None:
    sampled = asyncio.Event()

    def note(sample: Sample) -> None:
        if sample.seconds > 2:
            sampled.set()

    async with start_pair(binary) as pair:
        plan = MigrationPlan(max_bandwidth=10)
        async with Migration(pair.source, pair.destination, plan, on_sample=note) as migration:
            await asyncio.wait_for(sampled.wait(), 60)
            sent = await commands.query_migrate(pair.source.monitor)
            assert sent.status is MigrationStatus.ACTIVE
            assert sent.ram is not None
            assert sent.ram.remaining > 10 * MIB  # of 40, which unlimited take a tenth of a second
            for refused in (1, 9):
                with pytest.raises(UsageError, match="would be no limit"):
                    await migration.set_parameters(max_bandwidth=refused)
            await commands.set_parameters(pair.source.monitor, max_bandwidth=9)
            await migration.complete(timeout=60)


async def held_open(migration: Migration) -> None:
    """It has sent memory several times over, and could not switch over."""
    async for iteration in migration.iterations():
        if iteration.number >= PASSES:
            return
    raise AssertionError("it switched over")


async def assert_no_limit(pair: Pair, migration: Migration, parameter: str, value: int) -> None:
    """QEMU switches over with it at the end of the next pass, whatever is left."""
    await pair.source.monitor.execute("migrate-set-parameters", {parameter: value})
    result = await migration.complete(timeout=60)
    assert result.status is MigrationStatus.COMPLETED
    assert result.totals.iterations <= len(result.timeline.iterations) + 2


async def test_downtime_limit(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary, pages_per_second=None) as pair:
        plan = MigrationPlan(max_bandwidth=100 * MIB, downtime_limit=0.001)
        async with Migration(pair.source, pair.destination, plan) as migration:
            await held_open(migration)
            for refused in (0, 0.0009):
                with pytest.raises(UsageError, match="would be no limit"):
                    await migration.set_parameters(downtime_limit=refused)
            await assert_no_limit(pair, migration, "downtime-limit", 0)


async def test_switchover_bandwidth(start_pair: StartPair, patched_qemu: Path) -> None:
    async with start_pair(patched_qemu, pages_per_second=None) as pair:
        plan = MigrationPlan(max_bandwidth=100 * MIB, switchover_bandwidth=1000)
        async with Migration(pair.source, pair.destination, plan) as migration:
            await held_open(migration)
            await assert_no_limit(pair, migration, "avail-switchover-bandwidth", 999)
