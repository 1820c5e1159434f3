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


def test_part_that_a_series_lacks() -> None:
    series = Patches.load().series["7.2"]
    assert series.parts == ("fixes", "flush", "lab")
    with pytest.raises(UsageError, match=r"QEMU 7\.2 has no part ring") as caught:
        series.up_to("ring")
    assert caught.value.hint == "it has fixes, flush, lab"


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


def titles(version: str) -> list[str]:
    """Of a shipped series, less the numbers; a patch's name is its message's title."""
    series = Patches.load().series[version]
    return [f"{patch.parent.name}/{patch.name[5:]}" for patch in series.patches]


def test_shipped_series_are_the_same_patches() -> None:
    """A change of one is easily forgotten in the other."""
    assert titles("10.2") == titles("10.0")


def test_what_qemu_7_2_has_of_its_own_and_what_it_lacks() -> None:
    """patches/README.md tells why; what both have is in the same part and order."""
    old, new = titles("7.2"), titles("10.0")
    assert [title for title in old if title not in new] == [
        "flush/accel-kvm-a-way-to-keep-vCPUs-out-of-KVM_RUN.patch",
        "lab/memory-let-a-memory-region-s-ranges-be-kept-apart-fr.patch",
    ]
    assert {title for title in new if title not in old} <= {
        "fixes/migration-dirtyrate-do-not-unlock-the-list-of-vCPUs-.patch",
        "fixes/vhost-go-on-reading-the-log-after-it-was-resized.patch",
        "flush/tests-qtest-notice-a-page-that-is-lost-when-a-memslo.patch",
        "ring/accel-kvm-publish-dirty-ring-entries-when-KVM-has-re.patch",
        "ring/migration-with-a-dirty-ring-a-page-that-is-sent-is-n.patch",
        "ring/accel-kvm-let-the-dirty-rings-reaper-follow-what-the.patch",
        "lab/migration-count-the-pages-that-sending-has-absorbed.patch",
    }
    both = [title for title in new if title in old]
    assert both == [title for title in old if title in new]


@pytest.mark.parametrize("version", ["7.2", "10.0", "10.2"])
def test_shipped_series_is_whole(version: str) -> None:
    assert Patches.load().for_version(f"{version}.0").version == version
