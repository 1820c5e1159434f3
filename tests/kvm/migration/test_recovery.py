"""Postcopy whose controller is gone, recovered by another that only attaches to both QEMUs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.machine import Machine
from qemu_ring.migration import (
    GuestAt,
    Migration,
    MigrationError,
    MigrationPlan,
    Postcopy,
    PostcopyPausedError,
    Tcp,
    Tls,
    Unix,
    recover_postcopy,
)
from qemu_ring.migration.engine import recovery as engine
from qemu_ring.qmp import MigrationStatus, commands
from tests.command import COMMAND
from tests.kvm.migration.qemus import Qemus
from tests.kvm.migration.refusals import may_be_refused
from tests.processes import killed_if_it_fails
from tests.waiting import DEADLINE, until

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

# Their guests lack memory where they go on, because they have written it all.
pytestmark = [pytest.mark.kvm, pytest.mark.busy_guest]

MIB = 1 << 20

# A controller: tells when the guest has moved, and ends only by being killed.
CONTROLLER = """
import asyncio, sys
from qemu_ring.machine import Machine
from qemu_ring.migration import Migration, MigrationPlan, Postcopy, Unix

async def main(source, destination):
    plan = MigrationPlan(
        kind=Postcopy(max_bandwidth=1 << 20), channel=Unix(),
        # A pass that lasts while the guest writes all: it then lacks all where it goes on.
        max_bandwidth=16 << 20, downtime_limit=0.001,
    )
    async with await Machine.attach(source) as one, await Machine.attach(destination) as two:
        async with Migration(one, two, plan) as migration:
            async for _ in migration.iterations():
                pass
            print(migration.status, flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def qemus(qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    """Their memory is where postcopy can place pages."""
    started = Qemus(tmp_path, qemu_path, memory_folder=Path("/dev/shm"))
    yield started
    started.stop()


async def wait_taken_over(destination: Machine) -> None:
    """Only a destination that has the devices can be recovered."""

    async def has_taken_over() -> bool:
        return (await commands.query_migrate(destination.monitor)).status == "postcopy-active"

    await until(has_taken_over, "the destination has taken over")


def kill_a_controller(qemus: Qemus) -> None:
    with killed_if_it_fails(
        subprocess.Popen(
            [sys.executable, "-c", CONTROLLER, qemus.source, qemus.destination],
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "postcopy-active\n"
        process.kill()


@pytest.mark.parametrize("broken", ["source", "destination", "neither"])
async def test_controller_was_killed(qemus: Qemus, broken: str) -> None:
    """And the channel broke, as one of the sides has noticed, or goes on without it."""
    kill_a_controller(qemus)
    async with (
        await Machine.attach(qemus.source) as source,
        await Machine.attach(qemus.destination) as destination,
    ):
        sides = {"source": source, "destination": destination}
        await wait_taken_over(destination)
        if broken in sides:
            await commands.migrate_pause(sides[broken].monitor)
        await commands.set_parameters(source.monitor, max_postcopy_bandwidth=0)
        outcome = await recover_postcopy(source, destination, timeout=DEADLINE)
        assert outcome.guest_at is GuestAt.DESTINATION
        assert outcome.source == "postmigrate"
        for machine in sides.values():
            info = await commands.query_migrate(machine.monitor)
            assert info.status is MigrationStatus.COMPLETED
        with pytest.raises(
            MigrationError, match="no migration to recover: the source's is completed, the dest"
        ):
            await recover_postcopy(source, destination)
    qemus.assert_alive()


@pytest.mark.parametrize("broken", ["source", "destination"])
async def test_channel_breaks_while_it_is_waited_for(
    qemus: Qemus, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that broke before: no side need have noticed when it is asked first."""
    kill_a_controller(qemus)
    waits, completed = asyncio.Event(), engine._completed

    async def wait_completed(sides: tuple[Machine, Machine], *, runs: bool) -> bool:
        waits.set()
        return await completed(sides, runs=runs)

    monkeypatch.setattr(engine, "_completed", wait_completed)
    async with (
        await Machine.attach(qemus.source) as source,
        await Machine.attach(qemus.destination) as destination,
    ):
        await wait_taken_over(destination)
        recovery = asyncio.create_task(recover_postcopy(source, destination, timeout=DEADLINE))
        await asyncio.wait_for(waits.wait(), DEADLINE)
        side = {"source": source, "destination": destination}[broken]
        await commands.migrate_pause(side.monitor)
        await commands.set_parameters(source.monitor, max_postcopy_bandwidth=0)
        outcome = await recovery
        assert outcome.guest_at is GuestAt.DESTINATION
        assert outcome.source == "postmigrate"
    qemus.assert_alive()


async def test_nothing_to_recover(qemus: Qemus) -> None:
    async with (
        await Machine.attach(qemus.source) as source,
        await Machine.attach(qemus.destination) as destination,
    ):
        with pytest.raises(
            MigrationError, match=r"no migration to recover.*is none.*'s none"
        ) as no:
            await recover_postcopy(source, destination)
        assert no.value.outcome is not None
        assert no.value.outcome.guest_at is GuestAt.SOURCE


@may_be_refused
async def test_what_was_encrypted_stays_so(
    start_pair: StartPair, qemu_path: Path, certificates: Path
) -> None:
    """The sides keep their certificates until it is over."""
    plan = MigrationPlan(
        kind=Postcopy(max_bandwidth=MIB),
        channel=Tcp(),
        max_bandwidth=40 * MIB,
        downtime_limit=0.001,
        tls=Tls(certificates, hostname="ring.test"),
    )
    async with start_pair(qemu_path, pages_per_second=None) as pair:
        source, destination = pair.source, pair.destination
        with pytest.raises(PostcopyPausedError):
            async with Migration(source, destination, plan) as migration:
                async for _ in migration.iterations():
                    pass
                await wait_taken_over(destination)
                await commands.migrate_pause(source.monitor)
                await migration.complete(timeout=DEADLINE)
        for machine in (source, destination):
            parameters = await commands.query_parameters(machine.monitor)
            assert parameters["tls-creds"] == "qemu-ring-tls"
        await commands.set_parameters(source.monitor, max_postcopy_bandwidth=0)
        outcome = await recover_postcopy(source, destination, Unix(), timeout=60)
        assert outcome.guest_at is GuestAt.DESTINATION
        await pair.wait_writing_at_destination()


async def test_recovered_by_the_command(qemus: Qemus) -> None:
    kill_a_controller(qemus)
    async with (
        await Machine.attach(qemus.source) as source,
        await Machine.attach(qemus.destination) as destination,
    ):
        await wait_taken_over(destination)
        await commands.migrate_pause(source.monitor)
        await commands.set_parameters(source.monitor, max_postcopy_bandwidth=0)
    command = [*COMMAND, "migrate"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *(qemus.source, qemus.destination, "--recover"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err
    assert out.decode().startswith("the migration is completed; the guest runs at the destination")
    qemus.assert_alive()
