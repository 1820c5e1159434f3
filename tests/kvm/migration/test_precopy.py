"""Precopy on a real QEMU: what arrives, what is told of it, and every way to end it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import DeadlineError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    AbortRules,
    Channel,
    CprReboot,
    DirtyLimit,
    Exec,
    Fd,
    File,
    GuestAt,
    Migration,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
    MigrationPlan,
    Multifd,
    Sample,
    Tcp,
    Unix,
    Xbzrle,
)
from qemu_ring.qmp import MigrationStatus, commands
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SLOW = MIB  # bytes a second, at which the first pass takes long


async def settings(machine: Machine) -> tuple[dict[str, bool], dict[str, object]]:
    return (
        await commands.query_capabilities(machine.monitor),
        await commands.query_parameters(machine.monitor),
    )


@pytest.mark.parametrize("channel", [Unix(), Tcp(), Fd()], ids=lambda channel: channel.words)
async def test_arrives_whole_and_tells_all(start_pair: StartPair, channel: Channel) -> None:
    samples: list[Sample] = []
    async with start_pair() as pair:
        before = [await settings(machine) for machine in (pair.source, pair.destination)]
        migration = Migration(
            pair.source,
            pair.destination,
            MigrationPlan(channel=channel, max_bandwidth=100 * MIB),
            verify=pair.blocks,
            guest_downtime=pair.guest_downtime(),
            on_sample=samples.append,
        )
        began = time.monotonic()
        async with migration:
            seen = [one async for one in migration.iterations()]
            result = await migration.complete()
        took = time.monotonic() - began
        assert [await settings(one) for one in (pair.source, pair.destination)] == before
        await pair.wait_writing_at_destination()
    assert result.status is MigrationStatus.COMPLETED
    assert result.comparison is not None
    assert result.comparison.equal
    assert result.outcome.guest_at is GuestAt.DESTINATION
    assert result.outcome.source == "postmigrate"
    assert [one.number for one in seen] == list(range(1, len(seen) + 1))
    assert tuple(seen) == result.timeline.iterations
    assert result.totals.iterations >= len(seen) >= 2
    assert result.totals.pages_normal + result.totals.pages_zero >= 40 * MIB // 4096
    assert samples
    assert list(result.timeline.samples) == samples
    downtime = result.downtime
    assert downtime.seconds is not None
    assert downtime.guest_seconds is not None
    assert downtime.switchover_seconds is not None
    assert downtime.qemu_seconds is not None
    assert 0 < downtime.switchover_seconds <= downtime.seconds < result.seconds + 1
    # The guest's own counter stands still a little before STOP, and starts a little after RESUME.
    # How much later depends on what else the host does.
    assert downtime.seconds - 0.02 < downtime.guest_seconds < took
    assert result.totals.seconds is not None
    assert 0 < result.totals.seconds < result.seconds + 0.5 < took + 0.5
    document = result.as_dict()
    assert document["stale_pages"] == 0
    assert document["status"] == "completed"


async def test_guest_of_four_vcpus_left_paused(start_pair: StartPair) -> None:
    async with start_pair(vcpus=4) as pair:
        plan = MigrationPlan(leave_paused=True)
        async with Migration(pair.source, pair.destination, plan) as migration:
            result = await migration.complete()
        assert result.outcome.destination == "paused"
        assert result.outcome.guest_at is GuestAt.NOWHERE
        assert result.downtime.seconds is None
        assert result.downtime.switchover_seconds is not None


async def test_guest_that_was_paused_stays_so(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        await commands.stop(pair.source.monitor)
        async with Migration(pair.source, pair.destination, verify=pair.blocks) as migration:
            result = await migration.complete()
        assert result.comparison is not None
        assert result.comparison.equal
        assert result.outcome.destination == "paused"
        assert result.downtime.seconds is None


async def test_a_slow_migration_counts_its_passes_and_is_made_fast(start_pair: StartPair) -> None:
    """The writer is faster than the bandwidth, until that is raised on the way."""
    plan = MigrationPlan(max_bandwidth=24 * MIB, downtime_limit=0.02)
    async with start_pair(pages_per_second=20_000) as pair:
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            seen = []
            async for iteration in migration.iterations():
                seen.append(iteration)
                if iteration.number == 2:
                    await migration.set_parameters(max_bandwidth=1 << 40, downtime_limit=1)
            result = await migration.complete()
        assert result.comparison is not None
        assert result.comparison.equal
    assert seen[1].remaining is not None
    assert seen[1].remaining > 16 * MIB
    assert seen[1].bytes_sent is not None
    assert seen[1].bytes_sent > 8 * MIB
    assert seen[1].bandwidth is not None
    assert 5 * MIB < seen[1].bandwidth < 60 * MIB
    assert result.downtime.seconds is not None


async def test_pause_before_switchover(start_pair: StartPair) -> None:
    plan = MigrationPlan(pause_before_switchover=True)
    async with start_pair() as pair:
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            async for _ in migration.iterations():
                pass
            assert migration.status is MigrationStatus.PRE_SWITCHOVER
            status = await commands.query_status(pair.source.monitor)
            assert not status.running
            result = await migration.complete()
        assert result.comparison is not None
        assert result.comparison.equal


# Cancel, in each phase


async def test_cancel_in_the_first_pass(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        before = await settings(pair.source)
        plan = MigrationPlan(channel=Unix(), max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan) as migration:
            outcome = await migration.cancel()
            with pytest.raises(MigrationCancelledError, match="runs on at the source"):
                await migration.complete()
            with pytest.raises(MigrationError, match="nothing to cancel, it is cancelled"):
                await migration.cancel()
        assert outcome.guest_at is GuestAt.SOURCE
        assert await settings(pair.source) == before
        await pair.assert_source_goes_on()


async def test_cancel_in_a_later_pass(start_pair: StartPair) -> None:
    async with start_pair(pages_per_second=None) as pair:
        plan = MigrationPlan(max_bandwidth=50 * MIB, downtime_limit=0.001)
        async with Migration(pair.source, pair.destination, plan) as migration:
            async for iteration in migration.iterations():
                if iteration.number == 2:
                    await migration.cancel()
            with pytest.raises(MigrationCancelledError, match="runs on at the source"):
                await migration.complete()
        await pair.assert_source_goes_on()


async def test_cancel_before_the_switchover(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        plan = MigrationPlan(pause_before_switchover=True)
        async with Migration(pair.source, pair.destination, plan) as migration:
            async for _ in migration.iterations():
                pass
            outcome = await migration.cancel()
        assert outcome.guest_at is GuestAt.SOURCE
        await pair.assert_source_goes_on()


async def test_cancel_after_the_end_is_too_late(start_pair: StartPair) -> None:
    async with start_pair() as pair, Migration(pair.source, pair.destination) as migration:
        await migration.complete()
        with pytest.raises(MigrationError, match=r"it is completed; the guest runs at the d"):
            await migration.cancel()


async def test_leaving_cancels(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        with pytest.raises(ZeroDivisionError):
            async with Migration(pair.source, pair.destination, MigrationPlan(max_bandwidth=SLOW)):
                raise ZeroDivisionError
        await pair.assert_source_goes_on()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
async def test_cancelled_while_it_begins(start_pair: StartPair, turns: int) -> None:
    """Wherever the task was: no migration goes on, and nothing stays set."""

    async def migrate() -> None:
        plan = MigrationPlan(max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan) as migration:
            await migration.complete()

    async with start_pair() as pair:
        await pair.source.monitor.schema()
        await pair.destination.monitor.schema()
        before = await settings(pair.source)
        task = asyncio.create_task(migrate())
        for _ in range(turns):
            await asyncio.sleep(0)
            await commands.query_status(pair.source.monitor)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await settings(pair.source) == before
        await pair.assert_source_goes_on()


async def test_cancelled_task_cancels(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        begun = asyncio.Event()

        async def migrate() -> None:
            plan = MigrationPlan(max_bandwidth=SLOW)
            async with Migration(pair.source, pair.destination, plan) as migration:
                begun.set()
                await migration.complete()

        task = asyncio.create_task(migrate())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pair.assert_source_goes_on()


async def test_deadline_leaves_it_going(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        plan = MigrationPlan(max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan) as migration:
            with pytest.raises(DeadlineError, match=r"not complete within 0\.2 s; it is active"):
                await migration.complete(timeout=0.2)
            await migration.set_parameters(max_bandwidth=1 << 40)
            await migration.complete()


# Abort rules


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (AbortRules(seconds=0.5), "longer than 0.5 s"),
        (AbortRules(iterations=3), "more than 3 passes"),
        (AbortRules(no_progress_iterations=2), "2 passes in a row"),
    ],
)
async def test_abort_rules(start_pair: StartPair, rules: AbortRules, why: str) -> None:
    """The guest dirties all of its memory faster than it can be sent."""
    async with start_pair(pages_per_second=None) as pair:
        plan = MigrationPlan(max_bandwidth=60 * MIB, downtime_limit=0.001, abort=rules)
        async with Migration(pair.source, pair.destination, plan) as migration:
            with pytest.raises(MigrationAbortedError, match=why) as caught:
                await migration.complete(timeout=60)
        assert caught.value.outcome is not None
        assert caught.value.outcome.guest_at is GuestAt.SOURCE
        await pair.assert_source_goes_on()


async def test_killed_destination(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        plan = MigrationPlan(max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan) as migration:
            pair.destination.kill()
            with pytest.raises(MigrationError, match="runs on at the source") as caught:
                await migration.complete(timeout=DEADLINE)
        assert caught.value.outcome is not None
        assert caught.value.outcome.destination is None
        await pair.assert_source_goes_on()


async def test_killed_source(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        plan = MigrationPlan(max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan) as migration:
            pair.source.kill()
            with pytest.raises(MigrationError, match="the source is lost") as caught:
                await migration.complete(timeout=DEADLINE)
        assert caught.value.outcome is not None
        assert caught.value.outcome.source is None
        assert caught.value.outcome.guest_at is GuestAt.NOWHERE


# Refused before anything starts


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (
            MigrationPlan(multifd=Multifd(), xbzrle=Xbzrle(), channel=Tcp()),
            QemuUnsuitableError,
            "refuses it: .*[Mm]ultifd is not compatible with xbzrle",
        ),
        (
            MigrationPlan(throttle=DirtyLimit()),
            QemuUnsuitableError,
            "dirty-limit",
        ),
        (
            MigrationPlan(multifd=Multifd(compression="qpl"), channel=Tcp()),
            QemuUnsuitableError,
            "no .* qpl, only",
        ),
        (MigrationPlan(kind=CprReboot(), channel=File(Path("/x"))), QemuUnsuitableError, "no"),
    ],
    ids=["multifd+xbzrle", "dirty-limit", "compression", "cpr"],
)
async def test_refused_and_reset(
    start_pair: StartPair,
    qemu_path: Path,
    patched_qemu: Path,
    plan: MigrationPlan,
    error: type[Exception],
    words: str,
) -> None:
    # QEMU before 8.0 takes multifd and xbzrle together.
    async with start_pair(patched_qemu if plan.xbzrle else qemu_path) as pair:
        schema = await pair.source.monitor.schema()
        if plan.kind == CprReboot() and schema.enum_values("migrate-set-parameters", "mode"):
            pytest.skip("this QEMU can do it")
        before = [await settings(machine) for machine in (pair.source, pair.destination)]
        with pytest.raises(error, match=words):
            async with Migration(pair.source, pair.destination, plan):
                pytest.fail("it was begun")
        assert [await settings(one) for one in (pair.source, pair.destination)] == before
        # Both are as good as new.
        async with Migration(pair.source, pair.destination, verify=pair.blocks) as migration:
            result = await migration.complete()
        assert result.comparison is not None
        assert result.comparison.equal


async def test_sides_in_the_wrong_state(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        with pytest.raises(UsageError, match="source cannot migrate, it is in state inmigrate"):
            async with Migration(pair.destination, pair.source):
                pass
        with pytest.raises(UsageError, match="same QEMU"):
            async with Migration(pair.source, pair.source):
                pass
        with pytest.raises(UsageError, match="without a destination"):
            async with Migration(pair.source, None):
                pass
        with pytest.raises(UsageError, match="the destination needs a command"):
            async with Migration(
                pair.source, pair.destination, MigrationPlan(channel=Exec("cat >/dev/null"))
            ):
                pass
        plan = MigrationPlan(max_bandwidth=SLOW)
        async with Migration(pair.source, pair.destination, plan):
            with pytest.raises(UsageError, match="migrates already"):
                async with Migration(pair.source, pair.destination):
                    pass
