"""KVM's memslots and dirty rings, as a patched QEMU tells of them."""

from __future__ import annotations

from qemu_ring.memslot.policy import require_patched
from qemu_ring.qmp import Monitor, QmpModel

__all__ = ["DirtyRing", "DirtyRings", "Memslot", "query_memslots", "query_rings"]


class Memslot(QmpModel):
    """A memslot: `size` bytes of guest-physical memory from `address` on.

    `as_id` is its address space (1 is x86's SMM), `offset` where in `ram_block` it begins.
    """

    as_id: int
    slot: int
    address: int
    size: int
    log_dirty: bool
    read_only: bool
    ram_block: str | None = None
    offset: int


class DirtyRing(QmpModel):
    """One vCPU's ring: entries that wait, entries reaped so far, times it was full.

    `overruns` counts the times that KVM pushed entries over ones that were not reaped; each
    time QEMU took all memory for dirty once.
    """

    cpu_index: int
    fill: int
    reaped: int
    full: int
    overruns: int = 0


class DirtyRings(QmpModel):
    """All rings, `size` entries each; 0 if dirty pages are tracked by bitmap.

    While they are `untrusted`, KVM does not take back entries that were reaped, and all memory
    counts as dirty.
    """

    size: int
    with_bitmap: bool
    untrusted: bool = False
    rings: tuple[DirtyRing, ...]


async def query_memslots(monitor: Monitor) -> list[Memslot]:
    """List the memslots of a guest on a patched QEMU.

    Raises:
        QemuUnsuitableError: it is not patched.
        QmpError: as in `Monitor.call`; CommandError if the guest does not use KVM.
    """
    await require_patched(monitor, "x-query-memslots")
    return await monitor.call("x-query-memslots", list[Memslot])


async def query_rings(monitor: Monitor) -> DirtyRings:
    """Tell the state of the dirty rings of a guest on a patched QEMU; reaps nothing.

    Raises:
        QemuUnsuitableError: it is not patched.
        QmpError: as in `Monitor.call`; CommandError if the guest does not use KVM.
    """
    await require_patched(monitor, "x-query-dirty-rings")
    return await monitor.call("x-query-dirty-rings", DirtyRings)
