"""A patched QEMU on a kernel that is told what to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.patched.shim import ShimmedQemu


@pytest.fixture
def shimmed_qemu(patched_qemu: Path, tmp_path: Path) -> ShimmedQemu:
    """It does what the real kernel does, until told otherwise."""
    return ShimmedQemu.make(patched_qemu, tmp_path)
