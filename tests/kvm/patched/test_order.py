"""Entries are published after their pages are protected: the other order loses pages, this none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.patched.mutant import build_mutant
from tests.kvm.patched.order import loss
from tests.kvm.patched.shim import ShimmedQemu

pytestmark = [pytest.mark.ring, pytest.mark.busy_guest]

BUILD_SECONDS = 3600


async def test_none_is_lost_however_late_pages_are_protected(shimmed_qemu: ShimmedQemu) -> None:
    shimmed_qemu.begin("late-reset")
    found = await loss(shimmed_qemu.path)
    assert found.stale == 0
    assert found.absorbed
    assert found.written > 1000


@pytest.mark.full
@pytest.mark.timeout(BUILD_SECONDS)
async def test_some_are_lost_if_published_before(tmp_path: Path) -> None:
    """Or the test above could not tell one from the other."""
    qemu = ShimmedQemu.make(await build_mutant("publish-before-reset"), tmp_path, "late-reset")
    found = [await loss(qemu.path) for _ in range(3)]
    assert any(one.stale for one in found), found
