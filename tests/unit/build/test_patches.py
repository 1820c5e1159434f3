"""The patch series: order, identity, and where they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.build.patches import Patches
from qemu_ring.errors import HostError, UsageError


def write(directory: Path, series: str, version: str = "10.0", **patches: str) -> Path:
    place = directory / f"qemu-{version}"
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
    assert (first.series["10.0"].sha256 == second.series["10.0"].sha256) is same


def test_each_version_has_a_series_and_an_identity_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.patch\n", a="A")
    alone = Patches.load(tmp_path).series["10.0"]
    both = Patches.load(write(tmp_path, "a.patch\n", version="10.2", a="A"))
    assert both.for_version("10.0.13") == alone
    assert both.for_version("10.2.2").version == "10.2"
    assert both.for_version("10.2.2").sha256 != alone.sha256
    with pytest.raises(UsageError, match=r"QEMU 10\.1\.0, only for 10\.0\.x and 10\.2\.x"):
        both.for_version("10.1.0")


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


def test_shipped_series_are_the_same_patches() -> None:
    """A change of one is easily forgotten in the other; their names are their messages' titles."""
    names = [[patch.name for patch in series.patches] for series in Patches.load().series.values()]
    assert all(one == names[0] for one in names)


@pytest.mark.parametrize("version", ["10.0", "10.2"])
def test_shipped_series_is_whole(version: str) -> None:
    assert Patches.load().for_version(f"{version}.0").version == version
