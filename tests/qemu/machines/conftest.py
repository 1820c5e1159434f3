"""What the tests of real machines share: both QEMUs, empty disks, a short path."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.qemu.machines.qemus import make_images
from tests.qemu.machines.run import Binaries
from tests.shm import own_shm_folder

MIB = 1 << 20


@pytest.fixture
def binaries(qemu_path: Path, patched_qemu: Path) -> Binaries:
    return {"distribution": qemu_path, "patched": patched_qemu}


@pytest.fixture
async def images(qemu_path: Path) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as name:
        await make_images(qemu_path, Path(name), 4 * MIB)
        yield Path(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_shm_folder() as path:
        yield path
