"""A held precopy that is left before it is finished, on a real QEMU."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import DeadlineError
from qemu_ring.migration import (
    AbortRules,
    HeldPrecopy,
    Migration,
    MigrationAbortedError,
    MigrationPlan,
)
from qemu_ring.qmp import MigrationStatus, Monitor, commands

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = pytest.mark.kvm


async def settings(monitor: Monitor) -> tuple[dict[str, bool], dict[str, object]]:
    return await commands.query_capabilities(monitor), await commands.query_parameters(monitor)


@pytest.mark.parametrize("stopped", [False, True], ids=["held", "finishing"])
async def test_left_by_an_error(
    start_pair: StartPair, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    async with start_pair(pages_per_second=None) as pair:
        monitor = pair.source.monitor
        before = await settings(monitor)
        with pytest.raises(ZeroDivisionError):
            async with HeldPrecopy(pair.source, pair.destination) as migration:
                await migration.hold()
                if stopped:

                    async def fail() -> None:
                        raise ZeroDivisionError

                    monkeypatch.setattr(migration, "progress", fail)
                    await migration.finish()
                raise ZeroDivisionError
        info = await commands.query_migrate(monitor)
        assert info.status is MigrationStatus.CANCELLED
        assert await settings(monitor) == before
        await pair.assert_source_goes_on()


async def test_error_is_not_blamed_on_a_destination_that_ends_with_it(
    start_pair: StartPair,
) -> None:
    with pytest.raises(DeadlineError, match=r"^it took too long$"):
        async with (
            start_pair(pages_per_second=None) as pair,
            HeldPrecopy(pair.source, pair.destination) as migration,
        ):
            await migration.hold()
            raise DeadlineError("it took too long")


async def test_abortion_is_not_blamed_on_it_either(start_pair: StartPair) -> None:
    plan = MigrationPlan(max_bandwidth=1 << 20, abort=AbortRules(seconds=0.2))
    with pytest.raises(MigrationAbortedError):
        async with (
            start_pair() as pair,
            Migration(pair.source, pair.destination, plan) as migration,
        ):
            await migration.complete()


async def test_cancelled(start_pair: StartPair) -> None:
    async with start_pair(pages_per_second=None) as pair:
        held = asyncio.Event()

        async def hold() -> None:
            async with HeldPrecopy(pair.source, pair.destination) as migration:
                await migration.hold()
                held.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        await asyncio.wait_for(held.wait(), 60)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pair.assert_source_goes_on()


async def test_finished_sets_back_too(start_pair: StartPair) -> None:
    async with start_pair(pages_per_second=None) as pair:
        before = [await settings(one.monitor) for one in (pair.source, pair.destination)]
        async with HeldPrecopy(pair.source, pair.destination) as migration:
            await migration.hold()
            await migration.finish()
        assert [await settings(one.monitor) for one in (pair.source, pair.destination)] == before
        await commands.cont(pair.source.monitor)
        await pair.assert_source_goes_on()
