"""The chunks in which QEMU clears KVM's dirty bitmap are those that it was started with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.experiment.plan.migrations import clear_chunk_arguments
from qemu_ring.migration import Migration, MigrationPlan
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = pytest.mark.kvm

TRACE = ("-trace", "migration_bitmap_clear_dirty")
SIZE = re.compile(r"migration_bitmap_clear_dirty rb ram start 0x[0-9a-f]+ size 0x([0-9a-f]+)")


@pytest.mark.parametrize("patched", [False, True], ids=["distribution", "patched"])
@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
async def test_size(
    request: pytest.FixtureRequest,
    start_pair: StartPair,
    qemu_path: Path,
    size: int,
    patched: bool,
) -> None:
    binary = request.getfixturevalue("patched_qemu") if patched else qemu_path
    async with start_pair(binary, extra=(*clear_chunk_arguments(size), *TRACE)) as pair:
        plan = MigrationPlan()
        async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
            result = await migration.complete(timeout=DEADLINE)
        assert result.comparison is not None
        assert result.comparison.equal
        said = pair.source.text("output") + pair.source.text("log")
        assert {int(found, 16) for found in SIZE.findall(said)} == {size}
