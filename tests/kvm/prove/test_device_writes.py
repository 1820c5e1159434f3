"""What a vhost-user back end writes, where `prove` does not look: memory side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.machine import Accelerator, probe_kvm
from qemu_ring.memslot import Layout, Window
from qemu_ring.prove.rounds import start_source
from qemu_ring.prove.stage import SLOT, WINDOWS, Plan

SIZE = 64 << 10
AT = WINDOWS[0].address


@pytest.mark.ring
async def test_sections_that_share_64_pages_are_told_apart(patched_qemu: Path) -> None:
    """QEMU reads the vhost log in chunks of 64 pages; the second section's are its own."""
    plan = Plan(
        vcpus=1,
        machine="pc",
        accelerator=Accelerator("kvm", {"dirty-ring-size": 4096}),
        tsc_hz=probe_kvm().tsc_khz * 1000,
        windows=True,
    )
    plan.spans[SLOT] = (AT, 2 * SIZE)  # where the back end walks
    first, second = (window.backend for window in WINDOWS)
    side_by_side = Layout((Window(AT, first, 0, SIZE), Window(AT + SIZE, second, 0, SIZE)))
    async with start_source(
        patched_qemu, plan, device_writes=True, memory_directory=None, log_directory=None
    ) as source:
        await source.device.map(side_by_side)
        outcome = await source.walk()
    assert outcome.writes == 2 * SIZE // 4096
    assert outcome.comparison.stale == ()
