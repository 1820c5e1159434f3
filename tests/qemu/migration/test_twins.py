"""What differs between two QEMUs is told before it is too late; twins are never refused.

Each difference that is called fatal is tried on the QEMUs themselves, too.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from threading import Thread

import pytest

from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import Difference, Fd, Migration, MigrationPlan, Tcp, Unix
from qemu_ring.migration.comparison import differences
from qemu_ring.qmp import MigrationStatus, commands
from tests.command import COMMAND
from tests.qemu.migration.twins import PLAIN, started

pytestmark = [pytest.mark.qemu, pytest.mark.alternating("binary")]

Start = Callable[..., AbstractAsyncContextManager[tuple[Machine, Machine]]]
OLD_PC = ("-machine", "pc-i440fx-7.2", "-m", "32")
OLD_Q35 = ("-machine", "pc-q35-7.2", "-m", "32")
DEVICES = (
    *("-device", "virtio-net-pci,romfile=,id=net0", "-device", "virtio-rng-pci,addr=9"),
    *("-device", "qemu-xhci,id=x", "-device", "usb-tablet,bus=x.0"),
    *("-device", "pci-bridge,id=b,chassis_nr=1", "-device", "virtio-scsi-pci,bus=b,addr=3,id=s"),
    *("-blockdev", "null-co,node-name=n,read-zeroes=on", "-device", "scsi-hd,drive=n,bus=s.0"),
)
OTHER_NAMES = (
    *("-device", "virtio-net-pci,romfile=,id=other", "-device", "virtio-rng-pci,addr=9,id=rng"),
    *("-device", "qemu-xhci", "-device", "usb-tablet"),
    *("-device", "pci-bridge,id=bridge,chassis_nr=1"),
    *("-device", "virtio-scsi-pci,bus=bridge,addr=3,id=scsi"),
    *("-blockdev", "null-co,node-name=m,read-zeroes=on", "-device", "scsi-hd,drive=m"),
)


@pytest.fixture(params=["distribution", "patched"])
def binary(request: pytest.FixtureRequest, qemu_path: Path) -> Path:
    if request.param == "distribution":
        return qemu_path
    found: Path = request.getfixturevalue("patched_qemu")
    return found


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a source and a destination with these arguments, as a user does."""

    @asynccontextmanager
    async def both(
        binaries: Sequence[Path], ours: Sequence[str], theirs: Sequence[str]
    ) -> AsyncIterator[tuple[Machine, Machine]]:
        async with AsyncExitStack() as stack:
            machines = []
            sides = (("source", ours), ("destination", (*theirs, "-incoming", "defer")))
            for (role, arguments), binary in zip(sides, binaries, strict=True):
                stack.enter_context(started(binary, tmp_path, role, arguments))
                attached = await Machine.attach(str(tmp_path / role), name=role)
                machines.append(await stack.enter_async_context(attached))
            yield machines[0], machines[1]

    return both


async def succeeds(source: Machine, destination: Machine) -> bool:
    """Whether QEMU itself migrates the one to the other, asked as anybody may."""
    for one in (source, destination):
        await commands.set_capabilities(one.monitor, {"return-path": True})
    connection = Unix().connect(source.monitor, destination.monitor)
    try:
        await commands.migrate_incoming(destination.monitor, await connection.listen())
        await commands.migrate(source.monitor, await connection.reach())
        async with asyncio.timeout(60):
            while True:
                status = (await commands.query_migrate(source.monitor)).status
                if status in (MigrationStatus.COMPLETED, MigrationStatus.FAILED):
                    return status is MigrationStatus.COMPLETED
                await asyncio.sleep(0.01)
    finally:
        connection.close(completed=False)


TWINS = [
    (PLAIN, PLAIN),
    (("-machine", "q35", "-m", "32"), ("-machine", "q35", "-m", "32")),
    ((*PLAIN, *DEVICES), (*PLAIN, *OTHER_NAMES)),
    ((*PLAIN, "-smp", "2"), (*PLAIN, "-smp", "2")),
    (
        (*PLAIN, "-chardev", "null,id=c", "-device", "isa-serial,chardev=c"),
        (*PLAIN, "-chardev", "ringbuf,id=d", "-device", "isa-serial,chardev=d"),
    ),
    (
        (*PLAIN, "-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=32M"),
        (*PLAIN, "-machine", "memory-backend=m", "-object", "memory-backend-memfd,id=m,size=32M"),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), TWINS, ids=range(len(TWINS)))
async def test_twins(
    start: Start, binary: Path, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    async with start((binary, binary), ours, theirs) as (source, destination):
        assert await differences(source.monitor, destination.monitor) == ()
        plan = MigrationPlan(channel=Fd(), leave_paused=True)
        async with Migration(source, destination, plan) as migration:
            assert (await migration.complete(timeout=60)).status is MigrationStatus.COMPLETED


@pytest.mark.parametrize("machine", [OLD_PC, OLD_Q35], ids=lambda machine: machine[1])
@pytest.mark.parametrize("newer_first", [False, True])
async def test_two_versions_with_one_machine(
    start: Start,
    qemu_path: Path,
    patched_qemu: Path,
    machine: tuple[str, ...],
    newer_first: bool,
) -> None:
    binaries = (patched_qemu, qemu_path) if newer_first else (qemu_path, patched_qemu)
    bus = "pci.0" if machine is OLD_PC else "pcie.0"
    devices = tuple(word.replace("addr=9", f"bus={bus},addr=9") for word in DEVICES)
    ours = (*machine, *devices)
    async with start(binaries, ours, ours) as (source, destination):
        found = await differences(source.monitor, destination.monitor)
        assert [one for one in found if one.fatal] == []
        plan = MigrationPlan(channel=Fd(), leave_paused=True)
        async with Migration(source, destination, plan) as migration:
            assert (await migration.complete(timeout=60)).status is MigrationStatus.COMPLETED


FATAL = [
    (PLAIN, ("-machine", "q35", "-m", "32"), ["machine type: pc-i440fx-", "destination"]),
    (PLAIN, ("-machine", "pc", "-m", "64"), ["memory pc.ram: 32 MiB at the source, 64 MiB at the"]),
    (
        (*PLAIN, "-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=32M"),
        PLAIN,
        ["memory m (32 MiB) is missing at the destination, which has pc.ram instead"],
    ),
    ((*PLAIN, "-smp", "3"), PLAIN, ["vCPU 1, 2 is missing at the destination"]),
    (
        (*PLAIN, "-device", "virtio-rng-pci,addr=9"),
        PLAIN,
        ["device virtio-rng-pci at pci.0 09.0 is missing at the destination"],
    ),
    (
        (*PLAIN, "-device", "virtio-rng-pci,addr=9"),
        (*PLAIN, "-device", "virtio-rng-pci,addr=a"),
        ["pci.0 09.0 is missing at the destination", "pci.0 0a.0 is missing at the source"],
    ),
    (
        (*PLAIN, "-device", "virtio-rng-pci,addr=9"),
        (*PLAIN, "-device", "e1000,addr=9,romfile="),
        ["device at pci.0 09.0: virtio-rng-pci at the source, e1000 at the destination"],
    ),
    (
        (*PLAIN, "-device", "qemu-xhci", "-device", "usb-tablet"),
        (*PLAIN, "-device", "qemu-xhci"),
        ["device usb-tablet on pci.0 02.0 / is missing at the destination"],
    ),
    (
        (*PLAIN, "-chardev", "null,id=c", "-device", "isa-serial,chardev=c"),
        PLAIN,
        ["device isa-serial on isa.0 is missing at the destination"],
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "words"), FATAL, ids=range(len(FATAL)))
async def test_what_qemu_would_refuse(
    start: Start,
    binary: Path,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    words: list[str],
) -> None:
    async with start((binary, binary), ours, theirs) as (source, destination):
        with pytest.raises(UsageError, match=r"no twin of the source.*start it with") as err:
            async with Migration(source, destination, MigrationPlan(channel=Fd())):
                pytest.fail("it began")
        for word in words:
            assert word in str(err.value)
        assert not await succeeds(source, destination)


async def test_all_of_it_at_once(start: Start, binary: Path) -> None:
    ours = (*PLAIN, "-device", "virtio-rng-pci,addr=9", "-smp", "2")
    async with start((binary, binary), ours, ("-machine", "pc", "-m", "64")) as (one, other):
        found = await differences(one.monitor, other.monitor)
    assert {one.what.split(":")[0].split(" is ")[0] for one in found if one.fatal} == {
        "memory pc.ram",
        "vCPU 1",
        "device virtio-rng-pci at pci.0 09.0",
    }


DOUBTFUL = [
    (PLAIN, (*PLAIN, "-device", "virtio-rng-pci"), "virtio-rng-pci at pci.0 02.0 is missing at th"),
    (PLAIN, (*PLAIN, "-machine", "smm=off"), "machine option smm: auto at the source, off at the"),
    (
        (*PLAIN, "-cpu", "qemu64,+sse4.2"),
        (*PLAIN, "-cpu", "qemu64,-sse4.2"),
        "features of the guest's are missing at the destination",
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "words"), DOUBTFUL, ids=range(len(DOUBTFUL)))
async def test_what_may_be_meant_is_told_and_done(
    start: Start, binary: Path, ours: tuple[str, ...], theirs: tuple[str, ...], words: str
) -> None:
    async with start((binary, binary), ours, theirs) as (source, destination):
        plan = MigrationPlan(channel=Fd(), leave_paused=True)
        async with Migration(source, destination, plan) as migration:
            assert [one.fatal for one in migration.differences] == [False]
            assert words in str(migration.differences[0])
            assert (await migration.complete(timeout=60)).status is MigrationStatus.COMPLETED


async def test_reason_that_only_the_destination_knows(start: Start, binary: Path) -> None:
    """Of what is not compared: here a property of a device."""
    ours = (*PLAIN, "-device", "virtio-rng-pci,addr=9")
    theirs = (*PLAIN, "-device", "virtio-rng-pci,addr=9,disable-legacy=on")
    async with start((binary, binary), ours, theirs) as (source, destination):
        plan = MigrationPlan(channel=Fd())
        with pytest.raises(QemuRingError) as error:
            async with Migration(source, destination, plan) as migration:
                await migration.complete(timeout=60)
        said = str(error.value)
        assert "0000:00:09.0/virtio-rng" in said, said
        assert said.count("destination failed") + said.count("the destination: ") <= 1, said
        assert "destination: destination" not in said


def forwarded(to: int) -> tuple[socket.socket, Thread]:
    """A port of another address that leads to this one, once, as a router's does."""
    front = socket.create_server(("127.0.0.3", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def forward() -> None:
        ours, _ = front.accept()
        with ours, socket.create_connection(("127.0.0.1", to)) as theirs:
            back = Thread(target=pump, args=(theirs, ours))
            back.start()
            pump(ours, theirs)
            back.join()

    thread = Thread(target=forward, daemon=True)
    thread.start()
    return front, thread


async def test_destination_that_is_reached_by_another_address(start: Start, binary: Path) -> None:
    async with start((binary, binary), PLAIN, PLAIN) as (source, destination):
        plan = MigrationPlan(channel=Tcp("127.0.0.2", listen="0.0.0.0"), leave_paused=True)
        async with Migration(source, destination, plan) as migration:
            assert (await migration.complete(timeout=60)).status is MigrationStatus.COMPLETED


async def test_destination_behind_a_port_that_is_forwarded(start: Start, binary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    front, thread = forwarded(port)
    channel = Tcp("127.0.0.3", front.getsockname()[1], "127.0.0.1", port)
    with front:
        async with start((binary, binary), PLAIN, PLAIN) as (source, destination):
            plan = MigrationPlan(channel=channel, leave_paused=True)
            async with Migration(source, destination, plan) as migration:
                assert (await migration.complete(timeout=60)).status is MigrationStatus.COMPLETED
        await asyncio.to_thread(thread.join, 60)


def check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "migrate"]
    sides = (str(folder / "source"), str(folder / "destination"))
    return subprocess.run(
        [*command, *sides, "--check", *options], capture_output=True, text=True, timeout=120
    )


def test_command_that_only_checks(binary: Path, tmp_path: Path) -> None:
    twin = ("-machine", "pc", "-m", "64", "-incoming", "defer")
    with started(binary, tmp_path, "source", PLAIN), started(binary, tmp_path, "destination", twin):
        done = check(tmp_path)
        assert (done.returncode, done.stderr) == (1, "")
        what = "memory pc.ram: 32 MiB at the source, 64 MiB at the destination"
        assert done.stdout == f"it would fail: {what}\n"
        done = check(tmp_path, "--json", "--zero-page", "multifd", "--multifd", "2")
        listed = [Difference(**one) for one in json.loads(done.stdout)["obstacles"]]
        assert Difference(what, fatal=True) in listed


def test_command_that_finds_nothing(binary: Path, tmp_path: Path) -> None:
    twin = (*PLAIN, "-incoming", "defer")
    with started(binary, tmp_path, "source", PLAIN), started(binary, tmp_path, "destination", twin):
        for _ in range(2):  # nothing was begun
            done = check(tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == "nothing is in the way\n"
