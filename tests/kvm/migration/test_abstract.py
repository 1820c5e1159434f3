"""A channel that is a unix socket without a file."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    AbstractUnix,
    Channel,
    GuestAt,
    Migration,
    MigrationPlan,
    MigrationResult,
    Multifd,
)
from qemu_ring.qmp import commands
from tests.kvm.migration.qemus import Qemus
from tests.waiting import DEADLINE

pytestmark = pytest.mark.kvm


async def migrate(qemus: Qemus, channel: Channel, multifd: Multifd | None) -> MigrationResult:
    plan = MigrationPlan(channel=channel, multifd=multifd, downtime_limit=1.0)
    async with (
        await Machine.attach(qemus.source, name="source") as source,
        await Machine.attach(qemus.destination, name="destination") as destination,
        Migration(source, destination, plan) as migration,
    ):
        return await migration.complete(timeout=DEADLINE)


def folder_of(path: Path) -> set[Path]:
    return set(path.iterdir())


@pytest.mark.parametrize("multifd", [None, Multifd(channels=2)], ids=["one", "multifd"])
async def test_by_a_name(patched_qemu: Path, tmp_path: Path, multifd: Multifd | None) -> None:
    name = f"qemu-ring test {secrets.token_hex(4)}"
    qemus = Qemus(tmp_path, patched_qemu)
    try:
        result = await migrate(qemus, AbstractUnix(name), multifd)
        assert result.channel == f"unix:@{name}"
        assert result.outcome.guest_at is GuestAt.DESTINATION
        assert not [path for path in folder_of(tmp_path) if "test" in path.name]
        qemus.assert_alive()
    finally:
        qemus.stop()


async def test_where_qemu_has_none(qemu_path: Path, tmp_path: Path) -> None:
    """Told before anything starts: QEMU would make a file of that name."""
    qemus = Qemus(tmp_path, qemu_path)
    try:
        async with await Machine.attach(qemus.source) as machine:
            schema = await machine.monitor.schema()
        if "channels" in schema.command_arguments("migrate"):
            pytest.skip("this QEMU has them")
        with pytest.raises(QemuUnsuitableError, match="cannot migrate by a socket without a file"):
            await migrate(qemus, AbstractUnix("qemu-ring test"), None)
        async with await Machine.attach(qemus.source) as machine:
            assert (await commands.query_status(machine.monitor)).running
        qemus.assert_alive()
    finally:
        qemus.stop()


@pytest.mark.parametrize("name", ["", "x" * 108])
def test_name_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="1 to 107 bytes"):
        AbstractUnix(name)
