"""What a migration makes of QEMUs that refuse, fall silent or go away in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.migration import (
    AbortRules,
    GuestAt,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
    MigrationPlan,
    Multifd,
    PostcopyPausedError,
    Unix,
)
from tests.unit.migration.conftest import refusal
from tests.waiting import DEADLINE

RAM = dict.fromkeys(
    ("transferred", "remaining", "total", "duplicate", "normal", "normal-bytes", "page-size"), 0
) | {"dirty-pages-rate": 0, "mbps": 0, "dirty-sync-count": 1}

if TYPE_CHECKING:
    from tests.unit.migration.conftest import Fakes


async def test_what_a_side_lacks_is_told_of_both_and_nothing_is_set(
    fakes: Fakes,
) -> None:
    del fakes.destination.capabilities["multifd"]
    plan = MigrationPlan(channel=Unix(), multifd=Multifd(compression="zstd"), switchover_ack=True)
    with pytest.raises(QemuUnsuitableError) as caught:
        async with fakes.migration(plan):
            pass
    assert caught.value.message == (
        "the source (QEMU 10.0.0) has no capability switchover-ack, no multifd-compression zstd, "
        "only none, zlib; the destination (QEMU 10.0.0) has no capability multifd, no capability "
        "switchover-ack, no multifd-compression zstd, only none, zlib"
    )
    for fake in (fakes.source, fakes.destination):
        assert fake.count("migrate-set-capabilities") == 0
        assert fake.count("migrate-set-parameters") == 0


@pytest.mark.parametrize("command", ["migrate-set-capabilities", "migrate-set-parameters"])
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_refused_setting_is_set_back_on_both_sides(
    fakes: Fakes, side: str, command: str
) -> None:
    before = fakes.settings()
    getattr(fakes, side).replies[command] = lambda _: refusal("because it is Tuesday")
    plan = MigrationPlan(channel=Unix(), multifd=Multifd(4), max_bandwidth=100)
    with pytest.raises((QemuUnsuitableError, UsageError), match="because it is Tuesday"):
        async with fakes.migration(plan):
            pass
    assert fakes.settings() == before
    assert fakes.source.count("migrate") == fakes.destination.count("migrate-incoming") == 0


async def test_blocked_migration_tells_by_what(fakes: Fakes) -> None:
    fakes.source.migration = {"blocked-reasons": ["a device that stays"]}
    with pytest.raises(QemuUnsuitableError, match="cannot migrate: a device that stays"):
        async with fakes.migration():
            pass


async def test_source_refuses_after_the_destination_listens(fakes: Fakes) -> None:
    fakes.source.replies["migrate"] = lambda _: refusal("no way out")
    with pytest.raises(QemuUnsuitableError, match="refuses it: no way out") as caught:
        async with fakes.migration():
            pass
    assert caught.value.hint.startswith("start the destination anew")
    assert fakes.source.parameters["max-bandwidth"] == 7
    assert fakes.source.count("migrate_cancel") == 0


@pytest.mark.parametrize("word", ["cancelled", "failed"])
async def test_cancelled_under_either_name(fakes: Fakes, word: str) -> None:
    def cancel(_: Any) -> dict[str, Any]:
        fakes.source.status(word)
        return {}

    fakes.source.replies["migrate_cancel"] = cancel
    async with fakes.migration() as migration:
        fakes.source.status("setup", "active")
        outcome = await migration.cancel()
        assert outcome.guest_at is GuestAt.SOURCE
        with pytest.raises(MigrationCancelledError, match="was cancelled"):
            await migration.complete()


async def test_cancel_that_comes_too_late(fakes: Fakes) -> None:
    def complete(_: Any) -> dict[str, Any]:
        fakes.source.status("completed")
        return {}

    fakes.source.replies["migrate_cancel"] = complete
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        with pytest.raises(MigrationError, match="too late to cancel, it is completed"):
            await migration.cancel()


async def test_failure_tells_qemus_reason(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.status("failed")
        fakes.source.migration["error-desc"] = "out of luck"
        with pytest.raises(MigrationError, match="failed: out of luck; the guest runs") as caught:
            await migration.complete()
    assert "runs on at the source" in caught.value.message
    assert "start the destination anew" in caught.value.hint


async def test_destination_that_fails_after_the_source_was_done(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.status("completed")
        fakes.source.state = "postmigrate"
        fakes.destination.status("failed")
        fakes.destination.migration["error-desc"] = "a torn page"
        with pytest.raises(MigrationError, match="the destination failed: a torn page") as caught:
            await migration.complete()
    assert caught.value.outcome is not None
    assert caught.value.outcome.guest_at is GuestAt.NOWHERE


async def test_source_that_goes_away(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        await fakes.source.stop()
        with pytest.raises(MigrationError, match="the source is lost") as caught:
            await migration.complete()
    assert caught.value.outcome is not None
    assert caught.value.outcome.source is None


async def test_rule_that_counts_passes(fakes: Fakes) -> None:
    def cancel(_: Any) -> dict[str, Any]:
        fakes.source.status("cancelled")
        return {}

    fakes.source.replies["migrate_cancel"] = cancel
    plan = MigrationPlan(channel=Unix(), abort=AbortRules(iterations=2))
    async with fakes.migration(plan) as migration:
        fakes.source.status("setup", "active")
        for number in (1, 2, 3):
            fakes.source.event("MIGRATION_PASS", **{"pass": number})
        passes = [one.number async for one in migration.iterations()]
        with pytest.raises(MigrationAbortedError, match="more than 2 passes"):
            await migration.complete()
    assert passes == [1, 2, 3]
    assert fakes.source.count("migrate_cancel") == 1


async def test_source_that_goes_away_before_it_begins(fakes: Fakes) -> None:
    def go(_: Any) -> None:
        fakes.source.go_away()

    fakes.source.replies["migrate"] = go
    with pytest.raises(MigrationError, match="did not begin: source: monitor gone") as caught:
        async with fakes.migration():
            pass
    assert caught.value.outcome is not None
    assert caught.value.outcome.source is None


async def test_source_that_goes_away_in_postcopy(fakes: Fakes) -> None:
    """The destination's run state is running; the guest waits for memory that is gone."""
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.status("postcopy-active")
        fakes.destination.state = "running"
        fakes.destination.status("postcopy-active")
        await fakes.source.stop()
        with pytest.raises(MigrationError, match="the guest is lost") as caught:
            await migration.complete()
    assert caught.value.outcome is not None
    assert caught.value.outcome.lost
    assert not caught.value.outcome.recoverable


async def test_source_that_goes_away_before_it_switches_over(fakes: Fakes) -> None:
    def go(_: Any) -> None:
        fakes.source.go_away()

    fakes.source.replies["migrate-continue"] = go
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.status("pre-switchover")
        with pytest.raises(MigrationError, match="did not switch over: source: monitor gone"):
            await migration.complete()


async def test_channel_that_breaks_in_the_recovery(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.status("postcopy-active")
        fakes.destination.state, fakes.source.state = "running", "postmigrate"
        fakes.destination.status("postcopy-paused")
        fakes.source.status("postcopy-paused")
        with pytest.raises(PostcopyPausedError):
            await migration.complete()

        then = "paused"

        def resume(_: Any) -> dict[str, Any]:
            fakes.source.status("postcopy-recover")
            fakes.source.status(f"postcopy-{then}")
            return {}

        fakes.source.replies["migrate"] = resume
        with pytest.raises(PostcopyPausedError) as caught:
            await migration.recover(timeout=DEADLINE)
        assert caught.value.outcome is not None
        assert caught.value.outcome.recoverable
        then = "active"
        await migration.recover(timeout=DEADLINE)
        fakes.destination.status("completed")
        fakes.source.status("completed")
        assert (await migration.complete()).switched_to_postcopy


async def test_what_on_sample_raises_is_raised(fakes: Fakes) -> None:
    def show(_: object) -> None:
        raise BrokenPipeError("nobody reads")

    def cancel(_: Any) -> dict[str, Any]:
        fakes.source.status("cancelled")
        return {}

    fakes.source.replies["migrate_cancel"] = cancel
    async with fakes.migration(on_sample=show) as migration:
        fakes.source.status("setup")
        fakes.source.migration = {"status": "active", "ram": RAM}
        fakes.source.event("MIGRATION_PASS", **{"pass": 1})
        with pytest.raises(BrokenPipeError, match="nobody reads"):
            await migration.complete(timeout=DEADLINE)
    # Nobody watched it any more; it was cancelled all the same.
    assert fakes.source.count("migrate_cancel") == 1
    assert fakes.source.parameters["max-bandwidth"] == 7


async def test_descriptors_that_come_to_nothing_are_taken_back(fakes: Fakes) -> None:
    fakes.destination.replies["migrate-incoming"] = lambda _: refusal("not today")
    with pytest.raises(QemuUnsuitableError, match="the destination refuses it: not today"):
        async with fakes.migration(MigrationPlan()):
            pass
    for fake in (fakes.source, fakes.destination):
        assert [name for name, _ in fake.asked if name in ("getfd", "closefd")] == [
            "getfd",
            "closefd",
        ]


async def test_a_monitor_that_takes_no_descriptor(fake_by_tcp: Fakes) -> None:
    """It is told before the destination, which listens only once, is used up."""
    with pytest.raises(UsageError, match="its monitor is no unix socket") as caught:
        async with fake_by_tcp.migration(MigrationPlan()):
            pass
    assert "channel tcp" in caught.value.hint
    assert fake_by_tcp.destination.count("migrate-incoming") == 0
