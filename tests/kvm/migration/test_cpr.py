"""Checkpoint and restart: the guest gets a new QEMU, and its memory stays where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine, MachineError
from qemu_ring.memslot import PciAddress
from qemu_ring.memslot.pci_config import ConfigWrite, write_config
from qemu_ring.migration import (
    CprReboot,
    CprTransfer,
    CprTransferMigration,
    File,
    GuestAt,
    Migration,
    MigrationPlan,
    Unix,
    firmware_writes,
    restore,
)
from qemu_ring.migration.engine.setup import find_obstacles
from qemu_ring.qmp import commands
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SHARED = "pc,aux-ram-share=on"


async def start_successor(pair: Pair, *arguments: str, incoming: str | None = None) -> Machine:
    """A QEMU over the same memory."""
    description = pair.source.description
    assert description is not None
    successor = replace(description, incoming=incoming, extra=arguments)
    return await Machine.start(pair.binary, successor, name="successor")


async def test_transfer(start_pair: StartPair, patched_qemu: Path) -> None:
    async with start_pair(patched_qemu, machine=SHARED) as pair:

        async def start(arguments: tuple[str, ...]) -> Machine:
            return await start_successor(pair, *arguments)

        async with CprTransferMigration(pair.source, start) as migration:
            result = await migration.complete(timeout=60)
        assert migration.destination is not None
        async with migration.destination as successor:
            assert result.outcome.guest_at is GuestAt.DESTINATION
            assert result.totals.pages_normal == 0
            assert result.totals.bytes_sent < MIB
            assert result.downtime.seconds is not None
            written = pair.control.statistics().writes
            await pair.control.wait(
                lambda now: now.writes > written, timeout=DEADLINE, what="no writes"
            )
            assert (await commands.query_status(successor.monitor)).running
            assert not (await commands.query_status(pair.source.monitor)).running


async def test_transfer_to_what_does_not_start(start_pair: StartPair, patched_qemu: Path) -> None:
    async with start_pair(patched_qemu, machine=SHARED) as pair:

        async def broken(_: tuple[str, ...]) -> Machine:
            return await start_successor(pair, "-no-such-option")

        async def deaf(_: tuple[str, ...]) -> Machine:
            other = await start_successor(pair, incoming="defer")
            await other.close()
            return other

        for start, error in ((broken, MachineError), (deaf, UsageError)):
            with pytest.raises(error):
                async with CprTransferMigration(pair.source, start):
                    pass
            assert (await commands.query_status(pair.source.monitor)).running
        mode = (await commands.query_parameters(pair.source.monitor))["mode"]
        assert mode == "normal"


async def test_transfer_is_refused(
    start_pair: StartPair, qemu_path: Path, patched_qemu: Path
) -> None:
    async with start_pair(patched_qemu) as pair:

        async def start(arguments: tuple[str, ...]) -> Machine:
            return await start_successor(pair, *arguments)

        with pytest.raises(UsageError, match="CprTransfer is a kind for CprTransferMigration"):
            async with Migration(
                pair.source, pair.destination, MigrationPlan(kind=CprTransfer(), channel=Unix())
            ):
                pass
        with pytest.raises(UsageError, match="unix sockets of its own"):
            CprTransferMigration(pair.source, start, MigrationPlan(kind=CprTransfer()))
        with pytest.raises(UsageError, match="and its only one"):
            async with CprTransferMigration(pair.source, start, MigrationPlan(channel=Unix())):
                pass
    async with start_pair(qemu_path) as pair:
        if (await pair.source.monitor.schema()).enum_values("migrate-set-parameters", "mode"):
            pytest.skip("this QEMU can do it")
        with pytest.raises(QemuUnsuitableError, match="no parameter mode"):
            async with CprTransferMigration(pair.source, start):
                pass


@pytest.mark.parametrize("ignore_shared", [True, False], ids=["ignore-shared", "with-memory"])
async def test_reboot(
    start_pair: StartPair, patched_qemu: Path, tmp_path: Path, ignore_shared: bool
) -> None:
    plan = MigrationPlan(
        kind=CprReboot(ignore_shared=ignore_shared), channel=File(tmp_path / "saved")
    )
    async with start_pair(patched_qemu) as pair:
        async with Migration(pair.source, None, plan) as migration:
            result = await migration.complete(timeout=60)
        assert result.outcome.source == "postmigrate"
        assert (result.totals.bytes_sent < MIB) == ignore_shared
        written = firmware_writes(pair.memory.fd, 1)
        before = written()
        await pair.source.close()
        async with await start_successor(pair, incoming="defer") as successor:
            await restore(successor, plan)
            assert (await commands.query_status(successor.monitor)).running
            await pair.control.wait(
                lambda now: now.writes > before, timeout=DEADLINE, what="no writes"
            )


@pytest.mark.parametrize("emptied", [False, True], ids=["mapped", "emptied"])
async def test_reboot_that_could_not_be_restored(
    start_pair: StartPair, patched_qemu: Path, tmp_path: Path, emptied: bool
) -> None:
    """Memory that no new QEMU takes where it is, or that is gone with the old one."""
    plan = MigrationPlan(kind=CprReboot(), channel=File(tmp_path / "saved"))
    backend = f"memory-backend-file,id=shm,size=2M,share=on,mem-path={tmp_path}/shm"
    backend += ",discard-data=on" if emptied else ""
    device = ("-device", "ivshmem-plain,memdev=shm,master=on,addr=0x10")
    async with start_pair(patched_qemu, extra=("-object", backend, *device)) as pair:
        monitor, place = pair.source.monitor, PciAddress(0x10)
        words = "is emptied when it ends"
        if not emptied:
            words = "shm is, or was, mapped at 0x40000000 by a PCI device"
            enabled = ConfigWrite.memory_enable(place, on=True)
            await write_config(monitor, [*ConfigWrite.bar(place, 2, 1 << 30), enabled])
        (obstacle,) = await find_obstacles(monitor, None, plan)
        assert words in str(obstacle)
        assert obstacle.fatal
        with pytest.raises(UsageError, match=words):
            async with Migration(pair.source, None, plan):
                pass
        await pair.assert_source_goes_on()
        assert not (tmp_path / "saved").exists()
        whole = replace(plan, kind=CprReboot(ignore_shared=False))
        async with Migration(pair.source, None, whole) as migration:
            await migration.complete(timeout=60)
        assert (await commands.query_status(monitor)).status == "postmigrate"
