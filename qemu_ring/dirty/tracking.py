"""How KVM tells QEMU which pages a guest dirtied: a bitmap per memslot, or a ring per vCPU."""

from __future__ import annotations

from dataclasses import dataclass

from qemu_ring.errors import HostError, UsageError
from qemu_ring.machine import Accelerator, KvmCapabilities, QemuBinary
from qemu_ring.machine.properties import MANUAL_PROTECT

__all__ = ["Tracking"]

_NO_MANUAL_PROTECT = "bitmap:no-manual-protect"
_LEAST_ENTRIES = 1024
"""The least that QEMU's documentation asks for; KVM keeps up to 576 entries in reserve."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """The mode of dirty tracking of a KVM guest, fixed when the guest starts.

    Args:
        ring_entries: entries (one a dirty page) of each vCPU's dirty ring; None for
            the bitmap.
        manual_protect: for the bitmap: use KVM's manual dirty log protection, as QEMU
            does where KVM has it. Turning it off needs a patched QEMU; a slot that is
            added then starts clean, as it does on kernels before Linux 5.7.

    Raises:
        UsageError: no power of two, or too small.
    """

    ring_entries: int | None = None
    manual_protect: bool = True

    def __post_init__(self) -> None:
        size = self.ring_entries
        if size is None:
            return
        if size < 1 or size & (size - 1):
            raise UsageError(
                f"ring size {size} is no power of two", hint=f"try ring:{_power_above(size)}"
            )
        if size < _LEAST_ENTRIES:
            raise UsageError(
                f"ring size {size} is too small", hint=f"the least is ring:{_LEAST_ENTRIES}"
            )

    @classmethod
    def parse(cls, text: str) -> Tracking:
        """Read `bitmap`, `bitmap:no-manual-protect` or `ring:SIZE`, SIZE in entries.

        Raises:
            UsageError: it is none of them.
        """
        if text in ("bitmap", _NO_MANUAL_PROTECT):
            return cls(manual_protect=text == "bitmap")
        kind, _, size = text.partition(":")
        if kind != "ring" or not size.isdecimal():
            raise UsageError(
                f"no such tracking: {text}", hint="use bitmap, or ring:SIZE, such as ring:4096"
            )
        return cls(int(size))

    def __str__(self) -> str:
        if self.ring_entries is not None:
            return f"ring:{self.ring_entries}"
        return "bitmap" if self.manual_protect else _NO_MANUAL_PROTECT

    @property
    def is_ring(self) -> bool:
        """Whether it is the dirty ring."""
        return self.ring_entries is not None

    def require(self, kvm: KvmCapabilities) -> None:
        """Check that the host's KVM can do it.

        Raises:
            HostError: it has no dirty ring, or only smaller ones.
        """
        if self.ring_entries is None:
            return
        limit = kvm.dirty_ring_max_entries
        if limit == 0:
            raise HostError(
                "this host's KVM has no dirty ring",
                hint="it came with Linux 5.11; or track by bitmap",
            )
        if self.ring_entries > limit:
            raise HostError(
                f"ring size {self.ring_entries} is over this host's limit of {limit} entries",
                hint=f"use ring:{limit} or less",
            )

    def accelerator(self, binary: QemuBinary) -> Accelerator:
        """KVM with this tracking, in the words that this QEMU understands.

        Raises:
            QemuUnsuitableError: this QEMU has no KVM, or not what the mode takes.
        """
        binary.require_kvm()
        if self.ring_entries is None and not self.manual_protect:
            binary.require_flush_policies()
            return Accelerator("kvm", {MANUAL_PROTECT: False})
        if self.ring_entries is None:
            return Accelerator("kvm")
        return Accelerator("kvm", {binary.require_ring(): self.ring_entries})


def _power_above(size: int) -> int:
    """The power of two next above a size, and at least the least that QEMU takes."""
    return max(_LEAST_ENTRIES, 1 << max(size - 1, 1).bit_length())
