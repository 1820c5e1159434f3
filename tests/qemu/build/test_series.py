"""The patches are ones that QEMU's maintainers could take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qemu_ring.build.cache import Cache
from qemu_ring.build.patches import Patches, Series
from tests.qemu.build.series import check_style

pytestmark = pytest.mark.qemu

SERIES = list(Patches.load().series.values())

each_series = pytest.mark.parametrize("series", SERIES, ids=lambda series: series.version)


@each_series
def test_series_names_every_patch_in_order(series: Series) -> None:
    (directory,) = {patch.parent for patch in series.patches}
    assert list(series.patches) == sorted(directory.glob("*.patch"))


@each_series
def test_checkpatch_has_nothing_to_say(patched_qemu: Path, tmp_path: Path, series: Series) -> None:
    tarballs = sorted((Cache().root / "sources").glob("qemu_10.0.*.orig.tar.*"))
    if not tarballs:
        pytest.skip(f"{patched_qemu} was not built from a tarball, which has checkpatch.pl")
    extract = ["tar", "-xf", str(tarballs[-1]), "--strip-components=2", "--wildcards"]
    subprocess.run([*extract, "*/scripts/checkpatch.pl"], cwd=tmp_path, check=True, timeout=60)
    check_style(tmp_path / "checkpatch.pl", series)
