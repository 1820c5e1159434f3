"""The patch series: order, identity, and where they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.build.patches import Patches
from qemu_ring.errors import HostError, UsageError


def write(directory: Path, series: str, **patches: str) -> Path:
    place = directory / "qemu-10.0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "series").write_text(series)
    for name, text in patches.items():
        (place / f"{name}.patch").write_text(text)
    return directory


def test_order_is_the_series_files(tmp_path: Path) -> None:
    write(tmp_path, "# first\n\nb.patch -p1 # why\n  a.patch\n", a="A", b="B", unused="C")
    series = Patches.load(tmp_path).for_version("10.0.13")
    assert [patch.name for patch in series.patches] == ["b.patch", "a.patch"]


@pytest.mark.parametrize(
    ("series", "patches", "same"),
    [
        ("a.patch\nb.patch\n", {"a": "A", "b": "B"}, True),
        ("# remark\na.patch\n\nb.patch\n", {"a": "A", "b": "B", "unused": ""}, True),
        ("b.patch\na.patch\n", {"a": "A", "b": "B"}, False),
        ("a.patch\n", {"a": "A", "b": "B"}, False),
        ("a.patch\nb.patch\n", {"a": "A", "b": "BB"}, False),
        ("a.patch\nb.patch\n", {"a": "AB", "b": ""}, False),
    ],
)
def test_identity(tmp_path: Path, series: str, patches: dict[str, str], same: bool) -> None:
    first = Patches.load(write(tmp_path / "1", "a.patch\nb.patch\n", a="A", b="B"))
    second = Patches.load(write(tmp_path / "2", series, **patches))
    assert (first.sha256 == second.sha256) is same


def test_patch_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"a\.patch: No such file"):
        Patches.load(write(tmp_path, "a.patch\n"))


def test_no_series_at_all(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no patch series"):
        Patches.load(tmp_path)


def test_no_series_for_a_version(tmp_path: Path) -> None:
    patches = Patches.load(write(tmp_path, ""))
    with pytest.raises(UsageError, match=r"QEMU 10\.2\.2, only for 10\.0\.x"):
        patches.for_version("10.2.2")


def test_shipped_series_is_whole() -> None:
    assert Patches.load().for_version("10.0.0").version == "10.0"
