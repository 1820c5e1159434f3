"""What a process has mapped of its KVM vCPUs: the only trace that an unpatched QEMU's ring leaves.

A vCPU's file descriptor has its `kvm_run` at offset 0 and, from the offset
KVM_DIRTY_LOG_PAGE_OFFSET (pages) on, its dirty ring (Documentation/virt/kvm/api.rst in Linux).
QEMU maps all of the ring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["mapped_ring_entries"]

_VCPU: Final = "anon_inode:kvm-vcpu"
_RING_OFFSET: Final = 64 * 4096
"""x86's KVM_DIRTY_LOG_PAGE_OFFSET, in bytes."""
_ENTRY_BYTES: Final = 16
"""Of a struct kvm_dirty_gfn."""


def mapped_ring_entries(
    thread_id: int, guest_memory: int, proc: Path = Path("/proc")
) -> int | None:
    """Entries of the dirty ring that a vCPU's process has mapped.

    Args:
        thread_id: a vCPU's thread.
        guest_memory: an address in the process at which it has guest memory mapped.
        proc: the proc file system.

    Returns:
        0 if it has none mapped, and None if that cannot be seen: the thread is not on this
        host, or another's than the guest's, or this user may not look at it.
    """
    try:
        lines = (proc / str(thread_id) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    is_the_guest = is_kvm = False
    entries = 0
    for line in lines:
        # address range, permissions, offset, device, inode, name
        where, _, offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in where.split("-"))
        is_the_guest |= start <= guest_memory < end
        if name and name[0].startswith(_VCPU):
            is_kvm = True
            if int(offset, 16) == _RING_OFFSET:
                entries = (end - start) // _ENTRY_BYTES
    return entries if is_the_guest and is_kvm else None
