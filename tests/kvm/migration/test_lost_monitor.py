"""A monitor that is lost in mid-migration is no QEMU that has ended; it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.machine import Life, Machine
from qemu_ring.migration import Exec, GuestAt, Migration, MigrationError, MigrationPlan, Unix
from qemu_ring.qmp import commands
from tests.kvm.migration.qemus import Qemus
from tests.proxy import Proxy, proxied
from tests.waiting import DEADLINE, until

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("qemus")]

SLOW = MigrationPlan(channel=Unix(), max_bandwidth=1 << 20)
"""The guest writes 16 MB a second: it never ends by itself."""
SAVED = MigrationPlan(channel=Exec("cat > /dev/null"), max_bandwidth=1 << 20)
FAST = 1 << 32


@pytest.fixture(params=["distribution", pytest.param("patched", marks=pytest.mark.build)])
def qemus(request: pytest.FixtureRequest, qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    binary = qemu_path
    if request.param == "patched":
        binary = request.getfixturevalue("patched_qemu")
    started = Qemus(tmp_path, binary)
    yield started
    started.stop()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Path | tuple[str, int]:
    return tmp_path / "proxy" if request.param == "unix" else ("127.0.0.1", 0)


@asynccontextmanager
async def sides(source: Path, destination: Path) -> AsyncIterator[tuple[Machine, Machine]]:
    async with (
        await Machine.attach(source, name="source") as first,
        await Machine.attach(destination, name="destination") as second,
    ):
        yield first, second


async def found_alive(qemus: Qemus) -> None:
    """Nothing was done to the source: its guest runs, and its migration goes on."""
    qemus.assert_alive()
    async with await Machine.attach(qemus.source) as machine:
        assert (await commands.query_status(machine.monitor)).running
        assert (await commands.query_migrate(machine.monitor)).is_active
        await commands.migrate_cancel(machine.monitor)


async def test_source_that_stays_lost(qemus: Qemus, address: Path | tuple[str, int]) -> None:
    async with proxied(Path(qemus.source), address) as proxy:
        with pytest.raises(MigrationError) as caught:
            async with (
                await Machine.attach(proxy.address, name="source") as source,
                await Machine.attach(qemus.destination, name="destination") as destination,
                Migration(source, destination, SLOW) as migration,
            ):
                await until(lambda: migration.status == "active", "it is active")
                await proxy.cut()
                await migration.complete()
    outcome = caught.value.outcome
    assert outcome is not None
    assert (outcome.source, outcome.guest_at) == ("unknown", GuestAt.UNKNOWN)
    assert not outcome.lost
    text = str(caught.value)
    assert "what became of its QEMU is not known" in text
    assert "end neither QEMU" in text
    for wrong in ("gone,", "does not run", "anew"):
        assert wrong not in text
    await found_alive(qemus)


async def lose(proxy: Proxy, machine: Machine) -> None:
    """Cut the connection, and let it be made again."""
    await proxy.cut()
    await until(lambda: not machine.monitor.connected, "it is lost")
    await proxy.listen()
    await until(lambda: machine.monitor.connected and proxy.sessions == 2, "it is back")


async def test_source_that_comes_back(qemus: Qemus, address: Path | tuple[str, int]) -> None:
    async with (
        proxied(Path(qemus.source), address) as proxy,
        await Machine.attach(proxy.address, name="source") as source,
        await Machine.attach(qemus.destination, name="destination") as destination,
        Migration(source, destination, SLOW) as migration,
    ):
        await until(lambda: migration.status == "active", "it is active")
        await lose(proxy, source)
        await migration.set_parameters(max_bandwidth=FAST, downtime_limit=1.0)
        result = await migration.complete(timeout=DEADLINE)
        assert result.status == "completed"
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert (await commands.query_parameters(source.monitor))["max-bandwidth"] == FAST
    qemus.assert_alive()


async def test_destination_that_comes_back(qemus: Qemus, tmp_path: Path) -> None:
    async with (
        proxied(Path(qemus.destination), tmp_path / "proxy") as proxy,
        await Machine.attach(qemus.source, name="source") as source,
        await Machine.attach(tmp_path / "proxy", name="destination") as destination,
        Migration(source, destination, SLOW) as migration,
    ):
        await until(lambda: migration.status == "active", "it is active")
        await proxy.cut()
        await migration.set_parameters(max_bandwidth=FAST, downtime_limit=1.0)
        completing = asyncio.create_task(migration.complete(timeout=DEADLINE))
        await until(lambda: not destination.monitor.connected, "it is lost")
        await proxy.listen()
        result = await completing
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert (await commands.query_status(destination.monitor)).running
        assert result.downtime.seconds is None or result.downtime.seconds > 0
    qemus.assert_alive()


async def test_another_qemu_in_its_place(qemus: Qemus, tmp_path: Path) -> None:
    """What answers at the address is asked who it is: its guest is not the one that migrated."""
    async with proxied(Path(qemus.source), tmp_path / "proxy") as proxy:
        with pytest.raises(MigrationError) as caught:
            async with (
                await Machine.attach(tmp_path / "proxy", name="source") as source,
                Migration(source, None, SAVED) as migration,
            ):
                await until(lambda: migration.status == "active", "it is active")
                await proxy.cut()
                proxy.upstream = Path(qemus.destination)
                await proxy.listen()
                await migration.complete()
    assert caught.value.outcome is not None
    assert caught.value.outcome.guest_at is GuestAt.UNKNOWN
    await found_alive(qemus)


async def test_source_that_has_ended_is_known_to(qemus: Qemus) -> None:
    async with sides(Path(qemus.source), Path(qemus.destination)) as (source, destination):
        with pytest.raises(MigrationError, match="the source is lost") as caught:
            async with Migration(source, destination, SLOW) as migration:
                assert source.life is Life.RUNS
                await until(lambda: migration.status == "active", "it is active")
                qemus.processes[0].kill()
                await migration.complete()
        assert source.life is Life.ENDED
    assert caught.value.outcome is not None
    assert caught.value.outcome.source is None
