"""Every kind of migration x tracking x channel x vCPUs that this host can run: memory is equal.

What a QEMU cannot do it has to refuse, with the reason. With ``-s`` a table is printed at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.guest import read_tokens
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    AutoConverge,
    BackgroundSnapshot,
    Channel,
    CprReboot,
    CprTransfer,
    CprTransferMigration,
    DirtyLimit,
    Exec,
    Fd,
    File,
    MappedRam,
    Migration,
    MigrationPlan,
    MigrationResult,
    Multifd,
    Postcopy,
    Tcp,
    Tls,
    Unix,
    Xbzrle,
    restore,
)
from qemu_ring.qmp import commands
from qemu_ring.verify import compare
from tests.kvm.migration.refusals import may_be_refused
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SLOW = {"max_bandwidth": 64 * MIB, "downtime_limit": 0.001}  # or postcopy would have no work
# QEMU measures compressed bytes and compares them with whole pages, so it would never switch over.
PATIENT = 200.0

Make = Callable[[Channel], MigrationPlan]
LIVE: dict[str, Make] = {
    "precopy": lambda channel: MigrationPlan(channel=channel),
    "multifd": lambda channel: MigrationPlan(channel=channel, multifd=Multifd(2)),
    "multifd-zlib": lambda channel: MigrationPlan(
        channel=channel, multifd=Multifd(2, "zlib"), downtime_limit=PATIENT
    ),
    "multifd-zstd": lambda channel: MigrationPlan(
        channel=channel, multifd=Multifd(2, "zstd"), downtime_limit=PATIENT
    ),
    "xbzrle": lambda channel: MigrationPlan(channel=channel, xbzrle=Xbzrle(64 * MIB)),
    "zero-page=none": lambda channel: MigrationPlan(channel=channel, zero_page="none"),
    "zero-page=legacy": lambda channel: MigrationPlan(channel=channel, zero_page="legacy"),
    "zero-page=multifd": lambda channel: MigrationPlan(
        channel=channel, zero_page="multifd", multifd=Multifd(2)
    ),
    "auto-converge": lambda channel: MigrationPlan(channel=channel, throttle=AutoConverge()),
    "dirty-limit": lambda channel: MigrationPlan(
        channel=channel, throttle=DirtyLimit(64 * MIB, period=0.2)
    ),
    "switchover-ack": lambda channel: MigrationPlan(channel=channel, switchover_ack=True),
    "pause-before-switchover": lambda channel: MigrationPlan(
        channel=channel, pause_before_switchover=True
    ),
    "postcopy": lambda channel: MigrationPlan(
        channel=channel,
        kind=Postcopy(),
        **SLOW,  # type: ignore[arg-type]
    ),
    "postcopy-paused-before": lambda channel: MigrationPlan(
        channel=channel,
        kind=Postcopy(),
        pause_before_switchover=True,
        **SLOW,  # type: ignore[arg-type]
    ),
    "postcopy-preempt": lambda channel: MigrationPlan(
        channel=channel,
        kind=Postcopy(preempt=True),
        **SLOW,  # type: ignore[arg-type]
    ),
}
SAVED: dict[str, Make] = {
    "save": lambda channel: MigrationPlan(channel=channel),
    "mapped-ram": lambda channel: MigrationPlan(channel=channel, mapped_ram=MappedRam()),
    "mapped-ram+multifd": lambda channel: MigrationPlan(
        channel=channel, mapped_ram=MappedRam(), multifd=Multifd(2)
    ),
    "background-snapshot": lambda channel: MigrationPlan(
        channel=channel, kind=BackgroundSnapshot()
    ),
    "cpr-reboot": lambda channel: MigrationPlan(
        channel=channel, kind=CprReboot(ignore_shared=False)
    ),
}


@dataclass
class Table:
    """One row a migration, to be printed."""

    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, case: tuple[str, ...], result: MigrationResult, seconds: float) -> None:
        qemu_ms = (result.downtime.qemu_seconds or 0) * 1000
        switchover = result.downtime.switchover_seconds
        figures = (
            f"{seconds:.2f}",
            f"{result.totals.bytes_sent / MIB:.1f}",
            str(result.totals.iterations),
            "" if switchover is None else f"{switchover * 1000:.0f}",
            f"{qemu_ms:.0f}",
        )
        self.rows.append((*case, *figures))

    def print(self) -> None:
        heads: tuple[str, ...] = ("QEMU", "kind", "tracking", "channel", "vCPUs")
        heads += ("s", "MiB", "passes", "switchover ms", "QEMU's downtime ms")
        lines = [heads, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        print()
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.print()


@pytest.fixture(params=["patched", "distribution"])
def qemu(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[1, 4])
def vcpus(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def shape(
    request: pytest.FixtureRequest, qemu: str, vcpus: int, qemu_path: Path
) -> tuple[str, Path, int]:
    binary = qemu_path if qemu == "distribution" else request.getfixturevalue("patched_qemu")
    return qemu, binary, vcpus


# Each QEMU is another implementation of what a row of the matrix asks for.
pairwise = pytest.mark.pairwise(each="qemu")
trackings = pytest.mark.parametrize(
    "tracking",
    [pytest.param(Tracking(4096), marks=pytest.mark.ring), Tracking()],
    ids=["ring:4096", "bitmap"],
)


async def go(pair: Pair, plan: MigrationPlan, *, compared: bool = True) -> MigrationResult:
    destination = pair.destination if compared else None
    blocks = pair.blocks if compared else []
    async with Migration(pair.source, destination, plan, verify=blocks) as migration:
        return await migration.complete(timeout=DEADLINE)


@pairwise
@trackings
@pytest.mark.parametrize("channel", [Unix(), Tcp()], ids=["unix", "tcp"])
@pytest.mark.parametrize("kind", LIVE)
@may_be_refused
async def test_live(
    start_pair: StartPair,
    shape: tuple[str, Path, int],
    table: Table,
    kind: str,
    channel: Channel,
    tracking: Tracking,
) -> None:
    name, binary, vcpus = shape
    plan = LIVE[kind](channel)
    rate = None if isinstance(plan.kind, Postcopy) else 1000
    async with start_pair(binary, tracking=tracking, vcpus=vcpus, pages_per_second=rate) as pair:
        started = time.monotonic()
        result = await go(pair, plan)
        seconds = time.monotonic() - started
        assert result.comparison is not None
        assert result.comparison.equal
        assert result.switched_to_postcopy == isinstance(plan.kind, Postcopy)
        await pair.wait_writing_at_destination()
    table.add((name, kind, str(tracking), plan.channel.words[:4], str(vcpus)), result, seconds)


@pairwise
@trackings
@pytest.mark.parametrize("channel", ["fd", "exec"])
async def test_other_channels(
    start_pair: StartPair,
    shape: tuple[str, Path, int],
    table: Table,
    channel: str,
    tracking: Tracking,
    tmp_path: Path,
) -> None:
    name, binary, vcpus = shape
    path = tmp_path / "saved"
    used = Fd() if channel == "fd" else Exec(f"cat > {path}.1 && mv {path}.1 {path}", wait(path))
    async with start_pair(binary, tracking=tracking, vcpus=vcpus) as pair:
        started = time.monotonic()
        result = await go(pair, MigrationPlan(channel=used))
        assert result.comparison is not None
        assert result.comparison.equal
        await pair.wait_writing_at_destination()
    case = (name, "precopy", str(tracking), channel, str(vcpus))
    table.add(case, result, time.monotonic() - started)


@pairwise
@trackings
@may_be_refused
async def test_tls(
    start_pair: StartPair,
    shape: tuple[str, Path, int],
    table: Table,
    tracking: Tracking,
    certificates: Path,
) -> None:
    name, binary, vcpus = shape
    plan = MigrationPlan(channel=Tcp(), tls=Tls(certificates, hostname="ring.test"))
    async with start_pair(binary, tracking=tracking, vcpus=vcpus, pages_per_second=1000) as pair:
        started = time.monotonic()
        result = await go(pair, plan)
        assert result.comparison is not None
        assert result.comparison.equal
        await pair.wait_writing_at_destination()
    case = (name, "precopy+tls", str(tracking), "tcp", str(vcpus))
    table.add(case, result, time.monotonic() - started)


def wait(path: Path) -> str:
    """The destination's command is started before the source's has the file whole."""
    return f"while ! [ -e {path} ]; do sleep 0.01; done; cat {path}"


@pairwise
@trackings
@pytest.mark.parametrize("kind", SAVED)
@may_be_refused
async def test_saved_and_restored(
    start_pair: StartPair,
    shape: tuple[str, Path, int],
    table: Table,
    kind: str,
    tracking: Tracking,
    tmp_path: Path,
) -> None:
    name, binary, vcpus = shape
    plan = SAVED[kind](File(tmp_path / "saved"))
    async with start_pair(binary, tracking=tracking, vcpus=vcpus) as pair:
        snapshot = isinstance(plan.kind, BackgroundSnapshot)
        if snapshot:  # stopped, so that what it has is known; QEMU 7.2 lets it run afterwards
            await commands.stop(pair.source.monitor)
            tokens = read_tokens(pair.memory.fd, pair.memory.size)
        started = time.monotonic()
        result = await go(pair, plan, compared=False)
        await restore(pair.destination, replace(plan, leave_paused=True))
        seconds = time.monotonic() - started
        if snapshot:
            twin = pair.destination_memory
            assert read_tokens(twin.fd, twin.size) == tokens
        else:
            assert (await compare(pair.blocks)).equal
        await commands.cont(pair.destination.monitor)
        await pair.wait_writing_at_destination()
    table.add((name, kind, str(tracking), "file", str(vcpus)), result, seconds)


@pairwise
@trackings
@may_be_refused
async def test_cpr_transfer(
    start_pair: StartPair, shape: tuple[str, Path, int], table: Table, tracking: Tracking
) -> None:
    """There is one memory, so nothing to compare; the guest goes on counting in it."""
    name, binary, vcpus = shape
    machine = "pc" if name == "distribution" else "pc,aux-ram-share=on"
    async with start_pair(binary, tracking=tracking, vcpus=vcpus, machine=machine) as pair:

        async def start(arguments: tuple[str, ...]) -> Machine:
            assert pair.source.description is not None
            twin = replace(pair.source.description, extra=arguments)
            return await Machine.start(pair.binary, twin, name="successor")

        started = time.monotonic()
        plan = MigrationPlan(kind=CprTransfer(), channel=Unix())
        async with CprTransferMigration(pair.source, start, plan) as migration:
            result = await migration.complete(timeout=DEADLINE)
        assert migration.destination is not None
        async with migration.destination:
            written = pair.control.statistics().writes
            await pair.control.wait(
                lambda now: now.writes > written, timeout=DEADLINE, what="no writes"
            )
    case = (name, "cpr-transfer", str(tracking), "unix", str(vcpus))
    table.add(case, result, time.monotonic() - started)
