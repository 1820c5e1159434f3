"""QEMUs that are wrong on purpose: the series, and a patch of `mutants` on top."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from qemu_ring.build import BuildOptions, build_qemu

__all__ = ["build_mutant"]

_MUTANTS = Path(__file__).with_name("mutants")
_SERIES = Path(__file__).resolve().parents[3] / "patches"


async def build_mutant(name: str) -> Path:
    """Build one, for QEMU 10.0, or find it in the cache; takes minutes the first time."""
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as folder:
        patches = Path(folder, "patches")
        shutil.copytree(_SERIES / "qemu-10.0", patches / "qemu-10.0")
        place = patches / "qemu-10.0" / "mutant"
        place.mkdir()
        shutil.copy(_MUTANTS / f"{name}.patch", place)
        with (patches / "qemu-10.0" / "series").open("a") as series:
            series.write(f"mutant/{name}.patch\n")
        return (await build_qemu(BuildOptions(patches=patches))).path
