"""What a killed controller leaves in QEMUs that are not its own, and who cleans it up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.machine import Machine
from qemu_ring.qmp import CommandError, MigrationStatus, commands
from tests.command import COMMAND
from tests.kvm.migration.qemus import Qemus
from tests.waiting import DEADLINE, until

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("binary")]

MIGRATE = [*COMMAND, "migrate"]

_SENT_BYTES = 1 << 16
"""More than what a connection's beginning takes."""


@pytest.fixture
def pair(tmp_path: Path, binary: Path, shm_folder: Path) -> Iterator[Qemus]:
    """A guest and a twin that waits, with memory that postcopy can do with."""
    started = Qemus(tmp_path, binary, memory_folder=shm_folder, named=True)
    yield started
    started.stop()


@asynccontextmanager
async def watched(qemus: Qemus) -> AsyncIterator[tuple[Machine, Machine]]:
    source, destination = [await Machine.attach(path) for path in qemus.watches]
    async with source, destination:
        yield source, destination


async def set_in(machine: Machine) -> tuple[dict[str, bool], dict[str, object], set[str]]:
    """What a migration could leave: capabilities, parameters, objects."""
    monitor = machine.monitor
    listed = await monitor.execute("qom-list", {"path": "/objects"})
    assert isinstance(listed, list)
    objects = {one["name"] for one in listed}
    return (
        await commands.query_capabilities(monitor),
        await commands.query_parameters(monitor),
        objects,
    )


async def until_status(machine: Machine, *wanted: MigrationStatus) -> None:
    async def is_so() -> bool:
        return (await commands.query_migrate(machine.monitor)).status in wanted

    await until(is_so, f"the migration is {' or '.join(wanted)}")


def begin(*arguments: str) -> subprocess.Popen[bytes]:
    command = [*MIGRATE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


async def kill_when_active(source: Machine, *arguments: str) -> None:
    """Run the command until its migration is under way, and kill it.

    All its channels are made by then: QEMU 7.2 may never end one that is cancelled meanwhile.
    """
    process = begin(*arguments)

    async def is_active() -> bool:
        if process.poll() is not None:
            pytest.fail(f"it ended by itself: {process.stderr and process.stderr.read()!r}")
        info = await commands.query_migrate(source.monitor)
        sent = 0 if info.ram is None else info.ram.transferred
        return info.status is MigrationStatus.ACTIVE and sent > _SENT_BYTES

    try:
        await until(is_active, "the migration is under way")
    finally:
        process.kill()
        _, said = process.communicate(timeout=DEADLINE)
    assert said == b""


def run(*arguments: str, expect: int = 0, program: Sequence[str] = MIGRATE) -> str:
    done = subprocess.run(
        [*program, *arguments], capture_output=True, text=True, timeout=2 * DEADLINE, check=False
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("again", ["with TLS", "without", "to a file"])
async def test_next_migration_takes_over_what_a_killed_one_set(
    pair: Qemus, certificates: Path, tmp_path: Path, again: str
) -> None:
    tls = ["--tls-dir", str(certificates), "--tls-hostname", "ring.test"]
    async with watched(pair) as (source, destination):
        before = await set_in(source)
        slow = ["--multifd", "2", "--max-bandwidth", "1M", "--downtime-limit", "0.001"]
        await kill_when_active(source, pair.source, pair.destination, *tls, *slow)
        left = await set_in(source)
        assert all(one != other for one, other in zip(before, left, strict=True))
        assert "qemu-ring-tls" in (await set_in(destination))[2]
        await commands.migrate_cancel(source.monitor)
        await until_status(source, MigrationStatus.CANCELLED, MigrationStatus.FAILED)
    pair.renew_twin()
    async with watched(pair) as (source, destination):
        if again == "to a file":
            run(pair.source, "--to-file", str(tmp_path / "saved"))
        else:
            said = run(pair.source, pair.destination, *(tls if again == "with TLS" else []))
            assert "the guest runs at the destination" in said
        assert await set_in(source) == before
        assert (await set_in(destination))[2] == before[2]


async def test_destination_that_was_set_up_and_never_told_to_listen(
    pair: Qemus, certificates: Path
) -> None:
    """Killed between the set-up and the beginning, both sides are left with all that was set."""
    tls = ["--tls-dir", str(certificates), "--tls-hostname", "ring.test"]
    program = (
        "import os, signal, sys\n"
        "from qemu_ring.migration.engine.destination import Receiver\n"
        "async def expect(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Receiver.expect = expect\n"
        "from qemu_ring.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    async with watched(pair) as (source, destination):
        before = [await set_in(machine) for machine in (source, destination)]
        arguments = [pair.source, pair.destination, "--channel", "fd", *tls]
        run(*arguments, expect=-9, program=(sys.executable, "-c", program, "migrate"))
        assert "qemu-ring-tls" in (await set_in(destination))[2]
        said = run(pair.source, pair.destination)
        assert "the guest runs at the destination" in said
        assert [await set_in(machine) for machine in (source, destination)] == before
        for machine in (source, destination):
            fd = {"fdname": "qemu-ring-migration"}
            with pytest.raises(CommandError, match="not found"):
                await machine.monitor.execute("closefd", fd)


KILL_WHEN_COMPARED = """
import os, signal, sys
from qemu_ring.migration.engine import completion as ending
async def compare(_): os.kill(os.getpid(), signal.SIGKILL)
ending.compare = compare
from qemu_ring.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("leave_paused", [False, True], ids=["runs", "stays paused"])
@pytest.mark.parametrize("kind", ["precopy", "postcopy"])
async def test_killed_while_memory_is_compared(pair: Qemus, kind: str, leave_paused: bool) -> None:
    """The guest stands still on both sides; it has all of its memory at the destination."""
    async with watched(pair) as (source, destination):
        before = [await set_in(machine) for machine in (source, destination)]
        arguments = [pair.source, pair.destination, "--verify", "--kind", kind]
        program = (sys.executable, "-c", KILL_WHEN_COMPARED, "migrate")
        run(*arguments, expect=-9, program=program)
        states = [
            (await commands.query_status(one.monitor)).status for one in (source, destination)
        ]
        assert states == ["postmigrate", "paused"]
        said = run(pair.source, pair.destination, expect=2)
        assert "its controller is gone: qemu-ring migrate --recover" in said
        paused = ["--leave-paused"] if leave_paused else []
        said = run(pair.source, pair.destination, "--recover", *paused)
        where = "does not run" if leave_paused else "runs at the destination"
        assert f"the migration is completed; the guest {where}" in said
        assert (await commands.query_status(destination.monitor)).running != leave_paused
        assert [await set_in(machine) for machine in (source, destination)] == before
        said = run(pair.source, pair.destination, "--recover", expect=4)
        assert "there is no migration to recover" in said


async def test_killed_before_memory_is_compared(pair: Qemus) -> None:
    """The migration goes on by itself, and so does the guest when somebody sees it to its end."""
    async with watched(pair) as (source, destination):
        before = [await set_in(machine) for machine in (source, destination)]
        slow = ["--max-bandwidth", "8M", "--downtime-limit", "0.001"]
        await kill_when_active(source, pair.source, pair.destination, "--verify", *slow)
        await commands.set_parameters(source.monitor, max_bandwidth=1 << 40, downtime_limit=2000)
        said = run(pair.source, pair.destination, "--recover")
        assert "the migration is completed; the guest runs at the destination" in said
        assert (await commands.query_status(destination.monitor)).running
        assert [await set_in(machine) for machine in (source, destination)] == before


async def test_guest_that_was_paused_stays_so(pair: Qemus) -> None:
    async with watched(pair) as (source, destination):
        await commands.stop(source.monitor)
        program = (sys.executable, "-c", KILL_WHEN_COMPARED, "migrate")
        run(pair.source, pair.destination, "--verify", expect=-9, program=program)
        said = run(pair.source, pair.destination, "--recover")
        assert "the migration is completed; the guest does not run" in said
        assert (await commands.query_status(destination.monitor)).status == "paused"


async def test_migration_of_somebody_else_is_left_alone(pair: Qemus) -> None:
    """Without a note of ours, who migrates lets the guest run when it is to."""
    async with watched(pair) as (source, destination):
        await commands.stop(destination.monitor)
        uri = f"unix:{pair.destination}.migration"
        await commands.migrate_incoming(destination.monitor, uri)
        await commands.migrate(source.monitor, uri)
        await until_status(destination, MigrationStatus.COMPLETED)
        await until_status(source, MigrationStatus.COMPLETED)
        said = run(pair.source, pair.destination, "--recover", expect=4)
        assert "there is no migration to recover" in said
        assert (await commands.query_status(destination.monitor)).status == "paused"
