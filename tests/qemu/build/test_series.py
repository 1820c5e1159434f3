"""The patches are ones that QEMU's maintainers could take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qemu_ring.build.cache import Cache
from qemu_ring.build.patches import PARTS, Patches, Series
from tests.qemu.build.series import check_style

pytestmark = pytest.mark.qemu

SERIES = list(Patches.load().series.values())

each_series = pytest.mark.parametrize("series", SERIES, ids=lambda series: series.version)


@each_series
def test_series_names_every_patch_in_order(series: Series) -> None:
    (directory,) = {patch.parents[1] for patch in series.patches}
    assert list(series.patches) == sorted(directory.glob("*/*.patch"), key=lambda path: path.name)


@each_series
def test_parts_stand_on_each_other(series: Series) -> None:
    """None reaches into the one before; QEMU 7.2 alone lacks one."""
    parts = [patch.parent.name for patch in series.patches]
    assert parts == sorted(parts, key=PARTS.index)
    assert set(PARTS) - set(series.parts) == ({"ring"} if series.version == "7.2" else set())
    for part in series.parts:
        upto = series.up_to(part)
        assert list(upto.patches) == list(series.patches[: len(upto.patches)])
        assert upto.patches[-1].parent.name == part
    assert len({series.up_to(part).sha256 for part in series.parts}) == len(series.parts)
    assert series.up_to(PARTS[-1]) == series


@each_series
def test_checkpatch_has_nothing_to_say(patched_qemu: Path, tmp_path: Path, series: Series) -> None:
    tarballs = sorted((Cache().root / "sources").glob("qemu_10.0.*.orig.tar.*"))
    if not tarballs:
        pytest.skip(f"{patched_qemu} was not built from a tarball, which has checkpatch.pl")
    extract = ["tar", "-xf", str(tarballs[-1]), "--strip-components=2", "--wildcards"]
    subprocess.run([*extract, "*/scripts/checkpatch.pl"], cwd=tmp_path, check=True, timeout=60)
    check_style(tmp_path / "checkpatch.pl", series)
