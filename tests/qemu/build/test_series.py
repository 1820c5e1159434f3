"""The patches are ones that QEMU's maintainers could take."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qemu_ring.build.cache import Cache

pytestmark = pytest.mark.qemu

SERIES = Path(__file__).resolve().parents[3] / "patches" / "qemu-10.0"


def patches() -> list[str]:
    return (SERIES / "series").read_text().split()


def test_series_names_every_patch_in_order() -> None:
    assert patches() == sorted(path.name for path in SERIES.glob("*.patch"))


def test_checkpatch_has_nothing_to_say(patched_qemu: Path, tmp_path: Path) -> None:
    tarballs = sorted((Cache().root / "sources").glob("qemu_10.0.*.orig.tar.*"))
    if not tarballs:
        pytest.skip(f"{patched_qemu} was not built from a tarball, which has checkpatch.pl")
    unpack = ["tar", "-xf", str(tarballs[-1]), "--strip-components=2", "--wildcards"]
    subprocess.run([*unpack, "*/scripts/checkpatch.pl"], cwd=tmp_path, check=True, timeout=60)
    script = tmp_path / "checkpatch.pl"
    command = ["perl", str(script), "--no-tree", *(str(SERIES / name) for name in patches())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("total: ")]
    assert len(verdicts) == len(patches())
    for line in verdicts:
        assert line.startswith("total: 0 errors, 0 warnings"), done.stdout
