"""Tracking modes: what is read, refused, and asked of KVM and QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import HostError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Accelerator, KvmCapabilities, QemuBinary

KVM = KvmCapabilities(
    api_version=12,
    dirty_ring_max_bytes=65536 * 16,
    dirty_ring_with_bitmap=False,
    readonly_mem=True,
    manual_protect2=3,
    smm=False,
    nr_memslots=509,
    max_vcpus=64,
    tsc_khz=2_000_000,
)
QEMU = QemuBinary(
    path=Path("/usr/bin/qemu"),
    version="10.0.0",
    sha256="0" * 64,
    kvm=True,
    ring_property="dirty-ring-size",
    flush_policies=False,
    ivshmem=True,
    machines=frozenset({"pc", "q35"}),
)


def test_parse_and_print_are_inverse() -> None:
    for text in ("bitmap", "bitmap:no-manual-protect", "ring:1024", "ring:65536"):
        assert str(Tracking.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ring", "no such tracking: ring; use bitmap"),
        ("ring:", "no such tracking"),
        ("ring:-4096", "no such tracking"),
        ("ring:4k", "no such tracking"),
        ("Bitmap", "no such tracking"),
        ("ring:5000", "5000 is no power of two; try ring:8192"),
        ("ring:0", "0 is no power of two; try ring:1024"),
        ("ring:512", "too small; the least is ring:1024"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tracking.parse(text)


def test_ring_over_the_host_s_limit() -> None:
    Tracking(65536).require(KVM)
    with pytest.raises(HostError, match="131072 is over this host's limit of 65536 entries"):
        Tracking(131072).require(KVM)


def test_host_without_a_ring() -> None:
    without = replace(KVM, dirty_ring_max_bytes=0)
    Tracking().require(without)
    with pytest.raises(HostError, match=r"no dirty ring; .*track by bitmap"):
        Tracking(4096).require(without)


def test_accelerator_uses_the_property_this_qemu_has() -> None:
    older = replace(QEMU, ring_property="dirty-gfn-count")
    assert Tracking().accelerator(QEMU) == Accelerator("kvm")
    assert Tracking(4096).accelerator(QEMU) == Accelerator("kvm", {"dirty-ring-size": 4096})
    assert Tracking(4096).accelerator(older) == Accelerator("kvm", {"dirty-gfn-count": 4096})


def test_manual_protection_off_takes_a_patched_qemu() -> None:
    plain = Tracking(manual_protect=False)
    with pytest.raises(QemuUnsuitableError, match=r"not patched; .*qemu-ring build"):
        plain.accelerator(QEMU)
    accelerator = plain.accelerator(replace(QEMU, flush_policies=True))
    assert accelerator == Accelerator("kvm", {"x-manual-dirty-log": False})


def test_qemu_without_kvm_or_too_old() -> None:
    with pytest.raises(QemuUnsuitableError, match="built without KVM"):
        Tracking().accelerator(replace(QEMU, kvm=False))
    with pytest.raises(QemuUnsuitableError, match=r"too old for the dirty ring; .*6.1"):
        Tracking(4096).accelerator(replace(QEMU, ring_property=None))


def test_qemu_that_cannot_remove_slots() -> None:
    with pytest.raises(QemuUnsuitableError, match="no ivshmem-plain"):
        replace(QEMU, ivshmem=False).require_slot_removal("pc")
    with pytest.raises(QemuUnsuitableError, match="no machine type q35"):
        replace(QEMU, machines=frozenset({"pc"})).require_slot_removal("q35")
