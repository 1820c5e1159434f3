"""Guests with a disk that they write to: it is one QEMU's at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.migration import File, GuestAt, Migration, MigrationPlan, Postcopy, Unix
from qemu_ring.qmp import commands
from tests.command import run_command
from tests.kvm.migration.images import disk
from tests.kvm.migration.qemus import Qemus
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SLOW = {"max_bandwidth": 40 * MIB, "downtime_limit": 0.001}


@pytest.mark.parametrize("verified", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("kind", ["precopy", "postcopy"])
@pytest.mark.parametrize("image", ["raw", "qcow2"])
async def test_guest_goes_on_with_its_disk(
    start_pair: StartPair, binary: Path, kind: str, verified: bool, image: str, tmp_path: Path
) -> None:
    plan = MigrationPlan(channel=Unix())
    if kind == "postcopy":
        plan = MigrationPlan(kind=Postcopy(), **SLOW)  # type: ignore[arg-type]
    rate = None if kind == "postcopy" else 4000
    extra = disk(tmp_path, image)
    async with start_pair(binary, extra=extra, pages_per_second=rate) as pair:
        blocks = pair.blocks if verified else []
        async with Migration(pair.source, pair.destination, plan, verify=blocks) as migration:
            result = await migration.complete(timeout=60)
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert result.switched_to_postcopy == (kind == "postcopy")
        assert result.downtime.seconds is not None
        assert result.downtime.seconds > 0
        if verified:
            assert result.comparison is not None
            assert result.comparison.equal
        await pair.wait_writing_at_destination()


async def test_postcopy_goes_on_long_before_it_is_complete(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    plan = MigrationPlan(kind=Postcopy(max_bandwidth=4 * MIB), **SLOW)  # type: ignore[arg-type]
    extra = disk(tmp_path, "raw")
    async with start_pair(binary, extra=extra, pages_per_second=None) as pair:
        async with Migration(pair.source, pair.destination, plan) as migration:
            async for _ in migration.iterations():
                pass
            await pair.wait_writing_at_destination()
            assert migration.status == "postcopy-active"
            result = await migration.complete(timeout=60)
        assert result.outcome.guest_at is GuestAt.DESTINATION


@pytest.mark.parametrize("leaves", [True, False], ids=["left", "completed"])
async def test_disk_is_not_read_before_the_guest_is_there(
    start_pair: StartPair, binary: Path, leaves: bool, tmp_path: Path
) -> None:
    """Where nothing locks it, what is read too soon is not what the source leaves."""
    nodes = disk(tmp_path, "qcow2", locking=False)
    async with start_pair(binary, extra=nodes) as pair:
        source, destination = pair.source.monitor, pair.destination.monitor
        with source.events("MIGRATION") as events:
            async with Migration(pair.source, pair.destination, MigrationPlan(**SLOW)) as migration:  # type: ignore[arg-type]
                await events.wait(lambda event: event.data["status"] == "active", timeout=DEADLINE)
                await commands.human(source, 'qemu-io disk "write -P 90 0 64k"')
                await migration.set_parameters(max_bandwidth=1 << 40, downtime_limit=1)
                if leaves:
                    await events.wait(
                        lambda event: event.data["status"] == "completed", timeout=DEADLINE
                    )
                else:
                    await migration.complete(timeout=60)
        await pair.wait_writing_at_destination()
        await commands.human(destination, 'qemu-io disk "read -P 90 0 64k"')
    # It says so to its standard output, which it writes out at its end.
    assert "wrote 65536/65536" in pair.source.text("output")
    assert "read 65536/65536" in pair.destination.text("output")
    assert "failed" not in pair.destination.text("output")


@pytest.mark.parametrize("paused", [True, False], ids=["with -S", "without -S"])
@pytest.mark.parametrize("kind", ["precopy", "postcopy"])
def test_command(binary: Path, kind: str, paused: bool, tmp_path: Path) -> None:
    twin: Sequence[str] = ["-S"] if paused else []
    extra = disk(tmp_path, "raw")
    qemus = Qemus(tmp_path, binary, extra=extra, extra_twin=twin, memory_folder=Path("/dev/shm"))
    try:
        sides = (qemus.source, qemus.destination)
        out, _ = run_command("migrate", "--json", *sides, "--kind", kind)
        assert json.loads(out)["aftermath"]["guest_at"] == "destination"
        qemus.assert_alive()
    finally:
        qemus.stop()


@pytest.mark.parametrize("verified", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("paused", ["before", "after"])
async def test_guest_that_arrived_paused_can_be_saved(
    start_pair: StartPair, binary: Path, verified: bool, paused: str, tmp_path: Path
) -> None:
    """Its disks are where it is, though it does not run."""
    plan = MigrationPlan(channel=Unix(), leave_paused=paused == "after")
    async with start_pair(binary, extra=disk(tmp_path, "raw")) as pair:
        if paused == "before":
            await commands.stop(pair.source.monitor)
        blocks = pair.blocks if verified else []
        async with Migration(pair.source, pair.destination, plan, verify=blocks) as migration:
            await migration.complete(timeout=60)
        saving = MigrationPlan(channel=File(tmp_path / "saved"))
        async with Migration(pair.destination, None, saving) as migration:
            await migration.complete(timeout=60)
        assert (await commands.query_status(pair.destination.monitor)).status == "postmigrate"
