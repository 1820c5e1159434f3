"""What a migration makes of QEMUs that refuse, fall silent or go away in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    AbortRules,
    GuestAt,
    Migration,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
    MigrationPlan,
    Multifd,
    PostcopyPausedError,
    Unix,
)
from qemu_ring.qmp import Monitor

if TYPE_CHECKING:
    from tests.unit.migration.conftest import FakeQemu

PLAN = MigrationPlan(channel=Unix(), max_bandwidth=100)


@asynccontextmanager
async def machines(source: FakeQemu, destination: FakeQemu) -> AsyncIterator[list[Machine]]:
    made = []
    for name, fake in (("source", source), ("destination", destination)):
        made.append(Machine(name, await Monitor.connect(await fake.start(), name=name)))
    try:
        yield made
    finally:
        for machine in made:
            await machine.close()
        await source.stop()
        await destination.stop()


def refusal(text: str) -> dict[str, str]:
    return {"class": "GenericError", "desc": text}


async def test_what_a_side_lacks_is_told_of_both_and_nothing_is_set(
    fake_qemu: type[FakeQemu],
) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    del destination.capabilities["multifd"]
    plan = MigrationPlan(channel=Unix(), multifd=Multifd(compression="zstd"), switchover_ack=True)
    async with machines(source, destination) as (first, second):
        with pytest.raises(QemuUnsuitableError) as caught:
            async with Migration(first, second, plan):
                pass
    assert caught.value.message == (
        "the source (QEMU 10.0.0) has no capability switchover-ack, no multifd-compression zstd, "
        "only none, zlib; the destination (QEMU 10.0.0) has no capability multifd, no capability "
        "switchover-ack, no multifd-compression zstd, only none, zlib"
    )
    for fake in (source, destination):
        assert fake.count("migrate-set-capabilities") == 0
        assert fake.count("migrate-set-parameters") == 0


@pytest.mark.parametrize("command", ["migrate-set-capabilities", "migrate-set-parameters"])
@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
async def test_refused_setting_is_set_back_on_both_sides(
    fake_qemu: type[FakeQemu], side: int, command: str
) -> None:
    fakes = [fake_qemu(), fake_qemu("inmigrate")]
    before = [(dict(fake.capabilities), dict(fake.parameters)) for fake in fakes]
    fakes[side].replies[command] = lambda _: refusal("because it is Tuesday")
    plan = MigrationPlan(channel=Unix(), multifd=Multifd(4), max_bandwidth=100)
    async with machines(*fakes) as (first, second):
        with pytest.raises((QemuUnsuitableError, UsageError), match="because it is Tuesday"):
            async with Migration(first, second, plan):
                pass
    assert [(fake.capabilities, fake.parameters) for fake in fakes] == before
    assert fakes[0].count("migrate") == fakes[1].count("migrate-incoming") == 0


async def test_blocked_migration_tells_by_what(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    source.migration = {"blocked-reasons": ["a device that stays"]}
    async with machines(source, destination) as (first, second):
        with pytest.raises(QemuUnsuitableError, match="cannot migrate: a device that stays"):
            async with Migration(first, second, PLAN):
                pass


async def test_source_refuses_after_the_destination_listens(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    source.replies["migrate"] = lambda _: refusal("no way out")
    async with machines(source, destination) as (first, second):
        with pytest.raises(QemuUnsuitableError, match="the source refuses it: no way out"):
            async with Migration(first, second, PLAN):
                pass
    assert source.parameters["max-bandwidth"] == 7
    assert source.count("migrate_cancel") == 0


@pytest.mark.parametrize("word", ["cancelled", "failed"])
async def test_cancelled_under_either_name(fake_qemu: type[FakeQemu], word: str) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")

    def cancel(_: Any) -> dict[str, Any]:
        source.status(word)
        return {}

    source.replies["migrate_cancel"] = cancel
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("active")
        aftermath = await migration.cancel()
        assert aftermath.guest_at is GuestAt.SOURCE
        with pytest.raises(MigrationCancelledError, match="was cancelled"):
            await migration.complete()


async def test_cancel_that_comes_too_late(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")

    def complete(_: Any) -> dict[str, Any]:
        source.status("completed")
        return {}

    source.replies["migrate_cancel"] = complete
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        with pytest.raises(MigrationError, match="too late to cancel, it is completed"):
            await migration.cancel()


async def test_failure_tells_qemus_reason(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("failed")
        source.migration["error-desc"] = "out of luck"
        with pytest.raises(MigrationError, match="failed: out of luck; the guest runs on at the s"):
            await migration.complete()


async def test_destination_that_fails_after_the_source_was_done(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("completed")
        source.state = "postmigrate"
        destination.status("failed")
        destination.migration["error-desc"] = "a torn page"
        with pytest.raises(MigrationError, match="the destination failed: a torn page") as caught:
            await migration.complete()
    assert caught.value.aftermath is not None
    assert caught.value.aftermath.guest_at is GuestAt.NOWHERE


async def test_source_that_goes_away(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        await source.stop()
        with pytest.raises(MigrationError, match="the source is lost") as caught:
            await migration.complete()
    assert caught.value.aftermath is not None
    assert caught.value.aftermath.source is None


async def test_rule_that_counts_passes(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")

    def cancel(_: Any) -> dict[str, Any]:
        source.status("cancelled")
        return {}

    source.replies["migrate_cancel"] = cancel
    plan = MigrationPlan(channel=Unix(), abort=AbortRules(iterations=2))
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, plan) as migration,
    ):
        source.status("setup")
        source.status("active")
        for number in (1, 2, 3):
            source.event("MIGRATION_PASS", **{"pass": number})
        passes = [one.number async for one in migration.iterations()]
        with pytest.raises(MigrationAbortedError, match="more than 2 passes"):
            await migration.complete()
    assert passes == [1, 2, 3]
    assert source.count("migrate_cancel") == 1


async def test_source_that_goes_away_before_it_begins(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")

    def go(_: Any) -> None:
        source._writer.close()

    source.replies["migrate"] = go
    async with machines(source, destination) as (first, second):
        with pytest.raises(MigrationError, match="did not begin: source: monitor gone") as caught:
            async with Migration(first, second, PLAN):
                pass
    assert caught.value.aftermath is not None
    assert caught.value.aftermath.source is None


async def test_source_that_goes_away_in_postcopy(fake_qemu: type[FakeQemu]) -> None:
    """The destination's run state is running; the guest waits for memory that is gone."""
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("postcopy-active")
        destination.state = "running"
        destination.status("postcopy-active")
        await source.stop()
        with pytest.raises(MigrationError, match="the guest is lost") as caught:
            await migration.complete()
    assert caught.value.aftermath is not None
    assert caught.value.aftermath.lost
    assert not caught.value.aftermath.recoverable


async def test_source_that_goes_away_before_it_switches_over(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")

    def go(_: Any) -> None:
        source._writer.close()

    source.replies["migrate-continue"] = go
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("pre-switchover")
        with pytest.raises(MigrationError, match="did not switch over: source: monitor gone"):
            await migration.complete()


async def test_channel_that_breaks_in_the_recovery(fake_qemu: type[FakeQemu]) -> None:
    source, destination = fake_qemu(), fake_qemu("inmigrate")
    async with (
        machines(source, destination) as (first, second),
        Migration(first, second, PLAN) as migration,
    ):
        source.status("setup")
        source.status("postcopy-active")
        destination.state, source.state = "running", "postmigrate"
        destination.status("postcopy-paused")
        source.status("postcopy-paused")
        with pytest.raises(PostcopyPausedError):
            await migration.complete()

        then = "paused"

        def resume(_: Any) -> dict[str, Any]:
            source.status("postcopy-recover")
            source.status(f"postcopy-{then}")
            return {}

        source.replies["migrate"] = resume
        with pytest.raises(PostcopyPausedError) as caught:
            await migration.recover(timeout=5)
        assert caught.value.aftermath is not None
        assert caught.value.aftermath.recoverable
        then = "active"
        await migration.recover(timeout=5)
        destination.status("completed")
        source.status("completed")
        assert (await migration.complete()).switched_to_postcopy
