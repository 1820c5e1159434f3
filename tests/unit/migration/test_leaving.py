"""What is left, or lost, when a migration is cancelled or left at a bad moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.errors import DeadlineError
from qemu_ring.migration import (
    AbortRules,
    GuestAt,
    MigrationAbortedError,
    MigrationError,
    MigrationPlan,
    Postcopy,
    PostcopyPausedError,
    Unix,
)
from qemu_ring.qmp import MigrationInfo, Monitor, commands
from tests.unit.migration.conftest import refusal, until
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.unit.migration.conftest import Fakes

POSTCOPY = MigrationPlan(kind=Postcopy(), channel=Unix(), max_bandwidth=100)


def cancels(fakes: Fakes) -> None:
    """Let the source take its cancellation."""

    def cancel(_: Any) -> dict[str, Any]:
        fakes.source.status("cancelled")
        return {}

    fakes.source.replies["migrate_cancel"] = cancel


def switches_after(fakes: Fakes, questions: int) -> None:
    """Let postcopy switch over at this query-migrate after it was told to; no event tells yet."""

    def ask(_: Any) -> dict[str, Any]:
        nonlocal questions
        if fakes.source.count("migrate-start-postcopy"):
            questions -= 1
        if questions == 0:
            fakes.source.silently("postcopy-active")
        return fakes.source.migration

    fakes.source.replies["query-migrate"] = ask


@pytest.mark.parametrize("questions", [1, 2, 5])
async def test_left_when_postcopy_is_about_to_switch_over(fakes: Fakes, questions: int) -> None:
    async with fakes.migration(POSTCOPY):
        fakes.source.status("setup", "active")
        switches_after(fakes, questions)
        for number in (1, 2):
            fakes.source.event("MIGRATION_PASS", **{"pass": number})
        await until(lambda: fakes.source.count("migrate-start-postcopy") == 1)
    assert fakes.source.count("migrate_cancel") == 0


async def test_cancel_when_postcopy_is_about_to_switch_over(fakes: Fakes) -> None:
    async with fakes.migration(POSTCOPY) as migration:
        fakes.source.status("setup", "active")
        switches_after(fakes, 3)
        await migration.start_postcopy()
        with pytest.raises(MigrationError, match="cannot be cancelled after the switchover"):
            await migration.cancel()
    assert fakes.source.count("migrate_cancel") == 0


async def test_postcopy_that_cannot_switch_over_is_cancelled(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channel is stuck; nothing moves."""
    monkeypatch.setattr("qemu_ring.migration.engine.source._SWITCH_SECONDS", 0.02)
    cancels(fakes)
    async with fakes.migration(POSTCOPY) as migration:
        fakes.source.status("setup", "active")
        await migration.start_postcopy()
        assert (await migration.cancel()).guest_at is GuestAt.SOURCE


async def test_no_switchover_is_begun_once_it_is_cancelled(fakes: Fakes) -> None:
    def cancel(_: Any) -> dict[str, Any]:
        for number in (1, 2):
            fakes.source.event("MIGRATION_PASS", **{"pass": number})
        fakes.source.status("cancelled")
        return {}

    fakes.source.replies["migrate_cancel"] = cancel
    async with fakes.migration(POSTCOPY) as migration:
        fakes.source.status("setup", "active")
        await migration.cancel()
    assert fakes.source.count("migrate-start-postcopy") == 0


async def test_rules_count_when_postcopy_cannot_switch_over(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemu_ring.migration.engine.source._SWITCH_SECONDS", 0.02)
    cancels(fakes)
    plan = MigrationPlan(kind=Postcopy(), channel=Unix(), abort=AbortRules(seconds=0.05))
    async with fakes.migration(plan, sample_seconds=0.01) as migration:
        fakes.source.status("setup", "active")
        for number in (1, 2):
            fakes.source.event("MIGRATION_PASS", **{"pass": number})
        with pytest.raises(MigrationAbortedError, match=r"longer than 0\.05 s"):
            await migration.complete(timeout=DEADLINE)
    assert fakes.source.count("migrate-start-postcopy") == 1


async def test_postcopy_with_a_pause_before_it_switches_over(fakes: Fakes) -> None:
    def go_on(_: Any) -> dict[str, Any]:
        fakes.source.status("postcopy-active")
        return {}

    fakes.source.replies["migrate-continue"] = go_on
    plan = MigrationPlan(kind=Postcopy(), channel=Unix(), pause_before_switchover=True)
    async with fakes.migration(plan) as migration:
        fakes.source.status("setup", "active", "pre-switchover")
        completing = asyncio.create_task(migration.complete(timeout=DEADLINE))
        await until(lambda: migration.status == "postcopy-active")
        fakes.source.state, fakes.destination.state = "postmigrate", "running"
        fakes.destination.status("completed")
        assert not completing.done()
        fakes.source.status("completed")
        assert (await completing).switched_to_postcopy


async def test_a_switchover_let_through_twice(fakes: Fakes) -> None:
    """A deadline had passed between the command and what came of it."""
    fakes.source.replies["migrate-continue"] = lambda _: refusal("in the wrong state")
    plan = MigrationPlan(channel=Unix(), pause_before_switchover=True)
    async with fakes.migration(plan) as migration:
        fakes.source.status("setup", "active", "pre-switchover")
        await until(lambda: migration.status == "pre-switchover")
        with pytest.raises(MigrationError, match=r"did not switch over: .* in the wrong state"):
            await migration.complete(timeout=DEADLINE)
        fakes.source.silently("device")
        with pytest.raises(DeadlineError):
            await migration.complete(timeout=0.05)
        fakes.arrive()
        await migration.complete(timeout=DEADLINE)


# Settings


@pytest.mark.parametrize("cancellations", [1, 2, 3, 5])
async def test_cancelled_again_and_again_while_all_is_set_back(
    fakes: Fakes, cancellations: int
) -> None:
    before = fakes.settings()
    cancels(fakes)
    begun = asyncio.Event()

    async def migrate() -> None:
        async with fakes.migration() as migration:
            fakes.source.status("setup", "active")
            begun.set()
            await migration.complete()

    task = asyncio.create_task(migrate())
    await asyncio.wait_for(begun.wait(), 5)
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fakes.settings() == before
    assert fakes.source.count("migrate_cancel") == 1


async def test_side_in_postcopy_keeps_what_it_has(fakes: Fakes) -> None:
    """It can only be recovered with it."""
    with pytest.raises(PostcopyPausedError):
        async with fakes.migration(POSTCOPY) as migration:
            fakes.source.status("setup", "active", "postcopy-active", "postcopy-paused")
            fakes.destination.status("postcopy-active", "postcopy-paused")
            await migration.complete(timeout=DEADLINE)
    assert fakes.source.parameters["max-bandwidth"] == 100
    for fake in (fakes.source, fakes.destination):
        assert fake.capabilities["postcopy-ram"]


# A QEMU that does not answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers not as long as users do."""
    real = commands.query_migrate

    async def ask(monitor: Monitor, *, timeout: float = 0.05) -> MigrationInfo:
        return await real(monitor, timeout=min(timeout, 0.05))

    monkeypatch.setattr(commands, "query_migrate", ask)


@pytest.mark.usefixtures("impatient")
async def test_source_that_hangs_is_not_taken_for_gone(fakes: Fakes) -> None:
    async with fakes.migration(sample_seconds=0.01) as migration:
        fakes.source.status("setup", "active")
        await until(lambda: migration.status == "active")
        fakes.source.replies["query-migrate"] = lambda _: None
        asked = fakes.source.count("query-migrate")
        await until(lambda: fakes.source.count("query-migrate") > asked + 1)
        with pytest.raises(DeadlineError, match="it is active; the source does not answer"):
            await migration.complete(timeout=0.05)
        del fakes.source.replies["query-migrate"]
        fakes.arrive()
        await migration.complete(timeout=DEADLINE)


@pytest.mark.usefixtures("impatient")
async def test_where_the_guest_is_when_the_source_hangs(fakes: Fakes) -> None:
    cancels(fakes)
    async with fakes.migration() as migration:
        fakes.source.status("setup")
        fakes.source.replies["query-migrate"] = lambda _: None
        fakes.destination.status("failed")
        fakes.source.event("MIGRATION", status="failed")
        with pytest.raises(MigrationError, match="not known where the guest runs") as caught:
            await migration.complete(timeout=DEADLINE)
    outcome = caught.value.outcome
    assert outcome is not None
    assert (outcome.source, outcome.guest_at) == ("unknown", GuestAt.UNKNOWN)
    assert not outcome.lost
    # It is told all the same, and takes it when it goes on.
    assert fakes.source.count("migrate_cancel") == 1


async def test_guest_that_runs_twice_is_told_of(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup", "active")
        fakes.destination.state = "running"
        fakes.destination.status("completed")
        fakes.source.status("failed")
        with pytest.raises(MigrationError, match="the guest runs TWICE") as caught:
            await migration.complete(timeout=DEADLINE)
    assert caught.value.outcome is not None
    assert caught.value.outcome.guest_at is GuestAt.BOTH


def children() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.parametrize("steps", range(24))
async def test_cancelled_as_it_begins(fakes: Fakes, steps: int) -> None:
    """So many steps of the event loop after QEMU was told to migrate."""
    cancels(fakes)
    before = fakes.settings()
    loop = asyncio.get_running_loop()

    async def stay() -> None:
        async with fakes.migration():
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())

    def cancel_after(left: int) -> None:
        if left:
            loop.call_soon(cancel_after, left - 1)
        else:
            task.cancel()

    def migrate(_: Any) -> dict[str, Any]:
        fakes.source.status("setup", "active")
        cancel_after(steps)
        return {}

    fakes.source.replies["migrate"] = migrate
    await asyncio.wait({task}, timeout=DEADLINE)
    assert task.cancelled()
    assert fakes.settings() == before
    assert fakes.source.count("migrate_cancel") == 1
    assert not children()  # its watcher has ended
