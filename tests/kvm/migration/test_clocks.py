"""Downtime by the times that the QEMUs give their events, whatever the way to their monitors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.machine import Life, Machine
from qemu_ring.migration import Migration, MigrationPlan, MigrationResult, Unix
from tests.kvm.migration.qemus import Qemus
from tests.proxy import proxied
from tests.waiting import DEADLINE

pytestmark = pytest.mark.kvm

PLAN = MigrationPlan(channel=Unix(), downtime_limit=0.05)
Address = str | tuple[str, int]


@pytest.fixture(params=["distribution", pytest.param("patched", marks=pytest.mark.build)])
def qemus(request: pytest.FixtureRequest, qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    binary = qemu_path
    if request.param == "patched":
        binary = request.getfixturevalue("patched_qemu")
    started = Qemus(tmp_path, binary)
    yield started
    started.stop()


async def migrated(source_at: Address, destination_at: Address) -> tuple[MigrationResult, float]:
    """The result, and the downtime by the events' own times; both QEMUs are on this host."""
    async with (
        await Machine.attach(source_at, name="source") as source,
        await Machine.attach(destination_at, name="destination") as destination,
    ):
        with source.monitor.events("STOP") as stops, destination.monitor.events("RESUME") as goes:
            async with Migration(source, destination, PLAN) as migration:
                result = await migration.complete(timeout=DEADLINE)
            stopped, resumed = await stops.wait(timeout=DEADLINE), await goes.wait(timeout=DEADLINE)
        assert source.life in (Life.RUNS, Life.UNKNOWN)
        return result, resumed.seconds - stopped.seconds


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_on_one_host(qemus: Qemus, way: str) -> None:
    at: list[Address] = [qemus.source, qemus.destination]
    result, seconds = await migrated(*(at if way == "unix" else qemus.by_tcp.values()))
    assert result.downtime.seconds == seconds
    assert result.downtime.uncertainty_seconds == 0
    assert 0 < seconds < result.seconds


@pytest.mark.parametrize("late", ["source", "destination"])
async def test_on_hosts_that_may_differ(qemus: Qemus, late: str) -> None:
    """A tenth of a second late at one of the two: not to be told from clocks that differ."""
    async with (
        proxied(Path(qemus.source), ("127.0.0.1", 0)) as first,
        proxied(Path(qemus.destination), ("127.0.0.1", 0)) as second,
    ):
        (first if late == "source" else second).delay = 0.1
        assert isinstance(first.address, tuple)
        assert isinstance(second.address, tuple)
        result, seconds = await migrated(first.address, second.address)
    downtime = result.downtime
    assert downtime.seconds is not None
    assert downtime.uncertainty_seconds is not None
    assert downtime.uncertainty_seconds >= 0.1
    assert downtime.seconds >= 0
    assert abs(downtime.seconds - seconds) <= downtime.uncertainty_seconds
