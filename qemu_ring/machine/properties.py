"""Properties of QEMU's KVM accelerator that are about dirty memory, by name; each is only here."""

from __future__ import annotations

from typing import Final

__all__ = ["FLUSH_POLICY", "MANUAL_PROTECT", "RING_SIZE", "TRACKING"]

RING_SIZE: Final = ("dirty-ring-size", "dirty-gfn-count")
"""Entries of a vCPU's dirty ring: QEMU's name, and that of the branch which it comes from."""
MANUAL_PROTECT: Final = "x-manual-dirty-log"
"""Of a patched QEMU: whether the bitmap's pages are protected by hand, in chunks."""
TRACKING: Final = frozenset({*RING_SIZE, MANUAL_PROTECT})
FLUSH_POLICY: Final = "memslot-flush"
"""Of a patched QEMU."""
