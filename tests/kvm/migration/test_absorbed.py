"""By dirty ring a page that is sent is not dirty before; whatever the way of sending."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.migration import (
    BackgroundSnapshot,
    File,
    MappedRam,
    Migration,
    MigrationPlan,
    MigrationResult,
    Multifd,
    Postcopy,
    Tcp,
    Unix,
    Xbzrle,
    restore,
)
from qemu_ring.qmp import commands
from qemu_ring.verify import compare
from tests.waiting import DEADLINE, until

from .conftest import REGION

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = [pytest.mark.ring, pytest.mark.busy_guest]

MIB = 1 << 20
RING = Tracking(4096)
# So slow that the guest, which loops over its memory, is ahead of what is sent.
SLOW = MigrationPlan(channel=Unix(), max_bandwidth=24 * MIB, downtime_limit=0.1, zero_page="none")
LITTLE = {"max_bandwidth": 256 << 10, "downtime_limit": 20.0}  # compressed, it is not much
WAYS = {
    "plain": SLOW,
    "zero-page=legacy": replace(SLOW, zero_page="legacy"),
    "zero-page=multifd": replace(SLOW, zero_page="multifd", multifd=Multifd(2)),
    "multifd": replace(SLOW, multifd=Multifd(2)),
    "zlib": replace(SLOW, multifd=Multifd(2, "zlib"), **LITTLE),  # type: ignore[arg-type]
    "zstd": replace(SLOW, multifd=Multifd(2, "zstd"), **LITTLE),  # type: ignore[arg-type]
    "zero-copy": replace(SLOW, channel=Tcp(), multifd=Multifd(2, zero_copy=True)),
    "xbzrle": replace(SLOW, xbzrle=Xbzrle(64 * MIB)),
    "postcopy": replace(SLOW, kind=Postcopy(after_passes=2)),
    "postcopy-preempt": replace(SLOW, kind=Postcopy(2, preempt=True)),
}
SAVED: dict[str, dict[str, Any]] = {
    "file": {},
    "mapped-ram": {"mapped_ram": MappedRam()},
    "mapped-ram+multifd": {"mapped_ram": MappedRam(), "multifd": Multifd(2)},
}


async def migrate(pair: Pair, plan: MigrationPlan, *, compared: bool = True) -> MigrationResult:
    destination = pair.destination if compared else None
    blocks = pair.blocks if compared else []
    async with Migration(pair.source, destination, plan, verify=blocks) as migration:
        return await migration.complete(timeout=DEADLINE)


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("way", WAYS)
async def test_pages_are_absorbed_and_none_is_lost(
    start_pair: StartPair, patched_qemu: Path, way: str, vcpus: int
) -> None:
    async with start_pair(patched_qemu, tracking=RING, vcpus=vcpus) as pair:
        await pair.control.wait(
            lambda now: now.writes > REGION.pages, timeout=DEADLINE, what="pages are zero yet"
        )
        result = await migrate(pair, WAYS[way])
        assert result.comparison is not None
        assert result.comparison.equal
        assert result.totals.pages_absorbed
        await pair.wait_writing_at_destination()


@pytest.mark.parametrize("way", SAVED)
async def test_pages_are_absorbed_and_what_was_saved_is_whole(
    start_pair: StartPair, patched_qemu: Path, way: str, tmp_path: Path
) -> None:
    plan = replace(SLOW, channel=File(tmp_path / "saved"), **SAVED[way])
    async with start_pair(patched_qemu, tracking=RING) as pair:
        result = await migrate(pair, plan, compared=False)
        await restore(pair.destination, replace(plan, leave_paused=True))
        assert (await compare(pair.blocks)).equal
        assert result.totals.pages_absorbed


async def test_background_snapshot_absorbs_nothing(
    start_pair: StartPair, patched_qemu: Path, tmp_path: Path
) -> None:
    """It tracks no dirty pages: the bits that it would take are of earlier times."""
    plan = MigrationPlan(channel=File(tmp_path / "saved"), kind=BackgroundSnapshot())
    async with start_pair(patched_qemu, tracking=RING) as pair:
        result = await migrate(pair, plan, compared=False)
        assert result.totals.pages_absorbed == 0


async def test_bitmap_absorbs_nothing_here(start_pair: StartPair, patched_qemu: Path) -> None:
    """KVM does, out of sight."""
    async with start_pair(patched_qemu) as pair:
        result = await migrate(pair, SLOW)
        assert result.comparison is not None
        assert result.comparison.equal
        assert result.totals.pages_absorbed == 0


async def test_qemu_that_does_not_tell(start_pair: StartPair, qemu_path: Path) -> None:
    async with start_pair(qemu_path, tracking=RING) as pair:
        result = await migrate(pair, replace(SLOW, zero_page=None))
        assert result.totals.pages_absorbed is None
        assert result.totals.pages_memory >= pair.memory.size // 4096


async def test_a_second_migration_begins_with_all_pages(
    start_pair: StartPair, patched_qemu: Path
) -> None:
    """Whatever the first, which was cancelled, has absorbed."""
    async with start_pair(patched_qemu, tracking=RING) as pair:
        monitor = pair.source.monitor
        await commands.set_parameters(monitor, max_bandwidth=MIB)
        await commands.migrate(monitor, "exec:cat > /dev/null")

        async def absorbs() -> bool:
            ram = (await commands.query_migrate(monitor)).ram
            return ram is not None and bool(ram.x_absorbed_pages)

        async def is_over() -> bool:
            return not (await commands.query_migrate(monitor)).is_active

        await until(absorbs, "nothing is absorbed")
        await commands.migrate_cancel(monitor)
        await until(is_over, "it is not cancelled")
        result = await migrate(pair, SLOW)
        assert result.comparison is not None
        assert result.comparison.equal
        assert result.totals.pages_normal + result.totals.pages_zero >= result.totals.pages_memory
